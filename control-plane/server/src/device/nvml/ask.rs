//! The questions to one device, and the answers in our names and units.

use std::cmp::Reverse;
use std::sync::Arc;

use nvml_wrapper::bitmasks::device::ThrottleReasons as Bits;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id;
use nvml_wrapper::{Device, Nvml};

use super::xid::Xids;
use crate::device::{DeviceActivity, DeviceDetail, DeviceProcess, DeviceSample, MAX_PROCESSES, ThrottleReasons};

/// `NVML_DEVICE_MIG_ENABLE` of nvml.h.
const MIG_ENABLED: u32 = 1;
/// Longest name of a process that is kept, in bytes.
const MAX_PROCESS_NAME: usize = 256;

/// Rows replaced for correctable and for uncorrectable errors, whether one waits for a reset, whether one could not be replaced;
/// NVLink: checksums of flits and of data, repeated transfers, recoveries.
const HEALTH_FIELDS: [u32; 8] = [
    field_id::NVML_FI_DEV_REMAPPED_COR,
    field_id::NVML_FI_DEV_REMAPPED_UNC,
    field_id::NVML_FI_DEV_REMAPPED_PENDING,
    field_id::NVML_FI_DEV_REMAPPED_FAILURE,
    field_id::NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
    field_id::NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL,
    field_id::NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
    field_id::NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
];

/// What does not change while the library is loaded.
pub(super) struct Identity {
    pub(super) uuid: Arc<str>,
    pub(super) name: Arc<str>,
    /// Highest clocks and thresholds; all else is `None`. Asked once: on an H200 (driver 580) a highest clock takes 1.7 ms, a hundred
    /// times as long as a figure that changes.
    bounds: DeviceDetail,
}

// === impl Identity ===

impl Identity {
    pub(super) fn of(device: &Device<'_>) -> Result<Self, NvmlError> {
        let threshold = |threshold| device.temperature_threshold(threshold).ok();
        let uuid = device.uuid()?;
        let bounds = DeviceDetail {
            uuid: uuid.clone(),
            sm_clock_max_mhz: device.max_clock_info(Clock::SM).ok(),
            memory_clock_max_mhz: device.max_clock_info(Clock::Memory).ok(),
            temperature_max_celsius: threshold(TemperatureThreshold::GpuMax),
            temperature_slowdown_celsius: threshold(TemperatureThreshold::Slowdown),
            temperature_shutdown_celsius: threshold(TemperatureThreshold::Shutdown),
            memory_temperature_max_celsius: threshold(TemperatureThreshold::MemoryMax),
            ..DeviceDetail::default()
        };
        let name = device.name().unwrap_or_else(|_| "unnamed".to_owned());
        Ok(Self { uuid: uuid.into(), name: name.into(), bounds })
    }

    /// A part of a partitioned device. What its parent cannot exceed, it cannot either.
    pub(super) fn of_instance(instance: &Device<'_>, parent: &Self) -> Result<Self, NvmlError> {
        let uuid = instance.uuid()?;
        let bounds = DeviceDetail { uuid: uuid.clone(), mig_parent: Some(parent.uuid.to_string()), ..parent.bounds.clone() };
        let name = instance.name().map_or_else(|_| parent.name.clone(), Into::into);
        Ok(Self { uuid: uuid.into(), name, bounds })
    }
}

/// Memory is what the limits stand on: a device that does not tell it is lost. All else may be missing.
pub(super) fn sample(device: &Device<'_>, index: u32, identity: &Identity, activity: DeviceActivity) -> Result<DeviceSample, NvmlError> {
    let memory = device.memory_info()?;
    Ok(DeviceSample {
        index,
        uuid: identity.uuid.clone(),
        name: identity.name.clone(),
        memory_used_bytes: memory.used,
        memory_reserved_bytes: memory.reserved,
        memory_total_bytes: memory.total,
        activity,
    })
}

pub(super) fn activity(device: &Device<'_>, xids: Option<Xids>) -> DeviceActivity {
    let active = device.utilization_rates().ok();
    let [memory_temperature] = fields(device, [field_id::NVML_FI_DEV_MEMORY_TEMP]);
    DeviceActivity {
        kernel_active_percent: active.as_ref().map(|active| active.gpu),
        memory_active_percent: active.as_ref().map(|active| active.memory),
        sm_clock_mhz: device.clock_info(Clock::SM).ok(),
        memory_clock_mhz: device.clock_info(Clock::Memory).ok(),
        throttle_reasons: device.current_throttle_reasons().ok().map(throttle_reasons),
        power_milliwatts: device.power_usage().ok(),
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
        // A device whose memory has no sensor reports 0.
        memory_temperature_celsius: memory_temperature.and_then(|celsius| u32::try_from(celsius).ok()).filter(|celsius| *celsius > 0),
        xid_events: xids.map(|xids| xids.events),
        last_xid: xids.and_then(|xids| xids.last),
        fatal_xid: xids.and_then(|xids| xids.fatal),
    }
}

pub(super) fn detail(nvml: &Nvml, device: &Device<'_>, identity: &Identity) -> DeviceDetail {
    let ecc = |error| device.total_ecc_errors(error, EccCounter::Volatile).ok();
    let [correctable, uncorrectable, pending, failed, flits, data, replays, recoveries] = fields(device, HEALTH_FIELDS);
    let processes = device.running_compute_processes().ok();
    DeviceDetail {
        power_limit_milliwatts: device.enforced_power_limit().ok(),
        ecc_corrected: ecc(MemoryError::Corrected),
        ecc_uncorrected: ecc(MemoryError::Uncorrected),
        rows_remapped_correctable: correctable,
        rows_remapped_uncorrectable: uncorrectable,
        row_remap_pending: pending.map(|pending| pending != 0),
        row_remap_failed: failed.map(|failed| failed != 0),
        nvlink_crc_errors: flits.or(data).map(|_| flits.unwrap_or(0).saturating_add(data.unwrap_or(0))),
        nvlink_replay_errors: replays,
        nvlink_recovery_errors: recoveries,
        mig_enabled: mig_enabled(device),
        compute_processes: processes.as_ref().map(Vec::len),
        processes: processes.map(|processes| largest(nvml, processes)),
        ..identity.bounds.clone()
    }
}

/// Whether the device is partitioned; `None` for one that cannot be.
pub(super) fn mig_enabled(device: &Device<'_>) -> Option<bool> {
    device.mig_mode().ok().map(|mode| mode.current == MIG_ENABLED)
}

/// The values of fields, of which each may be missing, in one call.
fn fields<const N: usize>(device: &Device<'_>, ids: [u32; N]) -> [Option<u64>; N] {
    let values = device.field_values_for(&ids.map(FieldId)).unwrap_or_default();
    let mut values = values.into_iter().map(|value| match value.ok()?.value.ok()? {
        SampleValue::U32(value) => Some(u64::from(value)),
        SampleValue::U64(value) => Some(value),
        SampleValue::I64(value) => u64::try_from(value).ok(),
        SampleValue::F64(_) => None,
    });
    ids.map(|_| values.next().flatten())
}

fn largest(nvml: &Nvml, processes: Vec<ProcessInfo>) -> Vec<DeviceProcess> {
    let memory = |used| match used {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    };
    let mut processes: Vec<DeviceProcess> = processes
        .into_iter()
        .map(|process| DeviceProcess { pid: process.pid, name: None, memory_used_bytes: memory(process.used_gpu_memory) })
        .collect();
    processes.sort_by_key(|process| (Reverse(process.memory_used_bytes), process.pid));
    processes.truncate(MAX_PROCESSES);
    for process in &mut processes {
        process.name = nvml.sys_process_name(process.pid, MAX_PROCESS_NAME).ok();
    }
    processes
}

/// NVML's bits in our names. Bits that a newer driver adds are left out.
fn throttle_reasons(reasons: Bits) -> ThrottleReasons {
    const NAMES: [(Bits, ThrottleReasons); 8] = [
        (Bits::APPLICATIONS_CLOCKS_SETTING, ThrottleReasons::APPLICATIONS_CLOCKS_SETTING),
        (Bits::SW_POWER_CAP, ThrottleReasons::SW_POWER_CAP),
        (Bits::HW_SLOWDOWN, ThrottleReasons::HW_SLOWDOWN),
        (Bits::SYNC_BOOST, ThrottleReasons::SYNC_BOOST),
        (Bits::SW_THERMAL_SLOWDOWN, ThrottleReasons::SW_THERMAL_SLOWDOWN),
        (Bits::HW_THERMAL_SLOWDOWN, ThrottleReasons::HW_THERMAL_SLOWDOWN),
        (Bits::HW_POWER_BRAKE_SLOWDOWN, ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN),
        (Bits::DISPLAY_CLOCK_SETTING, ThrottleReasons::DISPLAY_CLOCK_SETTING),
    ];
    let ours = NAMES.iter().filter(|(theirs, _)| reasons.contains(*theirs)).map(|(_, ours)| *ours);
    ours.fold(ThrottleReasons::default(), ThrottleReasons::with)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idleness_is_no_throttle_reason() {
        assert_eq!(throttle_reasons(Bits::GPU_IDLE), ThrottleReasons::default());
        assert_eq!(throttle_reasons(Bits::SW_POWER_CAP | Bits::GPU_IDLE), ThrottleReasons::SW_POWER_CAP);
    }
}
