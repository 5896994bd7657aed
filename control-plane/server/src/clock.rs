//! The clocks of the server: monotonic for every interval, the calendar only for people and for epochs that must outlive a restart.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use headgate_core::time::Timestamp;

/// The monotonic clock, counted from the start of the program. All copies agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

// === impl Clock ===

impl Clock {
    /// A clock that starts at zero now.
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Time since the start.
    pub fn now(self) -> Timestamp {
        Timestamp::from_nanos(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// Milliseconds since the Unix epoch; 0 on a host whose calendar is before it.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
