//! One Envoy for each filter that is measured.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use headgate_bench::affinity::pin;
use headgate_test_support::artefact::FloorStep;
use headgate_test_support::control_plane::ControlPlaneOptions;
use headgate_test_support::envoy::{AccessLog, Bootstrap, EnvoyOptions, Gradient, HttpFilter, Upstream, WasmFilter};
use headgate_test_support::load::{Saturation, saturate};
use headgate_test_support::{ControlPlaneProcess, EnvoyProcess, NvmlDevice, NvmlState, wait_until};
use serde_json::json;

use crate::request::Request;

const CONNECTIONS: usize = 32;
const WARM_UP: Duration = Duration::from_millis(300);
const POLICY: &str = include_str!("../../../policy.yaml");
/// A request is answered when its body is there: answered before, its connection would end with it.
const BUFFERED_BYTES: u32 = 64 << 10;

pub(crate) const NO_FILTER: &str = "no_filter";
pub(crate) const EMPTY_FILTER: &str = "empty_filter";
pub(crate) const ADMITTING: &str = "headgate_admitting";
/// What the names of the filters that only cross the border begin with.
pub(crate) const FLOOR: &str = "floor_";
/// What a decomposition measures, in the order in which each adds to the one before, but for the empty filter.
pub(crate) const DECOMPOSED: [&str; 7] =
    [NO_FILTER, "floor_context", "floor_callbacks", "floor_header_map", "floor_clocks", ADMITTING, EMPTY_FILTER];

/// Who runs where. On a machine whose cores are threads in pairs, take two of different pairs.
#[derive(clap::Args, Clone, Copy)]
pub(crate) struct Cores {
    /// Core of the Envoys.
    #[arg(long, default_value_t = 0)]
    pub(crate) envoy_core: usize,
    /// Core of the client and the control plane.
    #[arg(long, default_value_t = 1)]
    pub(crate) client_core: usize,
}

/// What a variant must answer.
#[derive(Clone, Copy, PartialEq)]
enum Answers {
    Success,
    Refusal,
}

/// One Envoy.
pub(crate) struct Variant {
    pub(crate) name: String,
    answers: Answers,
    envoy: EnvoyProcess,
    /// Control plane and GPU of the variants that have one.
    _control: Option<(ControlPlaneProcess, tempfile::TempDir)>,
}

fn bootstrap(filter: HttpFilter) -> Bootstrap {
    let mut bootstrap = Bootstrap::new(filter, Upstream::Direct);
    bootstrap.access_log = AccessLog::Off;
    bootstrap.inner_filters.push(json!({
        "name": "envoy.filters.http.buffer",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer", "max_request_bytes": BUFFERED_BYTES},
    }));
    bootstrap
}

async fn start(cores: Cores, bootstrap: Bootstrap) -> Result<EnvoyProcess> {
    let mut options = EnvoyOptions::new(bootstrap);
    options.workers = 1;
    let mut envoy = EnvoyProcess::start(options).await?;
    pin(envoy.process().id(), cores.envoy_core)?;
    Ok(envoy)
}

/// The whole set-up as in production: control plane, limits pushed at 10 Hz, load reports; the GPU is `memory_used` percent full.
async fn headgate(cores: Cores, name: &str, answers: Answers, memory_used: f64, module: Option<&PathBuf>) -> Result<Variant> {
    let folder = tempfile::tempdir()?;
    let gpu = NvmlState::create(&folder.path().join("nvml.json"), &[NvmlDevice::with_memory_used(0, memory_used)])?;
    let mut control = ControlPlaneProcess::start(ControlPlaneOptions::new(Some(gpu.path()))?).await?;
    control.apply(POLICY)?;
    pin(control.process().id(), cores.client_core)?;
    let mut filter = WasmFilter::headgate_controlled()?;
    if let Some(module) = module {
        filter.module.clone_from(module);
    }
    // No access log here, so no line for it.
    filter.configuration["accessLog"] = "refused".into();
    let envoy = start(cores, bootstrap(HttpFilter::Wasm(filter)).with_control_plane(control.grpc())).await?;
    let address = envoy.address();
    wait_until("the filter's first decisions", Duration::from_secs(20), || async {
        let seen = saturate(address, &Request::Models.bytes(), 1, Duration::from_millis(20)).await?;
        let status = control.status().await?;
        let is_in_force = status["proxies"][0]["policies"].as_array().is_some_and(|policies| !policies.is_empty());
        Ok((is_in_force && has_only(seen, answers)).then_some(()))
    })
    .await?;
    Ok(Variant { name: name.into(), answers, envoy, _control: Some((control, folder)) })
}

fn has_only(seen: Saturation, answers: Answers) -> bool {
    match answers {
        Answers::Success => seen.refused == 0,
        Answers::Refusal => seen.admitted == 0,
    }
}

impl Variant {
    /// Starts the variants whose names are wanted.
    pub(crate) async fn start_all(cores: Cores, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<Self>> {
        // A bucket that never empties and a limit that is never reached: what they cost when they admit.
        let bucket = HttpFilter::LocalRateLimit { burst: 1_000_000_000, fill: 1_000_000_000, fill_interval: Duration::from_secs(1) };
        let mut filters = vec![
            (NO_FILTER.to_owned(), HttpFilter::None),
            (EMPTY_FILTER.to_owned(), HttpFilter::Wasm(WasmFilter::empty()?)),
            ("local_ratelimit".to_owned(), bucket),
            ("adaptive_concurrency".to_owned(), HttpFilter::AdaptiveConcurrency(Gradient::NeverLimits)),
            ("lua_header_check".to_owned(), HttpFilter::LuaHeaderCheck),
        ];
        for step in FloorStep::ALL {
            filters.push((format!("{FLOOR}{}", step.name()), HttpFilter::Wasm(WasmFilter::floor(step)?)));
        }
        let mut variants = Vec::new();
        for (name, filter) in filters {
            if is_wanted(&name) {
                let envoy = start(cores, bootstrap(filter)).await?;
                variants.push(Self { name, answers: Answers::Success, envoy, _control: None });
            }
        }
        for (name, answers, memory_used) in [(ADMITTING, Answers::Success, 10.0), ("headgate_refusing", Answers::Refusal, 90.0)] {
            if is_wanted(name) {
                variants.push(headgate(cores, name, answers, memory_used, None).await?);
            }
        }
        Ok(variants)
    }

    /// Another build of Headgate's filter, which admits.
    pub(crate) async fn candidate(cores: Cores, name: &str, module: &PathBuf) -> Result<Self> {
        headgate(cores, name, Answers::Success, 10.0, Some(module)).await
    }

    /// Whether the request can be measured here: Envoy closes a connection when it refuses before the body has come, so that connections
    /// would be measured, not requests.
    pub(crate) fn takes(&self, request: Request) -> bool {
        self.answers == Answers::Success || request == Request::Models
    }

    /// Until V8 has compiled what the filter runs.
    pub(crate) async fn warm_up(&self) -> Result<()> {
        for request in Request::ALL.into_iter().filter(|request| self.takes(*request)) {
            saturate(self.envoy.address(), &request.bytes(), CONNECTIONS, WARM_UP).await?;
        }
        Ok(())
    }

    /// CPU time of the Envoy process while nobody asks it for anything, in milliseconds a second.
    pub(crate) async fn idle(&mut self, length: Duration) -> Result<f64> {
        let before = self.envoy.process().cpu_time()?;
        tokio::time::sleep(length).await;
        let after = self.envoy.process().cpu_time()?;
        Ok((after.ran - before.ran).as_secs_f64() * 1e3 / length.as_secs_f64())
    }

    /// CPU time of the Envoy process over the responses that it gave, in microseconds.
    pub(crate) async fn measure(&mut self, request: Request, length: Duration) -> Result<f64> {
        let before = self.envoy.process().cpu_time()?;
        let seen = saturate(self.envoy.address(), &request.bytes(), CONNECTIONS, length).await?;
        let after = self.envoy.process().cpu_time()?;
        if !has_only(seen, self.answers) {
            bail!("{}: {} admitted and {} refused: it measures something else", self.name, seen.admitted, seen.refused);
        }
        ensure!(seen.responses() > 100, "{}: only {} responses", self.name, seen.responses());
        Ok((after.ran - before.ran).as_secs_f64() * 1e6 / seen.responses() as f64)
    }
}
