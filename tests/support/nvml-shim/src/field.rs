//! NVML's field values: many figures in one call, each with a return code of its own.

use std::ffi::{c_int, c_longlong, c_uint, c_ulonglong};
use std::time::{SystemTime, UNIX_EPOCH};

use nvml_wrapper_sys::bindings as nvml;
use nvml_wrapper_sys::bindings::{field_id, nvmlDevice_t, nvmlReturn_t};

use crate::abi::{Code, guard, query};
use crate::device::{device, known};
use crate::state::Device;

/// A figure of the type that driver 580 gives it.
enum Figure {
    Int(c_uint),
    Long(c_ulonglong),
}

/// `nvmlDeviceGetFieldValues`: memory temperature, row remapping and the errors of all NVLinks.
///
/// As in driver 580, a field that the device does not have is `NOT_SUPPORTED` with its time set, one that there is not is
/// `INVALID_ARGUMENT` without; of neither are value and type written.
///
/// # Safety
/// NVML's contract: `values` is null or valid for reads and writes of `count` entries.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetFieldValues(handle: nvmlDevice_t, count: c_int, values: *mut nvml::nvmlFieldValue_t) -> nvmlReturn_t {
    query(|| {
        let device = device(handle)?;
        let count = usize::try_from(count).ok().filter(|count| *count > 0).ok_or(Code::INVALID_ARGUMENT)?;
        if values.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        for index in 0..count {
            // SAFETY: `values` is not null and `index < count`, so by this function's contract the entry is there.
            answer(&device, unsafe { &mut *values.add(index) });
        }
        Ok(())
    })
}

fn answer(device: &Device, entry: &mut nvml::nvmlFieldValue_t) {
    if entry.fieldId >= field_id::NVML_FI_MAX {
        entry.nvmlReturn = guard(|| Err(Code::INVALID_ARGUMENT));
        return;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    entry.timestamp = c_longlong::try_from(now.as_micros()).unwrap_or(c_longlong::MAX);
    let figure = figure(device, entry.fieldId);
    match figure {
        Ok(Figure::Int(value)) => {
            entry.valueType = nvml::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT;
            entry.value = nvml::nvmlValue_t { uiVal: value };
        }
        Ok(Figure::Long(value)) => {
            entry.valueType = nvml::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
            entry.value = nvml::nvmlValue_t { ullVal: value };
        }
        Err(_) => {}
    }
    entry.nvmlReturn = guard(|| figure.map(drop));
}

fn figure(device: &Device, id: c_uint) -> Result<Figure, Code> {
    let long = |value: Option<u32>| known(value).map(|value| Figure::Long(value.into()));
    match id {
        field_id::NVML_FI_DEV_MEMORY_TEMP => known(device.memory_temperature_c).map(Figure::Int),
        field_id::NVML_FI_DEV_REMAPPED_COR => long(device.rows_remapped_correctable),
        field_id::NVML_FI_DEV_REMAPPED_UNC => long(device.rows_remapped_uncorrectable),
        field_id::NVML_FI_DEV_REMAPPED_PENDING => long(device.row_remap_pending.map(u32::from)),
        field_id::NVML_FI_DEV_REMAPPED_FAILURE => long(device.row_remap_failed.map(u32::from)),
        field_id::NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL => known(device.nvlink_crc_flit_errors).map(Figure::Long),
        field_id::NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL => known(device.nvlink_crc_data_errors).map(Figure::Long),
        field_id::NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL => known(device.nvlink_replay_errors).map(Figure::Long),
        field_id::NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL => known(device.nvlink_recovery_errors).map(Figure::Long),
        _ => Err(Code::NOT_SUPPORTED),
    }
}
