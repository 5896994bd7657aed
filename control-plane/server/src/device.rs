//! GPU telemetry: what a device reports, and the thread that asks.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::DeviceOrigin;

mod board;
pub mod dcgm;
mod endpoint;
mod figures;
mod freeze;
mod none;
#[cfg(feature = "nvml")]
mod nvml;
mod peer_clock;
mod pool;
mod sampler;
mod state;
pub mod tape;
mod units;
mod verdict;
pub mod wire;

pub use self::board::{Condition, DeviceBoard, FORGET_AFTER, MAX_NODES, NodeView, TooManyNodes};
pub use self::endpoint::EndpointDevices;
pub use self::figures::{
    DeviceActivity, DeviceDetail, DeviceProcess, DeviceReading, DeviceSample, DriverInfo, LostDevice, MAX_PROCESSES, ThrottleReasons,
};
pub use self::none::NoDevices;
pub use self::peer_clock::PeerClock;
pub use self::pool::{DeviceView, PoolCapacity};
pub use self::sampler::{Sampler, SamplerControl};
pub use self::state::{DeviceState, SourceState};
use self::tape::{Playback, Tape, TapeError, TapeSource};
use self::verdict::is_fatal_xid;
pub use self::verdict::{Derating, Ejection, Verdict};

/// Where device samples come from. Called on a thread of its own, since a driver call may block.
pub trait DeviceSource: Send {
    /// Name of the source, for example `nvml`.
    fn name(&self) -> &'static str;

    /// The software that answers; asked seldom.
    ///
    /// # Errors
    /// As [`DeviceSource::sample`].
    fn driver(&mut self) -> Result<DriverInfo, SampleError>;

    /// Every device now: what the control loop acts on. Called up to 50 times a second. A device that is lost is one reading; the
    /// others are there.
    ///
    /// # Errors
    /// [`SampleError`] when the driver is gone; the caller asks again later.
    fn sample(&mut self) -> Result<Vec<DeviceReading>, SampleError>;

    /// Limits, health and processes of every device: called once a second. What a device does not report is `None`.
    ///
    /// # Errors
    /// As [`DeviceSource::sample`].
    fn inspect(&mut self) -> Result<Vec<DeviceDetail>, SampleError>;
}

/// Why no sample could be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleError {
    /// The library is missing or unusable.
    #[error("{library}: {problem}")]
    Library {
        /// The library.
        library: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The driver lists no device.
    #[error("the driver lists no GPU")]
    NoDevice,
    /// A device is gone, and with it the answer. Written by recorders before a lost device was a reading of its own.
    #[error("GPU {index} is lost: {problem}")]
    Lost {
        /// Its index.
        index: u32,
        /// What the driver says.
        problem: String,
    },
    /// The agent that speaks for the devices says this, or is gone.
    #[error("{problem}")]
    Agent {
        /// What it says.
        problem: String,
    },
    /// Telemetry is switched off.
    #[error("GPU telemetry is switched off (--nvml-lib off)")]
    Off,
}

/// A source that has been opened.
pub struct Opened {
    /// Who answers.
    pub source: Box<dyn DeviceSource>,
    /// The tape, where it is one: engines may be on it too.
    pub playback: Option<Playback>,
}

/// The source that the configuration names.
///
/// # Errors
/// [`TapeError`] when it is a tape that cannot be used. A missing library is no error here: the source says so when it is asked.
pub fn open(origin: &DeviceOrigin) -> Result<Opened, TapeError> {
    let source: Box<dyn DeviceSource> = match origin {
        DeviceOrigin::Off => Box::new(NoDevices::new(SampleError::Off)),
        DeviceOrigin::Tape(path) => {
            let playback = Playback::new(Tape::open(path)?);
            return Ok(Opened { source: Box::new(TapeSource::new(playback.clone())), playback: Some(playback) });
        }
        #[cfg(feature = "nvml")]
        DeviceOrigin::Driver => Box::new(nvml::Nvml::new(None)),
        #[cfg(feature = "nvml")]
        DeviceOrigin::Library(path) => Box::new(nvml::Nvml::new(Some(path.clone()))),
        #[cfg(not(feature = "nvml"))]
        DeviceOrigin::Driver | DeviceOrigin::Library(_) => Box::new(NoDevices::new(SampleError::Library {
            library: "nvml".to_owned(),
            problem: "this build has no NVML support (feature `nvml`)".to_owned(),
        })),
    };
    Ok(Opened { source, playback: None })
}

/// Shortest period between two samples.
pub const MIN_PERIOD: Duration = Duration::from_millis(20);
/// Period while no policy asks for another.
pub const DEFAULT_PERIOD: Duration = Duration::from_millis(100);
