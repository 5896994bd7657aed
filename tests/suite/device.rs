//! Recording GPUs and engines and playing the recording, with the built programs and NVML's real ABI.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use headgate_test_support::artefact;
use headgate_test_support::control_plane::ControlPlaneOptions;
use headgate_test_support::inference_sim::InferenceSimProcess;
use headgate_test_support::nvml::STATE_VARIABLE;
use headgate_test_support::process::Process;
use headgate_test_support::{ControlPlaneProcess, NvmlDevice, NvmlState, http_client, wait_until};
use serde_json::{Value, json};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

const POLICY: &str = "\
apiVersion: headgate.dev/v1
kind: AdmissionPolicy
metadata: {name: demo}
spec:
  pool: demo
  classes:
    - {name: high, whenTripped: reserved_lane}
    - {name: low, whenTripped: refuse}
  levels:
    gpuMemory: {sampleMs: 20, tripPercent: 75}
    hysteresis: {recoverPercent: 90, recoveryMs: 100}
";

fn record(state: &NvmlState, tape: &Path, folder: &Path, more: &[&str]) -> Result<Process> {
    let mut command = Command::new(artefact::program("headgate")?);
    command.args(["gpu", "--period-ms", "20", "--record"]).arg(tape).args(more);
    command.env("HEADGATE_NVML_LIB", artefact::nvml_shim()?).env(STATE_VARIABLE, state.path());
    Process::spawn("recorder", &mut command, &folder.join("log"))
}

/// The whole lines of the tape so far.
fn lines(tape: &Path) -> Vec<Value> {
    let text = fs::read_to_string(tape).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits for `count` such lines on the tape.
async fn recorded(tape: &Path, count: usize, is_one: impl Fn(&Value) -> bool) -> Result<()> {
    let is_there = || lines(tape).iter().filter(|line| is_one(line)).count() >= count;
    wait_until("lines on the tape", PATIENCE, || std::future::ready(Ok(is_there().then_some(())))).await
}

/// The tape at `path`, played `speed` times as fast.
fn quickened(path: &Path, speed: u64, into: &Path) -> PathBuf {
    let text = fs::read_to_string(path).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &mut lines[1..] {
        for time in ["at_us", "took_us"] {
            line[time] = (line[time].as_u64().unwrap() / speed).into();
        }
    }
    let quick = into.join("quick.jsonl");
    fs::write(&quick, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    quick
}

async fn play(tape: PathBuf, policy: &str) -> Result<ControlPlaneProcess> {
    let args = vec!["--device-tape".to_owned(), tape.display().to_string()];
    let control =
        ControlPlaneProcess::start(ControlPlaneOptions { filter: "headgate.wasm".into(), args, ..ControlPlaneOptions::default() }).await?;
    control.apply(policy)?;
    Ok(control)
}

async fn level_is(control: &ControlPlaneProcess, wanted: &str) -> Result<Value> {
    wait_until(&format!("level {wanted}"), PATIENCE, || async {
        let status = control.status().await?;
        let levels = status["pools"][0]["levels"].as_array().cloned().unwrap_or_default();
        let level = levels.into_iter().find(|level| level["kind"] == "gpu_memory");
        Ok(level.filter(|level| level["state"] == wanted))
    })
    .await
}

#[tokio::test]
async fn a_recording_of_a_gpu_that_fills_and_is_lost_plays_as_that_gpu() {
    let folder = tempfile::tempdir().unwrap();
    let tape = folder.path().join("tape.jsonl");
    let state = NvmlState::create(&folder.path().join("nvml.json"), &[NvmlDevice::with_memory_used(0, 20.0)]).unwrap();
    let mut recorder = record(&state, &tape, folder.path(), &[]).unwrap();
    let total = 80_u64 << 30;
    let used = |line: &Value, bytes: u64| line["samples"][0]["memory_used_bytes"].as_u64() == Some(bytes);
    // Longer than the level takes to recover, for the tape plays over and over.
    recorded(&tape, 20, |line| used(line, total / 5)).await.unwrap();
    state.set_memory_used(90.0).unwrap();
    recorded(&tape, 5, |line| used(line, total / 10 * 9)).await.unwrap();
    state.set(&[]).unwrap();
    recorded(&tape, 1, |line| line["samples"][0]["lost"].is_string()).await.unwrap();
    assert!(recorder.terminate(PATIENCE).await.unwrap().success(), "{}", recorder.log());

    let lines = lines(&tape);
    assert_eq!((&lines[0]["headgate_device_tape"], &lines[0]["source"]), (&2.into(), &"nvml".into()));
    assert_eq!(lines[0]["driver"]["driver_version"], "570.00.00");
    assert_eq!(
        (&lines[1]["samples"][0]["sm_clock_mhz"], &lines[1]["samples"][0]["throttle_reasons"]),
        (&1980.into(), &serde_json::json!([]))
    );
    assert_eq!(lines[2]["details"][0]["power_limit_milliwatts"], 700_000);
    assert!(lines.windows(2).skip(1).all(|pair| pair[0]["at_us"].as_u64() <= pair[1]["at_us"].as_u64()), "time goes forward");

    let control = play(tape, POLICY).await.unwrap();
    let tripped = level_is(&control, "tripped").await.unwrap();
    assert_eq!((&tripped["value"], &tripped["threshold"]), (&90.0.into(), &75.0.into()));
    wait_until("lost GPU", PATIENCE, || async {
        let source = control.status().await?["gpu_source"].as_str().unwrap_or_default().to_owned();
        Ok(source.starts_with("no device: GPU 0 is lost").then_some(()))
    })
    .await
    .unwrap();
    level_is(&control, "ok").await.unwrap();
}

#[tokio::test]
async fn a_real_h200_on_tape_trips_and_frees_the_level() {
    let folder = tempfile::tempdir().unwrap();
    let tape = artefact::workspace_root().join("tests/tapes/h200.jsonl");
    let policy = POLICY.replace("tripPercent: 75", "tripPercent: 30");
    let control = play(quickened(&tape, 20, folder.path()), &policy).await.unwrap();
    let tripped = level_is(&control, "tripped").await.unwrap();
    // It takes 60 of its 140 GiB.
    assert!((30.0..44.0).contains(&tripped["value"].as_f64().unwrap()), "{tripped}");
    let status = control.status().await.unwrap();
    assert_eq!((&status["gpu_source"], &status["gpus"][0]["name"]), (&"tape: 1 device".into(), &"NVIDIA H200".into()));
    assert_eq!(status["gpus"][0]["power_limit_milliwatts"], 700_000);
    level_is(&control, "ok").await.unwrap();
}

/// What the engine on the newest line of the tape says that has one.
fn last_reading(tape: &Path) -> Value {
    lines(tape).iter().rev().find_map(|line| line["engine"].get("reading").cloned()).unwrap_or_default()
}

#[tokio::test]
async fn an_engine_is_recorded_beside_its_gpu_and_both_play_where_neither_is() {
    let folder = tempfile::tempdir().unwrap();
    let tape = folder.path().join("tape.jsonl");
    let engine = InferenceSimProcess::start(None, &["--preallocate", "--kv-blocks", "64"]).await.unwrap();
    let url = format!("http://{}/metrics", engine.address());
    wait_until("the device's file", PATIENCE, || std::future::ready(Ok(engine.nvml().path().exists().then_some(())))).await.unwrap();
    let mut recorder = record(engine.nvml(), &tape, folder.path(), &["--engine", &url]).unwrap();
    recorded(&tape, 3, |line| line["engine"]["reading"]["kv_use"] == 0.0).await.unwrap();
    // 600 of 1024 tokens.
    let body = json!({"messages": [{"role": "user", "content": "x".repeat(2000)}], "max_tokens": 100, "stream": true});
    let asked = http_client::post_json(engine.address(), "/v1/chat/completions", &[], &body);
    let filled = recorded(&tape, 3, |line| line["engine"]["reading"]["kv_use"].as_f64() > Some(0.45));
    let (asked, filled) = tokio::join!(asked, filled);
    filled.unwrap();
    assert_eq!(asked.unwrap().status, 200);
    drop(engine);
    recorded(&tape, 1, |line| line["engine"]["failed"].as_str().is_some_and(|why| why.starts_with("no answer"))).await.unwrap();
    assert!(recorder.terminate(PATIENCE).await.unwrap().success(), "{}", recorder.log());
    assert_eq!(last_reading(&tape)["engine"], "vllm");

    let policy = format!("{POLICY}  engines: [{{metricsUrl: \"{url}\"}}]\n").replace("tripPercent: 75", "tripPercent: 40");
    let control = play(tape, &policy).await.unwrap();
    let tripped = level_is(&control, "tripped").await.unwrap();
    assert_eq!(tripped["source"], "kv_cache", "{tripped}");
    let engines = control.status().await.unwrap()["pools"][0]["engines"].clone();
    assert_eq!((&engines[0]["source"], &engines[0]["engine"], &engines[0]["url"]), (&"tape".into(), &"vllm".into(), &json!(url)));
    wait_until("latencies by the engine's own histograms", PATIENCE, || async {
        let stream = control.status().await?["pools"][0]["latencies"]["streams"][0].clone();
        let count = |metric: &str| stream["metrics"][metric]["count"].as_u64();
        Ok((stream["source"] == "engines" && count("ttft") > Some(0) && count("tpot") > Some(10)).then_some(()))
    })
    .await
    .unwrap();
    wait_until("the engine that could not be read", PATIENCE, || async {
        let engine = control.status().await?["pools"][0]["engines"][0].clone();
        Ok(engine["problem"].as_str().is_some_and(|problem| problem.starts_with("no answer")).then_some(()))
    })
    .await
    .unwrap();
}

/// The policy for one of the repository's tapes with an engine, over the memory that `source` says.
fn kv_policy(source: &str) -> String {
    let memory = format!("source: {source}, sampleMs: 20, tripPercent: 75");
    format!("{POLICY}  engines: [{{metricsUrl: \"http://127.0.0.1:8000/metrics\"}}]\n").replace("sampleMs: 20, tripPercent: 75", &memory)
}

/// Plays a tape of the repository and collects what the memory level says until `is_enough`.
async fn watch_level(tape: &str, source: &str, is_enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let control = play(artefact::workspace_root().join("tests/tapes").join(tape), &kv_policy(source)).await.unwrap();
    let seen = RefCell::new(Vec::new());
    wait_until(tape, PATIENCE, || async {
        let status = control.status().await?;
        let levels = status["pools"][0]["levels"].as_array().cloned().unwrap_or_default();
        seen.borrow_mut().extend(levels.into_iter().filter(|level| level["kind"] == "gpu_memory"));
        Ok(is_enough(&seen.borrow()).then_some(()))
    })
    .await
    .unwrap();
    seen.into_inner()
}

fn is_tripped(level: &Value) -> bool {
    level["state"] == "tripped"
}

#[tokio::test]
async fn behind_a_taped_engine_that_allocates_at_start_auto_watches_its_cache_and_nvml_would_be_wrong() {
    let tape = "kv-fill-preallocating.jsonl";
    // Calm before the load, tripped by it, calm again.
    let seen = watch_level(tape, "auto", |seen| {
        let first = seen.iter().position(is_tripped);
        first.is_some_and(|first| seen[first..].iter().any(|level| level["state"] == "ok"))
            && seen.iter().any(|level| level["state"] == "ok")
    })
    .await;
    let tripped: Vec<&Value> = seen.iter().filter(|level| is_tripped(level)).collect();
    assert!(tripped.iter().all(|level| level["source"] == "kv_cache"), "{tripped:?}");
    assert!(tripped[0]["source_reason"].as_str().unwrap().contains("vllm"), "{tripped:?}");
    // The wrong choice: 90 % from idle to collapse, so the level is tripped without any load and stays so.
    let seen = watch_level(tape, "nvml", |seen| seen.iter().filter(|level| is_tripped(level)).count() > 20).await;
    assert!(seen.iter().all(|level| level["state"] != "ok" && level["state"] != "recovering"), "{seen:?}");
}

#[tokio::test]
async fn behind_a_taped_engine_that_allocates_as_it_goes_auto_watches_nvml_and_its_cache_would_be_wrong() {
    let tape = "kv-fill-on-demand.jsonl";
    let seen = watch_level(tape, "auto", |seen| {
        let first = seen.iter().position(is_tripped);
        first.is_some_and(|first| seen[first..].iter().any(|level| level["state"] == "ok"))
    })
    .await;
    let tripped: Vec<&Value> = seen.iter().filter(|level| is_tripped(level)).collect();
    assert!(tripped.iter().all(|level| level["source"] == "nvml"), "{tripped:?}");
    assert!(tripped[0]["source_reason"].as_str().unwrap().contains("triton"), "{tripped:?}");
    // The wrong choice: this engine has no such figure, so the level never hears of the load.
    let seen = watch_level(tape, "kv_cache", |seen| seen.len() > 100).await;
    assert!(seen.iter().all(|level| !is_tripped(level)), "{seen:?}");
}
