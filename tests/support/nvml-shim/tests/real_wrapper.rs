//! The built library through the real `nvml-wrapper`, as the control plane loads it.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use headgate_nvml_shim::STATE_VARIABLE;
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id;
use nvml_wrapper_sys::bindings::{
    nvmlMemory_v2_t, nvmlReturn_enum_NVML_ERROR_FUNCTION_NOT_FOUND, nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT,
    nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED,
};

const UUID: &str = "GPU-11111111-2222-3333-4444-555555555555";

/// The environment belongs to the process, and so do the tests of this file when they share one.
static ENVIRONMENT: Mutex<()> = Mutex::new(());

/// Cargo puts the test binary into `deps` and the library there or one level up, by how it was asked to build.
fn library() -> PathBuf {
    let binary = std::env::current_exe().unwrap();
    let places = binary.ancestors().skip(1).take(2).map(|folder| folder.join("libheadgate_nvml_shim.so"));
    places.filter(|path| path.is_file()).max_by_key(|path| path.metadata().unwrap().modified().unwrap()).expect("cargo builds the cdylib")
}

fn set_state_file(path: Option<&Path>) {
    match path {
        // SAFETY: `ENVIRONMENT` is held, and no other thread of this binary touches the environment meanwhile.
        Some(path) => unsafe { std::env::set_var(STATE_VARIABLE, path) },
        // SAFETY: as above.
        None => unsafe { std::env::remove_var(STATE_VARIABLE) },
    }
}

/// Runs `test` with an initialized NVML and a function that replaces the state file.
fn with_state(state: &str, test: impl FnOnce(&Nvml, &dyn Fn(&str))) {
    let _lock = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    let replace = |state: &str| {
        let next = folder.path().join("next.json");
        std::fs::write(&next, state).unwrap();
        std::fs::rename(&next, &path).unwrap();
    };
    replace(state);
    set_state_file(Some(&path));
    let nvml = Nvml::builder().lib_path(library().as_os_str()).init().unwrap();
    test(&nvml, &replace);
}

fn device(used: u64) -> String {
    format!(
        r#"{{"driver_version": "580.95.05", "cuda_driver_version": 13000, "devices": [{{
            "uuid": "{UUID}", "name": "Test GPU", "memory_total_bytes": 1000, "memory_used_bytes": {used}, "memory_reserved_bytes": 50,
            "gpu_utilization_percent": 97, "memory_utilization_percent": 41, "temperature_c": 61, "memory_temperature_c": 66,
            "temperature_shutdown_c": 95, "temperature_slowdown_c": 92, "rows_remapped_correctable": 2, "row_remap_pending": false, "power_mw": 450000, "power_limit_mw": 700000,
            "sm_clock_mhz": 1755, "sm_clock_max_mhz": 1980, "mem_clock_mhz": 2619, "throttle_reasons": 4, "mig_mode": 0,
            "processes": [{{"pid": 42, "name": "engine", "used_memory_bytes": 300}}, {{"pid": 43}}]}}]}}"#
    )
}

#[test]
fn reads_every_figure_of_a_device() {
    with_state(&device(300), |nvml, _| {
        assert_eq!(nvml.sys_driver_version().unwrap(), "580.95.05");
        assert_eq!(nvml.sys_cuda_driver_version().unwrap(), 13000);
        assert_eq!(nvml.device_count().unwrap(), 1);
        let device = nvml.device_by_index(0).unwrap();
        assert_eq!((device.name().unwrap().as_str(), device.uuid().unwrap().as_str(), device.index().unwrap()), ("Test GPU", UUID, 0));
        let memory = device.memory_info().unwrap();
        assert_eq!((memory.total, memory.used, memory.reserved, memory.free), (1000, 300, 50, 650), "free is neither used nor reserved");
        let utilization = device.utilization_rates().unwrap();
        assert_eq!((utilization.gpu, utilization.memory), (97, 41));
        assert_eq!(device.temperature(TemperatureSensor::Gpu).unwrap(), 61);
        assert_eq!((device.power_usage().unwrap(), device.enforced_power_limit().unwrap()), (450_000, 700_000));
        assert_eq!((device.clock_info(Clock::SM).unwrap(), device.max_clock_info(Clock::SM).unwrap()), (1755, 1980));
        assert_eq!(device.clock_info(Clock::Memory).unwrap(), 2619);
        assert_eq!(device.current_throttle_reasons().unwrap(), ThrottleReasons::SW_POWER_CAP);
        assert_eq!(device.mig_mode().unwrap().current, 0);
    });
}

#[test]
fn answers_each_field_and_threshold_for_itself() {
    with_state(&device(300), |nvml, _| {
        let device = nvml.device_by_index(0).unwrap();
        assert_eq!(device.temperature_threshold(TemperatureThreshold::Slowdown).unwrap(), 92);
        assert!(matches!(device.temperature_threshold(TemperatureThreshold::MemoryMax), Err(NvmlError::NotSupported)));
        let ids = [
            field_id::NVML_FI_DEV_MEMORY_TEMP,
            field_id::NVML_FI_DEV_REMAPPED_COR,
            field_id::NVML_FI_DEV_REMAPPED_UNC,
            field_id::NVML_FI_DEV_REMAPPED_PENDING,
        ];
        let values: Vec<_> =
            device.field_values_for(&ids.map(FieldId)).unwrap().into_iter().map(|value| value.unwrap().value.ok()).collect();
        assert_eq!(values, [Some(SampleValue::U32(66)), Some(SampleValue::U64(2)), None, Some(SampleValue::U64(0))]);
        let unknown = device.field_values_for(&[FieldId(9999)]).unwrap().remove(0);
        assert!(matches!(unknown.unwrap().value, Err(NvmlError::InvalidArg)));
    });
}

/// What an H200 answered with driver 580.159.
#[test]
fn wrong_questions_get_the_answers_of_a_real_driver() {
    with_state(&device(300), |nvml, _| {
        let device = nvml.device_by_index(0).unwrap();
        // SAFETY: the handle is used while `nvml` lives.
        let handle = unsafe { device.handle() };
        let mut memory = nvmlMemory_v2_t { version: 1, total: 0, reserved: 0, free: 0, used: 0 };
        let mut clock = 0;
        // SAFETY: each out-pointer is valid for its type.
        unsafe {
            let library = nvml.lib();
            assert_eq!(library.nvmlDeviceGetMemoryInfo_v2(handle, &raw mut memory), nvmlReturn_enum_NVML_ERROR_FUNCTION_NOT_FOUND);
            assert_eq!(library.nvmlDeviceGetClockInfo(handle, 4, &raw mut clock), nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED);
            assert_eq!(library.nvmlDeviceGetMaxClockInfo(handle, 4, &raw mut clock), nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
        }
    });
}

#[test]
fn lists_processes_with_their_memory() {
    with_state(&device(300), |nvml, _| {
        let processes = nvml.device_by_index(0).unwrap().running_compute_processes().unwrap();
        let listed: Vec<_> = processes.iter().map(|process| (process.pid, process.used_gpu_memory.clone())).collect();
        assert_eq!(listed, [(42, UsedGpuMemory::Used(300)), (43, UsedGpuMemory::Unavailable)]);
        assert_eq!(nvml.sys_process_name(42, 64).unwrap(), "engine");
    });
}

#[test]
fn sees_each_change_of_the_file_on_the_next_query() {
    with_state(&device(300), |nvml, replace| {
        let device_now = nvml.device_by_uuid(UUID).unwrap();
        for used in [301, 302, 303] {
            replace(&device(used));
            assert_eq!(device_now.memory_info().unwrap().used, used);
        }
    });
}

#[test]
fn a_lost_or_vanished_device_is_lost() {
    with_state(&device(300), |nvml, replace| {
        let device_now = nvml.device_by_index(0).unwrap();
        replace(&device(300).replace(r#""name""#, r#""lost": true, "name""#));
        assert!(matches!(device_now.memory_info(), Err(NvmlError::GpuLost)));
        assert!(matches!(nvml.device_by_uuid(UUID), Err(NvmlError::GpuLost)));
        assert_eq!(nvml.device_count().unwrap(), 1, "a lost device still counts");
        replace(r#"{"devices": []}"#);
        assert!(matches!(device_now.memory_info(), Err(NvmlError::GpuLost)));
        replace(&device(300));
        assert_eq!(device_now.memory_info().unwrap().used, 300, "and it can come back");
    });
}

#[test]
fn a_critical_xid_wakes_those_who_listen() {
    let xids = |list: &str| device(300).replace(r#""name""#, &format!(r#""xid_errors": {list}, "name""#));
    with_state(&xids("[13]"), |nvml, replace| {
        let device = nvml.device_by_index(0).unwrap();
        assert_eq!(device.supported_event_types().unwrap(), EventTypes::CRITICAL_XID_ERROR);
        let set = device.register_events(EventTypes::CRITICAL_XID_ERROR, nvml.create_event_set().unwrap()).unwrap();
        assert!(matches!(set.wait(0), Err(NvmlError::Timeout)), "what happened before is not told");
        replace(&xids("[13, 79]"));
        let event = set.wait(5000).unwrap();
        assert_eq!((event.device.uuid().unwrap().as_str(), event.event_type), (UUID, EventTypes::CRITICAL_XID_ERROR));
        assert!(matches!(event.event_data, Some(XidError::Value(79))));
        assert!(matches!(set.wait(0), Err(NvmlError::Timeout)), "and each only once");
        set.release_events().unwrap();
    });
}

#[test]
fn mig_instances_have_handles_and_memory_of_their_own() {
    let instances = r#""mig_mode": 1, "mig_devices": [
        {"uuid": "MIG-1", "name": "Test GPU MIG 3g", "memory_total_bytes": 400, "memory_used_bytes": 100},
        {"uuid": "MIG-2", "memory_total_bytes": 400, "memory_used_bytes": 390}]"#;
    with_state(&device(300).replace(r#""mig_mode": 0"#, instances), |nvml, replace| {
        let parent = nvml.device_by_index(0).unwrap();
        assert_eq!((parent.mig_mode().unwrap().current, parent.mig_device_count().unwrap()), (1, 7));
        let second = parent.mig_device_by_index(1).unwrap();
        assert_eq!((second.uuid().unwrap().as_str(), second.memory_info().unwrap().used), ("MIG-2", 390));
        assert!(second.mig_is_mig_device_handle().unwrap() && !parent.mig_is_mig_device_handle().unwrap());
        assert_eq!(second.mig_parent_device().unwrap().uuid().unwrap(), UUID);
        assert!(matches!(second.power_usage(), Err(NvmlError::NotSupported)), "power is the parent's");
        assert!(matches!(parent.mig_device_by_index(2), Err(NvmlError::NotFound)));
        replace(&device(300));
        assert!(matches!(second.memory_info(), Err(NvmlError::NotFound)), "taken apart");
    });
}

#[test]
fn no_devices_is_a_count_of_zero() {
    with_state("{}", |nvml, _| {
        assert_eq!(nvml.device_count().unwrap(), 0);
        assert!(matches!(nvml.device_by_index(0), Err(NvmlError::InvalidArg)));
        assert!(matches!(nvml.device_by_uuid(UUID), Err(NvmlError::NotFound)));
    });
}

#[test]
fn a_field_that_is_absent_is_not_supported() {
    with_state(r#"{"devices": [{"uuid": "GPU-0"}]}"#, |nvml, _| {
        let device = nvml.device_by_index(0).unwrap();
        assert!(matches!(device.memory_info(), Err(NvmlError::NotSupported)));
        assert!(matches!(device.utilization_rates(), Err(NvmlError::NotSupported)));
        assert!(matches!(device.mig_mode(), Err(NvmlError::NotSupported)));
        assert!(matches!(device.running_compute_processes(), Err(NvmlError::NotSupported)));
    });
}

#[test]
fn a_file_that_cannot_be_understood_is_an_unknown_error() {
    with_state(&device(300), |nvml, replace| {
        let device = nvml.device_by_index(0).unwrap();
        replace(r#"{"devices": [{"uuid""#);
        assert!(matches!(device.memory_info(), Err(NvmlError::Unknown)));
        assert!(matches!(nvml.device_count(), Err(NvmlError::Unknown)));
    });
}

#[test]
fn without_a_state_file_no_driver_is_loaded() {
    let _lock = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
    set_state_file(None);
    let error = Nvml::builder().lib_path(library().as_os_str()).init().unwrap_err();
    assert!(matches!(error, NvmlError::DriverNotLoaded), "{error:?}");
}
