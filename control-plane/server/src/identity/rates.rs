//! Bounds on what one peer starts: calls a second, and calls that are open at a time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::access::PeerLimits;

/// Peers that are remembered: two for each proxy of the largest fleet, and room.
const MAX_PEERS: usize = 65_536;

/// A peer: an address, with the certificate that it shows, so that machines behind one address do not share a bound if they differ.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PeerKey {
    pub(super) address: Option<IpAddr>,
    pub(super) certificate: Option<String>,
}

/// The bounds of all peers.
#[derive(Debug, Default)]
pub(super) struct Rates {
    peers: Mutex<HashMap<PeerKey, Use>>,
}

/// A bucket that fills with time, and what is open.
#[derive(Debug)]
struct Use {
    calls_left: f64,
    seen_at: Instant,
    open: u32,
}

/// A call that counts as open until this is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    rates: Arc<Rates>,
    key: PeerKey,
}

// === impl Rates ===

impl Rates {
    /// Counts a call of `key`, or says why there is no room for it.
    pub(super) fn start(self: &Arc<Self>, key: PeerKey, limits: PeerLimits, now: Instant) -> Result<Slot, String> {
        // A poisoned table is still a table: every write leaves it whole.
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= MAX_PEERS && !peers.contains_key(&key) {
            peers.retain(|_, used| used.open > 0 || used.filled(limits, now) < f64::from(limits.burst));
            if peers.len() >= MAX_PEERS {
                return Err(format!("{MAX_PEERS} peers call already"));
            }
        }
        let used = peers.entry(key.clone()).or_insert_with(|| Use { calls_left: f64::from(limits.burst), seen_at: now, open: 0 });
        (used.calls_left, used.seen_at) = (used.filled(limits, now), now);
        if used.open >= limits.streams {
            return Err(format!("more than {} calls of one peer are open", limits.streams));
        }
        if used.calls_left < 1.0 {
            return Err(format!("more than {} calls a second of one peer", limits.requests_per_s));
        }
        used.calls_left -= 1.0;
        used.open += 1;
        Ok(Slot { rates: self.clone(), key })
    }
}

// === impl Use ===

impl Use {
    /// Calls that it has room for at `now`.
    fn filled(&self, limits: PeerLimits, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.seen_at).as_secs_f64();
        (self.calls_left + since * f64::from(limits.requests_per_s)).min(f64::from(limits.burst))
    }
}

// === impl Slot ===

impl Drop for Slot {
    fn drop(&mut self) {
        let mut peers = self.rates.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(used) = peers.get_mut(&self.key) {
            used.open = used.open.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMITS: PeerLimits = PeerLimits { requests_per_s: 10, burst: 3, streams: 2 };

    fn key(last: u8) -> PeerKey {
        PeerKey { address: Some(IpAddr::from([10, 0, 0, last])), certificate: None }
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_holds_for_that_peer_alone() {
        let (rates, now) = (Arc::new(Rates::default()), Instant::now());
        for _ in 0..3 {
            rates.start(key(1), LIMITS, now).unwrap();
        }
        assert_eq!(rates.start(key(1), LIMITS, now).unwrap_err(), "more than 10 calls a second of one peer");
        assert!(rates.start(key(2), LIMITS, now).is_ok());
        assert!(rates.start(key(1), LIMITS, now + Duration::from_millis(100)).is_ok());
        assert!(rates.start(key(1), LIMITS, now + Duration::from_millis(110)).is_err());
    }

    #[test]
    fn an_open_call_takes_a_place_until_it_ends() {
        let (rates, now) = (Arc::new(Rates::default()), Instant::now());
        let first = rates.start(key(1), LIMITS, now).unwrap();
        let _second = rates.start(key(1), LIMITS, now).unwrap();
        assert_eq!(rates.start(key(1), LIMITS, now).unwrap_err(), "more than 2 calls of one peer are open");
        drop(first);
        assert!(rates.start(key(1), LIMITS, now).is_ok());
    }

    #[test]
    fn peers_that_are_quiet_make_room() {
        let (rates, now) = (Arc::new(Rates::default()), Instant::now());
        for n in 0..MAX_PEERS {
            let address = Some(IpAddr::from(u32::try_from(n).unwrap().to_be_bytes()));
            rates.start(PeerKey { address, certificate: None }, LIMITS, now).unwrap();
        }
        let stranger = || PeerKey { address: None, certificate: Some("x".to_owned()) };
        assert!(rates.start(stranger(), LIMITS, now).is_err());
        assert!(rates.start(stranger(), LIMITS, now + Duration::from_secs(1)).is_ok());
    }
}
