//! Who stands between the load and the engine, as real processes.

use std::time::Duration;

use anyhow::Result;
use headgate_sim::suite::Algorithm;
use headgate_test_support::control_plane::ControlPlaneOptions;
use headgate_test_support::envoy::{AccessLog, Bootstrap, EnvoyOptions, Gradient, HttpFilter, Upstream, WasmFilter};
use headgate_test_support::{ControlPlaneProcess, EnvoyProcess, InferenceSimProcess, wait_until};

use crate::world::{capacity_rps, engine_flags};

const POLICY: &str = include_str!("../../../overload-policy.yaml");
const READY_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// An admission control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    Headgate,
    NoControl,
    LocalRateLimit,
    AdaptiveConcurrency,
    AdmissionControl,
}

/// One contender with everything that it needs, running.
pub(crate) struct Stage {
    pub(crate) envoy: EnvoyProcess,
    control: Option<ControlPlaneProcess>,
    engine: InferenceSimProcess,
}

impl Contender {
    pub(crate) const ALL: [Self; 5] =
        [Self::Headgate, Self::NoControl, Self::LocalRateLimit, Self::AdaptiveConcurrency, Self::AdmissionControl];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Headgate => "headgate",
            Self::NoControl => "no_control",
            Self::LocalRateLimit => "local_ratelimit",
            Self::AdaptiveConcurrency => "adaptive_concurrency",
            Self::AdmissionControl => "admission_control",
        }
    }

    /// The same algorithm in the simulator.
    pub(crate) fn simulated(self) -> Algorithm {
        match self {
            Self::Headgate => Algorithm::Headgate,
            Self::NoControl => Algorithm::NoControl,
            Self::LocalRateLimit => Algorithm::StaticTokenBucket,
            Self::AdaptiveConcurrency => Algorithm::EnvoyAdaptiveConcurrency,
            Self::AdmissionControl => Algorithm::EnvoyAdmissionControl,
        }
    }

    /// Envoy's own filter; `None` for Headgate's.
    fn native(self) -> Option<HttpFilter> {
        // What an operator who knew the capacity would set: a second of it in the bucket, filled about ten times a second.
        let (burst, fill) = (capacity_rps().round() as u32, 5);
        let fill_interval = Duration::from_secs_f64(f64::from(fill) / capacity_rps());
        Some(match self {
            Self::Headgate => return None,
            Self::NoControl => HttpFilter::None,
            Self::LocalRateLimit => HttpFilter::LocalRateLimit { burst, fill, fill_interval },
            Self::AdaptiveConcurrency => HttpFilter::AdaptiveConcurrency(Gradient::Defaults),
            Self::AdmissionControl => HttpFilter::AdmissionControl,
        })
    }

    /// Starts engine, control plane when there is one, and Envoy with two workers; returns when decisions are made.
    pub(crate) async fn start(self) -> Result<Stage> {
        let flags = engine_flags();
        let engine = InferenceSimProcess::start(None, &flags.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        if let Some(filter) = self.native() {
            let envoy = envoy(Bootstrap::new(filter, Upstream::Endpoint(engine.address()))).await?;
            return Ok(Stage { envoy, control: None, engine });
        }
        let control = ControlPlaneProcess::start(ControlPlaneOptions::new(None)?).await?;
        control.apply(&POLICY.replace("ENGINE", &engine.address().to_string()))?;
        let filter = HttpFilter::Wasm(WasmFilter::headgate_controlled()?);
        let bootstrap = Bootstrap::new(filter, Upstream::Endpoint(engine.address())).with_control_plane(control.grpc());
        let envoy = envoy(bootstrap).await?;
        wait_until("limits in force on both workers", READY_LIMIT, || async {
            let status = control.status().await?;
            let (proxy, pool) = (&status["proxies"][0], &status["pools"][0]);
            let has_limits = proxy["policies"][0]["limits_epoch"].as_u64() > Some(0);
            let is_ready = has_limits && proxy["workers"].as_u64() >= Some(2) && pool["engines"][0]["state"] == "ok";
            Ok(is_ready.then_some(()))
        })
        .await?;
        Ok(Stage { envoy, control: Some(control), engine })
    }
}

async fn envoy(mut bootstrap: Bootstrap) -> Result<EnvoyProcess> {
    bootstrap.access_log = AccessLog::Off;
    EnvoyProcess::start(EnvoyOptions::new(bootstrap)).await
}

impl Stage {
    /// What the control plane says of itself now; `None` without one.
    pub(crate) async fn status(&self) -> Option<serde_json::Value> {
        self.control.as_ref()?.status().await.ok()
    }

    /// Ends everything: proxy, control plane, engine.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.envoy.process().terminate(STOP_LIMIT).await?;
        if let Some(control) = &mut self.control {
            control.process().terminate(STOP_LIMIT).await?;
        }
        self.engine.process().kill_9()
    }
}
