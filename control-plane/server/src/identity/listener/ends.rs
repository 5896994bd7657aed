//! How connections end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// How the connections of a listener have ended, and how many are open. All clones are one.
#[derive(Clone, Debug, Default)]
pub struct Ends(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    open: AtomicU64,
    by_age: AtomicU64,
    otherwise: AtomicU64,
}

/// One connection in the counts, until it is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    ends: Ends,
    /// When the peer is told to go; `None`: not by age.
    pub(super) told_at: Option<Instant>,
}

// === impl Ends ===

impl Ends {
    /// Connections that are open.
    pub fn open(&self) -> u64 {
        self.0.open.load(Ordering::Relaxed)
    }

    /// Connections that have ended, by why: at their age, so that another took their place, or for any other reason.
    pub fn by_cause(&self) -> [(&'static str, u64); 2] {
        [("age", self.0.by_age.load(Ordering::Relaxed)), ("other", self.0.otherwise.load(Ordering::Relaxed))]
    }

    pub(super) fn begin(&self) -> Counted {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        Counted { ends: self.clone(), told_at: None }
    }
}

// === impl Counted ===

impl Drop for Counted {
    fn drop(&mut self) {
        let counts = &self.ends.0;
        counts.open.fetch_sub(1, Ordering::Relaxed);
        let is_told = self.told_at.is_some_and(|at| at <= Instant::now());
        let ended = if is_told { &counts.by_age } else { &counts.otherwise };
        ended.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_was_told_to_go_has_gone_by_age_and_all_others_otherwise() {
        let ends = Ends::default();
        let now = Instant::now();
        for told_at in [None, Some(now + Duration::from_secs(3600)), Some(now)] {
            let mut counted = ends.begin();
            counted.told_at = told_at;
            assert_eq!(ends.open(), 1);
        }
        assert_eq!((ends.open(), ends.by_cause()), (0, [("age", 1), ("other", 2)]));
    }
}
