//! NVML: the only file that names `nvml_wrapper`.
//!
//! The library is loaded at run time, so one binary runs with and without a GPU. After a failure the library is initialised anew:
//! handles do not survive a lost device or a reloaded driver.

use std::cmp::Reverse;
use std::path::PathBuf;
use std::sync::Arc;

use nvml_wrapper::Device;
use nvml_wrapper::bitmasks::device::ThrottleReasons as Bits;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id;

use super::{
    DeviceActivity, DeviceDetail, DeviceProcess, DeviceSample, DeviceSource, DriverInfo, MAX_PROCESSES, SampleError, ThrottleReasons,
};

/// Soname of the driver's library; the name without version belongs to the development package, which need not be there.
const DRIVER_LIBRARY: &str = "libnvidia-ml.so.1";

/// `NVML_DEVICE_MIG_ENABLE` of nvml.h.
const MIG_ENABLED: u32 = 1;

/// Rows replaced for correctable and for uncorrectable errors, whether one waits for a reset, whether one could not be replaced.
const ROW_REMAP_FIELDS: [u32; 4] = [
    field_id::NVML_FI_DEV_REMAPPED_COR,
    field_id::NVML_FI_DEV_REMAPPED_UNC,
    field_id::NVML_FI_DEV_REMAPPED_PENDING,
    field_id::NVML_FI_DEV_REMAPPED_FAILURE,
];

/// NVML as a device source.
pub(super) struct Nvml {
    library: PathBuf,
    session: Option<Session>,
}

/// The loaded library and the devices that it listed when it was loaded.
struct Session {
    nvml: nvml_wrapper::Nvml,
    devices: Vec<Identity>,
}

/// What does not change while the library is loaded.
struct Identity {
    uuid: Arc<str>,
    name: Arc<str>,
    /// Highest clocks and thresholds; all else is `None`. Asked once: on an H200 (driver 580) a highest clock takes 1.7 ms, a hundred
    /// times as long as a figure that changes.
    bounds: DeviceDetail,
}

// === impl Nvml ===

impl Nvml {
    /// NVML from `library`, or from the driver's. Nothing is loaded before the first sample.
    pub(super) fn new(library: Option<PathBuf>) -> Self {
        Self { library: library.unwrap_or_else(|| PathBuf::from(DRIVER_LIBRARY)), session: None }
    }

    /// Runs `ask` in the session, opened if there is none; an error closes it.
    fn ask<T>(&mut self, ask: impl FnOnce(&Session) -> Result<T, SampleError>) -> Result<T, SampleError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => Session::open(&self.library)?,
        };
        let answer = ask(&session)?;
        self.session = Some(session);
        Ok(answer)
    }
}

impl DeviceSource for Nvml {
    fn name(&self) -> &'static str {
        "nvml"
    }

    fn driver(&mut self) -> Result<DriverInfo, SampleError> {
        self.ask(|session| Ok(session.driver()))
    }

    fn sample(&mut self) -> Result<Vec<DeviceSample>, SampleError> {
        self.ask(Session::sample)
    }

    fn inspect(&mut self) -> Result<Vec<DeviceDetail>, SampleError> {
        self.ask(Session::inspect)
    }
}

// === impl Session ===

impl Session {
    fn open(library: &std::path::Path) -> Result<Self, SampleError> {
        let failed = |error: NvmlError| SampleError::Library { library: library.display().to_string(), problem: error.to_string() };
        let nvml = nvml_wrapper::Nvml::builder().lib_path(library.as_os_str()).init().map_err(failed)?;
        let count = nvml.device_count().map_err(failed)?;
        let mut devices = Vec::new();
        for index in 0..count {
            let device = nvml.device_by_index(index).map_err(|error| lost(index, &error))?;
            devices.push(Identity::of(&device, index)?);
        }
        if devices.is_empty() { Err(SampleError::NoDevice) } else { Ok(Self { nvml, devices }) }
    }

    fn driver(&self) -> DriverInfo {
        DriverInfo {
            driver_version: self.nvml.sys_driver_version().ok(),
            nvml_version: self.nvml.sys_nvml_version().ok(),
            cuda_version: self.nvml.sys_cuda_driver_version().ok().and_then(|version| u32::try_from(version).ok()),
        }
    }

    fn sample(&self) -> Result<Vec<DeviceSample>, SampleError> {
        self.each(sample)
    }

    fn inspect(&self) -> Result<Vec<DeviceDetail>, SampleError> {
        self.each(|device, _, identity| Ok(detail(device, identity)))
    }

    /// Asks every device; one that cannot be found is lost.
    fn each<T>(&self, ask: impl Fn(&Device<'_>, u32, &Identity) -> Result<T, SampleError>) -> Result<Vec<T>, SampleError> {
        let devices = (0_u32..).zip(&self.devices);
        let asked = devices.map(|(index, identity)| {
            let device = self.nvml.device_by_index(index).map_err(|error| lost(index, &error))?;
            ask(&device, index, identity)
        });
        asked.collect()
    }
}

// === impl Identity ===

impl Identity {
    fn of(device: &Device<'_>, index: u32) -> Result<Self, SampleError> {
        let threshold = |threshold| device.temperature_threshold(threshold).ok();
        let uuid = device.uuid().map_err(|error| lost(index, &error))?;
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
}

/// Memory is what the limits stand on: a device that does not tell it is lost. All else may be missing.
fn sample(device: &Device<'_>, index: u32, identity: &Identity) -> Result<DeviceSample, SampleError> {
    let memory = device.memory_info().map_err(|error| lost(index, &error))?;
    Ok(DeviceSample {
        index,
        uuid: identity.uuid.clone(),
        name: identity.name.clone(),
        memory_used_bytes: memory.used,
        memory_reserved_bytes: memory.reserved,
        memory_total_bytes: memory.total,
        activity: activity(device),
    })
}

fn activity(device: &Device<'_>) -> DeviceActivity {
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
    }
}

fn detail(device: &Device<'_>, identity: &Identity) -> DeviceDetail {
    let ecc = |error| device.total_ecc_errors(error, EccCounter::Volatile).ok();
    let [correctable, uncorrectable, pending, failed] = fields(device, ROW_REMAP_FIELDS);
    let processes = device.running_compute_processes().ok();
    DeviceDetail {
        power_limit_milliwatts: device.enforced_power_limit().ok(),
        ecc_corrected: ecc(MemoryError::Corrected),
        ecc_uncorrected: ecc(MemoryError::Uncorrected),
        rows_remapped_correctable: correctable,
        rows_remapped_uncorrectable: uncorrectable,
        row_remap_pending: pending.map(|pending| pending != 0),
        row_remap_failed: failed.map(|failed| failed != 0),
        mig_enabled: device.mig_mode().ok().map(|mode| mode.current == MIG_ENABLED),
        compute_processes: processes.as_ref().map(Vec::len),
        processes: processes.map(largest),
        ..identity.bounds.clone()
    }
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

fn largest(processes: Vec<ProcessInfo>) -> Vec<DeviceProcess> {
    let memory = |used| match used {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    };
    let mut processes: Vec<DeviceProcess> = processes
        .into_iter()
        .map(|process| DeviceProcess { pid: process.pid, memory_used_bytes: memory(process.used_gpu_memory) })
        .collect();
    processes.sort_by_key(|process| (Reverse(process.memory_used_bytes), process.pid));
    processes.truncate(MAX_PROCESSES);
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

fn lost(index: u32, error: &NvmlError) -> SampleError {
    SampleError::Lost { index, problem: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_named_in_the_error() {
        let mut source = Nvml::new(Some(PathBuf::from("/nowhere/libnvidia-ml.so")));
        let error = source.sample().unwrap_err();
        assert!(matches!(&error, SampleError::Library { library, .. } if library == "/nowhere/libnvidia-ml.so"), "{error}");
    }

    #[test]
    fn idleness_is_no_throttle_reason() {
        assert_eq!(throttle_reasons(Bits::GPU_IDLE), ThrottleReasons::default());
        assert_eq!(throttle_reasons(Bits::SW_POWER_CAP | Bits::GPU_IDLE), ThrottleReasons::SW_POWER_CAP);
    }
}
