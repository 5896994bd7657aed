//! `headgate gpu --record`: the production sampler and scraper, with a tape beside them.

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
use crate::device::tape::{Answer, Call, EngineOutcome, Header, Recorder, TapeWriter, Written};
use crate::device::{DeviceSource, Sampler};
use crate::engine::Engines;

/// What was recorded.
#[derive(Debug, Default, Serialize)]
struct Recorded {
    tape: String,
    bytes: u64,
    samples: usize,
    /// Readings of engines.
    engine_readings: usize,
    failures: usize,
    /// Calls that the disk was too slow for.
    dropped: u64,
    /// Whether the tape ends because it reached its largest size.
    full: bool,
    sample_us: Cost,
    inspect_us: Cost,
    engine_us: Cost,
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
    engine_us: Vec<u64>,
    failures: usize,
}

/// Records `source` and the pages of `engines` to `file` for `length`, until the tape is full or until SIGINT or SIGTERM.
pub(super) async fn run(
    mut source: Box<dyn DeviceSource>,
    file: &Path,
    engines: Vec<String>,
    (length, period): (Duration, Duration),
    format: Format,
) -> Result<(), CliError> {
    let failed = |source| CliError::Io { what: format!("cannot write {}", file.display()), source };
    let header = Header::of(source.as_mut(), period, engines).map_err(|error| {
        CliError::Refused(format!("nothing to record: no device: {error}; engines alone are recorded with --engine URL"))
    })?;
    let mut tape = TapeWriter::begin(File::create(file).map_err(failed)?, &header).map_err(failed)?;

    let (deadline, clock) = (Instant::now() + length, Clock::start());
    let (recorder, mut calls, dropped) = Recorder::new(source, clock);
    let mut engines = Engines::new(clock);
    engines.record(recorder.tap());
    let sampler = Sampler::start(Box::new(recorder), clock)
        .map_err(|source| CliError::Io { what: "cannot start the sampling thread".to_owned(), source })?;
    sampler.control().set_period(period);
    engines.set(header.engines.iter().map(String::as_str));
    let mut costs = Costs::default();
    let full = write_calls(&mut tape, &mut calls, &mut costs, deadline).await.map_err(failed)?;
    drop((sampler, engines));
    let bytes = tape.end().map_err(failed)?;

    let recorded = Recorded {
        tape: file.display().to_string(),
        bytes,
        samples: costs.sample_us.len(),
        engine_readings: costs.engine_us.len(),
        failures: costs.failures,
        dropped: dropped.count(),
        full,
        sample_us: Cost::of(costs.sample_us),
        inspect_us: Cost::of(costs.inspect_us),
        engine_us: Cost::of(costs.engine_us),
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
        match &call.answer {
            Answer::Samples(_) => self.sample_us.push(call.took_us),
            Answer::Details(_) => self.inspect_us.push(call.took_us),
            Answer::SampleFailed(_) | Answer::InspectFailed(_) => self.failures += 1,
            Answer::Engine(engine) => match engine.outcome {
                EngineOutcome::Reading(_) => self.engine_us.push(call.took_us),
                EngineOutcome::Failed(_) => self.failures += 1,
            },
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
        let Self { tape, bytes, samples, engine_readings, failures, dropped, full, sample_us, inspect_us, engine_us } = self;
        let end = if *full { "; the tape is full" } else { "" };
        let cost = |cost: &Cost| format!("{} µs (p99 {}, max {})", cost.p50, cost.p99, cost.max);
        format!(
            "{tape}: {samples} samples, {engine_readings} readings of engines, {failures} failures, {dropped} dropped, {bytes} bytes{end}\n\
             a sample took {}, a look at the rest {}, an engine's page {}",
            cost(sample_us),
            cost(inspect_us),
            cost(engine_us)
        )
    }
}
