//! Latencies of a pool in the status document.

use std::collections::BTreeMap;

use headgate_core::fleet::{Completeness, PoolLatencies, RecentView, StreamView, Tellers};
use headgate_core::histogram::Histogram;
use headgate_core::latency::Metric;
use serde::{Deserialize, Serialize};

/// Source of what the engines' own histograms tell.
const ENGINES: &str = "engines";

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
    /// Class; empty: all, where the engines tell.
    pub class: String,
    /// Model; empty: all that have no place of their own.
    pub model: String,
    /// Who tells: `filters`, `access_log`, both with a comma, or `engines`, whose own histograms stand in for what the others do not tell.
    #[serde(default)]
    pub source: String,
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

impl LatencyStatus {
    /// The latencies of a pool; what neither filters nor access logs have told in the last minute is the engines' own word, if they have any.
    pub fn of(latencies: &PoolLatencies, engines: Option<&StreamView>) -> Self {
        let Completeness { silent_workers, unread_workers, lost_series } = latencies.completeness;
        let is_told = |metric: &str| {
            let told =
                |stream: &StreamView| Metric::ALL.iter().zip(&stream.recent).any(|(of, recent)| of.as_str() == metric && recent.count > 0);
            latencies.streams.iter().any(told)
        };
        let mut streams: Vec<LatencyStream> = latencies.streams.iter().map(LatencyStream::of).collect();
        if let Some(mut by_engines) = engines.map(LatencyStream::of) {
            by_engines.metrics.retain(|metric, _| !is_told(metric));
            streams.extend(Some(by_engines).filter(|stream| !stream.metrics.is_empty()));
        }
        let missing = MissingLatencies { silent_workers, unread_workers, lost_series };
        Self { streams, complete: latencies.completeness.is_complete(), missing }
    }
}

impl LatencyStream {
    /// Whether the engines tell it.
    pub fn is_engines(&self) -> bool {
        self.source == ENGINES
    }

    fn of(view: &StreamView) -> Self {
        let metrics = Metric::ALL.iter().zip(&view.recent).map(|(metric, recent)| (metric, view.totals.of(*metric), recent));
        let counted = metrics.filter(|(_, totals, _)| totals.count() > 0);
        Self {
            class: view.class.clone(),
            model: view.model.clone(),
            source: source(view.tellers),
            metrics: counted.map(|(metric, totals, recent)| (metric.as_str().to_owned(), LatencyFigures::of(totals, recent))).collect(),
        }
    }
}

fn source(tellers: Tellers) -> String {
    let names = [(tellers.filters, "filters"), (tellers.access_logs, "access_log"), (tellers.engines, ENGINES)];
    names.into_iter().filter_map(|(tells, name)| tells.then_some(name)).collect::<Vec<_>>().join(",")
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

#[cfg(test)]
mod tests {
    use headgate_core::fleet::StreamBook;
    use headgate_core::latency::Latencies;
    use headgate_core::time::Timestamp;

    use super::*;

    fn engines(now: Timestamp) -> StreamView {
        let (mut book, mut latencies) = (StreamBook::of_engines(), Latencies::new());
        for metric in [Metric::Ttft, Metric::Tpot] {
            latencies.record_many(metric, 40_000, 20);
        }
        book.add(now, &latencies);
        book.view(now)
    }

    #[test]
    fn engines_tell_what_nobody_else_has_told_in_the_last_minute_and_each_says_who_it_is() {
        let (start, later) = (Timestamp::from_millis(1000), Timestamp::from_millis(120_000));
        let mut told = StreamView { class: "high".to_owned(), ..StreamView::default() };
        told.tellers = Tellers { filters: true, access_logs: true, engines: false };
        told.totals.record(Metric::Ttft, 9000);
        told.recent[0].count = 1;
        let mut pool = PoolLatencies { streams: vec![told], ..PoolLatencies::default() };
        let of = |pool: &PoolLatencies, now| {
            let streams = LatencyStatus::of(pool, Some(&engines(now))).streams;
            streams.into_iter().map(|stream| (stream.source, stream.metrics.into_keys().collect::<Vec<_>>().join(" "))).collect::<Vec<_>>()
        };
        let row = |source: &str, metrics: &str| (source.to_owned(), metrics.to_owned());
        assert_eq!(of(&pool, start), [row("filters,access_log", "ttft"), row("engines", "tpot")]);
        pool.streams[0].recent[0].count = 0;
        assert_eq!(of(&pool, later), [row("filters,access_log", "ttft"), row("engines", "tpot ttft")], "what was told is long ago");
        pool.streams[0].recent.iter_mut().for_each(|recent| recent.count = 1);
        assert_eq!(of(&pool, start).len(), 1, "nothing is left for them to tell");
    }
}
