//! NVML: the only file that names `nvml_wrapper`.
//!
//! The library is loaded at run time, so one binary runs with and without a GPU. After a failure the library is initialised anew:
//! handles do not survive a lost device or a reloaded driver.

use std::path::PathBuf;
use std::sync::Arc;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::error::NvmlError;

use super::{DeviceDetail, DeviceSample, DeviceSource, SampleError};

/// Soname of the driver's library; the name without version belongs to the development package, which need not be there.
const DRIVER_LIBRARY: &str = "libnvidia-ml.so.1";

/// `NVML_DEVICE_MIG_ENABLE` of nvml.h.
const MIG_ENABLED: u32 = 1;

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

struct Identity {
    uuid: Arc<str>,
    name: Arc<str>,
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
            let uuid = device.uuid().map_err(|error| lost(index, &error))?;
            let name = device.name().unwrap_or_else(|_| "unnamed".to_owned());
            devices.push(Identity { uuid: uuid.into(), name: name.into() });
        }
        if devices.is_empty() { Err(SampleError::NoDevice) } else { Ok(Self { nvml, devices }) }
    }

    fn sample(&self) -> Result<Vec<DeviceSample>, SampleError> {
        (0_u32..)
            .zip(&self.devices)
            .map(|(index, identity)| {
                let memory =
                    self.nvml.device_by_index(index).and_then(|device| device.memory_info()).map_err(|error| lost(index, &error))?;
                Ok(DeviceSample {
                    index,
                    uuid: identity.uuid.clone(),
                    name: identity.name.clone(),
                    memory_used_bytes: memory.used,
                    memory_reserved_bytes: memory.reserved,
                    memory_total_bytes: memory.total,
                })
            })
            .collect()
    }

    fn inspect(&self) -> Result<Vec<DeviceDetail>, SampleError> {
        (0_u32..)
            .zip(&self.devices)
            .map(|(index, identity)| {
                let device = self.nvml.device_by_index(index).map_err(|error| lost(index, &error))?;
                Ok(detail(&device, &identity.uuid))
            })
            .collect()
    }
}

fn detail(device: &nvml_wrapper::Device<'_>, uuid: &str) -> DeviceDetail {
    let utilization = device.utilization_rates().ok();
    DeviceDetail {
        uuid: uuid.to_owned(),
        utilization_percent: utilization.as_ref().map(|rates| rates.gpu),
        memory_utilization_percent: utilization.as_ref().map(|rates| rates.memory),
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
        power_milliwatts: device.power_usage().ok(),
        power_limit_milliwatts: device.enforced_power_limit().ok(),
        sm_clock_mhz: device.clock_info(Clock::SM).ok(),
        sm_clock_max_mhz: device.max_clock_info(Clock::SM).ok(),
        memory_clock_mhz: device.clock_info(Clock::Memory).ok(),
        throttle_reasons: device.current_throttle_reasons().ok().map(throttle_names),
        ecc_uncorrected: device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile).ok(),
        mig_enabled: device.mig_mode().ok().map(|mode| mode.current == MIG_ENABLED),
        compute_processes: device.running_compute_processes_count().ok(),
    }
}

/// Stable names of what holds the clocks down.
fn throttle_names(reasons: ThrottleReasons) -> Vec<String> {
    const NAMES: [(ThrottleReasons, &str); 8] = [
        (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, "applications_clocks_setting"),
        (ThrottleReasons::SW_POWER_CAP, "sw_power_cap"),
        (ThrottleReasons::HW_SLOWDOWN, "hw_slowdown"),
        (ThrottleReasons::SYNC_BOOST, "sync_boost"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "sw_thermal_slowdown"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "hw_thermal_slowdown"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "hw_power_brake_slowdown"),
        (ThrottleReasons::DISPLAY_CLOCK_SETTING, "display_clock_setting"),
    ];
    NAMES.iter().filter(|(reason, _)| reasons.contains(*reason)).map(|(_, name)| (*name).to_owned()).collect()
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
        assert!(throttle_names(ThrottleReasons::GPU_IDLE).is_empty());
        assert_eq!(throttle_names(ThrottleReasons::SW_POWER_CAP | ThrottleReasons::GPU_IDLE), ["sw_power_cap"]);
    }
}
