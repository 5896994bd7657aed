//! Water-filling: who gets how much of what there is, when all together want more.

use alloc::vec::Vec;

use super::{CLASSES, PerClass};

/// The level up to which wants are met so that what is given sums to `total`, `Σ min(want, level) = total`; infinite when there is enough
/// for all. Wants are not negative.
pub(super) fn level(wants: impl Iterator<Item = f64>, total: f64) -> f64 {
    let mut wants: Vec<f64> = wants.filter(|want| *want > 0.0).collect();
    wants.sort_by(f64::total_cmp);
    let (mut left, mut count) = (total.max(0.0), wants.len());
    for want in wants {
        let even = left / count as f64;
        if want > even {
            return even;
        }
        left -= want;
        count -= 1;
    }
    f64::INFINITY
}

/// What each class gets of `total`: first what it wants of its floor, then, the most important first, what it wants of the rest. Floors are
/// amounts.
pub(super) fn classes(wants: &PerClass, floors: &PerClass, total: f64) -> PerClass {
    let mut given = [0.0; CLASSES];
    let mut left = total.max(0.0);
    for ((given, want), floor) in given.iter_mut().zip(wants).zip(floors) {
        *given = want.min(*floor).min(left);
        left -= *given;
    }
    for (given, want) in given.iter_mut().zip(wants) {
        let more = (want - *given).clamp(0.0, left.max(0.0));
        *given += more;
        left -= more;
    }
    given
}
