//! Latencies of one policy in one worker: who counts where, and when they are reported.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::time::Duration;

use headgate_protos::v1;

use super::{ClassState, Pool};
use crate::latency::{ClassLatencies, Metric, Models, Place};
use crate::policy::Policy;
use crate::time::Timestamp;

/// Time between two reports of latencies. They are thousands of numbers and change little in the tenth of a second after which a worker
/// reports the rest; people and slow loops read them.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// The models of a pool, and what is remembered for reports.
#[derive(Debug, Default)]
pub(crate) struct LatencyBook {
    pub(crate) models: Models,
    reported_at: Cell<Option<Timestamp>>,
    series_made: u64,
}

/// The latencies of one class, and the number of that counting among all of the VM.
#[derive(Debug, Default)]
pub(crate) struct ClassSeries {
    series: u64,
    latencies: ClassLatencies,
}

impl LatencyBook {
    /// A counting that is told from every other of this VM. `pool` is the pool's own number.
    pub(crate) fn new_series(&mut self, pool: u64) -> ClassSeries {
        self.series_made += 1;
        // A pool that had 65,536 lists of classes in its life is not to be expected; its numbers would meet those of another pool.
        ClassSeries { series: (pool << 16) | (self.series_made & 0xffff), latencies: ClassLatencies::default() }
    }
}

impl Pool {
    /// Where a request for `model` counts.
    #[inline]
    pub(crate) fn seat(&mut self, model: Option<&[u8]>) -> Place {
        let seated = self.latency.models.seat(model);
        if let Some(vacated) = seated.vacated {
            self.vacate(vacated);
        }
        seated.place
    }

    /// The models that the policy names have a place of their own.
    pub(crate) fn seat_named_models(&mut self) {
        let policy: Arc<Policy> = Arc::clone(&self.policy);
        let named = policy.classification().caps.iter().filter_map(|cap| cap.model.as_deref());
        for vacated in self.latency.models.set_named(named) {
            self.vacate(vacated);
        }
    }

    /// Counts latencies of a request of the class whose state is at `state`.
    pub(crate) fn record_latencies(&mut self, state: usize, place: Place, samples: &[(Metric, u64)]) {
        let Some(ClassState { series, .. }) = self.states.get_mut(state) else { return };
        series.latencies.record(&self.latency.models, place, samples);
    }

    /// All latencies, when it is time to report them.
    pub(crate) fn report_latencies(&self, now: Timestamp) -> Option<v1::LatencyReport> {
        if self.latency.reported_at.get().is_some_and(|at| now.since(at) < REPORT_EVERY) {
            return None;
        }
        self.latency.reported_at.set(Some(now));
        let of_class = |state: &ClassState| -> Vec<v1::LatencyStream> {
            let ClassSeries { series, latencies } = &state.series;
            latencies.report(&state.name, *series, &self.latency.models).collect()
        };
        let streams: Vec<_> = self.class_states().flat_map(of_class).collect();
        if streams.is_empty() { None } else { Some(v1::LatencyReport { streams }) }
    }

    #[cold]
    fn vacate(&mut self, place: Place) {
        self.states.iter_mut().for_each(|state| state.series.latencies.vacate(place));
    }
}
