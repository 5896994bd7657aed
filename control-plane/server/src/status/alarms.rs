//! What is stored and not at work, for people.

use headgate_core::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::alarms::Alarm;

/// One alarm.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AlarmStatus {
    /// `policy_without_traffic`, `pool_without_telemetry`, `stale_signal`, `proxy_behind` or `candidate_aborted`.
    pub alarm: String,
    /// Policy.
    pub policy: String,
    /// Its pool.
    pub pool: String,
    /// For how long, in milliseconds.
    pub for_ms: u64,
    /// What is wrong.
    pub text: String,
}

// === impl AlarmStatus ===

impl AlarmStatus {
    /// The alarms as they are now.
    pub fn list(alarms: &[Alarm], now: Timestamp) -> Vec<Self> {
        let status = |alarm: &Alarm| Self {
            alarm: alarm.kind.as_str().to_owned(),
            policy: alarm.policy.clone(),
            pool: alarm.pool.clone(),
            for_ms: u64::try_from(now.since(alarm.since).as_millis()).unwrap_or(u64::MAX),
            text: alarm.text.clone(),
        };
        alarms.iter().map(status).collect()
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let Self { alarm, policy, pool, for_ms, text } = self;
        format!("ALARM {alarm}: policy {policy}, pool {pool}, for {} s: {text}", for_ms / 1000)
    }
}
