//! `headgate gpu`: this machine's GPUs, shown or recorded.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use headgate_core::time::Timestamp;
use hyper::Uri;
use serde::Serialize;

use super::table::{Align, Table};
use super::{CliError, Format, print, print_json};
use crate::clock::Clock;
use crate::config::DeviceOrigin;
use crate::device::{self, DeviceBoard, DeviceSource, DeviceState, SourceState, ThrottleReasons};
use crate::status::GpuStatus;

mod record;

/// Arguments of `headgate gpu`.
#[derive(Args, Debug)]
pub(super) struct GpuArgs {
    /// NVML library: a path, or `auto` (the driver's)
    #[arg(long, env = "HEADGATE_NVML_LIB", value_name = "PATH|auto", default_value = "auto")]
    nvml_lib: String,
    /// Show them again and again until interrupted
    #[arg(long, conflicts_with = "record")]
    watch: bool,
    /// Time between two looks, in milliseconds; with --watch
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    interval_ms: u64,
    /// Record to FILE what the sampler of `headgate serve` would see, instead of showing it; `serve --device-tape` plays it
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Metrics page of an engine to record beside the GPUs, as policies name it; several with commas
    #[arg(long = "engine", value_name = "URL", value_delimiter = ',', value_parser = page, requires = "record")]
    engines: Vec<String>,
    /// Time to record, in seconds; Ctrl-C ends it sooner
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400), requires = "record")]
    seconds: u64,
    /// Time between two samples, in milliseconds
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(20..=60_000), requires = "record")]
    period_ms: u64,
}

#[derive(Serialize)]
struct Report {
    gpus: Vec<GpuStatus>,
    gpu_source: String,
}

/// Prints the GPUs, or records them.
pub(super) async fn run(args: &GpuArgs, format: Format) -> Result<(), CliError> {
    let origin = match args.nvml_lib.as_str() {
        "auto" => DeviceOrigin::Driver,
        "off" => DeviceOrigin::Off,
        path => DeviceOrigin::Library(path.into()),
    };
    let source = device::open(&origin).map_err(|error| CliError::Refused(error.to_string()))?.source;
    match &args.record {
        Some(file) => {
            let (length, period) = (Duration::from_secs(args.seconds), Duration::from_millis(args.period_ms));
            record::run(source, file, args.engines.clone(), (length, period), format).await
        }
        None => show(source, args, format).await,
    }
}

/// The address of a metrics page, as policies name it.
fn page(text: &str) -> Result<String, String> {
    let page = text.parse::<Uri>().ok().filter(|page| page.scheme_str() == Some("http") && page.authority().is_some());
    page.map(|_| text.to_owned()).ok_or_else(|| "not the address of a page, for example http://10.0.0.7:8000/metrics".to_owned())
}

/// Shows the GPUs once, or until interrupted. No GPU is an answer.
async fn show(mut source: Box<dyn DeviceSource>, args: &GpuArgs, format: Format) -> Result<(), CliError> {
    let (board, clock) = (DeviceBoard::default(), Clock::start());
    let mut state = DeviceState::starting(source.name());
    loop {
        let now = clock.now();
        ask(source.as_mut(), &mut state, now);
        // The place of this machine is the board's only one.
        let _ = board.publish(now, Arc::new(state.clone()));
        let view = board.view(now);
        let report = Report { gpu_source: crate::status::source_text(&view), gpus: GpuStatus::list(&view) };
        let text = match format {
            Format::Json if !args.watch => return print_json(&report),
            Format::Json => serde_json::to_string(&report).unwrap_or_default(),
            Format::Text if report.gpus.is_empty() => report.gpu_source,
            Format::Text => table(&report.gpus).render(),
        };
        if !args.watch {
            return print(&text);
        }
        // Cursor home and clear below: the table stays in place.
        print(&if format == Format::Text { format!("\x1b[H\x1b[2J{text}") } else { text })?;
        tokio::time::sleep(Duration::from_millis(args.interval_ms)).await;
    }
}

/// Takes one sample into `state`. The slow look comes first: it finds the parts of a partitioned device.
fn ask(source: &mut dyn DeviceSource, state: &mut DeviceState, now: Timestamp) {
    match source.inspect().and_then(|details| Ok((details, source.sample()?))) {
        Ok((details, readings)) => {
            state.details = Arc::new(details);
            state.take(now, readings);
        }
        Err(error) => {
            state.devices.clear();
            state.state = SourceState::Failing(error);
        }
    }
}

/// The GPUs as a table; `headgate status` shows the same.
pub(super) fn table(gpus: &[GpuStatus]) -> Table {
    let mut table = Table::new(&[
        ("GPU", Align::Right),
        ("NAME", Align::Left),
        ("UUID", Align::Left),
        ("MEMORY", Align::Right),
        ("USED", Align::Right),
        ("ACTIVE", Align::Right),
        ("TEMP", Align::Right),
        ("POWER", Align::Right),
        ("SM CLOCK", Align::Right),
        ("HELD DOWN BY", Align::Left),
        ("STATE", Align::Left),
    ]);
    for gpu in gpus {
        let (activity, detail) = (&gpu.activity, &gpu.detail);
        let shown = |value: Option<u32>, unit: &str| value.map_or_else(|| "-".to_owned(), |value| format!("{value}{unit}"));
        table.row(vec![
            gpu.index.to_string(),
            gpu.name.clone(),
            detail.uuid.clone(),
            format!("{:.1}/{:.1} GiB", gib(gpu.memory_used_bytes), gib(gpu.memory_total_bytes)),
            format!("{:.1}%", gpu.memory_used_percent),
            shown(activity.kernel_active_percent, "%"),
            shown(activity.temperature_celsius, " C"),
            activity.power_milliwatts.map_or_else(|| "-".to_owned(), |power| format!("{} W", power / 1000)),
            shown(activity.sm_clock_mhz, " MHz"),
            activity.throttle_reasons.map_or_else(|| "-".to_owned(), listed),
            state_text(gpu),
        ]);
    }
    table
}

/// The state in a word; what is wrong with the device stands above the age of its figures.
fn state_text(gpu: &GpuStatus) -> String {
    match gpu.verdict.as_str() {
        "derated" => format!("derated to {:.0}%: {}", gpu.capacity * 100.0, gpu.verdict_reason),
        "ejected" => format!("ejected: {}", gpu.verdict_reason),
        _ => gpu.state.clone(),
    }
}

fn listed(reasons: ThrottleReasons) -> String {
    reasons.names().collect::<Vec<_>>().join(",")
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}
