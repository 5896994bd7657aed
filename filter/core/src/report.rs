//! A pool's cumulative state on the wire.

use alloc::string::String;
use alloc::vec::Vec;

use headgate_protos::v1;

use crate::breaker::KeyedBreakers;
use crate::policy::Policy;
use crate::pool::{ClassState, Pool, PoolBreakers};
use crate::reason::Reason;
use crate::time::Timestamp;

/// Breakers that are not closed, in one report.
const MAX_OPEN_BREAKERS: usize = 64;

pub(crate) fn pool(now: Timestamp, pool: &Pool) -> v1::PoolReport {
    let policy: &Policy = &pool.policy;
    let breaker = pool.breakers.as_ref().map_or(v1::BreakerState::Unspecified, |breakers| breakers.pool.state());
    v1::PoolReport {
        policy: String::from(policy.name()),
        pool: String::from(policy.pool()),
        policy_version: String::from(policy.version()),
        classes: pool.class_states().map(class).collect(),
        breaker: breaker.into(),
        open_breakers: pool.breakers.as_ref().map(open_breakers).unwrap_or_default(),
        permits: pool.permits.total,
        overload: pool.overload.as_ref().map(|load| load.report(pool.limits.as_ref().map_or(0, |limits| limits.epoch))),
        latency: pool.report_latencies(now),
        is_shadow: policy.stage().is_shadow(),
        endpoint_loads: pool.engine_loads.report(now),
        quotas: pool.quotas.report(now, &pool.policy),
    }
}

fn class(state: &ClassState) -> v1::ClassReport {
    let refused = Reason::ALL.iter().zip(state.refused).filter(|(_, count)| *count > 0);
    v1::ClassReport {
        class: state.name.clone(),
        offered: state.offered,
        admitted: state.admitted,
        completed: state.completed,
        failed: state.failed,
        cancelled: state.cancelled,
        refused: refused.map(|(reason, count)| v1::ReasonCount { reason: String::from(reason.as_str()), count }).collect(),
        in_flight: state.in_flight,
        waiting: state.waiting,
        ttft_us: state.ttft_told.of(&state.ttft_us),
        only_here: state.only_here,
        only_there: state.only_there,
    }
}

fn open_breakers(breakers: &PoolBreakers) -> Vec<v1::BreakerReport> {
    let of_scope = |scope: &'static str, keyed: &KeyedBreakers| -> Vec<v1::BreakerReport> {
        let report = |(key, state): (&[u8], v1::BreakerState)| v1::BreakerReport {
            scope: String::from(scope),
            key: String::from_utf8_lossy(key).into_owned(),
            state: state.into(),
        };
        keyed.not_closed().map(report).collect()
    };
    let mut reports = of_scope("endpoint", &breakers.endpoints);
    reports.extend(of_scope("dependency", &breakers.dependencies));
    reports.truncate(MAX_OPEN_BREAKERS);
    reports
}
