//! The time to the first byte of each endpoint, as the proxies' access logs tell it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use headgate_core::time::Timestamp;

/// Endpoints that are remembered; more are not.
const MAX_ENDPOINTS: usize = 16_384;
/// Weight of a new latency against what was (requirement B2).
const ALPHA: f64 = 0.2;
/// Age at which a latency says nothing any more.
const STALE_AFTER: Duration = Duration::from_secs(60);

/// Exponentially weighted means, `m ← 0.2 · new + 0.8 · m`. All clones are one.
#[derive(Clone, Debug, Default)]
pub struct EndpointLatencies(Arc<Mutex<BTreeMap<SocketAddr, Mean>>>);

#[derive(Clone, Copy, Debug)]
struct Mean {
    seconds: f64,
    at: Timestamp,
}

// === impl EndpointLatencies ===

impl EndpointLatencies {
    /// Takes in one latency.
    pub fn record(&self, now: Timestamp, endpoint: SocketAddr, latency: Duration) {
        let mut means = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if means.len() >= MAX_ENDPOINTS && !means.contains_key(&endpoint) {
            means.retain(|_, mean| now.since(mean.at) <= STALE_AFTER);
            if means.len() >= MAX_ENDPOINTS {
                return;
            }
        }
        let new = latency.as_secs_f64();
        let seconds = match means.get(&endpoint) {
            Some(mean) if now.since(mean.at) <= STALE_AFTER => ALPHA * new + (1.0 - ALPHA) * mean.seconds,
            _ => new,
        };
        means.insert(endpoint, Mean { seconds, at: now });
    }

    /// The mean of an endpoint; `None` when nobody has told any lately.
    pub fn get(&self, now: Timestamp, endpoint: SocketAddr) -> Option<Duration> {
        let means = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mean = means.get(&endpoint).filter(|mean| now.since(mean.at) <= STALE_AFTER)?;
        Duration::try_from_secs_f64(mean.seconds).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_moves_the_mean_by_a_fifth_and_is_forgotten_after_a_minute() {
        let latencies = EndpointLatencies::default();
        let endpoint = SocketAddr::from(([10, 0, 0, 1], 8000));
        let at = |ms: u64| Timestamp::from_millis(ms);
        latencies.record(at(0), endpoint, Duration::from_millis(100));
        latencies.record(at(10), endpoint, Duration::from_millis(600));
        assert_eq!(latencies.get(at(20), endpoint), Some(Duration::from_millis(200)), "0.2 · 600 + 0.8 · 100");
        assert_eq!(latencies.get(at(60_011), endpoint), None);
        assert_eq!(latencies.get(at(20), SocketAddr::from(([10, 0, 0, 2], 8000))), None);
    }
}
