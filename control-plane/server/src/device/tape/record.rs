//! Recording: a source that tells what another says, and the file that it goes to.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{Answer, Call, DeviceName, Header, MAX_TAPE_BYTES, VERSION};
use crate::clock::unix_ms;
use crate::device::{DeviceDetail, DeviceReading, DeviceSource, DriverInfo, SampleError};

/// Calls that wait for a slow disk before they are dropped: 5 s at 50 Hz.
const WAITING_CALLS: usize = 256;

/// Passes on what another source says, and every call to whoever writes the tape.
///
/// The thread that asks the driver never waits for the disk: when the writer falls behind, calls are dropped and counted.
pub struct Recorder {
    inner: Box<dyn DeviceSource>,
    began: Instant,
    calls: mpsc::Sender<Call>,
    dropped: Dropped,
}

/// How many calls are missing on the tape because the writer fell behind.
#[derive(Clone, Debug, Default)]
pub struct Dropped(Arc<AtomicU64>);

/// Writes a tape of at most [`MAX_TAPE_BYTES`], each line in one piece: without a buffer under it, a recorder that is killed loses
/// nothing.
#[derive(Debug)]
pub struct TapeWriter<W> {
    out: W,
    bytes: u64,
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Written {
    /// It is on the tape.
    Whole,
    /// The tape is full; it holds all calls before.
    Full,
}

// === impl Header ===

impl Header {
    /// The header of a tape that begins now.
    ///
    /// # Errors
    /// [`SampleError`] when the source does not answer: there would be nothing to record.
    pub fn of(source: &mut dyn DeviceSource, period: Duration) -> Result<Self, SampleError> {
        let devices = source.sample()?;
        let name = |device: DeviceReading| {
            let (index, uuid, name) = match device {
                DeviceReading::Sample(device) => (device.index, device.uuid, device.name),
                DeviceReading::Lost(device) => (device.index, device.uuid, device.name),
            };
            DeviceName { index, uuid: uuid.to_string(), name: name.to_string() }
        };
        Ok(Self {
            headgate_device_tape: VERSION,
            recorded_at_unix_ms: unix_ms(),
            source: source.name().to_owned(),
            driver: source.driver()?,
            period_ms: u64::try_from(period.as_millis()).unwrap_or(u64::MAX),
            devices: devices.into_iter().map(name).collect(),
        })
    }
}

// === impl Dropped ===

impl Dropped {
    /// The count so far.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl Recorder ===

impl Recorder {
    /// A recorder of `inner` whose zero is now, the calls that it sees, and the count of those that it had to drop.
    pub fn new(inner: Box<dyn DeviceSource>) -> (Self, mpsc::Receiver<Call>, Dropped) {
        let (calls, seen) = mpsc::channel(WAITING_CALLS);
        let dropped = Dropped::default();
        (Self { inner, began: Instant::now(), calls, dropped: dropped.clone() }, seen, dropped)
    }

    fn tell<T: Clone>(
        &mut self,
        ask: fn(&mut dyn DeviceSource) -> Result<Vec<T>, SampleError>,
        good: fn(Vec<T>) -> Answer,
        bad: fn(SampleError) -> Answer,
    ) -> Result<Vec<T>, SampleError> {
        let at = self.began.elapsed();
        let answer = ask(self.inner.as_mut());
        let took = self.began.elapsed().saturating_sub(at);
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let call = Call { at_us: micros(at), took_us: micros(took), answer: answer.clone().map_or_else(bad, good) };
        if self.calls.try_send(call).is_err() {
            self.dropped.0.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }
}

impl DeviceSource for Recorder {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn driver(&mut self) -> Result<DriverInfo, SampleError> {
        self.inner.driver()
    }

    fn sample(&mut self) -> Result<Vec<DeviceReading>, SampleError> {
        self.tell(|source| source.sample(), Answer::Samples, Answer::SampleFailed)
    }

    fn inspect(&mut self) -> Result<Vec<DeviceDetail>, SampleError> {
        self.tell(|source| source.inspect(), Answer::Details, Answer::InspectFailed)
    }
}

// === impl TapeWriter ===

impl<W: Write> TapeWriter<W> {
    /// Begins a tape.
    ///
    /// # Errors
    /// When `out` does not take it.
    pub fn begin(out: W, header: &Header) -> io::Result<Self> {
        let mut tape = Self { out, bytes: 0 };
        let _ = tape.line(header)?;
        Ok(tape)
    }

    /// Adds a call.
    ///
    /// # Errors
    /// When the output does not take it.
    pub fn write(&mut self, call: &Call) -> io::Result<Written> {
        self.line(call)
    }

    /// Ends the tape; returns its size in bytes.
    ///
    /// # Errors
    /// When the output does not take it.
    pub fn end(mut self) -> io::Result<u64> {
        self.out.flush()?;
        Ok(self.bytes)
    }

    fn line(&mut self, value: &impl serde::Serialize) -> io::Result<Written> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        if self.bytes + line.len() as u64 > MAX_TAPE_BYTES {
            return Ok(Written::Full);
        }
        self.out.write_all(&line)?;
        self.bytes += line.len() as u64;
        Ok(Written::Whole)
    }
}
