//! NVML's library and system functions, and how a device is found.
//!
//! Each exported function has NVML's own contract: out-pointers are null or valid for a write of their type, strings are
//! null or NUL-terminated, buffers are null or as long as their length says. That contract is what every `SAFETY` here means.

use std::ffi::{c_char, c_int, c_uint};

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlReturn_t};

use crate::abi::{Code, describe, guard, load_string, query, release, retain, store, store_string};
use crate::device::handle_of;
use crate::state::State;

fn initialize() -> Result<(), Code> {
    if !State::is_named() {
        return Err(Code::DRIVER_NOT_LOADED);
    }
    retain();
    Ok(())
}

/// `nvmlInit_v2`: counts one more user of the library; `DRIVER_NOT_LOADED` when no state file is named.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    guard(initialize)
}

/// `nvmlInit`, the first version of [`nvmlInit_v2`].
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit() -> nvmlReturn_t {
    guard(initialize)
}

/// `nvmlInitWithFlags`: as [`nvmlInit_v2`]; the flags (no GPUs, no attach) change nothing here.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> nvmlReturn_t {
    guard(initialize)
}

/// `nvmlShutdown`: one user less; `UNINITIALIZED` when there was none.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    guard(release)
}

/// `nvmlErrorString`: a static, NUL-terminated text for any code.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(result: nvmlReturn_t) -> *const c_char {
    describe(result).as_ptr()
}

/// `nvmlSystemGetDriverVersion`.
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: NVML's contract for `version` and `length`.
    query(|| unsafe { store_string(version, length, &State::read()?.driver_version) })
}

/// `nvmlSystemGetNVMLVersion`.
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: NVML's contract for `version` and `length`.
    query(|| unsafe { store_string(version, length, &State::read()?.nvml_version) })
}

/// `nvmlSystemGetCudaDriverVersion`: `major * 1000 + minor * 10`.
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion(version: *mut c_int) -> nvmlReturn_t {
    // SAFETY: NVML's contract for `version`.
    query(|| unsafe { store(version, State::read()?.cuda_driver_version) })
}

/// `nvmlSystemGetCudaDriverVersion_v2`.
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> nvmlReturn_t {
    // SAFETY: NVML's contract for `version`.
    query(|| unsafe { store(version, State::read()?.cuda_driver_version) })
}

/// `nvmlSystemGetProcessName`: the name of a process that some device lists; `NOT_FOUND` for any other.
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetProcessName(pid: c_uint, name: *mut c_char, length: c_uint) -> nvmlReturn_t {
    query(|| {
        let state = State::read()?;
        let processes = state.devices.iter().flat_map(|device| device.processes.iter().flatten());
        let found = processes.filter(|process| process.pid == pid).find_map(|process| process.name.as_deref());
        // SAFETY: NVML's contract for `name` and `length`.
        unsafe { store_string(name, length, found.ok_or(Code::NOT_FOUND)?) }
    })
}

/// `nvmlDeviceGetCount_v2`: lost devices count, as with the real library.
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> nvmlReturn_t {
    // SAFETY: NVML's contract for `count`.
    query(|| unsafe { store(count, State::read()?.devices.len() as c_uint) })
}

/// `nvmlDeviceGetHandleByIndex_v2`: `INVALID_ARGUMENT` past the last device, `GPU_IS_LOST` for a lost one.
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut nvmlDevice_t) -> nvmlReturn_t {
    query(|| {
        let state = State::read()?;
        let found = state.devices.get(index as usize).ok_or(Code::INVALID_ARGUMENT)?;
        if found.lost {
            return Err(Code::GPU_IS_LOST);
        }
        // SAFETY: NVML's contract for `device`.
        unsafe { store(device, handle_of(index as usize)) }
    })
}

/// `nvmlDeviceGetHandleByUUID`: `NOT_FOUND` when no device has it, `GPU_IS_LOST` for a lost one.
///
/// # Safety
/// NVML's contract, see the module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut nvmlDevice_t) -> nvmlReturn_t {
    query(|| {
        // SAFETY: NVML's contract for `uuid`; the text is not kept beyond this call.
        let uuid = unsafe { load_string(uuid) }?;
        let state = State::read()?;
        let index = state.devices.iter().position(|device| device.uuid.as_deref() == Some(uuid)).ok_or(Code::NOT_FOUND)?;
        if state.devices[index].lost {
            return Err(Code::GPU_IS_LOST);
        }
        // SAFETY: NVML's contract for `device`.
        unsafe { store(device, handle_of(index)) }
    })
}
