//! Event sets: critical XIDs that the state file gains while somebody listens.
//!
//! The real library sleeps until the driver wakes it. The shim looks at the file every [`LOOK`]; the caller cannot tell.

use std::ffi::{c_uint, c_ulonglong};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings as nvml;
use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlEventSet_t, nvmlReturn_t};

use crate::abi::{Code, query, store};
use crate::device::device;

/// `nvmlEventTypeXidCriticalError`.
pub(crate) const CRITICAL_XID: c_ulonglong = 8;
/// Time between two looks at the file.
const LOOK: Duration = Duration::from_millis(20);
/// More sets than any caller holds.
const MAX_SETS: usize = 64;

/// One device in a set, and how many of its events were delivered.
struct Listener {
    handle: usize,
    delivered: usize,
}

/// Sets that are in use; the handle of one is its place, counted from 1.
static SETS: Mutex<[Option<Vec<Listener>>; MAX_SETS]> = Mutex::new([const { None }; MAX_SETS]);

fn with_set<T>(set: nvmlEventSet_t, act: impl FnOnce(&mut Vec<Listener>) -> Result<T, Code>) -> Result<T, Code> {
    let mut sets = SETS.lock().unwrap_or_else(PoisonError::into_inner);
    let place = set.addr().checked_sub(1).ok_or(Code::INVALID_ARGUMENT)?;
    act(sets.get_mut(place).and_then(Option::as_mut).ok_or(Code::INVALID_ARGUMENT)?)
}

/// `nvmlEventSetCreate`.
///
/// # Safety
/// NVML's contract, see the module `device`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) -> nvmlReturn_t {
    query(|| {
        let mut sets = SETS.lock().unwrap_or_else(PoisonError::into_inner);
        let place = sets.iter().position(Option::is_none).ok_or(Code::UNKNOWN)?;
        // SAFETY: NVML's contract for `set`.
        unsafe { store(set, std::ptr::without_provenance_mut(place + 1)) }?;
        sets[place] = Some(Vec::new());
        Ok(())
    })
}

/// `nvmlDeviceRegisterEvents`: only critical XIDs; what happened before is not delivered.
///
/// # Safety
/// NVML's contract, see the module `device`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceRegisterEvents(handle: nvmlDevice_t, types: c_ulonglong, set: nvmlEventSet_t) -> nvmlReturn_t {
    query(|| {
        let delivered = device(handle)?.xid_errors.len();
        if types & !CRITICAL_XID != 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        with_set(set, |listeners| {
            listeners.push(Listener { handle: handle.addr(), delivered });
            Ok(())
        })
    })
}

/// `nvmlEventSetWait_v2`: one event, or `TIMEOUT` after so many milliseconds.
///
/// # Safety
/// NVML's contract, see the module `device`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(set: nvmlEventSet_t, data: *mut nvml::nvmlEventData_t, timeout_ms: c_uint) -> nvmlReturn_t {
    query(|| {
        let deadline = Instant::now() + Duration::from_millis(timeout_ms.into());
        loop {
            if let Some((handle, xid)) = with_set(set, |listeners| Ok(next(listeners)))? {
                let event = nvml::nvmlEventData_t {
                    device: std::ptr::without_provenance_mut(handle),
                    eventType: CRITICAL_XID,
                    eventData: xid,
                    gpuInstanceId: u32::MAX,
                    computeInstanceId: u32::MAX,
                };
                // SAFETY: NVML's contract for `data`.
                return unsafe { store(data, event) };
            }
            if Instant::now() >= deadline {
                return Err(Code::TIMEOUT);
            }
            std::thread::sleep(LOOK);
        }
    })
}

/// The next event that was not delivered.
fn next(listeners: &mut [Listener]) -> Option<(usize, u64)> {
    listeners.iter_mut().find_map(|listener| {
        let xids = device(std::ptr::without_provenance_mut(listener.handle)).ok()?.xid_errors;
        // A driver that was loaded anew counts from nothing.
        listener.delivered = listener.delivered.min(xids.len());
        let xid = xids.get(listener.delivered).copied()?;
        listener.delivered += 1;
        Some((listener.handle, xid))
    })
}

/// `nvmlEventSetFree`.
///
/// # Safety
/// NVML's contract, see the module `device`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    query(|| {
        let mut sets = SETS.lock().unwrap_or_else(PoisonError::into_inner);
        let place = set.addr().checked_sub(1).filter(|place| *place < MAX_SETS).ok_or(Code::INVALID_ARGUMENT)?;
        sets[place].take().map(drop).ok_or(Code::INVALID_ARGUMENT)
    })
}
