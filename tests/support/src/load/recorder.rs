//! What became of the requests.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

/// Latencies up to ten minutes, in microseconds, to three digits.
const MAX_LATENCY_US: u64 = 600_000_000;

/// How one request ended. Times are since [`super::Load::started`].
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Index into [`super::Plan::traffic`].
    pub class: usize,
    /// When it was to leave.
    pub scheduled_at: Duration,
    /// When its response headers came, or its end when none came.
    pub decided_at: Duration,
    /// When the first byte of its body came.
    pub first_byte_at: Option<Duration>,
    /// When its last byte came, or it failed.
    pub ended_at: Duration,
    /// The worker by [`super::Plan::worker_header`], otherwise the number of the connection; 0 when there was none.
    pub worker: u64,
    /// Admitted, refused or failed.
    pub kind: Kind,
}

/// Admitted, refused or failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Answered with success, to the end.
    Admitted,
    /// Refused by a limiter.
    Refused {
        /// First word of `x-headgate-reason`, or `none_given`.
        reason: String,
        /// Response status.
        status: u16,
        /// Whether `retry-after` was there.
        retry_after: bool,
    },
    /// Neither.
    Failed {
        /// In short.
        cause: String,
    },
}

/// All counts of a load.
#[derive(Clone, Debug)]
pub struct Report {
    /// Time since the load began.
    pub elapsed: Duration,
    /// By class name.
    pub classes: BTreeMap<String, ClassReport>,
}

/// The counts of one class.
#[derive(Clone, Debug)]
pub struct ClassReport {
    /// Sent.
    pub offered: u64,
    /// Answered with success, to the end.
    pub admitted: u64,
    /// Refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Refused without `retry-after`.
    pub refused_without_retry_after: u64,
    /// Failed, by cause.
    pub failed: BTreeMap<String, u64>,
    /// Scheduled, but not sent because too many were in flight: the load was not what the plan says.
    pub overrun: u64,
    /// Microseconds from the scheduled time to the first byte of the body, of admitted requests.
    pub ttft_us: Histogram<u64>,
    /// Microseconds from the scheduled time to the last byte, of admitted requests.
    pub total_us: Histogram<u64>,
    /// Time of the last refusal since the load began.
    pub last_refused_at: Option<Duration>,
    /// Time of the last request that was admitted, since the load began.
    pub last_admitted_at: Option<Duration>,
    /// Time of the first refusal on each worker, since the load began.
    pub first_refused_at: BTreeMap<u64, Duration>,
}

impl ClassReport {
    fn new() -> Self {
        let histogram = || Histogram::new_with_max(MAX_LATENCY_US, 3).expect("3 digits up to ten minutes are within the crate's bounds");
        Self {
            offered: 0,
            admitted: 0,
            refused: BTreeMap::new(),
            refused_without_retry_after: 0,
            failed: BTreeMap::new(),
            overrun: 0,
            ttft_us: histogram(),
            total_us: histogram(),
            last_refused_at: None,
            last_admitted_at: None,
            first_refused_at: BTreeMap::new(),
        }
    }

    /// Refused for any reason.
    #[must_use]
    pub fn refused_total(&self) -> u64 {
        self.refused.values().sum()
    }

    /// Failed for any cause.
    #[must_use]
    pub fn failed_total(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Sent and not yet answered.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.offered.saturating_sub(self.admitted + self.refused_total() + self.failed_total())
    }

    /// Time to first byte at `quantile` (0 to 1) in milliseconds; none when nothing was admitted.
    #[must_use]
    pub fn ttft_ms(&self, quantile: f64) -> Option<f64> {
        (!self.ttft_us.is_empty()).then(|| self.ttft_us.value_at_quantile(quantile) as f64 / 1e3)
    }
}

#[derive(Debug)]
pub(crate) struct Recorder {
    classes: BTreeMap<String, ClassReport>,
    outcomes: Vec<Outcome>,
}

impl Recorder {
    pub(crate) fn new(classes: impl Iterator<Item = String>) -> Self {
        Self { classes: classes.map(|name| (name, ClassReport::new())).collect(), outcomes: Vec::new() }
    }

    fn class(&mut self, name: &str) -> &mut ClassReport {
        self.classes.entry(name.to_owned()).or_insert_with(ClassReport::new)
    }

    pub(crate) fn offered(&mut self, class: &str) {
        self.class(class).offered += 1;
    }

    pub(crate) fn overrun(&mut self, class: &str) {
        self.class(class).overrun += 1;
    }

    pub(crate) fn ended(&mut self, class: &str, outcome: Outcome) {
        let report = self.class(class);
        match &outcome.kind {
            Kind::Admitted => {
                report.admitted += 1;
                report.last_admitted_at = Some(outcome.decided_at);
                let first_byte_at = outcome.first_byte_at.unwrap_or(outcome.ended_at);
                report.ttft_us.saturating_record(micros(first_byte_at, outcome.scheduled_at));
                report.total_us.saturating_record(micros(outcome.ended_at, outcome.scheduled_at));
            }
            Kind::Refused { reason, retry_after, .. } => {
                *report.refused.entry(reason.clone()).or_default() += 1;
                report.refused_without_retry_after += u64::from(!retry_after);
                report.last_refused_at = Some(outcome.decided_at);
                report.first_refused_at.entry(outcome.worker).or_insert(outcome.decided_at);
            }
            Kind::Failed { cause } => *report.failed.entry(cause.clone()).or_default() += 1,
        }
        self.outcomes.push(outcome);
    }

    pub(crate) fn report(&self, elapsed: Duration) -> Report {
        Report { elapsed, classes: self.classes.clone() }
    }

    pub(crate) fn outcomes(&self, from: usize) -> Vec<Outcome> {
        self.outcomes.get(from..).unwrap_or_default().to_vec()
    }
}

fn micros(at: Duration, scheduled_at: Duration) -> u64 {
    u64::try_from(at.saturating_sub(scheduled_at).as_micros()).unwrap_or(u64::MAX)
}
