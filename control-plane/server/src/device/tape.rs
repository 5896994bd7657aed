//! Tapes: what a device source said, call by call, in a file.
//!
//! A tape is lines of JSON. The first is the [`Header`]; each other line is one [`Call`] to the source: when it began on the
//! tape's monotonic clock, how long the source took, and its answer, good or bad. So a replay shows a driver that hung or a device
//! that fell off the bus as the sampler saw it, and the cost of every call is in the file.
//!
//! ```text
//! {"headgate_device_tape":1,"recorded_at_unix_ms":1763665200000,"source":"nvml","driver":{"driver_version":"580.95.05",…},…}
//! {"at_us":0,"took_us":412,"samples":[{"index":0,"uuid":"GPU-…","memory_used_bytes":553648128,…,"sm_clock_mhz":345,…}]}
//! {"at_us":415,"took_us":1730,"details":[{"uuid":"GPU-…","power_limit_milliwatts":700000,…}]}
//! {"at_us":100214,"took_us":31,"sample_failed":{"lost":{"index":0,"problem":"…"}}}
//! ```

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{DeviceDetail, DeviceReading, DriverInfo, SampleError};

mod record;
mod replay;
#[cfg(test)]
mod tests;

pub use self::record::{Dropped, Recorder, TapeWriter, Written};
pub use self::replay::TapeSource;

/// Version of the format that is written, and the only one that is read.
pub const VERSION: u32 = 1;
/// Largest tape that is written or read: 16 h of one device at 10 Hz.
pub const MAX_TAPE_BYTES: u64 = 256 << 20;
/// Longest line that is read: about 1,000 devices.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// The first line of a tape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`VERSION`]; its name marks the file as a tape.
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

/// One call to the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Time from the tape's zero to the beginning of the call, in microseconds; never less than that of the call before.
    pub at_us: u64,
    /// How long the source took to answer, in microseconds.
    pub took_us: u64,
    /// What it said.
    #[serde(flatten)]
    pub answer: Answer,
}

/// What the source said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// A tape that has been read: at least one answer to `sample`, in the order of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tape {
    header: Header,
    samples: Track<Vec<DeviceReading>>,
    details: Track<Vec<DeviceDetail>>,
    length: Duration,
}

/// The answers to one kind of call, in the order of time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Track<T>(Vec<Moment<T>>);

/// One answer and when it was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment<T> {
    /// When the call began, from the tape's zero.
    pub asked_at: Duration,
    /// When its answer was there.
    pub ready_at: Duration,
    /// The answer.
    pub answer: Result<T, SampleError>,
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
    #[error("{path}: no tape of version {VERSION}: {problem}")]
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
    /// It has no answer to `sample`.
    #[error("{path}: holds no sample")]
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
        let mut tape = Self { header, samples: Track(Vec::new()), details: Track(Vec::new()), length: Duration::ZERO };
        for number in 2.. {
            let Some(line) = next_line(&mut input).map_err(|source| TapeError::Read { path: path.to_owned(), source })? else { break };
            let read = serde_json::from_slice(&line).map_err(|error| error.to_string()).and_then(|call| tape.push(call));
            read.map_err(|problem| TapeError::Line { path: path.to_owned(), line: number, problem })?;
        }
        if tape.samples.0.is_empty() { Err(TapeError::Empty { path: path.to_owned() }) } else { Ok(tape) }
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

    fn push(&mut self, call: Call) -> Result<(), String> {
        let asked_at = Duration::from_micros(call.at_us);
        let ready_at = asked_at.saturating_add(Duration::from_micros(call.took_us));
        match call.answer {
            Answer::Samples(answer) => self.samples.push(Moment { asked_at, ready_at, answer: Ok(answer) })?,
            Answer::SampleFailed(error) => self.samples.push(Moment { asked_at, ready_at, answer: Err(error) })?,
            Answer::Details(answer) => self.details.push(Moment { asked_at, ready_at, answer: Ok(answer) })?,
            Answer::InspectFailed(error) => self.details.push(Moment { asked_at, ready_at, answer: Err(error) })?,
        }
        let period = Duration::from_millis(self.header.period_ms);
        self.length = self.length.max(ready_at).max(asked_at.saturating_add(period));
        Ok(())
    }
}

// === impl Track ===

impl<T> Track<T> {
    fn push(&mut self, moment: Moment<T>) -> Result<(), String> {
        if self.0.last().is_some_and(|last| moment.asked_at < last.asked_at) {
            return Err(format!("at_us {} is before that of the line above", moment.asked_at.as_micros()));
        }
        self.0.push(moment);
        Ok(())
    }

    /// The last call that had begun at `at`, or the first one.
    fn at(&self, at: Duration) -> Option<&Moment<T>> {
        let begun = self.0.partition_point(|moment| moment.asked_at <= at);
        self.0.get(begun.saturating_sub(1))
    }
}

fn header(line: &[u8]) -> Result<Header, String> {
    let header: Header = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if header.headgate_device_tape == VERSION { Ok(header) } else { Err(format!("version {}", header.headgate_device_tape)) }
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
