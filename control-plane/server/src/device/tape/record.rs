//! Recording: a source that tells what another says, a tap that engines are read through, and the file that both go to.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use headgate_core::time::Timestamp;
use tokio::sync::mpsc;

use super::{Answer, Call, DeviceName, EngineAnswer, EngineOutcome, Header, MAX_TAPE_BYTES, VERSION};
use crate::clock::{Clock, unix_ms};
use crate::device::{DeviceDetail, DeviceReading, DeviceSource, DriverInfo, SampleError};
use crate::engine::Scrape;

/// Calls that wait for a slow disk before they are dropped: 5 s at 50 Hz.
const WAITING_CALLS: usize = 256;

/// Passes on what another source says, and every call to whoever writes the tape.
///
/// The thread that asks the driver never waits for the disk: when the writer falls behind, calls are dropped and counted.
pub struct Recorder {
    inner: Box<dyn DeviceSource>,
    tap: Tap,
}

/// Takes calls for whoever writes the tape. All copies have one zero.
#[derive(Clone, Debug)]
pub struct Tap {
    clock: Clock,
    zero: Timestamp,
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
    /// The header of a tape of `source` and of the engines' pages at `engines` that begins now.
    ///
    /// # Errors
    /// [`SampleError`] when the source does not answer and there is no engine: there would be nothing to record.
    pub fn of(source: &mut dyn DeviceSource, period: Duration, engines: Vec<String>) -> Result<Self, SampleError> {
        let said = source.sample().and_then(|devices| Ok((devices, source.driver()?)));
        let (devices, driver) = match said {
            Err(error) if engines.is_empty() => return Err(error),
            said => said.unwrap_or_default(),
        };
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
            driver,
            period_ms: u64::try_from(period.as_millis()).unwrap_or(u64::MAX),
            devices: devices.into_iter().map(name).collect(),
            engines,
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
    pub fn new(inner: Box<dyn DeviceSource>, clock: Clock) -> (Self, mpsc::Receiver<Call>, Dropped) {
        let (calls, seen) = mpsc::channel(WAITING_CALLS);
        let dropped = Dropped::default();
        (Self { inner, tap: Tap { clock, zero: clock.now(), calls, dropped: dropped.clone() } }, seen, dropped)
    }

    /// The way in for what else goes on the tape.
    pub fn tap(&self) -> Tap {
        self.tap.clone()
    }

    fn tell<T: Clone>(
        &mut self,
        ask: fn(&mut dyn DeviceSource) -> Result<Vec<T>, SampleError>,
        good: fn(Vec<T>) -> Answer,
        bad: fn(SampleError) -> Answer,
    ) -> Result<Vec<T>, SampleError> {
        let asked_at = self.tap.clock.now();
        let answer = ask(self.inner.as_mut());
        let took = self.tap.clock.now().since(asked_at);
        self.tap.take(asked_at, took, answer.clone().map_or_else(bad, good));
        answer
    }
}

// === impl Tap ===

impl Tap {
    /// Takes what the engine at `address`, behind the page at `url`, said to one reading.
    pub(crate) fn engine(&self, url: &str, address: SocketAddr, scrape: &Scrape) {
        let outcome = match &scrape.result {
            Ok(reading) => EngineOutcome::Reading(reading.clone()),
            Err(error) => EngineOutcome::Failed(error.to_string()),
        };
        self.take(scrape.asked_at, scrape.took, Answer::Engine(EngineAnswer { url: url.to_owned(), address, outcome }));
    }

    fn take(&self, asked_at: Timestamp, took: Duration, answer: Answer) {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let call = Call { at_us: micros(asked_at.since(self.zero)), took_us: micros(took), answer };
        if self.calls.try_send(call).is_err() {
            self.dropped.0.fetch_add(1, Ordering::Relaxed);
        }
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
