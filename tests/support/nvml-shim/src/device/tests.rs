//! Every exported signature against the bindings generated from `nvml.h`.

use nvml_wrapper_sys::bindings::NvmlLib;

/// Compiles only when the function and the bindings' field have one type.
fn has_the_type_of<F, E>(_field: fn(&NvmlLib) -> &Result<F, E>, _function: F) {}

macro_rules! check {
    ($($name:ident)*) => {$( has_the_type_of(|lib| &lib.$name, crate::$name as _); )*};
}

#[test]
fn every_export_has_the_signature_of_nvml_h() {
    check! {
        nvmlInit nvmlInit_v2 nvmlInitWithFlags nvmlShutdown nvmlErrorString
        nvmlSystemGetDriverVersion nvmlSystemGetNVMLVersion nvmlSystemGetCudaDriverVersion nvmlSystemGetCudaDriverVersion_v2
        nvmlSystemGetProcessName nvmlDeviceGetCount_v2 nvmlDeviceGetHandleByIndex_v2 nvmlDeviceGetHandleByUUID
        nvmlDeviceGetMemoryInfo nvmlDeviceGetMemoryInfo_v2 nvmlDeviceGetUtilizationRates
        nvmlDeviceGetPowerUsage nvmlDeviceGetEnforcedPowerLimit nvmlDeviceGetPowerManagementLimit nvmlDeviceGetTotalEnergyConsumption
        nvmlDeviceGetCurrentClocksThrottleReasons nvmlDeviceGetCurrentClocksEventReasons nvmlDeviceGetPerformanceState
        nvmlDeviceGetIndex nvmlDeviceGetMinorNumber nvmlDeviceIsMigDeviceHandle nvmlDeviceGetMaxMigDeviceCount nvmlDeviceGetMigMode
        nvmlDeviceGetName nvmlDeviceGetUUID nvmlDeviceGetSerial nvmlDeviceGetTemperature
        nvmlDeviceGetTemperatureThreshold nvmlDeviceGetFieldValues
        nvmlDeviceGetClockInfo nvmlDeviceGetMaxClockInfo nvmlDeviceGetTotalEccErrors nvmlDeviceGetComputeRunningProcesses_v3
        nvmlDeviceGetMigDeviceHandleByIndex nvmlDeviceGetDeviceHandleFromMigDeviceHandle nvmlDeviceGetSupportedEventTypes
        nvmlEventSetCreate nvmlDeviceRegisterEvents nvmlEventSetWait_v2 nvmlEventSetFree
    }
}
