//! Checks of the three levels and their hysteresis.

use alloc::collections::BTreeMap;
use alloc::format;

use headgate_protos::v1;

use super::check::{Checker, Form};
use super::config::{GpuMemoryConfig, GpuMemorySource, HysteresisConfig, Levels, P99Config, QpsConfig};
use super::error::Problem;

const MAX_DEVICES: usize = 1024;
const DEVICE: Form = Form {
    max_bytes: 96,
    allows: |byte| byte.is_ascii_graphic(),
    ends_allow: |byte| byte.is_ascii_graphic(),
    expected: "a device UUID of at most 96 visible characters",
};

pub(super) fn levels(check: &mut Checker, wire: Option<&v1::Levels>) -> Levels {
    let Some(v1::Levels { qps, gpu_memory, p99, hysteresis }) = wire else { return Levels::default() };
    Levels {
        qps: qps.as_ref().map_or_else(QpsConfig::default, |wire| self::qps(check, wire)),
        gpu_memory: gpu_memory.as_ref().map_or_else(GpuMemoryConfig::default, |wire| self::gpu_memory(check, wire)),
        p99: p99.as_ref().map_or_else(P99Config::default, |wire| self::p99(check, wire)),
        hysteresis: hysteresis.as_ref().map_or_else(HysteresisConfig::default, |wire| self::hysteresis(check, wire)),
    }
}

fn qps(check: &mut Checker, wire: &v1::QpsLevel) -> QpsConfig {
    let v1::QpsLevel { enabled, sample_ms, baseline_window_ms, sigmas, trip_factor, min_samples, floor_rps } = wire;
    let defaults = QpsConfig::default();
    let at = "levels.qps";
    QpsConfig {
        enabled: enabled.unwrap_or(defaults.enabled),
        sample: check.millis(at, "sampleMs", *sample_ms, defaults.sample, 100..=60_000),
        baseline_window: check.millis(at, "baselineWindowMs", *baseline_window_ms, defaults.baseline_window, 10_000..=3_600_000),
        sigmas: check.number(at, "sigmas", *sigmas, defaults.sigmas, 0.0..=10.0),
        trip_factor: check.number(at, "tripFactor", *trip_factor, defaults.trip_factor, 1.0..=100.0),
        min_samples: check.whole(at, "minSamples", *min_samples, defaults.min_samples, 2..=3600),
        floor_rps: check.number(at, "floorRps", *floor_rps, defaults.floor_rps, 0.0..=1e9),
    }
}

fn gpu_memory(check: &mut Checker, wire: &v1::GpuMemoryLevel) -> GpuMemoryConfig {
    let v1::GpuMemoryLevel { enabled, source, sample_ms, trip_percent, devices } = wire;
    let defaults = GpuMemoryConfig::default();
    let at = "levels.gpuMemory";
    let source = match v1::GpuMemorySource::try_from(*source) {
        Ok(v1::GpuMemorySource::Unspecified | v1::GpuMemorySource::Auto) => GpuMemorySource::Auto,
        Ok(v1::GpuMemorySource::Nvml) => GpuMemorySource::Nvml,
        Ok(v1::GpuMemorySource::KvCache) => GpuMemorySource::KvCache,
        Err(_) => {
            check.unknown(format!("{at}.source"), &format!("{source}"), ["auto", "nvml", "kv_cache"]);
            GpuMemorySource::Auto
        }
    };
    let sample = check.millis(at, "sampleMs", *sample_ms, defaults.sample, 20..=2000);
    let trip_percent = check.number(at, "tripPercent", *trip_percent, defaults.trip_percent, 1.0..=100.0);
    let checked = check.count(at, "devices", devices.len(), 0..=MAX_DEVICES);
    let mut seen = BTreeMap::new();
    for (index, device) in devices.iter().take(checked).enumerate() {
        let field = format!("devices[{index}]");
        check.text(at, &field, device, &DEVICE);
        check.unique(format!("{at}.{field}"), device, &mut seen);
    }
    GpuMemoryConfig { enabled: enabled.unwrap_or(defaults.enabled), source, sample, trip_percent, devices: devices.clone() }
}

fn p99(check: &mut Checker, wire: &v1::P99Level) -> P99Config {
    let v1::P99Level { enabled, window_ms, limit_ms, mean_factor, periods, floor_ms, min_samples } = wire;
    let defaults = P99Config::default();
    let at = "levels.p99";
    let window = check.millis(at, "windowMs", *window_ms, defaults.window, 500..=600_000);
    let limit = check.millis(at, "limitMs", *limit_ms, defaults.limit, 1..=3_600_000);
    let mean_factor = check.number(at, "meanFactor", *mean_factor, defaults.mean_factor, 1.0..=100.0);
    let periods = check.whole(at, "periods", *periods, defaults.periods, 1..=100);
    // A limit below the default floor lowers that floor with it; only a floor that is given can contradict the limit.
    let mut floor = check.millis(at, "floorMs", *floor_ms, defaults.floor.min(limit), 0..=3_600_000);
    if floor > limit {
        let (got, max) = (floor.as_millis() as f64, limit.as_millis() as f64);
        check.report(format!("{at}.floorMs"), Problem::OutOfRange { got, min: 0.0, max });
        floor = limit;
    }
    let min_samples = check.whole(at, "minSamples", *min_samples, defaults.min_samples, 1..=1_000_000);
    P99Config { enabled: enabled.unwrap_or(defaults.enabled), window, limit, mean_factor, periods, floor, min_samples }
}

fn hysteresis(check: &mut Checker, wire: &v1::Hysteresis) -> HysteresisConfig {
    let v1::Hysteresis { recover_percent, recovery_ms } = wire;
    let defaults = HysteresisConfig::default();
    let at = "levels.hysteresis";
    HysteresisConfig {
        recover_percent: check.number(at, "recoverPercent", *recover_percent, defaults.recover_percent, 1.0..=99.0),
        recovery: check.millis(at, "recoveryMs", *recovery_ms, defaults.recovery, 100..=3_600_000),
    }
}
