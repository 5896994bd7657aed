//! `headgate gpu --record`: the production sampler, with a tape beside it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::{CliError, Format, print, print_json};
use crate::clock::Clock;
use crate::device::tape::{Answer, Call, Header, Recorder, TapeWriter, Written};
use crate::device::{DeviceSource, Sampler};

/// What was recorded.
#[derive(Debug, Default, Serialize)]
struct Recorded {
    tape: String,
    bytes: u64,
    samples: usize,
    failures: usize,
    /// Calls that the disk was too slow for.
    dropped: u64,
    /// Whether the tape ends because it reached its largest size.
    full: bool,
    sample_us: Cost,
    inspect_us: Cost,
}

/// How long calls took, in microseconds.
#[derive(Debug, Default, Serialize)]
struct Cost {
    p50: u64,
    p99: u64,
    max: u64,
}

/// What calls took, while it is being collected.
#[derive(Default)]
struct Costs {
    sample_us: Vec<u64>,
    inspect_us: Vec<u64>,
    failures: usize,
}

/// Records `source` to `file` for `seconds`, until the tape is full or until SIGINT or SIGTERM.
pub(super) async fn run(
    mut source: Box<dyn DeviceSource>,
    file: &Path,
    seconds: u64,
    period_ms: u64,
    format: Format,
) -> Result<(), CliError> {
    let failed = |source| CliError::Io { what: format!("cannot write {}", file.display()), source };
    let period = Duration::from_millis(period_ms);
    let header =
        Header::of(source.as_mut(), period).map_err(|error| CliError::Refused(format!("nothing to record: no device: {error}")))?;
    let mut tape = TapeWriter::begin(File::create(file).map_err(failed)?, &header).map_err(failed)?;

    let deadline = Instant::now() + Duration::from_secs(seconds);
    let (recorder, mut calls, dropped) = Recorder::new(source);
    let sampler = Sampler::start(Box::new(recorder), Clock::start())
        .map_err(|source| CliError::Io { what: "cannot start the sampling thread".to_owned(), source })?;
    sampler.control().set_period(period);
    let mut costs = Costs::default();
    let full = write_calls(&mut tape, &mut calls, &mut costs, deadline).await.map_err(failed)?;
    drop(sampler);
    let bytes = tape.end().map_err(failed)?;

    let recorded = Recorded {
        tape: file.display().to_string(),
        bytes,
        samples: costs.sample_us.len(),
        failures: costs.failures,
        dropped: dropped.count(),
        full,
        sample_us: Cost::of(costs.sample_us),
        inspect_us: Cost::of(costs.inspect_us),
    };
    match format {
        Format::Json => print_json(&recorded),
        Format::Text => print(&recorded.line()),
    }
}

/// Writes what comes until the deadline, a signal or the end of the tape; returns whether the tape is full.
async fn write_calls(
    tape: &mut TapeWriter<File>,
    calls: &mut mpsc::Receiver<Call>,
    costs: &mut Costs,
    deadline: Instant,
) -> io::Result<bool> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    loop {
        let call = tokio::select! {
            biased;
            () = tokio::time::sleep_until(deadline) => return Ok(false),
            _ = interrupt.recv() => return Ok(false),
            _ = terminate.recv() => return Ok(false),
            Some(call) = calls.recv() => call,
            else => return Ok(false),
        };
        costs.count(&call);
        if tape.write(&call)? == Written::Full {
            return Ok(true);
        }
    }
}

// === impl Costs ===

impl Costs {
    fn count(&mut self, call: &Call) {
        match call.answer {
            Answer::Samples(_) => self.sample_us.push(call.took_us),
            Answer::Details(_) => self.inspect_us.push(call.took_us),
            Answer::SampleFailed(_) | Answer::InspectFailed(_) => self.failures += 1,
        }
    }
}

// === impl Cost ===

impl Cost {
    fn of(mut took_us: Vec<u64>) -> Self {
        took_us.sort_unstable();
        let at = |percent: usize| took_us.get((took_us.len() * percent / 100).min(took_us.len().saturating_sub(1))).copied();
        Self { p50: at(50).unwrap_or(0), p99: at(99).unwrap_or(0), max: at(100).unwrap_or(0) }
    }
}

// === impl Recorded ===

impl Recorded {
    fn line(&self) -> String {
        let Self { tape, bytes, samples, failures, dropped, full, sample_us, inspect_us } = self;
        let end = if *full { "; the tape is full" } else { "" };
        format!(
            "{tape}: {samples} samples, {failures} failures, {dropped} dropped, {bytes} bytes{end}\n\
             a sample took {} µs (p99 {}, max {}), a look at the rest {} µs (p99 {}, max {})",
            sample_us.p50, sample_us.p99, sample_us.max, inspect_us.p50, inspect_us.p99, inspect_us.max
        )
    }
}
