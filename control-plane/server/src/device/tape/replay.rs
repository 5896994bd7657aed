//! Replay: a tape as a device source.

use std::time::{Duration, Instant};

use super::{Moment, Playback, Track};
use crate::device::{DeviceDetail, DeviceReading, DeviceSource, DriverInfo, SampleError};

/// Plays a tape over and over, from the first question on.
///
/// Each question gets the answer to the last call that had begun by then on the tape. Where the recorded source was still busy,
/// this one is too: a driver that hung for a second holds up the sampler for a second.
#[derive(Debug)]
pub struct TapeSource(Playback);

// === impl TapeSource ===

impl TapeSource {
    /// A source that plays the devices of a tape.
    pub fn new(playback: Playback) -> Self {
        Self(playback)
    }

    /// Time since the beginning of this round of the tape.
    fn position(&self) -> Duration {
        self.0.position(Instant::now()).1
    }
}

impl DeviceSource for TapeSource {
    fn name(&self) -> &'static str {
        "tape"
    }

    fn driver(&mut self) -> Result<DriverInfo, SampleError> {
        Ok(self.0.tape().header().driver.clone())
    }

    fn sample(&mut self) -> Result<Vec<DeviceReading>, SampleError> {
        let at = self.position();
        answer(&self.0.tape().samples, at)
    }

    fn inspect(&mut self) -> Result<Vec<DeviceDetail>, SampleError> {
        let at = self.position();
        answer(&self.0.tape().details, at)
    }
}

/// The answer at `at`, when it was there. A tape without such calls knows nothing.
fn answer<T: Clone>(track: &Track<Vec<T>>, at: Duration) -> Result<Vec<T>, SampleError> {
    let Some(Moment { ready_at, answer, .. }) = track.at(at) else { return Ok(Vec::new()) };
    std::thread::sleep(ready_at.saturating_sub(at));
    answer.clone()
}
