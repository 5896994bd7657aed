//! What each signal shows of itself, with the built programs and NVML's real ABI.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use headgate_test_support::control_plane::ControlPlaneOptions;
use headgate_test_support::nvml::STATE_VARIABLE;
use headgate_test_support::process::Process;
use headgate_test_support::{ControlPlaneProcess, NvmlDevice, NvmlState, artefact, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// GPU memory is sampled `sample_ms` apart and counts as recovered after 2 s.
fn policy(sample_ms: u32) -> String {
    format!(
        "apiVersion: headgate.dev/v1\nkind: AdmissionPolicy\nmetadata: {{name: demo}}\nspec:\n  pool: demo\n  classes:\n  \
         - {{name: high, whenTripped: reserved_lane}}\n  - {{name: low, whenTripped: refuse}}\n  levels:\n    \
         gpuMemory: {{sampleMs: {sample_ms}, tripPercent: 75}}\n    hysteresis: {{recoverPercent: 90, recoveryMs: 2000}}\n"
    )
}

fn gpu_program(state: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(artefact::program("headgate").unwrap());
    command.arg("gpu").args(args).env("HEADGATE_NVML_LIB", artefact::nvml_shim().unwrap()).env(STATE_VARIABLE, state);
    command
}

/// Waits until the level of GPU memory is as wanted.
async fn level_that(control: &ControlPlaneProcess, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let found = wait_until(what, PATIENCE, || async {
        let levels = control.status().await?["pools"][0]["levels"].as_array().cloned().unwrap_or_default();
        Ok(levels.into_iter().find(|level| level["kind"] == "gpu_memory" && wanted(level)))
    });
    found.await.unwrap()
}

/// A device with every figure that NVML has, a MIG instance of another device, and what is to come of them.
fn everything() -> Value {
    json!({"devices": [
        {
            "uuid": "GPU-1", "name": "whole", "memory_total_bytes": 1000, "memory_used_bytes": 400, "memory_reserved_bytes": 100,
            "gpu_utilization_percent": 55, "memory_utilization_percent": 44, "temperature_c": 61, "memory_temperature_c": 71,
            "temperature_shutdown_c": 95, "temperature_slowdown_c": 92, "temperature_max_c": 87, "memory_temperature_max_c": 99,
            "power_mw": 300_000, "power_limit_mw": 700_000, "sm_clock_mhz": 1200, "sm_clock_max_mhz": 1980,
            "mem_clock_mhz": 2619, "mem_clock_max_mhz": 2700, "throttle_reasons": 0x20, "ecc_errors_corrected": 5,
            "ecc_errors_uncorrected": 0, "rows_remapped_correctable": 1, "rows_remapped_uncorrectable": 2,
            "row_remap_pending": true, "row_remap_failed": false, "nvlink_crc_flit_errors": 3, "nvlink_crc_data_errors": 4,
            "nvlink_replay_errors": 8, "nvlink_recovery_errors": 9, "mig_mode": 0,
            "processes": [{"pid": 7, "name": "/opt/vllm", "used_memory_bytes": 350}],
        },
        {
            "uuid": "GPU-2", "name": "parted", "memory_total_bytes": 2000, "memory_used_bytes": 10, "mig_mode": 1,
            "mig_devices": [{"uuid": "MIG-1", "name": "parted MIG 1g", "memory_total_bytes": 500, "memory_used_bytes": 250}],
        },
    ]})
}

#[tokio::test]
async fn every_figure_that_nvml_has_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (state, tape) = (folder.path().join("nvml.json"), folder.path().join("tape.jsonl"));
    fs::write(&state, everything().to_string()).unwrap();
    let mut command = gpu_program(&state, &["--period-ms", "20", "--seconds", "1", "--record"]);
    assert!(command.arg(&tape).output().unwrap().status.success());
    let lines: Vec<Value> = fs::read_to_string(&tape).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str, uuid: &str| {
        let rows = lines.iter().filter_map(|line| line[kind].as_array()).next_back().unwrap();
        rows.iter().find(|row| row["uuid"] == uuid).unwrap_or_else(|| panic!("no {uuid} in {rows:?}")).clone()
    };
    let sample = of("samples", "GPU-1");
    let expected = json!({
        "index": 0, "uuid": "GPU-1", "name": "whole", "memory_used_bytes": 400, "memory_reserved_bytes": 100, "memory_total_bytes": 1000,
        "kernel_active_percent": 55, "memory_active_percent": 44, "sm_clock_mhz": 1200, "memory_clock_mhz": 2619,
        "throttle_reasons": ["sw_thermal_slowdown"], "power_milliwatts": 300_000, "temperature_celsius": 61,
        "memory_temperature_celsius": 71, "xid_events": 0,
    });
    assert_eq!(sample, expected);
    let detail = of("details", "GPU-1");
    let expected = json!({
        "uuid": "GPU-1", "sm_clock_max_mhz": 1980, "memory_clock_max_mhz": 2700, "power_limit_milliwatts": 700_000,
        "temperature_max_celsius": 87, "temperature_slowdown_celsius": 92, "temperature_shutdown_celsius": 95,
        "memory_temperature_max_celsius": 99, "ecc_corrected": 5, "ecc_uncorrected": 0, "rows_remapped_correctable": 1,
        "rows_remapped_uncorrectable": 2, "row_remap_pending": true, "row_remap_failed": false, "nvlink_crc_errors": 7,
        "nvlink_replay_errors": 8, "nvlink_recovery_errors": 9, "mig_enabled": false, "compute_processes": 1,
        "processes": [{"pid": 7, "name": "/opt/vllm", "memory_used_bytes": 350}],
    });
    assert_eq!(detail, expected);
    let (part, of_whom) = (of("samples", "MIG-1"), of("details", "MIG-1"));
    assert_eq!(
        (&part["memory_used_bytes"], &part["memory_total_bytes"], &of_whom["mig_parent"]),
        (&250.into(), &500.into(), &"GPU-2".into())
    );
}

#[tokio::test]
async fn watching_shows_the_gpus_again_and_again_until_it_is_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let state = NvmlState::create(&folder.path().join("nvml.json"), &[NvmlDevice::with_memory_used(0, 20.0)]).unwrap();
    let mut command = gpu_program(state.path(), &["--watch", "--json", "--interval-ms", "100"]);
    let mut watching = Process::spawn("watching", &mut command, &folder.path().join("log")).unwrap();
    let shows = |watching: &Process, percent: f64| {
        let shown = watching.log().lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).next_back();
        shown.is_some_and(|shown| shown["gpus"][0]["memory_used_percent"] == percent)
    };
    for percent in [20.0, 90.0] {
        state.set_memory_used(percent).unwrap();
        wait_until("the memory", PATIENCE, || std::future::ready(Ok(shows(&watching, percent).then_some(())))).await.unwrap();
    }
    state.set(&[]).unwrap();
    let is_lost = |watching: &Process| watching.log().lines().next_back().is_some_and(|line| line.contains("lost"));
    wait_until("the loss", PATIENCE, || std::future::ready(Ok(is_lost(&watching).then_some(())))).await.unwrap();
    state.set_memory_used(30.0).unwrap();
    wait_until("the return", PATIENCE, || std::future::ready(Ok(shows(&watching, 30.0).then_some(())))).await.unwrap();
    kill(Pid::from_raw(watching.id().cast_signed()), Signal::SIGINT).unwrap();
    wait_until("its end", PATIENCE, || std::future::ready(watching.ended())).await.unwrap();
}

#[tokio::test]
async fn a_level_shows_its_value_source_age_threshold_last_trip_and_countdown() {
    let folder = tempfile::tempdir().unwrap();
    let state = NvmlState::create(&folder.path().join("nvml.json"), &[NvmlDevice::with_memory_used(0, 30.0)]).unwrap();
    let control = ControlPlaneProcess::start(ControlPlaneOptions {
        nvml_state: Some(state.path().to_owned()),
        filter: "headgate.wasm".into(),
        ..ControlPlaneOptions::default()
    });
    let control = control.await.unwrap();
    control.apply(&policy(100)).unwrap();
    let calm = level_that(&control, "a calm level", |level| level["state"] == "ok").await;
    assert_eq!(
        (&calm["value"], &calm["threshold"], &calm["unit"], &calm["source"]),
        (&30.0.into(), &75.0.into(), &"%".into(), &"nvml".into())
    );
    assert!(calm["age_ms"].as_u64() <= Some(300) && calm["last_trip"].is_null() && calm["recovery_remaining_ms"].is_null(), "{calm}");
    assert!(!calm["source_reason"].as_str().unwrap().is_empty(), "{calm}");
    state.set_memory_used(90.0).unwrap();
    let tripped = level_that(&control, "a trip", |level| level["state"] == "tripped").await;
    let trip = &tripped["last_trip"];
    assert_eq!((&trip["value"], &trip["threshold"]), (&90.0.into(), &75.0.into()));
    assert!(trip["ago_ms"].as_u64() < Some(2000) && trip["at_unix_ms"].as_u64() > Some(1_700_000_000_000), "{trip}");
    assert_eq!(tripped["recovery_remaining_ms"], 2000, "the countdown stands until the value has fallen");
    state.set_memory_used(30.0).unwrap();
    let first = level_that(&control, "a countdown", |level| level["state"] == "recovering").await;
    let left = |level: &Value| level["recovery_remaining_ms"].as_u64();
    assert!(left(&first) <= Some(2000), "{first}");
    level_that(&control, "a countdown that goes on", |level| level["state"] == "recovering" && left(level) < left(&first)).await;
    let over = level_that(&control, "its end", |level| level["state"] == "ok").await;
    assert_eq!((&over["last_trip"]["value"], left(&over)), (&90.0.into(), None), "what was, is still shown");
}

/// dcgm-exporter's page with another clock at every collection.
async fn page(State(turn): State<Arc<AtomicU64>>) -> String {
    let page = include_str!("../../control-plane/server/src/device/dcgm/fixtures/two-a100.txt");
    page.replace("} 1215\n", &format!("}} {}\n", 1200 + turn.fetch_add(1, Ordering::SeqCst) % 7))
        .replace("} 1410\n", &format!("}} {}\n", 1400 + turn.load(Ordering::SeqCst) % 7))
}

#[tokio::test]
async fn a_dcgm_exporter_stands_in_for_an_agent() {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}/metrics", listener.local_addr().unwrap());
    let router = Router::new().route("/metrics", axum::routing::get(page)).with_state(Arc::<AtomicU64>::default());
    let exporter = tokio::spawn(async move { axum::serve(listener, router).await });
    let args = vec!["--dcgm-exporter".to_owned(), url];
    let control =
        ControlPlaneProcess::start(ControlPlaneOptions { args, filter: "headgate.wasm".into(), ..ControlPlaneOptions::default() })
            .await
            .unwrap();
    control.apply(&policy(1000)).unwrap();
    let level =
        level_that(&control, "memory by the exporter", |level| level["source"] == "nvml" && level["value"].as_f64() > Some(0.0)).await;
    let gpus = control.status().await.unwrap()["gpus"].clone();
    assert_eq!(gpus.as_array().map(Vec::len), Some(2), "{gpus}");
    assert_eq!((&gpus[0]["node"], &gpus[0]["state"]), (&"gpu-node-7".into(), &"ok".into()), "{gpus}");
    let fullest = [0, 1].map(|index| gpus[index]["memory_used_percent"].as_f64().unwrap()).into_iter().fold(0.0, f64::max);
    assert!((level["value"].as_f64().unwrap() - fullest).abs() < 1e-9, "{level} {gpus}");
    exporter.abort();
    level_that(&control, "the exporter's silence", |level| level["state"] == "stale").await;
}
