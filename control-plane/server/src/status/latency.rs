//! Latencies of a pool in the status document.

use std::collections::BTreeMap;

use headgate_core::fleet::{Completeness, PoolLatencies, RecentView, StreamView};
use headgate_core::histogram::Histogram;
use headgate_core::latency::Metric;
use serde::{Deserialize, Serialize};

/// Latencies of one pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyStatus {
    /// One entry a class and model.
    pub streams: Vec<LatencyStream>,
    /// Whether the totals have everything that was ever counted.
    pub complete: bool,
    /// What is missing when they have not.
    pub missing: MissingLatencies,
}

/// What the totals lack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingLatencies {
    /// Workers that have been silent for more than 2 s; what they counted since is missing until they speak.
    pub silent_workers: u64,
    /// Workers whose newest report could not be read; missing until one can.
    pub unread_workers: u64,
    /// Series of counters that ended without a last report, at most a second's worth each; missing for good.
    pub lost_series: u64,
}

/// Latencies of one class and model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyStream {
    /// Class.
    pub class: String,
    /// Model; empty: all that have no place of their own.
    pub model: String,
    /// By metric: `ttft`, `tpot`, `total`, `queue`, `upstream`; those without a sample are left out.
    pub metrics: BTreeMap<String, LatencyFigures>,
}

/// One metric of one class and model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyFigures {
    /// Samples since the control plane began.
    pub count: u64,
    /// Their sum, in milliseconds.
    pub sum_ms: f64,
    /// Samples of the last minute.
    pub recent_count: u64,
    /// Median of the last minute, in milliseconds; absent without samples.
    pub p50_ms: Option<f64>,
    /// 99th percentile of the last minute.
    pub p99_ms: Option<f64>,
    /// Moving average of the means of reports, the newest weighing 0.2.
    pub ewma_ms: Option<f64>,
}

impl From<PoolLatencies> for LatencyStatus {
    fn from(latencies: PoolLatencies) -> Self {
        let Completeness { silent_workers, unread_workers, lost_series } = latencies.completeness;
        Self {
            streams: latencies.streams.iter().map(LatencyStream::of).collect(),
            complete: latencies.completeness.is_complete(),
            missing: MissingLatencies { silent_workers, unread_workers, lost_series },
        }
    }
}

impl LatencyStream {
    fn of(view: &StreamView) -> Self {
        let metrics = Metric::ALL.iter().zip(&view.recent).map(|(metric, recent)| (metric, view.totals.of(*metric), recent));
        let counted = metrics.filter(|(_, totals, _)| totals.count() > 0);
        Self {
            class: view.class.clone(),
            model: view.model.clone(),
            metrics: counted.map(|(metric, totals, recent)| (metric.as_str().to_owned(), LatencyFigures::of(totals, recent))).collect(),
        }
    }
}

impl LatencyFigures {
    fn of(totals: &Histogram, recent: &RecentView) -> Self {
        let millis = |micros: u64| micros as f64 / 1000.0;
        Self {
            count: totals.count(),
            sum_ms: millis(totals.sum()),
            recent_count: recent.count,
            p50_ms: recent.p50_us.map(millis),
            p99_ms: recent.p99_us.map(millis),
            ewma_ms: recent.ewma_us.map(|micros| micros / 1000.0),
        }
    }
}
