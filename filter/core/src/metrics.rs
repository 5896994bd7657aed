//! The metrics of a worker: its report as names and totals.
//!
//! Names carry their labels as `.label.value` pairs for Envoy's `stats_tags`. A policy has at most 8 classes and the reasons are one
//! enum, so the set of names is bounded by the policies.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use headgate_protos::v1;

use crate::session::Session;
use crate::time::Timestamp;
use crate::worker::Worker;

/// Every counter of `report`: `headgate_requests.policy.P.class.C.decision.D`, `headgate_refusals.policy.P.class.C.reason.R`,
/// `headgate_responses.policy.P.class.C.outcome.O`, `headgate_queue.policy.P.event.E` and `headgate_filter.event.E`. What a policy that only
/// watches would have done has names of its own: `headgate_shadow_requests…`, `headgate_shadow_refusals…` and
/// `headgate_shadow_disagreements.policy.P.class.C.served_by.S`.
#[must_use]
pub fn counters(report: &v1::WorkerReport) -> Vec<(String, u64)> {
    let mut counters = Vec::new();
    for pool in &report.pools {
        for class in &pool.classes {
            let labels = format!("policy.{}.class.{}", pool.policy, class.class);
            let prefix = if pool.is_shadow { "headgate_shadow" } else { "headgate" };
            let mut count = |metric: &str, label: &str, value: &str, total| {
                counters.push((format!("{prefix}_{metric}.{labels}.{label}.{value}"), total));
            };
            count("requests", "decision", "admit", class.admitted);
            count("requests", "decision", "refuse", class.refused.iter().map(|refused| refused.count).sum());
            for refused in &class.refused {
                count("refusals", "reason", &refused.reason, refused.count);
            }
            if pool.is_shadow {
                count("disagreements", "served_by", "candidate", class.only_here);
                count("disagreements", "served_by", "policy", class.only_there);
                continue;
            }
            count("responses", "outcome", "completed", class.completed);
            count("responses", "outcome", "failed", class.failed);
            count("responses", "outcome", "cancelled", class.cancelled);
        }
    }
    for pool in report.pools.iter().filter(|pool| !pool.is_shadow) {
        let Some(queue) = pool.overload.as_ref().and_then(|overload| overload.queue.as_ref()) else { continue };
        let v1::QueueReport { released, expired, abandoned, overflowed, .. } = queue;
        for (event, total) in [("released", released), ("expired", expired), ("abandoned", abandoned), ("overflowed", overflowed)] {
            counters.push((format!("headgate_queue.policy.{}.event.{event}", pool.policy), *total));
        }
    }
    let v1::WorkerCounters { unmatched, host_errors, unreadable, denied_claims, untracked } = report.counters.unwrap_or_default();
    let events = [
        ("unmatched", unmatched),
        ("host_error", host_errors),
        ("unreadable", unreadable),
        ("denied_claim", denied_claims),
        ("untracked", untracked),
    ];
    counters.extend(events.map(|(event, total)| ("headgate_filter.event.".to_string() + event, total)));
    counters
}

/// What the leader knows of the control plane at `now`: `headgate_control_plane_connected`, and for each policy
/// `headgate_limits_epoch.policy.P` and, once there are limits, `headgate_limits_age_ms.policy.P`.
#[must_use]
pub fn gauges(now: Timestamp, session: &Session, worker: &Worker) -> Vec<(String, u64)> {
    let mut gauges = alloc::vec![("headgate_control_plane_connected".to_string(), u64::from(session.is_connected()))];
    for (index, policy) in worker.policies().enumerate() {
        gauges.push((format!("headgate_limits_epoch.policy.{}", policy.name()), worker.limits_epoch(index)));
        if let Some(age) = session.limits_age(now, policy.pool()) {
            gauges.push((format!("headgate_limits_age_ms.policy.{}", policy.name()), age.as_millis() as u64));
        }
    }
    gauges
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn a_refusal_counts_once_as_a_decision_and_once_by_its_reason() {
        let refused = vec![v1::ReasonCount { reason: "qps".into(), count: 2 }, v1::ReasonCount { reason: "p99".into(), count: 3 }];
        let class = v1::ClassReport { class: "low".into(), admitted: 7, refused, ..Default::default() };
        let pool = v1::PoolReport { policy: "demo".into(), classes: vec![class], ..Default::default() };
        let counters = counters(&v1::WorkerReport { pools: vec![pool], ..Default::default() });
        let total = |name: &str| counters.iter().find(|(known, _)| known == name).map(|(_, total)| *total);
        assert_eq!(total("headgate_requests.policy.demo.class.low.decision.admit"), Some(7));
        assert_eq!(total("headgate_requests.policy.demo.class.low.decision.refuse"), Some(5));
        assert_eq!(total("headgate_refusals.policy.demo.class.low.reason.p99"), Some(3));
        assert_eq!(total("headgate_filter.event.unmatched"), Some(0));
    }
}
