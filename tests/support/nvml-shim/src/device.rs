//! NVML's device queries.
//!
//! Each exported function has NVML's own contract: out-pointers are null or valid for a write of their type, buffers are
//! null or as long as their length says. Handles are numbers in disguise and are never followed, so any value is safe.

#[cfg(test)]
mod tests;

use std::ffi::{c_char, c_uint, c_ulonglong};
use std::mem::size_of;

use nvml_wrapper_sys::bindings as nvml;
use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlReturn_t};

use crate::abi::{Code, query, store, store_string};
use crate::event::CRITICAL_XID;
use crate::state::{Device, State};

/// More devices than any machine has; a handle beyond it was never given out.
const MAX_DEVICES: usize = 1024;
/// Handles of devices end below this one; the digits above name a MIG instance.
const HANDLES: usize = 2048;
/// Most MIG instances that a device can have. Source: NVIDIA's MIG guide.
const MAX_INSTANCES: usize = 7;
/// `NVML_VALUE_NOT_AVAILABLE`.
const NOT_AVAILABLE: c_ulonglong = c_ulonglong::MAX;
/// `NVML_STRUCT_VERSION(Memory, 2)`.
const MEMORY_V2: c_uint = size_of::<nvml::nvmlMemory_v2_t>() as c_uint | (2 << 24);

/// The handle of the device at `index`: its number, counted from 1 so that no handle is null.
pub(crate) fn handle_of(index: usize) -> nvmlDevice_t {
    std::ptr::without_provenance_mut(index + 1)
}

/// The handle of a MIG instance: its parent's, and its own number counted from 1 in the digits above.
fn instance_handle(parent: usize, instance: usize) -> nvmlDevice_t {
    std::ptr::without_provenance_mut(handle_of(parent).addr() + (instance + 1) * HANDLES)
}

/// Place of the device, and of the MIG instance if the handle is one's.
fn places_of(handle: nvmlDevice_t) -> Result<(usize, Option<usize>), Code> {
    let device = (handle.addr() % HANDLES).checked_sub(1).filter(|index| *index < MAX_DEVICES).ok_or(Code::INVALID_ARGUMENT)?;
    let instance = (handle.addr() / HANDLES).checked_sub(1);
    if instance.is_some_and(|instance| instance >= MAX_INSTANCES) { Err(Code::INVALID_ARGUMENT) } else { Ok((device, instance)) }
}

/// The device behind a handle, as it is now. One that vanished from the file is as lost as one that says so; a MIG instance that
/// vanished is not found.
pub(crate) fn device(handle: nvmlDevice_t) -> Result<Device, Code> {
    let (index, instance) = places_of(handle)?;
    let found = State::read()?.devices.into_iter().nth(index).filter(|device| !device.lost).ok_or(Code::GPU_IS_LOST)?;
    match instance {
        None => Ok(Device { index: index as u32, ..found }),
        Some(instance) => found.mig_devices.into_iter().nth(instance).map(Device::from).ok_or(Code::NOT_FOUND),
    }
}

/// A value that the file may leave out.
pub(crate) fn known<T>(value: Option<T>) -> Result<T, Code> {
    value.ok_or(Code::NOT_SUPPORTED)
}

/// Exports queries of the form `(device, out) -> code`, each a name, the type written and the field it comes from.
macro_rules! queries {
    ($($(#[$doc:meta])* $name:ident: $type:ty = |$device:ident| $answer:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// NVML's contract, see the module.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(handle: nvmlDevice_t, out: *mut $type) -> nvmlReturn_t {
            query(|| {
                let $device = device(handle)?;
                let answer: Result<$type, Code> = $answer;
                // SAFETY: NVML's contract for `out`.
                unsafe { store(out, answer?) }
            })
        }
    )*};
}

queries! {
    /// `nvmlDeviceGetMemoryInfo`: `used` includes what the driver reserves, as in NVML's first version.
    nvmlDeviceGetMemoryInfo: nvml::nvmlMemory_t = |device| memory_v1(&device);
    /// `nvmlDeviceGetUtilizationRates`, percent of the last sample period.
    nvmlDeviceGetUtilizationRates: nvml::nvmlUtilization_t = |device| utilization(&device);
    /// `nvmlDeviceGetPowerUsage` in milliwatts.
    nvmlDeviceGetPowerUsage: c_uint = |device| known(device.power_mw);
    /// `nvmlDeviceGetEnforcedPowerLimit` in milliwatts.
    nvmlDeviceGetEnforcedPowerLimit: c_uint = |device| known(device.power_limit_mw);
    /// `nvmlDeviceGetPowerManagementLimit` in milliwatts.
    nvmlDeviceGetPowerManagementLimit: c_uint = |device| known(device.power_limit_mw);
    /// `nvmlDeviceGetTotalEnergyConsumption` in millijoules.
    nvmlDeviceGetTotalEnergyConsumption: c_ulonglong = |device| known(device.total_energy_mj);
    /// `nvmlDeviceGetCurrentClocksThrottleReasons`, bits of `nvmlClocksThrottleReasons`.
    nvmlDeviceGetCurrentClocksThrottleReasons: c_ulonglong = |device| known(device.throttle_reasons);
    /// `nvmlDeviceGetCurrentClocksEventReasons`, the newer name of the throttle reasons.
    nvmlDeviceGetCurrentClocksEventReasons: c_ulonglong = |device| known(device.throttle_reasons);
    /// `nvmlDeviceGetPerformanceState`.
    nvmlDeviceGetPerformanceState: nvml::nvmlPstates_t = |device| known(device.performance_state);
    /// `nvmlDeviceGetIndex`.
    nvmlDeviceGetIndex: c_uint = |device| Ok(device.index);
    /// `nvmlDeviceGetMinorNumber`: the same as the index.
    nvmlDeviceGetMinorNumber: c_uint = |device| Ok(device.index);
    /// `nvmlDeviceGetMaxMigDeviceCount`: 7 where there is a MIG mode.
    nvmlDeviceGetMaxMigDeviceCount: c_uint = |device| Ok(device.mig_mode.map_or(0, |_| MAX_INSTANCES as c_uint));
    /// `nvmlDeviceGetSupportedEventTypes`: critical XIDs only.
    nvmlDeviceGetSupportedEventTypes: c_ulonglong = |_device| Ok(CRITICAL_XID);
}

/// `nvmlDeviceIsMigDeviceHandle`.
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceIsMigDeviceHandle(handle: nvmlDevice_t, is_instance: *mut c_uint) -> nvmlReturn_t {
    // SAFETY: NVML's contract for `is_instance`.
    query(|| unsafe { store(is_instance, c_uint::from(places_of(handle)?.1.is_some())) })
}

/// `nvmlDeviceGetMigDeviceHandleByIndex`: `NOT_FOUND` where no instance has the number.
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    handle: nvmlDevice_t,
    index: c_uint,
    instance: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    query(|| {
        let parent = device(handle)?;
        if parent.mig_mode.is_none() {
            return Err(Code::NOT_SUPPORTED);
        }
        let found = (index as usize) < parent.mig_devices.len().min(MAX_INSTANCES);
        if !found {
            return Err(Code::NOT_FOUND);
        }
        // SAFETY: NVML's contract for `instance`.
        unsafe { store(instance, instance_handle(parent.index as usize, index as usize)) }
    })
}

/// `nvmlDeviceGetDeviceHandleFromMigDeviceHandle`.
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle: nvmlDevice_t, parent: *mut nvmlDevice_t) -> nvmlReturn_t {
    query(|| {
        let (index, instance) = places_of(handle)?;
        instance.ok_or(Code::INVALID_ARGUMENT)?;
        // SAFETY: NVML's contract for `parent`.
        unsafe { store(parent, handle_of(index)) }
    })
}

/// `nvmlDeviceGetMemoryInfo_v2`: `FUNCTION_NOT_FOUND`, as driver 580 says, unless the caller set `version` to that of the structure.
///
/// # Safety
/// NVML's contract, see the module; `memory` is also valid for reads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(handle: nvmlDevice_t, memory: *mut nvml::nvmlMemory_v2_t) -> nvmlReturn_t {
    query(|| {
        let device = device(handle)?;
        if memory.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        // SAFETY: not null, so by NVML's contract it points to a structure whose first field the caller has set.
        if unsafe { (&raw const (*memory).version).read() } != MEMORY_V2 {
            return Err(Code::FUNCTION_NOT_FOUND);
        }
        let (total, used, reserved) = (known(device.memory_total_bytes)?, known(device.memory_used_bytes)?, device.memory_reserved_bytes);
        let free = total.saturating_sub(used).saturating_sub(reserved);
        // SAFETY: NVML's contract for `memory`.
        unsafe { store(memory, nvml::nvmlMemory_v2_t { version: MEMORY_V2, total, reserved, free, used }) }
    })
}

/// `nvmlDeviceGetName`.
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(handle: nvmlDevice_t, name: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: NVML's contract for `name` and `length`.
    query(|| unsafe { store_string(name, length, &known(device(handle)?.name)?) })
}

/// `nvmlDeviceGetUUID`.
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(handle: nvmlDevice_t, uuid: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: NVML's contract for `uuid` and `length`.
    query(|| unsafe { store_string(uuid, length, &known(device(handle)?.uuid)?) })
}

/// `nvmlDeviceGetSerial`.
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetSerial(handle: nvmlDevice_t, serial: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: NVML's contract for `serial` and `length`.
    query(|| unsafe { store_string(serial, length, &known(device(handle)?.serial)?) })
}

/// `nvmlDeviceGetTemperature` in degrees Celsius; the GPU die is the only sensor.
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(
    handle: nvmlDevice_t,
    sensor: nvml::nvmlTemperatureSensors_t,
    temperature: *mut c_uint,
) -> nvmlReturn_t {
    query(|| {
        if sensor != nvml::nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU {
            return Err(Code::INVALID_ARGUMENT);
        }
        // SAFETY: NVML's contract for `temperature`.
        unsafe { store(temperature, known(device(handle)?.temperature_c)?) }
    })
}

/// `nvmlDeviceGetTemperatureThreshold` in degrees Celsius: shutdown, slowdown, memory and GPU maximum; no acoustic thresholds.
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperatureThreshold(
    handle: nvmlDevice_t,
    threshold: nvml::nvmlTemperatureThresholds_t,
    temperature: *mut c_uint,
) -> nvmlReturn_t {
    query(|| {
        let device = device(handle)?;
        let answer = match threshold {
            nvml::nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_SHUTDOWN => device.temperature_shutdown_c,
            nvml::nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_SLOWDOWN => device.temperature_slowdown_c,
            nvml::nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_MEM_MAX => device.memory_temperature_max_c,
            nvml::nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_GPU_MAX => device.temperature_max_c,
            other if other < nvml::nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_COUNT => None,
            _ => return Err(Code::INVALID_ARGUMENT),
        };
        // SAFETY: NVML's contract for `temperature`.
        unsafe { store(temperature, known(answer)?) }
    })
}

/// `nvmlDeviceGetClockInfo` in MHz; graphics and SM are one clock. A domain that there is not is `NOT_SUPPORTED` here.
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetClockInfo(handle: nvmlDevice_t, domain: nvml::nvmlClockType_t, clock: *mut c_uint) -> nvmlReturn_t {
    query(|| {
        let device = device(handle)?;
        // SAFETY: NVML's contract for `clock`.
        unsafe { store(clock, clock_of(domain, [device.sm_clock_mhz, device.mem_clock_mhz, device.video_clock_mhz], Code::NOT_SUPPORTED)?) }
    })
}

/// `nvmlDeviceGetMaxClockInfo` in MHz, as [`nvmlDeviceGetClockInfo`].
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxClockInfo(
    handle: nvmlDevice_t,
    domain: nvml::nvmlClockType_t,
    clock: *mut c_uint,
) -> nvmlReturn_t {
    query(|| {
        let device = device(handle)?;
        // SAFETY: NVML's contract for `clock`.
        unsafe {
            store(
                clock,
                clock_of(domain, [device.sm_clock_max_mhz, device.mem_clock_max_mhz, device.video_clock_max_mhz], Code::INVALID_ARGUMENT)?,
            )
        }
    })
}

/// `nvmlDeviceGetTotalEccErrors`; volatile and aggregate counts are the same.
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEccErrors(
    handle: nvmlDevice_t,
    error: nvml::nvmlMemoryErrorType_t,
    counter: nvml::nvmlEccCounterType_t,
    count: *mut c_ulonglong,
) -> nvmlReturn_t {
    query(|| {
        let device = device(handle)?;
        if counter >= nvml::nvmlEccCounterType_enum_NVML_ECC_COUNTER_TYPE_COUNT {
            return Err(Code::INVALID_ARGUMENT);
        }
        let errors = match error {
            nvml::nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_CORRECTED => device.ecc_errors_corrected,
            nvml::nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED => device.ecc_errors_uncorrected,
            _ => return Err(Code::INVALID_ARGUMENT),
        };
        // SAFETY: NVML's contract for `count`.
        unsafe { store(count, known(errors)?) }
    })
}

/// `nvmlDeviceGetMigMode`; the pending mode is always the current one.
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(handle: nvmlDevice_t, current: *mut c_uint, pending: *mut c_uint) -> nvmlReturn_t {
    query(|| {
        let mode = known(device(handle)?.mig_mode)?;
        // SAFETY: NVML's contract for `current` and `pending`.
        unsafe {
            store(current, mode)?;
            store(pending, mode)
        }
    })
}

/// `nvmlDeviceGetComputeRunningProcesses_v3`: writes the count always, and `INSUFFICIENT_SIZE` when there are more
/// processes than fit; a null `infos` with a count of 0 asks for the count.
///
/// # Safety
/// NVML's contract, see the module; `infos` is null or valid for `*count` entries.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    handle: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvml::nvmlProcessInfo_t,
) -> nvmlReturn_t {
    query(|| {
        let processes = known(device(handle)?.processes)?;
        if count.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        // SAFETY: not null, so by NVML's contract the caller has set it.
        let room = unsafe { count.read() } as usize;
        // SAFETY: NVML's contract for `count`.
        unsafe { store(count, processes.len() as c_uint) }?;
        if processes.len() > room {
            return Err(Code::INSUFFICIENT_SIZE);
        }
        if infos.is_null() && !processes.is_empty() {
            return Err(Code::INVALID_ARGUMENT);
        }
        for (index, process) in processes.iter().enumerate() {
            let used = process.used_memory_bytes.unwrap_or(NOT_AVAILABLE);
            let info =
                nvml::nvmlProcessInfo_t { pid: process.pid, usedGpuMemory: used, gpuInstanceId: u32::MAX, computeInstanceId: u32::MAX };
            // SAFETY: `infos` is not null and `index < room`, for which it is valid.
            unsafe { infos.add(index).write(info) };
        }
        Ok(())
    })
}

fn memory_v1(device: &Device) -> Result<nvml::nvmlMemory_t, Code> {
    let total = known(device.memory_total_bytes)?;
    let used = known(device.memory_used_bytes)?.saturating_add(device.memory_reserved_bytes);
    Ok(nvml::nvmlMemory_t { total, free: total.saturating_sub(used), used })
}

fn utilization(device: &Device) -> Result<nvml::nvmlUtilization_t, Code> {
    let (gpu, memory) = (known(device.gpu_utilization_percent)?, known(device.memory_utilization_percent)?);
    Ok(nvml::nvmlUtilization_t { gpu, memory })
}

fn clock_of(domain: nvml::nvmlClockType_t, [sm, memory, video]: [Option<u32>; 3], otherwise: Code) -> Result<u32, Code> {
    match domain {
        nvml::nvmlClockType_enum_NVML_CLOCK_GRAPHICS | nvml::nvmlClockType_enum_NVML_CLOCK_SM => known(sm),
        nvml::nvmlClockType_enum_NVML_CLOCK_MEM => known(memory),
        nvml::nvmlClockType_enum_NVML_CLOCK_VIDEO => known(video),
        _ => Err(otherwise),
    }
}
