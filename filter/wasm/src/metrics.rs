//! Metrics: differences of the worker's own counters, flushed now and then, so that a request costs no call.
//!
//! Names carry their labels as `.label.value` pairs for Envoy's `stats_tags`: `headgate_requests.policy.P.class.C.decision.D`,
//! `headgate_refusals.policy.P.class.C.reason.R`, `headgate_responses.policy.P.class.C.outcome.O`, `headgate_filter.event.E`;
//! gauges, set by the leading VM alone: `headgate_control_plane_connected`, `headgate_limits_epoch.policy.P`,
//! `headgate_limits_age_ms.policy.P`. A policy has at most 8 classes and the reasons are one enum, so the set is bounded.

use crate::host::{self, MetricKind};
use headgate_protos::v1;
use std::collections::BTreeMap;

/// Most metrics of one VM. Envoy never forgets one, so policies beyond this bound go uncounted.
const MAX_METRICS: usize = 4096;

/// Metrics of one instance in one VM.
#[derive(Default)]
pub(crate) struct Metrics {
    /// Number of the host and last value, by name.
    known: BTreeMap<String, (u32, u64)>,
}

impl Metrics {
    /// Adds to every counter what it has gained since the last flush.
    pub(crate) fn flush(&mut self, report: &v1::WorkerReport) {
        for pool in &report.pools {
            for class in &pool.classes {
                let labels = format!("policy.{}.class.{}", pool.policy, class.class);
                self.count(format!("headgate_requests.{labels}.decision.admit"), class.admitted);
                self.count(format!("headgate_requests.{labels}.decision.refuse"), class.refused.iter().map(|refused| refused.count).sum());
                for refused in &class.refused {
                    self.count(format!("headgate_refusals.{labels}.reason.{}", refused.reason), refused.count);
                }
                self.count(format!("headgate_responses.{labels}.outcome.completed"), class.completed);
                self.count(format!("headgate_responses.{labels}.outcome.failed"), class.failed);
                self.count(format!("headgate_responses.{labels}.outcome.cancelled"), class.cancelled);
            }
        }
        let counters = report.counters.unwrap_or_default();
        let v1::WorkerCounters { unmatched, host_errors, unreadable, denied_claims, untracked } = counters;
        let events = [
            ("unmatched", unmatched),
            ("host_error", host_errors),
            ("unreadable", unreadable),
            ("denied_claim", denied_claims),
            ("untracked", untracked),
        ];
        for (event, count) in events {
            self.count(format!("headgate_filter.event.{event}"), count);
        }
    }

    /// Sets a gauge.
    pub(crate) fn set(&mut self, name: String, value: u64) {
        if let Some((id, _)) = self.entry(name, MetricKind::Gauge) {
            let _ = host::record_metric(*id, value);
        }
    }

    fn count(&mut self, name: String, total: u64) {
        // Nothing to say of what never happened: the metric is defined with its first event.
        if total == 0 && !self.known.contains_key(&name) {
            return;
        }
        let Some((id, last)) = self.entry(name, MetricKind::Counter) else { return };
        // Counters of a policy that went away and came back begin anew.
        let gained = total.checked_sub(*last).unwrap_or(total);
        *last = total;
        if gained > 0 {
            let _ = host::increment_metric(*id, i64::try_from(gained).unwrap_or(i64::MAX));
        }
    }

    fn entry(&mut self, name: String, kind: MetricKind) -> Option<&mut (u32, u64)> {
        if !self.known.contains_key(&name) {
            if self.known.len() >= MAX_METRICS {
                return None;
            }
            let id = host::define_metric(kind, &name).ok()?;
            self.known.insert(name.clone(), (id, 0));
        }
        self.known.get_mut(&name)
    }
}
