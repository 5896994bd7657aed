//! One GPU node, one engine, one control plane and one Envoy under steady traffic, and what the control plane shows of them.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use headgate_test_support::control_plane::ControlPlaneOptions;
use headgate_test_support::envoy::{Bootstrap, EnvoyOptions, HttpFilter, Upstream as To, WasmFilter};
use headgate_test_support::inference_sim::InferenceSimProcess;
use headgate_test_support::nvml::STATE_VARIABLE;
use headgate_test_support::process::Process;
use headgate_test_support::{Calendar, ControlPlaneProcess, EnvoyProcess, NvmlDevice, NvmlState, artefact, wait_until};
use headgate_tests::documents::{document, spec};
use headgate_tests::mesh::PATIENCE;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::page::Page;
use super::traffic::{Traffic, alarms};

/// Time between two samples of the GPUs, and between two readings of the engine's page.
pub(crate) const PERIOD: Duration = Duration::from_millis(100);
/// A step of the control loop, in which the state shows, and what two cores with two Envoys may be late.
pub(crate) const SLACK: Duration = Duration::from_millis(400);
/// Memory of the two GPUs in use, in percent: far below the level's threshold.
const USED: [f64; 2] = [30.0, 20.0];

/// Everything, running.
pub(crate) struct World {
    pub(crate) envoy: EnvoyProcess,
    pub(crate) control: ControlPlaneProcess,
    pub(crate) agent: Process,
    pub(crate) engine: InferenceSimProcess,
    pub(crate) page: Page,
    pub(crate) gpus: Gpus,
    pub(crate) traffic: Traffic,
    pub(crate) calendar: Calendar,
    folder: TempDir,
}

/// The node's GPUs: their power wanders as that of real ones does.
pub(crate) struct Gpus {
    state: NvmlState,
    wandering: Option<JoinHandle<()>>,
}

// === impl Gpus ===

impl Gpus {
    fn start(folder: &TempDir) -> Result<Self> {
        let state = NvmlState::create(&folder.path().join("nvml.json"), &devices(0, &[]))?;
        let mut gpus = Self { state, wandering: None };
        gpus.wander(&[]);
        Ok(gpus)
    }

    /// Goes on from here with these devices lost.
    pub(crate) fn wander(&mut self, lost: &'static [usize]) {
        self.stand_still();
        let state = self.state.clone();
        self.wandering = Some(tokio::spawn(async move {
            for turn in 0.. {
                if state.set(&devices(turn, lost)).is_err() {
                    return;
                }
                tokio::time::sleep(PERIOD / 4).await;
            }
        }));
    }

    /// Every figure stays as it is.
    pub(crate) fn stand_still(&mut self) {
        if let Some(wandering) = self.wandering.take() {
            wandering.abort();
        }
    }
}

impl Drop for Gpus {
    fn drop(&mut self) {
        self.stand_still();
    }
}

fn devices(turn: u32, lost: &[usize]) -> Vec<NvmlDevice> {
    let device = |(index, used): (usize, &f64)| NvmlDevice {
        power_mw: 400_000 + 997 * (turn % 101),
        gpu_utilization_percent: 97,
        lost: lost.contains(&index),
        ..NvmlDevice::with_memory_used(u8::try_from(index).unwrap_or(0), *used)
    };
    USED.iter().enumerate().map(device).collect()
}

/// The pool whose engine tells its load: `auto` watches its KV cache, and overload control acts.
fn chat(page: &str) -> Value {
    let mut chat = spec();
    chat["pool"] = json!("chat");
    chat["routes"] = json!([{"pathPrefix": "/v1/chat/"}]);
    chat["engines"] = json!([{"metricsUrl": page}]);
    chat["overload"] = json!({"ttftSloMs": 5000, "tpotSloMs": 500});
    chat["levels"]["gpuMemory"] = json!({"sampleMs": 100, "tripPercent": 75});
    chat
}

/// The pool of which only the GPUs tell, with all three levels.
fn plain() -> Value {
    let mut plain = spec();
    plain["pool"] = json!("plain");
    plain["routes"] = json!([{"pathPrefix": "/v1/models"}]);
    plain["levels"]["gpuMemory"] = json!({"sampleMs": 100, "tripPercent": 75, "source": "nvml"});
    // Above what the clients ask for: seconds before they began may be learned as well.
    plain["levels"]["qps"] = json!({"minSamples": 3, "floorRps": 150});
    plain["levels"]["p99"] = json!({"windowMs": 1000, "minSamples": 10, "floorMs": 1000});
    plain
}

// === impl World ===

impl World {
    /// Starts everything and waits until both pools know all their signals, and the requests are steady.
    pub(crate) async fn start() -> Result<Self> {
        let (folder, calendar) = (tempfile::tempdir()?, Calendar::start()?);
        let engine = InferenceSimProcess::start(None, &[]).await?;
        let page = Page::start(engine.address()).await?;
        let gpus = Gpus::start(&folder)?;
        let options = ControlPlaneOptions { env: calendar.preload()?, ..ControlPlaneOptions::new(None)? };
        let control = ControlPlaneProcess::start(options).await?;
        control.apply(&document("chat", &chat(&page.url())))?;
        control.apply(&document("plain", &plain()))?;
        let agent = agent(&control, &gpus, &calendar, &folder)?;
        let filter = HttpFilter::Wasm(WasmFilter::headgate_controlled()?);
        let bootstrap = Bootstrap::new(filter, To::Endpoint(engine.address())).with_control_plane(control.grpc());
        let envoy = EnvoyProcess::start(EnvoyOptions { env: calendar.preload()?, ..EnvoyOptions::new(bootstrap) }).await?;
        wait_until("both policies in force", PATIENCE, || async {
            let proxies = control.status().await?["proxies"].clone();
            Ok((proxies[0]["policies"].as_array().map_or(0, Vec::len) == 2 && proxies[0]["workers"].as_u64() >= Some(2)).then_some(()))
        })
        .await?;
        let traffic = Traffic::start(envoy.address());
        let world = Self { envoy, control, agent, engine, page, gpus, traffic, calendar, folder };
        world.becomes("calm", PATIENCE, is_calm).await?;
        world.traffic.more(100).await?;
        Ok(world)
    }

    /// A new agent in the place of the one that has ended.
    pub(crate) fn restart_agent(&mut self) -> Result<()> {
        self.agent = agent(&self.control, &self.gpus, &self.calendar, &self.folder)?;
        Ok(())
    }

    /// Waits until the status is as `wanted`, and says how long that took. Nothing may trip, be cut off or refused meanwhile.
    ///
    /// # Errors
    /// When it is not after `within`, or at the first alarm.
    pub(crate) async fn becomes(&self, what: &str, within: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let began = Instant::now();
        let status = wait_until(what, within, || async {
            let status = self.control.status().await?;
            let alarms = alarms(&status);
            ensure!(alarms.is_empty(), "while waiting for {what}: {alarms:?}");
            Ok(wanted(&status).then_some(status))
        })
        .await?;
        println!("{what} after {:?}", began.elapsed());
        Ok(status)
    }

    /// [`Self::becomes`] within three periods.
    pub(crate) async fn soon(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        self.becomes(what, 3 * PERIOD + SLACK, wanted).await
    }

    /// Nothing becomes of it for `span`: each look at the status is as `wanted`.
    pub(crate) async fn stays(&self, what: &str, span: Duration, wanted: impl Fn(&Value) -> bool) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < span {
            let status = self.control.status().await?;
            let alarms = alarms(&status);
            ensure!(wanted(&status) && alarms.is_empty(), "not {what} after {:?}: {alarms:?} {status}", began.elapsed());
            tokio::time::sleep(PERIOD / 4).await;
        }
        Ok(())
    }

    /// Age of the oldest limits that a worker of the proxy goes by, in milliseconds.
    pub(crate) async fn oldest_limits_ms(&self) -> Result<u64> {
        let page = self.envoy.admin_get("/stats?filter=headgate_limits_age_ms").await?.text();
        let ages = page.lines().filter_map(|line| line.rsplit_once(": ")?.1.parse().ok());
        ages.max().context("no limits")
    }

    /// Everything is as at the start: requests pass, every program runs and none has panicked; no request was refused, and `broken` went
    /// without an answer of the engine.
    pub(crate) async fn end(mut self, broken: u64) -> Result<()> {
        self.becomes("calm again", PATIENCE, is_calm).await?;
        self.traffic.more(50).await?;
        let outcome = self.traffic.finish().await?;
        for program in [self.control.process(), &mut self.agent, self.engine.process(), self.envoy.process()] {
            program.still_runs()?;
            let log = program.log();
            let panic = log.lines().find(|line| line.contains("panic"));
            ensure!(panic.is_none(), "{panic:?}");
        }
        ensure!(self.envoy.stat("vm_reload").await? == 0, "a VM has trapped");
        let refused = self.envoy.access_log().into_iter().find(|line| line.contains("decision=refuse"));
        ensure!(refused.is_none(), "{refused:?}");
        println!("{} requests served, {} without an answer, none refused", outcome.served, outcome.broken);
        ensure!(outcome.broken == broken, "{} requests had no answer, {broken} was to be expected", outcome.broken);
        Ok(())
    }
}

fn agent(control: &ControlPlaneProcess, gpus: &Gpus, calendar: &Calendar, folder: &TempDir) -> Result<Process> {
    let mut command = Command::new(artefact::program("headgate")?);
    command.args(["agent", "--node", "gpu-node", "--server", &format!("http://{}", control.grpc())]);
    command.env("HEADGATE_NVML_LIB", artefact::nvml_shim()?).env(STATE_VARIABLE, gpus.state.path()).envs(calendar.preload()?);
    Process::spawn("agent", &mut command, &folder.path().join("agent.log"))
}

// === What the status says ===

/// The level of GPU memory of a pool.
pub(crate) fn memory_level<'a>(status: &'a Value, pool: &str) -> &'a Value {
    level(status, pool, "gpu_memory")
}

fn level<'a>(status: &'a Value, pool: &str, kind: &str) -> &'a Value {
    let levels = self::pool(status, pool)["levels"].as_array();
    levels.and_then(|levels| levels.iter().find(|level| level["kind"] == kind)).unwrap_or(&Value::Null)
}

pub(crate) fn pool<'a>(status: &'a Value, name: &str) -> &'a Value {
    let pools = status["pools"].as_array();
    pools.and_then(|pools| pools.iter().find(|pool| pool["pool"] == name)).unwrap_or(&Value::Null)
}

pub(crate) fn engine(status: &Value) -> &Value {
    &pool(status, "chat")["engines"][0]
}

pub(crate) fn gpu(status: &Value, index: usize) -> &Value {
    let gpus = status["gpus"].as_array();
    gpus.and_then(|gpus| gpus.iter().find(|gpu| gpu["index"] == index)).unwrap_or(&Value::Null)
}

pub(crate) fn are_gpus(status: &Value, state: &str) -> bool {
    (0..USED.len()).all(|index| gpu(status, index)["state"] == state)
}

/// Every signal is there, fresh and below its threshold.
pub(crate) fn is_calm(status: &Value) -> bool {
    let is_ok = |kind: &str| level(status, "plain", kind)["state"] == "ok";
    let chat = memory_level(status, "chat");
    are_gpus(status, "ok")
        && engine(status)["state"] == "ok"
        && ["qps", "gpu_memory", "p99"].into_iter().all(is_ok)
        && memory_level(status, "plain")["value"].as_f64().map(f64::round) == Some(USED[0])
        && (chat["state"] == "ok" && chat["source"] == "kv_cache")
        && status["proxies"][0]["last_report_age_ms"].as_u64() < Some(1000)
}
