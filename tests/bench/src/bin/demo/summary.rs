//! What the demo has shown, for people and as JSON, and whether it is what the product promises.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, bail};
use headgate_test_support::load::{ClassReport, Kind, Outcome, Report};
use serde::Serialize;

use crate::observe::{CLASSES, Observer};
use crate::scene::{Phases, Scene};

/// All classes must be admitted again this long after the load has fallen.
const RECOVERY_LIMIT: Duration = Duration::from_secs(5);

/// The JSON of `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    envoy_version: String,
    classes: BTreeMap<String, ClassSummary>,
    trip: Option<TripSummary>,
    recovery_ms: Option<f64>,
}

#[derive(Debug, Serialize)]
struct ClassSummary {
    offered: u64,
    admitted: u64,
    refused: u64,
    failed: u64,
    ttft_p50_ms: Option<f64>,
    ttft_p99_ms: Option<f64>,
    reasons: BTreeMap<String, u64>,
    #[serde(skip)]
    without_retry_after: u64,
}

#[derive(Debug, Serialize)]
struct TripSummary {
    signal: String,
    value: f64,
    threshold: f64,
    trip_to_first_refusal_ms: Option<f64>,
}

impl Summary {
    pub(crate) fn of(scene: &Scene, observer: &Observer, phases: &Phases, report: &Report, outcomes: &[Outcome]) -> Self {
        let trip = observer.trip.as_ref().map(|trip| TripSummary {
            signal: trip.signal.clone(),
            value: trip.value,
            threshold: trip.threshold,
            trip_to_first_refusal_ms: first_refusal_after(outcomes, trip.at).map(|at| millis(at.saturating_sub(trip.at))),
        });
        Self {
            envoy_version: scene.envoy.version().to_string(),
            classes: report.classes.iter().map(|(name, class)| (name.clone(), ClassSummary::of(class))).collect(),
            trip,
            recovery_ms: recovery(outcomes, phases.falls_at).map(millis),
        }
    }

    pub(crate) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// A few lines for people.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "class     offered admitted refused failed  TTFT p50      p99   refused because of");
        for name in CLASSES {
            let Some(class) = self.classes.get(name) else { continue };
            let ms = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.0} ms"));
            let reasons: Vec<String> = class.reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
            let _ = writeln!(
                out,
                "{name:<9} {:>7} {:>8} {:>7} {:>6}  {:>8} {:>8}   {}",
                class.offered,
                class.admitted,
                class.refused,
                class.failed,
                ms(class.ttft_p50_ms),
                ms(class.ttft_p99_ms),
                reasons.join(", ")
            );
        }
        if let Some(trip) = &self.trip {
            let after = trip.trip_to_first_refusal_ms.map_or("never".to_owned(), |ms| format!("{ms:.0} ms later"));
            let _ =
                writeln!(out, "\n{} tripped at {:.1} (threshold {:.1}); first refusal {after}", trip.signal, trip.value, trip.threshold);
        }
        if let Some(recovery) = self.recovery_ms {
            let _ = writeln!(out, "every class was admitted again {recovery:.0} ms after the load had fallen");
        }
        out
    }

    /// Ok if everything that the product promises was seen.
    pub(crate) fn verdict(&self) -> Result<()> {
        let mut broken = Vec::new();
        match self.classes.get("high") {
            Some(high) if high.refused == 0 && high.failed == 0 && high.admitted > 0 => {}
            _ => broken.push("class high was refused or failed"),
        }
        match self.classes.get("low") {
            Some(low) if low.refused > 0 && low.without_retry_after == 0 && !low.reasons.contains_key("none_given") => {}
            _ => broken.push("class low was not refused with a reason and Retry-After"),
        }
        if self.trip.as_ref().is_none_or(|trip| trip.trip_to_first_refusal_ms.is_none()) {
            broken.push("no level tripped");
        }
        if !self.recovery_ms.is_some_and(|recovery| recovery <= millis(RECOVERY_LIMIT)) {
            broken.push("not every class was admitted again within 5 s of the load falling");
        }
        if broken.is_empty() { Ok(()) } else { bail!("the demo did not show what it should: {}", broken.join("; ")) }
    }
}

impl ClassSummary {
    fn of(class: &ClassReport) -> Self {
        Self {
            offered: class.offered,
            admitted: class.admitted,
            refused: class.refused_total(),
            failed: class.failed_total(),
            ttft_p50_ms: class.ttft_ms(0.5),
            ttft_p99_ms: class.ttft_ms(0.99),
            reasons: class.refused.clone(),
            without_retry_after: class.refused_without_retry_after,
        }
    }
}

fn is_refused(outcome: &Outcome) -> bool {
    matches!(outcome.kind, Kind::Refused { .. })
}

fn first_refusal_after(outcomes: &[Outcome], at: Duration) -> Option<Duration> {
    outcomes.iter().filter(|outcome| is_refused(outcome) && outcome.decided_at >= at).map(|outcome| outcome.decided_at).min()
}

/// From the fall of the load to the last refusal after it, if requests of every class were admitted after that.
fn recovery(outcomes: &[Outcome], falls_at: Duration) -> Option<Duration> {
    let last_refusal = outcomes.iter().filter(|outcome| is_refused(outcome)).map(|outcome| outcome.decided_at).max();
    let recovered_at = last_refusal.unwrap_or(falls_at).max(falls_at);
    let is_admitted = |class: usize| {
        outcomes.iter().any(|outcome| outcome.class == class && outcome.kind == Kind::Admitted && outcome.scheduled_at > recovered_at)
    };
    (0..CLASSES.len()).all(is_admitted).then(|| recovered_at - falls_at)
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
