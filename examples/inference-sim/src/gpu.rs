//! The simulated device: what NVML would show while the engine runs, and the file through which the NVML shim sees it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

/// Share of the device memory that an engine takes for weights and KV cache together (vLLM `--gpu-memory-utilization`).
pub const MEMORY_UTILIZATION: f64 = 0.9;

/// The state file is not replaced more often than this.
const WRITE_INTERVAL: Duration = Duration::from_millis(10);

const POWER_LIMIT_MW: u64 = 700_000;
const POWER_IDLE_MW: u64 = 72_000;
const SM_CLOCK_MAX_MHZ: u32 = 1980;
const SM_CLOCK_IDLE_MHZ: u32 = 345;
const MEM_CLOCK_MHZ: u32 = 2619;
/// `nvmlClocksEventReasonGpuIdle`.
const REASON_GPU_IDLE: u64 = 0x1;
/// `nvmlClocksEventReasonSwPowerCap`.
const REASON_POWER_CAP: u64 = 0x4;

/// When the KV cache takes its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// All of it at start, as vLLM does: NVML's figure is flat and tells nothing about load.
    Preallocated,
    /// Block by block: NVML's figure follows the cache.
    OnDemand,
}

/// Who the device is and how its memory is divided.
#[derive(Clone, Debug)]
pub struct Device {
    /// NVML UUID, `GPU-` and a UUID.
    pub uuid: String,
    /// Total device memory.
    pub memory_total_bytes: u64,
    /// Memory that the weights take.
    pub weights_bytes: u64,
    /// When the cache takes its memory.
    pub allocation: Allocation,
}

/// The load that a device state is computed from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// KV blocks in use.
    pub blocks_in_use: u32,
    /// KV blocks in all.
    pub blocks: u32,
    /// Sequences in the batch.
    pub running: u32,
    /// Most sequences in a batch.
    pub max_batch: u32,
}

/// The whole state file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NvmlState {
    /// `nvmlSystemGetDriverVersion`.
    pub driver_version: &'static str,
    /// One entry per device, in NVML's order.
    pub devices: Vec<DeviceState>,
}

/// What the NVML shim answers for one device.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "each field is NVML's figure of the same name")]
pub struct DeviceState {
    pub uuid: String,
    pub name: &'static str,
    pub memory_total_bytes: u64,
    pub memory_used_bytes: u64,
    pub memory_reserved_bytes: u64,
    pub gpu_utilization_percent: u32,
    pub memory_utilization_percent: u32,
    pub temperature_c: u32,
    pub power_mw: u64,
    pub power_limit_mw: u64,
    pub sm_clock_mhz: u32,
    pub sm_clock_max_mhz: u32,
    pub mem_clock_mhz: u32,
    pub mem_clock_max_mhz: u32,
    pub throttle_reasons: u64,
    pub ecc_errors_uncorrected: u64,
    pub processes: Vec<ProcessState>,
}

/// One compute process on a device.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "each field is NVML's figure of the same name")]
pub struct ProcessState {
    pub pid: u32,
    pub name: &'static str,
    pub used_memory_bytes: u64,
}

// === impl Device ===

impl Device {
    /// Memory for the KV cache: `0.9 * total - weights`, 0 when the weights leave none.
    pub fn cache_bytes(&self) -> u64 {
        let usable = (self.memory_total_bytes as f64 * MEMORY_UTILIZATION) as u64;
        usable.saturating_sub(self.weights_bytes)
    }

    /// Device memory in use under `load`: the weights, and either the whole cache or its share in use.
    pub fn memory_used_bytes(&self, load: Load) -> u64 {
        let cache = match self.allocation {
            Allocation::Preallocated => self.cache_bytes(),
            Allocation::OnDemand => self.cache_bytes() / u64::from(load.blocks.max(1)) * u64::from(load.blocks_in_use),
        };
        self.weights_bytes + cache
    }

    /// What NVML would show under `load`. `gpu_utilization_percent` is high from the first sequence on, as on a real
    /// device: it is the share of time in which any kernel ran, not how full the device is.
    pub fn state(&self, load: Load) -> NvmlState {
        let used = self.memory_used_bytes(load);
        let batch = f64::from(load.running) / f64::from(load.max_batch.max(1));
        let is_busy = load.running > 0;
        let power = if is_busy { 0.45 + 0.55 * batch.min(1.0).sqrt() } else { 0.0 };
        let power_mw = POWER_IDLE_MW + ((POWER_LIMIT_MW - POWER_IDLE_MW) as f64 * power) as u64;
        let is_capped = power_mw * 100 >= POWER_LIMIT_MW * 98;
        let device = DeviceState {
            uuid: self.uuid.clone(),
            name: "NVIDIA H100 80GB HBM3 (simulated)",
            memory_total_bytes: self.memory_total_bytes,
            memory_used_bytes: used,
            memory_reserved_bytes: 0,
            gpu_utilization_percent: if is_busy { 92 + (8.0 * batch.min(1.0)) as u32 } else { 0 },
            memory_utilization_percent: if is_busy { 30 + (50.0 * batch.min(1.0)) as u32 } else { 0 },
            temperature_c: 34 + (40.0 * power) as u32,
            power_mw,
            power_limit_mw: POWER_LIMIT_MW,
            sm_clock_mhz: match (is_busy, is_capped) {
                (false, _) => SM_CLOCK_IDLE_MHZ,
                (true, false) => SM_CLOCK_MAX_MHZ,
                (true, true) => SM_CLOCK_MAX_MHZ - 225,
            },
            sm_clock_max_mhz: SM_CLOCK_MAX_MHZ,
            mem_clock_mhz: MEM_CLOCK_MHZ,
            mem_clock_max_mhz: MEM_CLOCK_MHZ,
            throttle_reasons: if !is_busy { REASON_GPU_IDLE } else { u64::from(is_capped) * REASON_POWER_CAP },
            ecc_errors_uncorrected: 0,
            processes: vec![ProcessState { pid: std::process::id(), name: "inference-sim", used_memory_bytes: used }],
        };
        NvmlState { driver_version: "580.95.05", devices: vec![device] }
    }
}

/// Writes the state at once and then whenever the load changes it, at most every 10 ms, until `load` closes.
///
/// The last state before the sender goes away is always written. Each write replaces the file in one rename, so a
/// reader never sees half a state.
///
/// # Errors
/// The first write that fails ends the task: a demo that shows stale memory would be worse than one that stops.
pub async fn publish(device: Device, mut load: watch::Receiver<Load>, path: PathBuf) -> io::Result<()> {
    let mut written = None;
    loop {
        let state = device.state(*load.borrow_and_update());
        if written.as_ref() != Some(&state) {
            let (path, bytes) = (path.clone(), serde_json::to_vec(&state)?);
            tokio::task::spawn_blocking(move || write_atomically(&path, &bytes)).await??;
            written = Some(state);
            tokio::time::sleep(WRITE_INTERVAL).await;
        }
        if load.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Replaces `path` by a file with these bytes; readers see the old content or the new, nothing between.
///
/// # Errors
/// Whatever the file system says about the temporary file beside `path` or its rename.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn device(allocation: Allocation) -> Device {
        Device { uuid: "GPU-0".into(), memory_total_bytes: 80 * GIB, weights_bytes: 16 * GIB, allocation }
    }

    fn load(blocks_in_use: u32) -> Load {
        Load { blocks_in_use, blocks: 700, running: blocks_in_use / 14, max_batch: 256 }
    }

    #[test]
    fn memory_on_demand_is_weights_plus_blocks_in_use() {
        let device = device(Allocation::OnDemand);
        assert_eq!(device.memory_used_bytes(load(0)), 16 * GIB, "an empty cache takes nothing");
        let full = device.memory_used_bytes(load(700));
        // 90 % of 80 GiB, less at most one rounding byte per block.
        assert!((72 * GIB - 700..=72 * GIB).contains(&full), "{full}");
        assert_eq!(device.memory_used_bytes(load(350)) - 16 * GIB, (full - 16 * GIB) / 2, "half the blocks, half the cache");
    }

    #[test]
    fn preallocated_memory_is_the_same_idle_and_full() {
        let device = device(Allocation::Preallocated);
        assert_eq!(device.memory_used_bytes(load(0)), 72 * GIB);
        assert_eq!(device.memory_used_bytes(load(700)), 72 * GIB);
    }

    #[test]
    fn utilization_is_high_from_the_first_sequence_and_zero_when_idle() {
        let device = device(Allocation::OnDemand);
        let percent = |running| {
            let state = device.state(Load { running, ..load(14) });
            state.devices[0].gpu_utilization_percent
        };
        assert_eq!(percent(0), 0);
        assert!(percent(1) > 90, "NVML counts time with any kernel running");
    }

    #[tokio::test(start_paused = true)]
    async fn publishes_the_first_state_at_once_and_the_last_before_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nvml.json");
        let (sender, receiver) = watch::channel(load(0));
        let task = tokio::spawn(publish(device(Allocation::OnDemand), receiver, path.clone()));
        sender.send(load(70)).unwrap();
        drop(sender);
        task.await.unwrap().unwrap();
        let state: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(state["devices"][0]["memory_used_bytes"], device(Allocation::OnDemand).memory_used_bytes(load(70)));
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["nvml.json"], "no temporary file is left");
    }
}
