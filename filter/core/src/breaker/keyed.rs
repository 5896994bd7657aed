//! Breakers by key: one for each endpoint, one for each dependency. Keys come from outside, so there is a bound on them.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use headgate_protos::v1;

use super::{Breaker, Gate, Opened, Pass, Verdict};
use crate::policy::BreakerConfig;
use crate::rng::Rng;
use crate::time::Timestamp;

/// Keys of one scope of one pool.
pub const MAX_KEYS: usize = 256;
/// Longest key, in bytes; a longer one has no breaker.
const MAX_KEY_BYTES: usize = 128;

#[derive(Debug, Clone)]
struct Entry {
    key: Box<[u8]>,
    breaker: Breaker,
    last_used: Timestamp,
}

/// Permission of one request to pass the breaker of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyedPass {
    position: usize,
    /// Tells a key that has taken another's position from that other.
    inserted: u64,
    pass: Pass,
}

/// Whether the breakers of all keys let a request pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum KeyedGate {
    /// They do; a probe's permission is in it when the request is one.
    Open(Option<KeyedPass>),
    /// One of them does not.
    Shut {
        /// Time after which it may let requests pass.
        recovery: Duration,
        /// What opened it.
        opened: Opened,
    },
}

/// The breakers of one scope. At most [`MAX_KEYS`]; a new key takes the place of the closed one that was used longest ago, and has
/// none while no breaker is closed.
#[derive(Debug, Clone, Default)]
pub struct KeyedBreakers {
    entries: Vec<(u64, Entry)>,
    inserted: u64,
    not_closed: usize,
}

impl KeyedBreakers {
    /// Takes a result for one key.
    pub fn observe(&mut self, config: &BreakerConfig, now: Timestamp, key: &[u8], verdict: Verdict) {
        // A key is worth remembering from its first failure on.
        let position = match self.position(key) {
            None if verdict != Verdict::Failure => return,
            None => self.insert(config, now, key),
            known => known,
        };
        if let Some((_, entry)) = position.and_then(|position| self.entries.get_mut(position)) {
            entry.last_used = now;
            entry.breaker.observe(config, now, verdict);
        }
        self.recount();
    }

    /// Takes a success of a request that used every key whose breaker lets everything or a growing part pass.
    pub fn observe_success_of_all(&mut self, config: &BreakerConfig, now: Timestamp) {
        if self.entries.is_empty() {
            return;
        }
        for (_, entry) in &mut self.entries {
            if matches!(entry.breaker.state(), v1::BreakerState::Closed | v1::BreakerState::Ramping) {
                entry.breaker.observe(config, now, Verdict::Success);
            }
        }
        self.recount();
    }

    /// Whether a request passes that may use every key. Of several half-open keys it probes the first, the others wait for theirs.
    pub fn admit(&mut self, config: &BreakerConfig, now: Timestamp, rng: &mut Rng) -> KeyedGate {
        if self.not_closed == 0 {
            return KeyedGate::Open(None);
        }
        let mut probe = None;
        for (position, (inserted, entry)) in self.entries.iter_mut().enumerate() {
            // An open breaker whose time is over is half-open from here on.
            entry.breaker.on_tick(config, now);
            if entry.breaker.is_closed() {
                continue;
            }
            if probe.is_some() && entry.breaker.state() == v1::BreakerState::HalfOpen {
                continue;
            }
            match entry.breaker.admit(config, now, rng) {
                Gate::Open(pass) if pass.is_probe => probe = Some(KeyedPass { position, inserted: *inserted, pass }),
                Gate::Open(_) => {}
                Gate::Shut { recovery } => {
                    let opened = entry.breaker.opened();
                    if let Some(probe) = probe {
                        self.settle(config, now, probe, Verdict::Unknown);
                    }
                    return KeyedGate::Shut { recovery, opened };
                }
            }
        }
        KeyedGate::Open(probe)
    }

    /// Takes the result of a probe.
    pub fn settle(&mut self, config: &BreakerConfig, now: Timestamp, pass: KeyedPass, verdict: Verdict) {
        if let Some((inserted, entry)) = self.entries.get_mut(pass.position)
            && *inserted == pass.inserted
        {
            entry.breaker.settle(config, now, pass.pass, verdict);
        }
        self.recount();
    }

    /// Whether `pass` probes `key`.
    #[must_use]
    pub fn is_for(&self, pass: KeyedPass, key: &[u8]) -> bool {
        self.entries.get(pass.position).is_some_and(|(inserted, entry)| *inserted == pass.inserted && *entry.key == *key)
    }

    /// Moves on what moves with time alone.
    pub fn on_tick(&mut self, config: &BreakerConfig, now: Timestamp) {
        if self.not_closed == 0 {
            return;
        }
        for (_, entry) in &mut self.entries {
            entry.breaker.on_tick(config, now);
        }
        self.recount();
    }

    /// Follows a changed policy.
    pub fn reconfigure(&mut self, config: &BreakerConfig) {
        for (_, entry) in &mut self.entries {
            entry.breaker.reconfigure(config);
        }
    }

    /// Keys whose breaker is not closed, with its state.
    pub fn not_closed(&self) -> impl Iterator<Item = (&[u8], v1::BreakerState)> {
        self.entries.iter().filter(|(_, entry)| !entry.breaker.is_closed()).map(|(_, entry)| (&*entry.key, entry.breaker.state()))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    #[cfg(test)]
    pub(super) fn has(&self, key: &[u8]) -> bool {
        self.position(key).is_some()
    }

    fn position(&self, key: &[u8]) -> Option<usize> {
        self.entries.iter().position(|(_, entry)| *entry.key == *key)
    }

    fn insert(&mut self, config: &BreakerConfig, now: Timestamp, key: &[u8]) -> Option<usize> {
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return None;
        }
        let entry = Entry { key: key.into(), breaker: Breaker::new(config), last_used: now };
        self.inserted += 1;
        if self.entries.len() < MAX_KEYS {
            self.entries.push((self.inserted, entry));
            return Some(self.entries.len().saturating_sub(1));
        }
        let closed = self.entries.iter().enumerate().filter(|(_, (_, entry))| entry.breaker.is_closed());
        let (position, _) = closed.min_by_key(|(_, (_, entry))| entry.last_used)?;
        *self.entries.get_mut(position)? = (self.inserted, entry);
        Some(position)
    }

    fn recount(&mut self) {
        self.not_closed = self.entries.iter().filter(|(_, entry)| !entry.breaker.is_closed()).count();
    }
}
