//! The last minutes' signals.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use headgate_core::fleet::{Controls, PoolView};
use headgate_core::level::GpuMemorySample;
use headgate_core::overload::EngineSample;
use headgate_core::time::Timestamp;

/// Time between two frames.
const PERIOD: Duration = Duration::from_millis(200);
/// How far back the tape goes.
const WINDOW: Duration = Duration::from_secs(180);
/// Pools over all frames, about 20 KiB each: with many pools the tape is shorter.
const MAX_POOL_FRAMES: usize = 2048;
/// Time between two frames that have what was learned.
const LEARNED_PERIOD: Duration = Duration::from_secs(30);

/// The signals of one step of the control loop, by the name of the pool's books.
#[derive(Clone, Default)]
pub struct Frame {
    /// When, on the monotonic clock.
    pub at: Timestamp,
    /// Load.
    pub loads: BTreeMap<String, PoolView>,
    /// What the level of GPU memory watched.
    pub gpu_memory: BTreeMap<String, GpuMemorySample>,
    /// Part of the devices that could be trusted with work, 0 to 1.
    pub capacity: BTreeMap<String, f64>,
    /// What the engines said.
    pub engines: BTreeMap<String, EngineSample>,
    /// What the loop had learned after this step; in some frames only.
    pub learned: Option<Controls>,
}

/// The frames of the last minutes. All clones are one tape.
#[derive(Clone, Default)]
pub struct Tape(Arc<Mutex<VecDeque<Arc<Frame>>>>);

// === impl Tape ===

impl Tape {
    /// Whether a frame at `now` is wanted; most steps have none.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.lock().back().is_none_or(|last| now.since(last.at) >= PERIOD)
    }

    /// Appends `frame`, with what `learned` gives from time to time, and forgets what is too old or too much.
    pub fn record(&self, frame: Frame, learned: impl FnOnce() -> Controls) {
        let mut frames = self.lock();
        let since = frames.iter().rev().find(|frame| frame.learned.is_some()).map(|frame| frame.at);
        let is_wanted = since.is_none_or(|at| frame.at.since(at) >= LEARNED_PERIOD);
        let learned = is_wanted.then(learned);
        frames.push_back(Arc::new(Frame { learned, ..frame }));
        let newest = frames.back().map_or(Timestamp::ZERO, |frame| frame.at);
        let mut pools: usize = frames.iter().map(|frame| frame.loads.len().max(1)).sum();
        while let Some(oldest) = frames.front()
            && (newest.since(oldest.at) > WINDOW || pools > MAX_POOL_FRAMES)
        {
            pools -= oldest.loads.len().max(1);
            frames.pop_front();
        }
    }

    /// Forgets everything: another replica steers now, and sees what this one does not.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// What can be played: from the oldest frame that has what was learned.
    pub fn frames(&self) -> Vec<Arc<Frame>> {
        self.lock().iter().skip_while(|frame| frame.learned.is_none()).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Frame>>> {
        // Every write leaves the tape whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
