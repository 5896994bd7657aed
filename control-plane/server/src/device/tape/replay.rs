//! Replay: a tape as a device source.

use std::time::{Duration, Instant};

use super::{Moment, Tape, Track};
use crate::device::{DeviceDetail, DeviceReading, DeviceSource, DriverInfo, SampleError};

/// Plays a tape over and over, from the first question on.
///
/// Each question gets the answer to the last call that had begun by then on the tape. Where the recorded source was still busy,
/// this one is too: a driver that hung for a second holds up the sampler for a second.
#[derive(Debug)]
pub struct TapeSource {
    tape: Tape,
    began: Option<Instant>,
}

// === impl TapeSource ===

impl TapeSource {
    /// A source that plays `tape`.
    pub fn new(tape: Tape) -> Self {
        Self { tape, began: None }
    }

    /// Time since the beginning of this round of the tape.
    fn position(&mut self) -> Duration {
        let played = self.began.get_or_insert_with(Instant::now).elapsed();
        within(played, self.tape.length())
    }
}

impl DeviceSource for TapeSource {
    fn name(&self) -> &'static str {
        "tape"
    }

    fn driver(&mut self) -> Result<DriverInfo, SampleError> {
        Ok(self.tape.header().driver.clone())
    }

    fn sample(&mut self) -> Result<Vec<DeviceReading>, SampleError> {
        let at = self.position();
        answer(&self.tape.samples, at)
    }

    fn inspect(&mut self) -> Result<Vec<DeviceDetail>, SampleError> {
        let at = self.position();
        answer(&self.tape.details, at)
    }
}

/// The answer at `at`, when it was there. A tape without such calls knows nothing.
fn answer<T: Clone>(track: &Track<Vec<T>>, at: Duration) -> Result<Vec<T>, SampleError> {
    let Some(Moment { ready_at, answer, .. }) = track.at(at) else { return Ok(Vec::new()) };
    std::thread::sleep(ready_at.saturating_sub(at));
    answer.clone()
}

/// `played` modulo `length`.
pub(super) fn within(played: Duration, length: Duration) -> Duration {
    let nanos = played.as_nanos() % length.as_nanos().max(1);
    // Less than `length`, which fits.
    Duration::new(u64::try_from(nanos / 1_000_000_000).unwrap_or(0), (nanos % 1_000_000_000) as u32)
}
