//! Latencies of one pool by class and model, in one worker: five cumulative histograms for each.
//!
//! Clients name models, so the number of models that are told apart is bounded: those that the policy names have a place each, the rest
//! share [`LEARNED_PLACES`] places, which those that are asked for most come to hold (Misra and Gries 1982: a model without a place
//! weakens every holder by one, and takes the place of one that is down to nothing); all others count together as "other". A model that
//! loses its place leaves its histograms to "other", so that nothing is lost and the sum over all models is exact.

use alloc::string::String;
use alloc::vec::Vec;

use headgate_protos::v1;

use crate::histogram::{Histogram, HistogramDelta, HistogramError};
use crate::time::Timestamp;
use crate::words::same;

#[cfg(test)]
mod tests;

/// Places of models that the policy does not name.
pub const LEARNED_PLACES: usize = 8;
/// Places of models that the policy names; further ones have to earn a place.
pub const NAMED_PLACES: usize = 16;
/// Most models of one class in a report, "other" included.
pub const MAX_STREAMS: usize = NAMED_PLACES + LEARNED_PLACES + 1;
/// Longest name of a model that is told apart, in bytes.
pub const MAX_MODEL_BYTES: usize = 128;

/// What is measured of a response, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// From the arrival of the request to the first byte of the response's body.
    Ttft,
    /// Mean time between two tokens of a streamed response.
    Tpot,
    /// From the arrival of the request to the end of the response.
    Total,
    /// From the arrival of the request to its admission.
    Queue,
    /// From the admission of the request to the end of the response.
    Upstream,
}

/// Histograms of the five metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Latencies {
    histograms: [Histogram; Metric::ALL.len()],
}

/// Samples of the five metrics that came between two states of [`Latencies`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LatenciesDelta {
    deltas: [HistogramDelta; Metric::ALL.len()],
}

/// When a request arrived, and where its latencies count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) at: Timestamp,
    pub(crate) place: Place,
}

/// Number under which a model's latencies are kept; every place that is given anew has another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place(u64);

/// The models that have a place.
#[derive(Debug, Default)]
pub(crate) struct Models {
    holders: Vec<Holder>,
    places_given: u64,
}

#[derive(Debug)]
struct Holder {
    model: String,
    place: Place,
    /// Requests for the model less those that weakened it; `None`: the policy names it.
    credit: Option<u32>,
}

/// What became of the places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seated {
    /// Where the request counts.
    pub(crate) place: Place,
    /// A place whose model has lost it: what is kept under it goes to "other".
    pub(crate) vacated: Option<Place>,
}

/// The latencies of one class, by place.
#[derive(Debug, Default)]
pub(crate) struct ClassLatencies {
    by_place: Vec<(Place, Latencies)>,
}

impl Metric {
    /// All metrics.
    pub const ALL: [Self; 5] = [Self::Ttft, Self::Tpot, Self::Total, Self::Queue, Self::Upstream];

    /// The metric's stable name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ttft => "ttft",
            Self::Tpot => "tpot",
            Self::Total => "total",
            Self::Queue => "queue",
            Self::Upstream => "upstream",
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Ttft => 0,
            Self::Tpot => 1,
            Self::Total => 2,
            Self::Queue => 3,
            Self::Upstream => 4,
        }
    }
}

impl Latencies {
    /// No samples.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one sample, in microseconds.
    pub fn record(&mut self, metric: Metric, micros: u64) {
        if let Some(histogram) = self.histograms.get_mut(metric.index()) {
            histogram.record(micros);
        }
    }

    /// Counts `count` samples of one value, in microseconds.
    pub fn record_many(&mut self, metric: Metric, micros: u64, count: u64) {
        if let Some(histogram) = self.histograms.get_mut(metric.index()) {
            histogram.record_many(micros, count);
        }
    }

    /// The samples of one metric.
    #[must_use]
    pub fn of(&self, metric: Metric) -> &Histogram {
        let [ttft, tpot, total, queue, upstream] = &self.histograms;
        match metric {
            Metric::Ttft => ttft,
            Metric::Tpot => tpot,
            Metric::Total => total,
            Metric::Queue => queue,
            Metric::Upstream => upstream,
        }
    }

    /// Adds all samples of `other`: exact, in any order.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.histograms.iter_mut().zip(&other.histograms) {
            if theirs.count() > 0 {
                mine.merge(theirs);
            }
        }
    }

    /// Adds all samples of `delta`: exact, in any order.
    pub fn add(&mut self, delta: &LatenciesDelta) {
        for (mine, theirs) in self.histograms.iter_mut().zip(&delta.deltas) {
            if theirs.count() > 0 {
                mine.add_delta(theirs);
            }
        }
    }

    /// The samples that came since `older`, an earlier state of these.
    #[must_use]
    pub fn diff(&self, older: &Self) -> Self {
        let mut newer = Self::new();
        for ((slot, mine), theirs) in newer.histograms.iter_mut().zip(&self.histograms).zip(&older.histograms) {
            *slot = mine.diff(theirs);
        }
        newer
    }

    /// Samples of all metrics.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histograms.iter().fold(0, |sum, histogram| sum.saturating_add(histogram.count()))
    }

    /// The form that goes over the wire; empty histograms are left out.
    #[must_use]
    pub fn to_wire(&self, class: &str, model: &str, series: u64, place: u64) -> v1::LatencyStream {
        let wire = |metric| Some(self.of(metric)).filter(|histogram| histogram.count() > 0).map(Histogram::to_wire);
        v1::LatencyStream {
            class: String::from(class),
            model: String::from(model),
            series,
            place,
            ttft_us: wire(Metric::Ttft),
            tpot_us: wire(Metric::Tpot),
            total_us: wire(Metric::Total),
            queue_us: wire(Metric::Queue),
            upstream_us: wire(Metric::Upstream),
        }
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// [`HistogramError`] of the first histogram that cannot be read.
    pub fn from_wire(wire: &v1::LatencyStream) -> Result<Self, HistogramError> {
        let mut latencies = Self::new();
        latencies.add(&LatenciesDelta::between(None, wire)?);
        Ok(latencies)
    }
}

impl LatenciesDelta {
    /// Samples that came between two wire forms: see [`HistogramDelta::between`].
    ///
    /// # Errors
    /// [`HistogramError`] of the first histogram of `wire` that cannot be read.
    pub fn between(older: Option<&v1::LatencyStream>, wire: &v1::LatencyStream) -> Result<Self, HistogramError> {
        let none = [None; Metric::ALL.len()];
        let mut latencies = Self::default();
        let wires = histograms(wire).into_iter().zip(older.map_or(none, histograms));
        for (slot, (wire, older)) in latencies.deltas.iter_mut().zip(wires) {
            if let Some(wire) = wire {
                *slot = HistogramDelta::between(older, wire)?;
            }
        }
        Ok(latencies)
    }

    /// In the order of [`Metric::ALL`].
    pub fn metrics(&self) -> impl Iterator<Item = &HistogramDelta> {
        self.deltas.iter()
    }

    /// Samples of all metrics.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.deltas.iter().fold(0, |sum, delta| sum.saturating_add(delta.count()))
    }
}

impl From<&Latencies> for LatenciesDelta {
    fn from(latencies: &Latencies) -> Self {
        Self { deltas: latencies.histograms.each_ref().map(HistogramDelta::from) }
    }
}

/// In the order of [`Metric::ALL`].
fn histograms(wire: &v1::LatencyStream) -> [Option<&v1::Histogram>; Metric::ALL.len()] {
    let v1::LatencyStream { ttft_us, tpot_us, total_us, queue_us, upstream_us, .. } = wire;
    [ttft_us.as_ref(), tpot_us.as_ref(), total_us.as_ref(), queue_us.as_ref(), upstream_us.as_ref()]
}

impl Place {
    /// Where the models without a place of their own count.
    pub(crate) const OTHER: Self = Self(0);
}

impl Models {
    /// Follows a policy that names these models. Who has a place keeps it, unless there are more now than places to be had; the places
    /// that were lost.
    pub(crate) fn set_named<'a>(&mut self, named: impl Iterator<Item = &'a str>) -> Vec<Place> {
        for holder in &mut self.holders {
            holder.credit = Some(holder.credit.unwrap_or(0));
        }
        for model in named.take(NAMED_PLACES) {
            match self.holders.iter_mut().find(|holder| holder.model == model) {
                Some(holder) => holder.credit = None,
                None => {
                    let place = self.next_place();
                    self.holders.push(Holder { model: String::from(model), place, credit: None });
                }
            }
        }
        let mut vacated = Vec::new();
        let mut learned = 0;
        self.holders.retain(|holder| {
            learned += usize::from(holder.credit.is_some());
            let stays = holder.credit.is_none() || learned <= LEARNED_PLACES;
            if !stays {
                vacated.push(holder.place);
            }
            stays
        });
        vacated
    }

    /// Where a request for `model` counts; its place, if it gets one by it. Bytes that are no text, and none, are "other".
    #[inline]
    pub(crate) fn seat(&mut self, model: Option<&[u8]>) -> Seated {
        let other = Seated { place: Place::OTHER, vacated: None };
        let Some(model) = model.filter(|model| (1..=MAX_MODEL_BYTES).contains(&model.len())) else { return other };
        for holder in &mut self.holders {
            if same(holder.model.as_bytes(), model) {
                holder.credit = holder.credit.map(|credit| credit.saturating_add(1));
                return Seated { place: holder.place, vacated: None };
            }
        }
        self.admit(model).unwrap_or(other)
    }

    // Few requests are for a model without a place: kept out of the code of the others.
    #[inline(never)]
    fn admit(&mut self, model: &[u8]) -> Option<Seated> {
        let model = core::str::from_utf8(model).ok()?;
        let learned = self.holders.iter().filter(|holder| holder.credit.is_some()).count();
        let weakest = self.holders.iter().position(|holder| holder.credit == Some(0));
        if learned >= LEARNED_PLACES && weakest.is_none() {
            for credit in self.holders.iter_mut().filter_map(|holder| holder.credit.as_mut()) {
                *credit = credit.saturating_sub(1);
            }
            return None;
        }
        let place = self.next_place();
        let newcomer = Holder { model: String::from(model), place, credit: Some(1) };
        let full = weakest.filter(|_| learned >= LEARNED_PLACES).and_then(|at| self.holders.get_mut(at));
        let vacated = match full {
            Some(weakest) => Some(core::mem::replace(weakest, newcomer).place),
            None => {
                self.holders.push(newcomer);
                None
            }
        };
        Some(Seated { place, vacated })
    }

    /// Name of the model that holds `place`; empty for "other".
    fn name(&self, place: Place) -> &str {
        self.holders.iter().find(|holder| holder.place == place).map_or("", |holder| &holder.model)
    }

    fn next_place(&mut self) -> Place {
        self.places_given += 1;
        Place(self.places_given)
    }
}

impl ClassLatencies {
    /// Counts samples of one request. One whose model has lost its place meanwhile counts as "other".
    pub(crate) fn record(&mut self, models: &Models, place: Place, samples: &[(Metric, u64)]) {
        let place = if models.name(place).is_empty() { Place::OTHER } else { place };
        if let Some(latencies) = self.at(place) {
            samples.iter().for_each(|(metric, micros)| latencies.record(*metric, *micros));
        }
    }

    /// The latencies at `place`, which there are always: without samples they are made.
    fn at(&mut self, place: Place) -> Option<&mut Latencies> {
        let held = self.by_place.iter().position(|(held, _)| *held == place).unwrap_or_else(|| self.open(place));
        self.by_place.get_mut(held).map(|(_, latencies)| latencies)
    }

    #[cold]
    fn open(&mut self, place: Place) -> usize {
        self.by_place.push((place, Latencies::new()));
        self.by_place.len() - 1
    }

    /// The model at `place` has lost it: its latencies go to "other".
    pub(crate) fn vacate(&mut self, place: Place) {
        let Some(at) = self.by_place.iter().position(|(held, _)| *held == place) else { return };
        let (_, latencies) = self.by_place.swap_remove(at);
        match self.by_place.iter_mut().find(|(held, _)| *held == Place::OTHER) {
            Some((_, other)) => other.merge(&latencies),
            None => self.by_place.push((Place::OTHER, latencies)),
        }
    }

    /// One entry a model that has had a sample.
    pub(crate) fn report<'a>(&'a self, class: &'a str, series: u64, models: &'a Models) -> impl Iterator<Item = v1::LatencyStream> + 'a {
        let report = move |(place, latencies): &(Place, Latencies)| latencies.to_wire(class, models.name(*place), series, place.0);
        self.by_place.iter().map(report)
    }
}
