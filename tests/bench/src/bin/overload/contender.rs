//! Who stands between the load and the engine, as real processes.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use headgate_protos::v1;
use headgate_sim::Setup;
use headgate_sim::headgate::default_policy;
use headgate_sim::suite::Algorithm;
use headgate_test_support::control_plane::ControlPlaneOptions;
use headgate_test_support::envoy::{AccessLog, Bootstrap, EnvoyOptions, Gradient, HttpFilter, Upstream, WasmFilter};
use headgate_test_support::{ControlPlaneProcess, EnvoyProcess, InferenceSimProcess, wait_until};

use crate::world::{Engines, capacity_rps};

const POLICY: &str = include_str!("../../../overload-policy.yaml");
const READY_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// An admission control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    Headgate,
    /// The same, where the filter picks the engine.
    HeadgatePicks,
    NoControl,
    LocalRateLimit,
    AdaptiveConcurrency,
    AdmissionControl,
}

/// One contender with everything that it needs, running.
pub(crate) struct Stage {
    pub(crate) envoy: EnvoyProcess,
    control: Option<ControlPlaneProcess>,
    engines: Vec<InferenceSimProcess>,
}

impl Contender {
    pub(crate) const ALL: [Self; 6] =
        [Self::Headgate, Self::HeadgatePicks, Self::NoControl, Self::LocalRateLimit, Self::AdaptiveConcurrency, Self::AdmissionControl];

    /// Whether it differs from the others before so many engines.
    pub(crate) fn is_of(self, engines: u32) -> bool {
        self != Self::HeadgatePicks || engines > 1
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Headgate => "headgate",
            Self::HeadgatePicks => "headgate_picks",
            Self::NoControl => "no_control",
            Self::LocalRateLimit => "local_ratelimit",
            Self::AdaptiveConcurrency => "adaptive_concurrency",
            Self::AdmissionControl => "admission_control",
        }
    }

    /// The same algorithm in the simulator.
    pub(crate) fn simulated(self) -> Algorithm {
        match self {
            Self::Headgate | Self::HeadgatePicks => Algorithm::Headgate,
            Self::NoControl => Algorithm::NoControl,
            Self::LocalRateLimit => Algorithm::StaticTokenBucket,
            Self::AdaptiveConcurrency => Algorithm::EnvoyAdaptiveConcurrency,
            Self::AdmissionControl => Algorithm::EnvoyAdmissionControl,
        }
    }

    /// The policy under which it is simulated; `None` where it has none.
    pub(crate) fn policy(self, setup: &Setup) -> Option<v1::Policy> {
        let mut policy = default_policy(setup);
        let overload = policy.spec.as_mut().and_then(|spec| spec.overload.as_mut())?;
        overload.picks_endpoint = Some(self == Self::HeadgatePicks);
        (self.simulated() == Algorithm::Headgate).then_some(policy)
    }

    /// Envoy's own filter; `None` for Headgate's.
    fn native(self) -> Option<HttpFilter> {
        // What an operator who knew the capacity would set: a second of it in the bucket, filled about ten times a second.
        let (burst, fill) = (capacity_rps().round() as u32, 5);
        let fill_interval = Duration::from_secs_f64(f64::from(fill) / capacity_rps());
        Some(match self {
            Self::Headgate | Self::HeadgatePicks => return None,
            Self::NoControl => HttpFilter::None,
            Self::LocalRateLimit => HttpFilter::LocalRateLimit { burst, fill, fill_interval },
            Self::AdaptiveConcurrency => HttpFilter::AdaptiveConcurrency(Gradient::Defaults),
            Self::AdmissionControl => HttpFilter::AdmissionControl,
        })
    }

    /// Starts engines, control plane when there is one, and Envoy with two workers; returns when decisions are made.
    pub(crate) async fn start(self, wanted: Engines) -> Result<Stage> {
        let mut engines = Vec::new();
        for flags in wanted.flags() {
            engines.push(InferenceSimProcess::start(None, &flags.iter().map(String::as_str).collect::<Vec<_>>()).await?);
        }
        let addresses: Vec<SocketAddr> = engines.iter().map(InferenceSimProcess::address).collect();
        let upstream = Upstream::Endpoints { addresses: addresses.clone(), follows_picks: self == Self::HeadgatePicks };
        if let Some(filter) = self.native() {
            let envoy = envoy(Bootstrap::new(filter, upstream)).await?;
            return Ok(Stage { envoy, control: None, engines });
        }
        let control = ControlPlaneProcess::start(ControlPlaneOptions::new(None)?).await?;
        control.apply(&self.document(&addresses))?;
        let filter = HttpFilter::Wasm(WasmFilter::headgate_controlled()?);
        let bootstrap = Bootstrap::new(filter, upstream).with_control_plane(control.grpc());
        let envoy = envoy(bootstrap).await?;
        wait_until("limits in force on both workers", READY_LIMIT, || async {
            let status = control.status().await?;
            let (proxy, pool) = (&status["proxies"][0], &status["pools"][0]);
            let has_limits = proxy["policies"][0]["limits_epoch"].as_u64() > Some(0);
            let are_read = pool["engines"].as_array().is_some_and(|all| all.iter().all(|engine| engine["state"] == "ok"));
            Ok((has_limits && proxy["workers"].as_u64() >= Some(2) && are_read).then_some(()))
        })
        .await?;
        Ok(Stage { envoy, control: Some(control), engines })
    }

    fn document(self, engines: &[SocketAddr]) -> String {
        let pages: String = engines.iter().map(|engine| format!("  - metricsUrl: http://{engine}/metrics\n")).collect();
        let picks = format!("    picksEndpoint: {}\n", self == Self::HeadgatePicks);
        POLICY.replace("    PICKS\n", &picks).replace("  ENGINES\n", &pages)
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

    /// Ends everything: proxy, control plane, engines.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.envoy.process().terminate(STOP_LIMIT).await?;
        if let Some(control) = &mut self.control {
            control.process().terminate(STOP_LIMIT).await?;
        }
        self.engines.iter_mut().try_for_each(|engine| engine.process().kill_9())
    }
}
