//! What the pool can do and what the classes ask of it, from cumulative counters.

use alloc::vec::Vec;
use core::time::Duration;

use super::state::ClassLoad;
use crate::estimator::Ewma;
use crate::time::Timestamp;

/// Period over which rates are measured: long enough to hold several requests, short enough to follow a burst.
const SAMPLE: Duration = Duration::from_millis(500);
/// Part of the drain that a class can count on however much the classes above it take.
const LEFTOVER_FLOOR: f64 = 0.05;
/// Weight of a sample in the rate of completions, so that a handful of answers that end together is no capacity.
const SMOOTHING: f64 = 0.3;
/// Weight of a saturated pool's rate that lies below the estimate.
const FALL: f64 = 0.1;

/// Whether the pool shows overload while a rate is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// No level is tripped.
    Bearable,
    /// A level is tripped.
    TooMuch,
}

/// Rates of every class and the rate at which the pool drains.
///
/// The drain is what the pool completes when busy. A pool that is throttled completes only what it is given, so a lower sample
/// says nothing of its capacity unless it is saturated: a level is tripped and the work in flight does not shrink although no more
/// is admitted than completes. A higher rate is proof in any case.
#[derive(Debug, Clone)]
pub(super) struct Capacity {
    classes: Vec<ClassRates>,
    drain_rps: Option<f64>,
    completed_rps: Ewma,
    series: Option<u64>,
    sampled_at: Option<Timestamp>,
    in_flight: u64,
    peak_load: Load,
}

#[derive(Debug, Clone, Default)]
struct ClassRates {
    before: ClassLoad,
    offered_rps: Ewma,
    admitted_rps: Ewma,
}

impl Capacity {
    pub(super) fn new(classes: usize) -> Self {
        Self {
            classes: core::iter::repeat_n(ClassRates::fresh(), classes).collect(),
            drain_rps: None,
            completed_rps: Ewma::new(SMOOTHING),
            series: None,
            sampled_at: None,
            in_flight: 0,
            peak_load: Load::Bearable,
        }
    }

    /// The same pool with other classes: what it drains stays true.
    pub(super) fn with_classes(&self, classes: usize) -> Self {
        Self { drain_rps: self.drain_rps, ..Self::new(classes) }
    }

    /// Takes in the counters; draws a sample when the period has passed. Returns whether the series of counters is a new one.
    pub(super) fn observe(&mut self, now: Timestamp, series: u64, loads: &[ClassLoad], load: Load) -> Series {
        let in_flight = loads.iter().map(|load| u64::from(load.in_flight)).sum();
        if load == Load::TooMuch {
            self.peak_load = Load::TooMuch;
        }
        let Some(at) = self.sampled_at.filter(|_| self.series == Some(series)) else {
            let was_known = self.series.replace(series).is_some();
            self.restart(now, loads, in_flight);
            return if was_known { Series::New } else { Series::Same };
        };
        let elapsed = now.since(at);
        if elapsed >= SAMPLE {
            self.sample(elapsed.as_secs_f64(), loads, in_flight);
            self.restart(now, loads, in_flight);
        }
        self.in_flight = in_flight;
        Series::Same
    }

    /// What is left of the drain for a class beyond the classes above it, in requests per second.
    ///
    /// `max(drain − Σ admitted of more important classes, LEFTOVER_FLOOR · drain)`, so that no class starves; while the drain is not
    /// known, what the class itself asks for.
    pub(super) fn leftover_rps(&self, class: usize) -> f64 {
        let Some(drain) = self.drain_rps else { return self.offered_rps(class) };
        let above: f64 = self.classes.iter().take(class).filter_map(|rates| rates.admitted_rps.value()).sum();
        (drain - above).max(LEFTOVER_FLOOR * drain)
    }

    /// Requests that the pool completes per second when busy; `None` before the first completion.
    pub(super) fn drain_rps(&self) -> Option<f64> {
        self.drain_rps
    }

    /// Requests in flight over all classes, now.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Offered requests of a class per second; 0 while unknown.
    pub(super) fn offered_rps(&self, class: usize) -> f64 {
        self.classes.get(class).and_then(|rates| rates.offered_rps.value()).unwrap_or(0.0)
    }

    fn sample(&mut self, seconds: f64, loads: &[ClassLoad], in_flight: u64) {
        let (mut admitted, mut completed) = (0_u64, 0_u64);
        for (rates, load) in self.classes.iter_mut().zip(loads) {
            let grown = |now: u64, before: u64| now.saturating_sub(before);
            rates.offered_rps.observe(grown(load.offered, rates.before.offered) as f64 / seconds);
            rates.admitted_rps.observe(grown(load.admitted, rates.before.admitted) as f64 / seconds);
            admitted = admitted.saturating_add(grown(load.admitted, rates.before.admitted));
            completed = completed.saturating_add(grown(load.completed, rates.before.completed));
        }
        let Some(rate) = self.completed_rps.observe(completed as f64 / seconds) else { return };
        let saturated = self.peak_load == Load::TooMuch && in_flight > 0 && admitted >= completed;
        self.drain_rps = match self.drain_rps {
            None => (rate > 0.0).then_some(rate),
            Some(drain) if rate > drain => Some(rate),
            Some(drain) if saturated => Some(drain + FALL * (rate - drain)),
            drain => drain,
        };
    }

    fn restart(&mut self, now: Timestamp, loads: &[ClassLoad], in_flight: u64) {
        for (rates, load) in self.classes.iter_mut().zip(loads) {
            rates.before = *load;
        }
        self.sampled_at = Some(now);
        self.in_flight = in_flight;
        self.peak_load = Load::Bearable;
    }
}

/// Whether the counters go on or have started anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Series {
    /// They go on.
    Same,
    /// They may have started from zero.
    New,
}

impl ClassRates {
    fn fresh() -> Self {
        Self { before: ClassLoad::default(), offered_rps: Ewma::new(0.5), admitted_rps: Ewma::new(0.5) }
    }
}
