//! What the workers say of a pool's work, and what its engines say of themselves.

use core::time::Duration;

use headgate_protos::v1;
use thiserror::Error;

use super::fit::FitSums;
use super::level::{OfferedError, OfferedLevels};
use super::work::Work;
use crate::histogram::{Histogram, HistogramDelta, HistogramError};
use crate::time::Timestamp;

/// Work of one pool as its workers count it. What is not called a gauge is cumulative within one series; flows of many workers add up.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Flow {
    /// Gauge: work in flight, as reserved.
    pub in_flight: Work,
    /// Work admitted.
    pub admitted: Work,
    /// Work that is over: prefill at the first token, the rest at the end.
    pub finished: Work,
    /// Work tokens offered by level.
    pub offered: OfferedLevels,
    /// Gauge: requests in the queue.
    pub queued_requests: u64,
    /// Gauge: work tokens in the queue.
    pub queued_work: u64,
    /// Gauge: how long the longest waits.
    pub oldest_wait: Duration,
    /// Time in the queue of released requests, in microseconds.
    pub queue_wait_us: Histogram,
    /// Time from admission to the first token, in microseconds.
    pub service_ttft_us: Histogram,
    /// Mean time between tokens of each response, in microseconds.
    pub tpot_us: Histogram,
    /// Time from admission to the first token, in microseconds, over the prompt's tokens.
    pub ttft_fit: FitSums,
    /// Tokens of output.
    pub output_tokens: u64,
    /// Responses behind `output_tokens`.
    pub responses: u64,
    /// Requests that carried an attempt number above one.
    pub retries: u64,
    /// Requests that arrived.
    pub offered_requests: u64,
    /// Work tokens of requests that ended within their objectives.
    pub good_work: u64,
    /// Responses of the engine itself that refused for overload.
    pub engine_refusals: u64,
    /// Admitted requests that failed.
    pub failed: u64,
}

/// Why a report was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FlowError {
    /// Its offered levels.
    #[error("overload.{0}")]
    Offered(#[from] OfferedError),
    /// One of its histograms.
    #[error("overload: {0}")]
    Histogram(#[from] HistogramError),
}

/// One reading of all engines of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct EngineSample {
    /// When it was read.
    pub at: Timestamp,
    /// Number of the reading; grows.
    pub epoch: u64,
    /// Tokens in the KV caches.
    pub kv_used_tokens: u64,
    /// Tokens that the KV caches can hold; 0: unknown.
    pub kv_total_tokens: u64,
    /// Use of the fullest engine's KV cache, 0 to 1.
    pub kv_fullest: f64,
    /// Requests that the engines work on.
    pub running: u64,
    /// Requests in the engines' own queues.
    pub waiting: u64,
    /// Preemptions, cumulative.
    pub preemptions: u64,
    /// Tokens of output that the engines have made, cumulative; 0: unknown.
    pub output_tokens: u64,
    /// Engines that were read.
    pub engines: u32,
    /// Time between tokens of the slowest engine over that of all ([`Paces::slowest`](super::Paces::slowest)); up to 1: none is slower, or
    /// nobody knows.
    pub slowest: f64,
    /// 95th percentile of the time between tokens over the last seconds, as the engines' own histograms tell it; `None`: they do not.
    pub tpot_p95: Option<Duration>,
}

/// Signals of one pool for one step of the controller.
#[derive(Debug, Clone)]
pub struct OverloadSignals<'a> {
    /// Identity of the series of the flow's counters. A new one says that they may have started from zero.
    pub series: u64,
    /// Work over all workers.
    pub flow: &'a Flow,
    /// Newest reading of the engines; `None` when nobody reads them or the reading is stale.
    pub engine: Option<EngineSample>,
    /// Largest `value / threshold` of the enabled levels of the three-level limiter; 0 without.
    pub level_pressure: f64,
}

impl Flow {
    /// Adds another worker's flow.
    pub fn add(&mut self, other: &Self) {
        self.in_flight = self.in_flight.plus(other.in_flight);
        self.admitted = self.admitted.plus(other.admitted);
        self.finished = self.finished.plus(other.finished);
        self.offered.merge(&other.offered);
        self.queue_wait_us.merge(&other.queue_wait_us);
        self.service_ttft_us.merge(&other.service_ttft_us);
        self.tpot_us.merge(&other.tpot_us);
        self.ttft_fit.add(&other.ttft_fit);
        self.oldest_wait = self.oldest_wait.max(other.oldest_wait);
        for (sum, part) in self.counts_mut().into_iter().zip(other.counts()) {
            *sum = sum.saturating_add(part);
        }
    }

    /// Adds samples to the histograms, which are in the order of [`histograms_of`](Self::histograms_of).
    pub fn add_samples(&mut self, [queue_wait_us, service_ttft_us, tpot_us]: &[HistogramDelta; 3]) {
        self.queue_wait_us.add_delta(queue_wait_us);
        self.service_ttft_us.add_delta(service_ttft_us);
        self.tpot_us.add_delta(tpot_us);
    }

    /// Reads a worker's report. `offered_requests` and `failed` are not in it: [`with_classes`](Self::with_classes) adds them.
    ///
    /// # Errors
    /// [`FlowError`] when a histogram or the offered levels are malformed; numbers that are not finite count as none.
    pub fn from_wire(report: &v1::OverloadReport) -> Result<Self, FlowError> {
        let histogram = |wire: Option<&v1::Histogram>| wire.map_or(Ok(Histogram::new()), Histogram::from_wire);
        let [queue_wait_us, service_ttft_us, tpot_us] = Self::histograms_of(report).map(histogram);
        Ok(Self { queue_wait_us: queue_wait_us?, service_ttft_us: service_ttft_us?, tpot_us: tpot_us?, ..Self::counts_from_wire(report)? })
    }

    /// The histograms of a report: wait in the queue, time from admission to the first token, time between tokens.
    #[must_use]
    pub fn histograms_of(report: &v1::OverloadReport) -> [Option<&v1::Histogram>; 3] {
        let queue_wait_us = report.queue.as_ref().and_then(|queue| queue.wait_us.as_ref());
        [queue_wait_us, report.service_ttft_us.as_ref(), report.tpot_us.as_ref()]
    }

    /// Reads everything but the histograms, which stay empty: see [`from_wire`](Self::from_wire).
    ///
    /// # Errors
    /// [`FlowError`] when the offered levels are malformed.
    pub fn counts_from_wire(report: &v1::OverloadReport) -> Result<Self, FlowError> {
        let queue = report.queue.as_ref();
        Ok(Self {
            in_flight: Work::from_wire(report.in_flight.as_ref()),
            admitted: Work::from_wire(report.admitted.as_ref()),
            finished: Work::from_wire(report.finished.as_ref()),
            offered: OfferedLevels::from_wire(report)?,
            queued_requests: queue.map_or(0, |queue| u64::from(queue.requests)),
            queued_work: queue.map_or(0, |queue| queue.work),
            oldest_wait: Duration::from_millis(queue.map_or(0, |queue| u64::from(queue.oldest_ms))),
            queue_wait_us: Histogram::new(),
            service_ttft_us: Histogram::new(),
            tpot_us: Histogram::new(),
            ttft_fit: FitSums::from_wire(report.ttft_fit.as_ref()),
            output_tokens: report.output_tokens,
            responses: report.responses,
            retries: report.retries,
            offered_requests: 0,
            good_work: report.good_work,
            engine_refusals: report.engine_refusals,
            failed: 0,
        })
    }

    /// Counts the requests of the same worker's classes.
    #[must_use]
    pub fn with_classes(mut self, classes: &[v1::ClassReport]) -> Self {
        for class in classes {
            self.offered_requests = self.offered_requests.saturating_add(class.offered);
            self.failed = self.failed.saturating_add(class.failed);
        }
        self
    }

    fn counts(&self) -> [u64; 9] {
        [
            self.queued_requests,
            self.queued_work,
            self.output_tokens,
            self.responses,
            self.retries,
            self.offered_requests,
            self.good_work,
            self.engine_refusals,
            self.failed,
        ]
    }

    fn counts_mut(&mut self) -> [&mut u64; 9] {
        [
            &mut self.queued_requests,
            &mut self.queued_work,
            &mut self.output_tokens,
            &mut self.responses,
            &mut self.retries,
            &mut self.offered_requests,
            &mut self.good_work,
            &mut self.engine_refusals,
            &mut self.failed,
        ]
    }
}
