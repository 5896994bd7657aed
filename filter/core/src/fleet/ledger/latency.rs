//! Latencies in the books: what the histograms of workers add to those of pool, class and model, and whether anything is missing.
//!
//! A worker's report holds all that it has counted, so the books are exact as of the newest report of each worker, whatever was lost,
//! repeated or late. Missing is what no report tells: what a worker counted between its last report and its end. The books say so
//! ([`Completeness`]) and never guess.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use headgate_protos::v1;

use super::node::{MAX_CLASSES, Node};
use super::{Ledger, PoolBook};
use crate::estimator::{Ewma, SlidingHistogram};
use crate::histogram::HistogramError;
use crate::latency::{Latencies, LatenciesDelta, MAX_MODEL_BYTES, MAX_STREAMS, Metric};
use crate::time::Timestamp;

#[cfg(test)]
mod tests;

/// Models of one pool that are told apart over the fleet; samples of further ones count as "other".
pub const MAX_MODELS: usize = 32;
/// Window of the percentiles.
pub const LATENCY_WINDOW: Duration = Duration::from_secs(60);
/// Slices of that window.
const SLICES: u32 = 6;
/// Longest gap between two latency reports of a worker whose difference still belongs to the newest slice.
const RECENT: Duration = Duration::from_secs(10);

/// What a worker said last of one policy's latencies.
#[derive(Clone, Default)]
pub(super) struct LatencyAccount {
    streams: Vec<v1::LatencyStream>,
    at_ns: u64,
    /// The newest report could not be read.
    is_behind: bool,
}

/// What a report adds.
#[derive(Default)]
pub(super) struct LatencyDelta {
    /// Class, model and what came.
    added: Vec<(String, String, LatenciesDelta)>,
    /// Series that ended: what they counted last is not known.
    ended: u64,
    is_recent: bool,
}

/// The latencies of one pool.
#[derive(Default)]
pub(super) struct LatencyBook {
    streams: Vec<StreamBook>,
    /// Series of which the end is not known.
    lost: u64,
}

/// Latencies of one class and model, as they are booked.
#[derive(Clone, Debug)]
pub struct StreamBook {
    class: String,
    model: String,
    tellers: Tellers,
    totals: Latencies,
    metrics: [MetricBook; Metric::ALL.len()],
}

#[derive(Clone, Debug)]
struct MetricBook {
    window: SlidingHistogram,
    mean: Ewma,
}

/// Who has told latencies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tellers {
    /// Filters, in their reports.
    pub filters: bool,
    /// Access logs.
    pub access_logs: bool,
    /// The engines' own histograms.
    pub engines: bool,
}

/// Latencies of one class and model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StreamView {
    /// Class.
    pub class: String,
    /// Model; empty for all that have no place of their own.
    pub model: String,
    /// Who has told them.
    pub tellers: Tellers,
    /// All samples since this program began.
    pub totals: Latencies,
    /// Those of the last minute, in the order of [`Metric::ALL`].
    pub recent: [RecentView; Metric::ALL.len()],
}

/// One metric over the last minute, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RecentView {
    /// Samples.
    pub count: u64,
    /// Average of the means of reports, the newest weighing 0.2; `None` before the first.
    pub ewma_us: Option<f64>,
    /// Median; `None` without samples. Within 1/256.
    pub p50_us: Option<u64>,
    /// 99th percentile.
    pub p99_us: Option<u64>,
}

/// Whether the totals have everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Completeness {
    /// Workers that have been silent for more than 2 s: what they counted since is missing until they speak.
    pub silent_workers: u64,
    /// Workers whose newest latency report could not be read: missing until one can.
    pub unread_workers: u64,
    /// Series of counters that have ended without a last report, at most a second's worth each: missing for good.
    pub lost_series: u64,
}

/// The latencies of one pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolLatencies {
    /// One entry a class and model.
    pub streams: Vec<StreamView>,
    /// Whether they have everything.
    pub completeness: Completeness,
}

impl Completeness {
    /// Nothing is missing.
    #[must_use]
    pub const fn is_complete(self) -> bool {
        self.silent_workers == 0 && self.unread_workers == 0 && self.lost_series == 0
    }
}

impl LatencyAccount {
    /// Brings the account up to a report at `at_ns`; what that adds. A report without latencies changes nothing; one that cannot be read is
    /// left out, and the next one counts from before it.
    pub(super) fn follow(known: &mut Option<Self>, at_ns: u64, report: Option<&v1::LatencyReport>) -> LatencyDelta {
        let Some(report) = report else { return LatencyDelta::default() };
        let before = known.as_ref();
        let old = before.map_or(&[][..], |account| &account.streams);
        let new: Vec<v1::LatencyStream> = report.streams.iter().take(MAX_CLASSES * MAX_STREAMS).map(bounded).collect();
        let Ok(added) = added(&new, old) else {
            known.get_or_insert_default().is_behind = true;
            return LatencyDelta::default();
        };
        let is_recent = before.is_none_or(|account| Duration::from_nanos(at_ns.saturating_sub(account.at_ns)) <= RECENT);
        let delta = LatencyDelta { added, ended: ended(&new, old), is_recent };
        *known = Some(Self { streams: new, at_ns, is_behind: false });
        delta
    }

    pub(super) const fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Series that have begun, each of which would be lost with the worker.
    pub(super) fn series(&self) -> u64 {
        ended(&[], &self.streams)
    }
}

impl LatencyDelta {
    /// Nothing but that something is missing: what the report holds may be in the books already.
    pub(super) fn into_missing(self) -> Self {
        Self { ended: u64::from(!self.added.is_empty()), ..Self::default() }
    }
}

impl LatencyBook {
    /// Books what a report adds. A worker of a proxy that was away says nothing about the last minute.
    pub(super) fn add(&mut self, now: Timestamp, delta: &LatencyDelta, is_recent: bool) {
        self.lost = self.lost.saturating_add(delta.ended);
        for (class, model, latencies) in delta.added.iter().filter(|(_, _, latencies)| latencies.count() > 0) {
            self.book(class, model, |stream| {
                stream.tellers.filters = true;
                stream.totals.add(latencies);
                if is_recent && delta.is_recent {
                    stream.observe(now, latencies);
                }
            });
        }
    }

    /// Series have ended without a last report.
    pub(super) fn lose(&mut self, series: u64) {
        self.lost = self.lost.saturating_add(series);
    }

    /// Books samples of a class and model; of a model too many they are "other".
    fn book(&mut self, class: &str, model: &str, book: impl FnOnce(&mut StreamBook)) {
        let is_known = self.streams.iter().any(|stream| stream.class == class && stream.model == model);
        let models = self.streams.iter().filter(|stream| stream.class == class && !stream.model.is_empty()).count();
        let model = if models >= MAX_MODELS && !is_known { "" } else { model };
        match self.streams.iter_mut().find(|stream| stream.class == class && stream.model == model) {
            Some(stream) => book(stream),
            None => {
                let mut stream = StreamBook::new(class, model);
                book(&mut stream);
                self.streams.push(stream);
            }
        }
    }
}

impl StreamBook {
    /// An empty book of what a pool's engines tell of themselves: of all classes and models.
    #[must_use]
    pub fn of_engines() -> Self {
        Self { tellers: Tellers { engines: true, ..Tellers::default() }, ..Self::new("", "") }
    }

    /// Books samples that came now.
    pub fn add(&mut self, now: Timestamp, latencies: &Latencies) {
        self.totals.merge(latencies);
        self.observe(now, &latencies.into());
    }

    fn new(class: &str, model: &str) -> Self {
        let metric = |_| MetricBook { window: SlidingHistogram::new(LATENCY_WINDOW, SLICES), mean: Ewma::default() };
        let (class, model) = (class.to_owned(), model.to_owned());
        Self { class, model, tellers: Tellers::default(), totals: Latencies::new(), metrics: Metric::ALL.map(metric) }
    }

    fn observe(&mut self, now: Timestamp, latencies: &LatenciesDelta) {
        for (book, samples) in self.metrics.iter_mut().zip(latencies.metrics()) {
            if let Some(mean) = samples.mean() {
                book.window.add(now, samples);
                book.mean.observe(mean);
            }
        }
    }

    /// What it holds.
    #[must_use]
    pub fn view(&self, now: Timestamp) -> StreamView {
        let mut recent = [RecentView::default(); Metric::ALL.len()];
        for (view, book) in recent.iter_mut().zip(&self.metrics) {
            let window = book.window.window(now);
            *view = RecentView {
                count: window.count(),
                ewma_us: book.mean.value(),
                p50_us: window.quantile(0.5),
                p99_us: window.quantile(0.99),
            };
        }
        let (class, model, totals) = (self.class.clone(), self.model.clone(), self.totals.clone());
        StreamView { class, model, tellers: self.tellers, totals, recent }
    }
}

impl Ledger {
    /// The latencies of one pool; empty for a pool that nobody keeps books of.
    #[must_use]
    pub fn latencies(&self, now: Timestamp, pool: &str) -> PoolLatencies {
        let Some(book) = self.pools.get(pool) else { return PoolLatencies::default() };
        let streams = book.latency.streams.iter().map(|stream| stream.view(now)).collect();
        let mut completeness = Completeness { lost_series: book.latency.lost, ..Completeness::default() };
        for (is_silent, is_behind) in self.nodes.values().flat_map(|node| node.gaps(now, pool)) {
            completeness.silent_workers += u64::from(is_silent);
            completeness.unread_workers += u64::from(is_behind);
        }
        PoolLatencies { streams, completeness }
    }

    /// Books one request that an access log has told; false when nobody keeps books of the class.
    pub fn record_latencies(&mut self, now: Timestamp, pool: &str, class: &str, model: &str, samples: &[(Metric, u64)]) -> bool {
        let Some(book) = self.pools.get_mut(pool).filter(|book| book.has_class(class)) else { return false };
        let mut latencies = Latencies::new();
        samples.iter().for_each(|(metric, micros)| latencies.record(*metric, *micros));
        let model = if model.len() > MAX_MODEL_BYTES { "" } else { model };
        book.latency.book(class, model, |stream| {
            stream.tellers.access_logs = true;
            stream.add(now, &latencies);
        });
        true
    }

    /// Whether the filter of this proxy reports `pool`.
    #[must_use]
    pub fn is_reported(&self, node_id: &str, pool: &str) -> bool {
        self.nodes.get(node_id).is_some_and(|node| node.reports(pool))
    }
}

impl PoolBook {
    fn has_class(&self, class: &str) -> bool {
        self.classes.iter().any(|book| book.name == class)
    }

    /// Books the latencies of a report, of classes that the policy has.
    pub(super) fn add_latencies(&mut self, now: Timestamp, delta: &mut LatencyDelta, is_recent: bool) {
        delta.added.retain(|(class, _, _)| self.has_class(class));
        self.latency.add(now, delta, is_recent);
    }
}

/// A name that is too long stands for no model.
fn bounded(stream: &v1::LatencyStream) -> v1::LatencyStream {
    let mut stream = stream.clone();
    if stream.model.len() > MAX_MODEL_BYTES {
        stream.model.clear();
    }
    stream
}

fn is_same_series(a: &v1::LatencyStream, b: &v1::LatencyStream) -> bool {
    a.series == b.series && a.class == b.class
}

/// What is in `new` and was not in `old`. What a model that has lost its place left to "other" is in `old` already.
fn added(new: &[v1::LatencyStream], old: &[v1::LatencyStream]) -> Result<Vec<(String, String, LatenciesDelta)>, HistogramError> {
    let is_gone = |stream: &v1::LatencyStream| !new.iter().any(|other| is_same_series(stream, other) && stream.place == other.place);
    let mut added = Vec::with_capacity(new.len());
    for stream in new {
        let holds = |other: &&v1::LatencyStream| {
            is_same_series(stream, other) && (other.place == stream.place || (stream.place == 0 && is_gone(other)))
        };
        let mut before = old.iter().filter(holds);
        let latencies = match (before.next(), before.next()) {
            (older, None) => LatenciesDelta::between(older, stream)?,
            // Models have lost their places since: "other" has what they counted before.
            _ => {
                let mut sum = Latencies::new();
                old.iter().filter(holds).try_for_each(|other| Latencies::from_wire(other).map(|other| sum.merge(&other)))?;
                LatenciesDelta::from(&Latencies::from_wire(stream)?.diff(&sum))
            }
        };
        added.push((stream.class.clone(), stream.model.clone(), latencies));
    }
    Ok(added)
}

/// Series of `old` of which `new` has nothing.
fn ended(new: &[v1::LatencyStream], old: &[v1::LatencyStream]) -> u64 {
    let mut gone: Vec<(&str, u64)> = Vec::new();
    for stream in old.iter().filter(|stream| !new.iter().any(|other| is_same_series(stream, other))) {
        let key = (stream.class.as_str(), stream.series);
        if !gone.contains(&key) {
            gone.push(key);
        }
    }
    gone.len() as u64
}

/// Says in the books of its pools what a proxy has lost.
pub(super) fn book_losses(pools: &mut BTreeMap<String, PoolBook>, node: &mut Node) {
    for (pool, series) in node.lost.drain(..) {
        if let Some(book) = pools.get_mut(&pool) {
            book.latency.lose(series);
        }
    }
}
