//! The engines of a pool on a ring, of which each proxy has a part: see [`aperture`](crate::aperture).

use alloc::string::String;
use alloc::vec::Vec;

use headgate_protos::v1;

use crate::aperture::Extent;

/// Change of where an engine begins, as a part of the ring, that proxies must hear of at once.
const MOVED: f64 = 0.01;

/// Engines by address, each with where it lies; without gaps from 0 to 1.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ring(Vec<(String, Extent)>);

impl Ring {
    /// Lays engines out in the order of their addresses, each by its width: any measure of how fast it is. One without a width, or whose
    /// address another has, is left out.
    #[must_use]
    pub fn of(engines: impl IntoIterator<Item = (String, f64)>) -> Self {
        let mut engines: Vec<(String, f64)> = engines.into_iter().filter(|(_, width)| width.is_finite() && *width > 0.0).collect();
        engines.sort_by(|a, b| a.0.cmp(&b.0));
        engines.dedup_by(|a, b| a.0 == b.0);
        let sum: f64 = engines.iter().map(|(_, width)| width).sum();
        let mut at = 0.0;
        let place = |(address, width): (String, f64)| {
            let from = at;
            at += width / sum;
            (address, Extent { from, to: at })
        };
        Self(engines.into_iter().map(place).collect())
    }

    /// Puts the engines that lie in `part` of the ring into limits, in parts of that.
    pub fn write(&self, part: Extent, limits: &mut v1::OverloadLimits) {
        let scaled = |at: f64| (at - part.from) / part.width();
        let within: Vec<&(String, Extent)> = self.0.iter().filter(|(_, extent)| part.overlap(*extent) > 0.0).collect();
        limits.engines = within.iter().map(|(address, _)| address.clone()).collect();
        let ends = within.last().map(|(_, extent)| extent.to);
        limits.engine_bounds = within.iter().map(|(_, extent)| extent.from).chain(ends).map(scaled).collect();
    }

    /// Reads what [`Ring::write`] says of the whole.
    #[must_use]
    pub fn from_wire(limits: &v1::OverloadLimits) -> Self {
        Self::of(limits.engines.iter().cloned().zip(Extent::between(&limits.engine_bounds).map(Extent::width)))
    }

    /// Whether proxies must hear at once that it is `other` now.
    pub(super) fn has_moved(&self, other: &Self) -> bool {
        self.0.len() != other.0.len() || self.0.iter().zip(&other.0).any(|(a, b)| a.0 != b.0 || (a.1.from - b.1.from).abs() > MOVED)
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;

    fn ring() -> Ring {
        Ring::of(
            [("b", 1.0), ("a", 2.0), ("c", 1.0), ("none", 0.0), ("nan", f64::NAN), ("b", 5.0)].map(|(name, width)| (name.into(), width)),
        )
    }

    fn written(ring: &Ring, part: Extent) -> (Vec<String>, Vec<f64>) {
        let mut limits = v1::OverloadLimits::default();
        ring.write(part, &mut limits);
        (limits.engines, limits.engine_bounds)
    }

    #[test]
    fn engines_lie_by_address_and_are_as_wide_as_they_are_fast() {
        assert_eq!(written(&ring(), Extent::WHOLE), (vec!["a".into(), "b".into(), "c".into()], vec![0.0, 0.5, 0.75, 1.0]));
        let part = written(&ring(), Extent { from: 0.25, to: 0.75 });
        assert_eq!(part, (vec!["a".into(), "b".into()], vec![-0.5, 0.5, 1.0]), "what is shared reaches beyond");
        assert_eq!(written(&Ring::default(), Extent::WHOLE), (vec![], vec![]));
    }

    #[test]
    fn a_ring_that_is_passed_on_is_the_same_and_only_what_moves_is_told_at_once() {
        let mut limits = v1::OverloadLimits::default();
        ring().write(Extent::WHOLE, &mut limits);
        assert_eq!(Ring::from_wire(&limits), ring());
        let of = |width: f64| Ring::of([("a".into(), width), ("b".into(), 1.0)]);
        assert!(!of(1.0).has_moved(&of(1.02)) && of(1.0).has_moved(&of(1.1)));
        assert!(of(1.0).has_moved(&Ring::of([("a".into(), 1.0)])) && of(1.0).has_moved(&Ring::of([("a".into(), 1.0), ("c".into(), 1.0)])));
    }
}
