//! How long things took, written down when they happen and counted later.
//!
//! What one request took goes into six histograms, each somewhere else in memory, by code that no decision needs. Counted one by one, all
//! of that is fetched anew for every request; counted many at a time, once for all of them.

use super::Pool;
use crate::latency::{Metric, Place};

/// Samples that are written down before they are counted: two for a request.
const CAPACITY: usize = 64;

/// What a sample is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Milestone {
    /// The first token of a response came; its time in the queue is the second one.
    #[default]
    FirstToken,
    /// A good response ended; the time since its admission is the second one.
    Served,
}

/// How long something of one request took, in nanoseconds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    /// Position of the class's state in the pool.
    pub(crate) state: usize,
    /// Where its latencies count.
    pub(crate) place: Place,
    pub(crate) milestone: Milestone,
    pub(crate) since_arrival_ns: u64,
    /// What the milestone says.
    pub(crate) second_ns: u64,
}

/// Samples that are not counted yet.
#[derive(Debug)]
pub(crate) struct Journal {
    samples: [Sample; CAPACITY],
    len: usize,
}

impl Default for Journal {
    fn default() -> Self {
        Self { samples: [Sample::default(); CAPACITY], len: 0 }
    }
}

impl Pool {
    /// Writes a sample down.
    #[inline]
    pub(crate) fn note(&mut self, sample: Sample) {
        if self.journal.len >= CAPACITY {
            self.count_noted();
        }
        if let Some(slot) = self.journal.samples.get_mut(self.journal.len) {
            *slot = sample;
            self.journal.len += 1;
        }
    }

    /// Counts what was written down: before anybody reads a histogram, and before a state goes to another class.
    #[inline(never)]
    pub(crate) fn count_noted(&mut self) {
        for at in 0..core::mem::take(&mut self.journal.len) {
            if let Some(sample) = self.journal.samples.get(at).copied() {
                self.count_sample(sample);
            }
        }
    }

    fn count_sample(&mut self, sample: Sample) {
        let Sample { state, place, milestone, since_arrival_ns, second_ns } = sample;
        let (since_arrival_us, second_us) = (since_arrival_ns / 1000, second_ns / 1000);
        match milestone {
            Milestone::FirstToken => {
                if let Some(of_class) = self.states.get_mut(state) {
                    of_class.ttft_us.record(since_arrival_us);
                    self.ttft_us.record(since_arrival_us);
                }
                self.record_latencies(state, place, &[(Metric::Ttft, since_arrival_us), (Metric::Queue, second_us)]);
            }
            Milestone::Served => {
                self.record_latencies(state, place, &[(Metric::Total, since_arrival_us), (Metric::Upstream, second_us)]);
            }
        }
    }
}
