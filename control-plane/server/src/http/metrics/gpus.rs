//! GPUs as metrics. Labels: node, index and UUID, bounded by the nodes and devices that are kept.

use std::fmt;

use super::{Labels, Out};
use crate::status::{GpuStatus, StatusDocument};

const STATES: [&str; 4] = ["ok", "stale", "frozen", "lost"];

pub(super) fn encode(status: &StatusDocument, is_up: bool, out: &mut Out<'_>) -> fmt::Result {
    let rows =
        |value: fn(&GpuStatus) -> Option<f64>| status.gpus.iter().filter_map(move |gpu| value(gpu).map(|value| (labels(gpu), value)));
    out.gauges("headgate_gpu_memory_used_bytes", "Used GPU memory", rows(|gpu| there(gpu, gpu.memory_used_bytes)))?;
    out.gauges("headgate_gpu_memory_total_bytes", "Installed GPU memory", rows(|gpu| there(gpu, gpu.memory_total_bytes)))?;
    let active = rows(|gpu| gpu.activity.kernel_active_percent.map(|percent| f64::from(percent) / 100.0));
    out.gauges("headgate_gpu_kernel_active_ratio", "Time in which at least one kernel ran", active)?;
    let temperature = rows(|gpu| gpu.activity.temperature_celsius.map(f64::from));
    out.gauges("headgate_gpu_temperature_celsius", "Temperature of the chip", temperature)?;
    let power = rows(|gpu| gpu.activity.power_milliwatts.map(|power| f64::from(power) / 1000.0));
    out.gauges("headgate_gpu_power_watts", "Power drawn", power)?;
    let clock = rows(|gpu| gpu.activity.sm_clock_mhz.map(|clock| f64::from(clock) * 1e6));
    out.gauges("headgate_gpu_sm_clock_hertz", "Clock of the multiprocessors", clock)?;
    out.gauges("headgate_gpu_capacity_ratio", "Part of its work that a GPU can be trusted with", rows(|gpu| Some(gpu.capacity)))?;
    out.gauges("headgate_gpu_units", "Size of a GPU; an A100 has 20", rows(|gpu| Some(gpu.gpu_units)))?;
    let states = status.gpus.iter().flat_map(|gpu| {
        STATES.map(|state| ([labels(gpu), vec![("state", state.to_owned())]].concat(), f64::from(u8::from(gpu.state == state))))
    });
    out.gauges("headgate_gpu_state", "State of a GPU's telemetry: 1 for the state that it is in", states)?;
    let counts =
        |value: fn(&GpuStatus) -> Option<u64>| status.gpus.iter().filter_map(move |gpu| value(gpu).map(|value| (labels(gpu), value)));
    let ecc = counts(|gpu| gpu.detail.ecc_uncorrected);
    out.counters("headgate_gpu_ecc_uncorrected_errors", "Uncorrected ECC errors since the driver was loaded", ecc)?;
    let xids = counts(|gpu| gpu.activity.xid_events);
    out.counters("headgate_gpu_xid_errors", "Critical XID errors since the source began to listen", xids)?;
    out.gauge("headgate_gpu_telemetry_up", "Whether any GPU's figures are fresh", f64::from(u8::from(is_up)))
}

fn there(gpu: &GpuStatus, value: u64) -> Option<f64> {
    (gpu.state != "lost").then_some(value as f64)
}

fn labels(gpu: &GpuStatus) -> Labels {
    vec![("node", gpu.node.clone()), ("gpu", gpu.index.to_string()), ("uuid", gpu.detail.uuid.clone())]
}
