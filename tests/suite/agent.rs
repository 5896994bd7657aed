//! Agents: GPUs of other nodes in the decision, and what happens when they fail. Built programs, NVML's real ABI, real gRPC.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use headgate_test_support::artefact;
use headgate_test_support::control_plane::ControlPlaneOptions;
use headgate_test_support::nvml::STATE_VARIABLE;
use headgate_test_support::process::Process;
use headgate_test_support::{ControlPlaneProcess, NvmlDevice, NvmlState, wait_until};
use serde_json::Value;
use tempfile::TempDir;

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
    gpuMemory: {sampleMs: 100, tripPercent: 75}
    hysteresis: {recoverPercent: 90, recoveryMs: 100}
";

/// A GPU node.
struct Node {
    name: &'static str,
    state: NvmlState,
    agent: Process,
    folder: TempDir,
}

// === impl Node ===

impl Node {
    fn start(name: &'static str, pools: &[&str], devices: &[NvmlDevice], server: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = NvmlState::create(&folder.path().join("nvml.json"), devices).unwrap();
        let agent = Self::agent(name, pools, &state, &folder, server).unwrap();
        Self { name, state, agent, folder }
    }

    fn agent(name: &str, pools: &[&str], state: &NvmlState, folder: &TempDir, server: SocketAddr) -> Result<Process> {
        let mut command = Command::new(artefact::program("headgate")?);
        command.args(["agent", "--node", name, "--server", &format!("http://{server}")]);
        command.args(pools.iter().flat_map(|pool| ["--pool", pool]));
        command.env("HEADGATE_NVML_LIB", artefact::nvml_shim()?).env(STATE_VARIABLE, state.path());
        Process::spawn("agent", &mut command, &folder.path().join("log"))
    }
}

async fn control_plane() -> ControlPlaneProcess {
    let filter = PathBuf::from("headgate.wasm");
    let control = ControlPlaneProcess::start(ControlPlaneOptions { filter, ..ControlPlaneOptions::default() }).await.unwrap();
    control.apply(POLICY).unwrap();
    control
}

fn gpus(used_percent: &[f64]) -> Vec<NvmlDevice> {
    (0..).zip(used_percent).map(|(index, used)| NvmlDevice::with_memory_used(index, *used)).collect()
}

/// Waits until the level of GPU memory is in `state` with `value`, which is rounded.
async fn level_is(control: &ControlPlaneProcess, state: &str, value: Option<f64>) -> Value {
    let what = format!("level {state} {value:?}");
    let found = wait_until(&what, PATIENCE, || async {
        let status = control.status().await?;
        let levels = status["pools"][0]["levels"].as_array().cloned().unwrap_or_default();
        let level = levels.into_iter().find(|level| level["kind"] == "gpu_memory");
        let is_it =
            |level: &Value| level["state"] == state && value.is_none_or(|value| level["value"].as_f64().map(f64::round) == Some(value));
        Ok(level.filter(is_it))
    });
    found.await.unwrap()
}

/// Waits for a row of `gpus` that is as wanted.
async fn gpu_is(control: &ControlPlaneProcess, node: &str, index: u64, wanted: impl Fn(&Value) -> bool) -> Value {
    let what = format!("GPU {index} of {node}");
    let found = wait_until(&what, PATIENCE, || async {
        let status = control.status().await?;
        let gpus = status["gpus"].as_array().cloned().unwrap_or_default();
        Ok(gpus.into_iter().find(|gpu| gpu["node"] == node && gpu["index"] == index && wanted(gpu)))
    });
    found.await.unwrap()
}

#[tokio::test]
async fn the_fullest_gpu_of_the_pools_nodes_trips_the_level_wherever_it_is() {
    let control = control_plane().await;
    let a = Node::start("a", &["demo"], &gpus(&[20.0, 30.0]), control.grpc());
    let other = Node::start("b", &["other"], &gpus(&[99.0]), control.grpc());
    gpu_is(&control, "b", 0, |gpu| gpu["state"] == "ok").await;
    level_is(&control, "ok", Some(30.0)).await;
    a.state.set(&gpus(&[20.0, 90.0])).unwrap();
    let tripped = level_is(&control, "tripped", Some(90.0)).await;
    assert!(tripped["age_ms"].as_u64().unwrap() <= 300, "{tripped}");
    a.state.set(&gpus(&[20.0, 30.0])).unwrap();
    level_is(&control, "ok", Some(30.0)).await;
    let row = gpu_is(&control, "a", 1, |_| true).await;
    assert_eq!(
        (&row["verdict"], &row["power_limit_milliwatts"], &row["sm_clock_max_mhz"]),
        (&"sound".into(), &700_000.into(), &1980.into())
    );
    drop(other);
}

#[tokio::test]
async fn an_agent_that_stands_still_or_is_killed_leaves_the_decision_and_the_others_carry_on() {
    let control = control_plane().await;
    let mut full = Node::start("full", &[], &gpus(&[90.0]), control.grpc());
    let _calm = Node::start("calm", &[], &gpus(&[40.0]), control.grpc());
    gpu_is(&control, "calm", 0, |gpu| gpu["state"] == "ok").await;
    level_is(&control, "tripped", Some(90.0)).await;
    full.agent.freeze().unwrap();
    gpu_is(&control, "full", 0, |gpu| gpu["state"] == "stale").await;
    level_is(&control, "ok", Some(40.0)).await;
    full.agent.thaw().unwrap();
    level_is(&control, "tripped", Some(90.0)).await;
    full.agent.kill_9().unwrap();
    level_is(&control, "ok", Some(40.0)).await;
    // Its successor is believed at once, whatever its clock says.
    full.agent = Node::agent(full.name, &[], &full.state, &full.folder, control.grpc()).unwrap();
    level_is(&control, "tripped", Some(90.0)).await;
}

#[tokio::test]
async fn a_lost_gpu_is_ejected_with_its_reason_and_its_return_is_seen() {
    let control = control_plane().await;
    let node = Node::start("a", &[], &gpus(&[90.0, 40.0]), control.grpc());
    level_is(&control, "tripped", Some(90.0)).await;
    let mut devices = gpus(&[90.0, 40.0]);
    devices[0].lost = true;
    node.state.set(&devices).unwrap();
    let lost = gpu_is(&control, "a", 0, |gpu| gpu["state"] == "lost").await;
    assert_eq!((&lost["verdict"], &lost["capacity"]), (&"ejected".into(), &0.0.into()));
    assert!(lost["verdict_reason"].as_str().unwrap().contains("lost"), "{lost}");
    level_is(&control, "ok", Some(40.0)).await;
    let status = control.status().await.unwrap();
    let pool = &status["pools"][0];
    assert_eq!((pool["gpu_units"].as_f64().unwrap(), pool["gpu_capacity"].as_f64().unwrap()), (40.0, 0.5), "{pool}");
    devices[0].lost = false;
    node.state.set(&devices).unwrap();
    gpu_is(&control, "a", 0, |gpu| gpu["state"] == "ok" && gpu["verdict"] == "sound").await;
    level_is(&control, "tripped", Some(90.0)).await;
}

#[tokio::test]
async fn an_xid_that_breaks_a_gpu_ejects_it_and_one_of_a_program_does_not() {
    let control = control_plane().await;
    let node = Node::start("a", &[], &gpus(&[10.0, 20.0]), control.grpc());
    // The agent listens from its first second on.
    gpu_is(&control, "a", 1, |gpu| gpu["xid_events"] == 0).await;
    let mut devices = gpus(&[10.0, 20.0]);
    devices[0].xid_errors = vec![13];
    devices[1].xid_errors = vec![79];
    node.state.set(&devices).unwrap();
    let broken = gpu_is(&control, "a", 1, |gpu| gpu["verdict"] == "ejected").await;
    assert_eq!((&broken["verdict_reason"], &broken["last_xid"]), (&"XID 79".into(), &79.into()));
    let sound = gpu_is(&control, "a", 0, |gpu| gpu["last_xid"] == 13).await;
    assert_eq!(sound["verdict"], "sound");
}

#[tokio::test]
async fn heat_derates_a_gpu_and_leaves_its_memory_in_the_decision() {
    let control = control_plane().await;
    let mut devices = gpus(&[50.0]);
    devices[0].throttle_reasons = 0x20 | 0x04;
    devices[0].sm_clock_mhz = 990;
    devices[0].gpu_utilization_percent = 99;
    let _node = Node::start("a", &[], &devices, control.grpc());
    let hot = gpu_is(&control, "a", 0, |gpu| gpu["verdict"] == "derated").await;
    assert_eq!((&hot["verdict_reason"], &hot["capacity"]), (&"held down by heat".into(), &0.5.into()));
    level_is(&control, "ok", Some(50.0)).await;
}

#[tokio::test]
async fn agents_find_a_control_plane_that_was_restarted() {
    let mut control = control_plane().await;
    let _node = Node::start("a", &[], &gpus(&[90.0]), control.grpc());
    level_is(&control, "tripped", Some(90.0)).await;
    control.kill_9().unwrap();
    wait_until("its end", PATIENCE, || std::future::ready(control.process().ended().map(|ended| ended.map(drop)))).await.unwrap();
    control.restart().await.unwrap();
    level_is(&control, "tripped", Some(90.0)).await;
}
