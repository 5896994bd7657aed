//! Tapes: what the devices and the engines said, call by call, in a file.
//!
//! A tape is lines of JSON. The first is the [`Header`]; each other line is one [`Call`] to the device source or to an engine's page:
//! when it began on the tape's monotonic clock, how long the answer took, and the answer, good or bad. So a replay shows a driver that
//! hung, a device that fell off the bus or an engine that timed out as the sampler and the scraper saw it, and the cost of every call is
//! in the file. Calls to different things overlap: only those to one thing are in the order of time.
//!
//! ```text
//! {"headgate_device_tape":2,"recorded_at_unix_ms":1763665200000,"source":"nvml","driver":{"driver_version":"580.95.05",…},…}
//! {"at_us":0,"took_us":412,"samples":[{"index":0,"uuid":"GPU-…","memory_used_bytes":553648128,…,"sm_clock_mhz":345,…}]}
//! {"at_us":415,"took_us":1730,"details":[{"uuid":"GPU-…","power_limit_milliwatts":700000,…}]}
//! {"at_us":100214,"took_us":31,"sample_failed":{"lost":{"index":0,"problem":"…"}}}
//! {"at_us":113870,"took_us":902,"engine":{"url":"http://127.0.0.1:8000/metrics","address":"127.0.0.1:8000","reading":{"kv_use":0.41,…}}}
//! {"at_us":211404,"took_us":77,"engine":{"url":"…","address":"…","failed":"no answer: Connection refused (os error 111)"}}
//! ```
//!
//! Version 1 has no engines and is read as before.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{DeviceDetail, DeviceReading, DriverInfo, SampleError};
use crate::engine::ScrapeError;
use crate::engine::page::Reading;

mod playback;
mod record;
mod replay;
#[cfg(test)]
mod tests;

pub use self::playback::Playback;
pub use self::record::{Dropped, Recorder, Tap, TapeWriter, Written};
pub use self::replay::TapeSource;

/// Version of the format that is written; older ones are read too.
pub const VERSION: u32 = 2;
/// Largest tape that is written or read: 16 h of one device at 10 Hz.
pub const MAX_TAPE_BYTES: u64 = 256 << 20;
/// Longest line that is read: about 1,000 devices.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// The first line of a tape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// 1 to [`VERSION`]; its name marks the file as a tape.
    pub headgate_device_tape: u32,
    /// Calendar time of the tape's zero, in milliseconds since the Unix epoch; for people only.
    pub recorded_at_unix_ms: u64,
    /// Name of the source, for example `nvml`.
    pub source: String,
    /// The software that answered.
    pub driver: DriverInfo,
    /// Period between two samples, in milliseconds.
    pub period_ms: u64,
    /// The devices when the recording began, by index.
    pub devices: Vec<DeviceName>,
    /// Addresses of the engines' pages that are recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<String>,
}

/// Who a device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceName {
    /// Index by which the driver listed it.
    pub index: u32,
    /// Identity.
    pub uuid: String,
    /// Product name.
    pub name: String,
}

/// One call to the source or to an engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Time from the tape's zero to the beginning of the call, in microseconds; never less than that of the call before to the same.
    pub at_us: u64,
    /// How long the answer took, in microseconds.
    pub took_us: u64,
    /// What it said.
    #[serde(flatten)]
    pub answer: Answer,
}

/// What was said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To `sample`.
    Samples(Vec<DeviceReading>),
    /// To `inspect`.
    Details(Vec<DeviceDetail>),
    /// To `sample`: it could not.
    SampleFailed(SampleError),
    /// To `inspect`: it could not.
    InspectFailed(SampleError),
    /// By an engine.
    Engine(EngineAnswer),
}

/// What one engine said to one reading of its page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineAnswer {
    /// Address of its page, as policies name it.
    pub url: String,
    /// Its network address.
    pub address: SocketAddr,
    /// What came.
    #[serde(flatten)]
    pub outcome: EngineOutcome,
}

/// How a reading of an engine's page went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineOutcome {
    /// Well: the figures as the adapter of its kind yields them.
    Reading(Reading),
    /// Not, and why.
    Failed(String),
}

/// A tape that has been read: at least one answer to `sample` or of an engine, each kind of answer in the order of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Tape {
    header: Header,
    samples: Track<Vec<DeviceReading>>,
    details: Track<Vec<DeviceDetail>>,
    engines: BTreeMap<String, BTreeMap<SocketAddr, Track<Reading, ScrapeError>>>,
    length: Duration,
}

/// The answers to one kind of call, in the order of time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Track<T, E = SampleError>(Vec<Moment<T, E>>);

/// One answer and when it was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment<T, E = SampleError> {
    /// When the call began, from the tape's zero.
    pub asked_at: Duration,
    /// When its answer was there.
    pub ready_at: Duration,
    /// The answer.
    pub answer: Result<T, E>,
}

/// Why a tape cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapeError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too large.
    #[error("{path}: larger than {} MiB", MAX_TAPE_BYTES >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Its first line is no header, or one of another version.
    #[error("{path}: no tape of version 1 to {VERSION}: {problem}")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A line is none.
    #[error("{path}:{line}: {problem}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// It has neither an answer to `sample` nor a reading of an engine.
    #[error("{path}: holds no sample and no reading")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

// === impl Tape ===

impl Tape {
    /// Reads a tape. A last line without its end is left out: the recorder was stopped while it wrote.
    ///
    /// # Errors
    /// [`TapeError`] naming the file, and the line where it is a line.
    pub fn open(path: &Path) -> Result<Self, TapeError> {
        let unreadable = |source| TapeError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        if file.metadata().map_err(unreadable)?.len() > MAX_TAPE_BYTES {
            return Err(TapeError::TooLarge { path: path.to_owned() });
        }
        // The bound holds also for what has no size, such as a pipe.
        Self::read(BufReader::new(file.take(MAX_TAPE_BYTES)), path)
    }

    /// Reads a tape from `input`; `path` names it in errors.
    fn read(mut input: impl BufRead, path: &Path) -> Result<Self, TapeError> {
        let first = next_line(&mut input).map_err(|source| TapeError::Read { path: path.to_owned(), source })?.unwrap_or_default();
        let header = header(&first).map_err(|problem| TapeError::Header { path: path.to_owned(), problem })?;
        let mut tape =
            Self { header, samples: Track::default(), details: Track::default(), engines: BTreeMap::new(), length: Duration::ZERO };
        for number in 2.. {
            let Some(line) = next_line(&mut input).map_err(|source| TapeError::Read { path: path.to_owned(), source })? else { break };
            let read = serde_json::from_slice(&line).map_err(|error| error.to_string()).and_then(|call| tape.push(call));
            read.map_err(|problem| TapeError::Line { path: path.to_owned(), line: number, problem })?;
        }
        if tape.samples.0.is_empty() && tape.engines.is_empty() { Err(TapeError::Empty { path: path.to_owned() }) } else { Ok(tape) }
    }

    /// Who recorded what.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Time from the tape's zero to one period after the last call began, or to its answer if that came later.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// The answers to `sample`, in the order of time.
    pub fn samples(&self) -> &[Moment<Vec<DeviceReading>>] {
        &self.samples.0
    }

    /// The answers to `inspect`, in the order of time.
    pub fn details(&self) -> &[Moment<Vec<DeviceDetail>>] {
        &self.details.0
    }

    /// Addresses of the engines' pages of which it has a reading.
    pub fn pages(&self) -> impl Iterator<Item = &str> {
        self.engines.keys().map(String::as_str)
    }

    /// The readings of each engine behind the page at `url`, in the order of time; nothing when none was recorded.
    pub fn engines<'a>(&'a self, url: &str) -> impl Iterator<Item = (SocketAddr, &'a [Moment<Reading, ScrapeError>])> + use<'a> {
        self.engines.get(url).into_iter().flatten().map(|(address, track)| (*address, track.0.as_slice()))
    }

    fn push(&mut self, call: Call) -> Result<(), String> {
        let asked_at = Duration::from_micros(call.at_us);
        let ready_at = asked_at.saturating_add(Duration::from_micros(call.took_us));
        match call.answer {
            Answer::Samples(answer) => self.samples.push(Moment { asked_at, ready_at, answer: Ok(answer) })?,
            Answer::SampleFailed(error) => self.samples.push(Moment { asked_at, ready_at, answer: Err(error) })?,
            Answer::Details(answer) => self.details.push(Moment { asked_at, ready_at, answer: Ok(answer) })?,
            Answer::InspectFailed(error) => self.details.push(Moment { asked_at, ready_at, answer: Err(error) })?,
            Answer::Engine(EngineAnswer { url, address, outcome }) => {
                let answer = match outcome {
                    EngineOutcome::Reading(reading) => Ok(reading),
                    EngineOutcome::Failed(problem) => Err(ScrapeError::Recorded(problem)),
                };
                let track = self.engines.entry(url).or_default().entry(address).or_default();
                track.push(Moment { asked_at, ready_at, answer })?;
            }
        }
        let period = Duration::from_millis(self.header.period_ms);
        self.length = self.length.max(ready_at).max(asked_at.saturating_add(period));
        Ok(())
    }
}

// === impl Track ===

impl<T, E> Track<T, E> {
    fn push(&mut self, moment: Moment<T, E>) -> Result<(), String> {
        if self.0.last().is_some_and(|last| moment.asked_at < last.asked_at) {
            return Err(format!("at_us {} is before that of the call before", moment.asked_at.as_micros()));
        }
        self.0.push(moment);
        Ok(())
    }

    /// The last call that had begun at `at`, or the first one.
    fn at(&self, at: Duration) -> Option<&Moment<T, E>> {
        let begun = self.0.partition_point(|moment| moment.asked_at <= at);
        self.0.get(begun.saturating_sub(1))
    }
}

impl<T, E> Default for Track<T, E> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

fn header(line: &[u8]) -> Result<Header, String> {
    let header: Header = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if (1..=VERSION).contains(&header.headgate_device_tape) { Ok(header) } else { Err(format!("version {}", header.headgate_device_tape)) }
}

/// The next line without its end; `None` at the end of the input or when the line has none.
fn next_line(input: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    input.take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
    if line.pop() == Some(b'\n') {
        return Ok(Some(line));
    }
    if line.len() as u64 + 1 < MAX_LINE_BYTES { Ok(None) } else { Err(io::Error::other("a line is longer than 1 MiB")) }
}
