//! Playing: where on a tape all who play it are.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::Tape;

/// A tape that is being played over and over, to devices and engines alike: all copies are at one place on it.
#[derive(Clone, Debug)]
pub struct Playback {
    tape: Arc<Tape>,
    began: Arc<OnceLock<Instant>>,
}

// === impl Playback ===

impl Playback {
    /// `tape`, which begins with the first question.
    pub fn new(tape: Tape) -> Self {
        Self { tape: Arc::new(tape), began: Arc::default() }
    }

    /// What is played.
    pub fn tape(&self) -> &Tape {
        &self.tape
    }

    /// How often the tape was played to its end at `now`, and the time since it began again.
    pub fn position(&self, now: Instant) -> (u32, Duration) {
        let (played, length) = (now.saturating_duration_since(self.began(now)).as_nanos(), self.tape.length().as_nanos().max(1));
        let (round, rest) = (played / length, played % length);
        // The rest is less than the length, which came from a `Duration`.
        let place = Duration::new(u64::try_from(rest / 1_000_000_000).unwrap_or(0), (rest % 1_000_000_000) as u32);
        (u32::try_from(round).unwrap_or(u32::MAX), place)
    }

    /// When the place `at` of the tape is played for the `round`th time, from 0; `None` beyond all times that there are.
    pub fn time_of(&self, round: u32, at: Duration) -> Option<Instant> {
        self.began(Instant::now()).checked_add(self.tape.length().checked_mul(round)?)?.checked_add(at)
    }

    fn began(&self, now: Instant) -> Instant {
        *self.began.get_or_init(|| now)
    }
}
