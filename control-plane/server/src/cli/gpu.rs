//! `headgate gpu`: this machine's GPUs.

use clap::Args;
use serde::Serialize;

use super::table::{Align, Table};
use super::{CliError, Format, print, print_json};
use crate::config::NvmlLibrary;
use crate::device::{self, DeviceSource, SampleError};
use crate::status::GpuStatus;

/// Arguments of `headgate gpu`.
#[derive(Args, Debug)]
pub(super) struct GpuArgs {
    /// NVML library: a path, or `auto` (the driver's)
    #[arg(long, env = "HEADGATE_NVML_LIB", value_name = "PATH|auto", default_value = "auto")]
    nvml_lib: String,
}

#[derive(Serialize)]
struct Report {
    gpus: Vec<GpuStatus>,
    gpu_source: String,
}

/// Prints the GPUs. No GPU is an answer.
pub(super) fn run(args: &GpuArgs, format: Format) -> Result<(), CliError> {
    let library = match args.nvml_lib.as_str() {
        "auto" => NvmlLibrary::Auto,
        "off" => NvmlLibrary::Off,
        path => NvmlLibrary::Path(path.into()),
    };
    let mut source = device::open(&library);
    let report = match ask(source.as_mut()) {
        Ok(gpus) => Report { gpu_source: crate::status::sampling_text(source.name(), gpus.len()), gpus },
        Err(error) => Report { gpus: Vec::new(), gpu_source: crate::status::failing_text(&error) },
    };
    match format {
        Format::Json => print_json(&report),
        Format::Text if report.gpus.is_empty() => print(&report.gpu_source),
        Format::Text => print(&table(&report.gpus).render()),
    }
}

fn ask(source: &mut dyn DeviceSource) -> Result<Vec<GpuStatus>, SampleError> {
    let samples = source.sample()?;
    let details = source.inspect()?;
    Ok(GpuStatus::list(&samples, &details))
}

/// The GPUs as a table; `headgate status` shows the same.
pub(super) fn table(gpus: &[GpuStatus]) -> Table {
    let mut table = Table::new(&[
        ("GPU", Align::Right),
        ("NAME", Align::Left),
        ("UUID", Align::Left),
        ("MEMORY", Align::Right),
        ("USED", Align::Right),
        ("UTIL", Align::Right),
        ("TEMP", Align::Right),
        ("POWER", Align::Right),
        ("SM CLOCK", Align::Right),
        ("HELD DOWN BY", Align::Left),
    ]);
    for gpu in gpus {
        let detail = &gpu.detail;
        let shown = |value: Option<u32>, unit: &str| value.map_or_else(|| "-".to_owned(), |value| format!("{value}{unit}"));
        table.row(vec![
            gpu.index.to_string(),
            gpu.name.clone(),
            detail.uuid.clone(),
            format!("{:.1}/{:.1} GiB", gib(gpu.memory_used_bytes), gib(gpu.memory_total_bytes)),
            format!("{:.1}%", gpu.memory_used_percent),
            shown(detail.utilization_percent, "%"),
            shown(detail.temperature_celsius, " C"),
            detail.power_milliwatts.map_or_else(|| "-".to_owned(), |power| format!("{} W", power / 1000)),
            shown(detail.sm_clock_mhz, " MHz"),
            detail.throttle_reasons.as_ref().map_or_else(|| "-".to_owned(), |reasons| reasons.join(",")),
        ]);
    }
    table
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}
