//! What runs, and the load that it bears.

use std::time::Duration;

use anyhow::Result;
use headgate_test_support::control_plane::ControlPlaneOptions;
use headgate_test_support::envoy::{Bootstrap, EnvoyOptions, HttpFilter, Upstream, WasmFilter};
use headgate_test_support::load::{Arrivals, Pace, Plan, Template, Traffic};
use headgate_test_support::{ControlPlaneProcess, EnvoyProcess, InferenceSimProcess, wait_until};
use serde_json::json;

const POLICY: &str = include_str!("../../../../../examples/first-light/policy.yaml");

/// Requests per second that the pool's default flags sustain, with prompts and answers as below (README of inference-sim).
const CAPACITY_RPS: f64 = 35.0;
/// Base load over all classes.
const BASE: f64 = 0.55;
const PROMPT_TOKENS: usize = 200;
const ANSWER_TOKENS: u32 = 40;
const SEED: u64 = 20_261_120;

/// A class of the demo: its tenant's key, its part of the base load and its part of what an overload adds.
struct Share {
    class: &'static str,
    key: &'static str,
    of_base: f64,
    of_surge: f64,
}

/// The surge is mostly unimportant work, as agents and batches are; the important class grows a little.
const SHARES: [Share; 3] = [
    Share { class: "high", key: "demo-key-gold", of_base: 0.4, of_surge: 0.04 },
    Share { class: "medium", key: "demo-key-silver", of_base: 0.3, of_surge: 0.36 },
    Share { class: "low", key: "demo-key-bronze", of_base: 0.3, of_surge: 0.60 },
];

/// When the load changes, since its start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Phases {
    pub surge_at: Duration,
    pub falls_at: Duration,
    pub ends_at: Duration,
}

impl Phases {
    pub(crate) fn of(total: Duration) -> Self {
        Self { surge_at: total / 3, falls_at: total * 2 / 3, ends_at: total }
    }

    pub(crate) fn name(&self, at: Duration) -> &'static str {
        match at {
            at if at < self.surge_at => "base load",
            at if at < self.falls_at => "overload",
            at if at < self.ends_at => "load has fallen",
            _ => "over",
        }
    }
}

/// Everything that runs.
pub(crate) struct Scene {
    pub engine: InferenceSimProcess,
    pub control: ControlPlaneProcess,
    pub envoy: EnvoyProcess,
}

impl Scene {
    /// Starts engine, control plane and Envoy, and waits until the policy is in force on both workers.
    pub(crate) async fn start() -> Result<Self> {
        let engine = InferenceSimProcess::start(None, &[]).await?;
        let control = ControlPlaneProcess::start(ControlPlaneOptions::new(Some(engine.nvml().path()))?).await?;
        control.apply(POLICY)?;
        let filter = HttpFilter::Ecds(WasmFilter::headgate_controlled()?);
        let bootstrap = Bootstrap::new(filter, Upstream::Endpoint(engine.address())).with_control_plane(control.grpc());
        let envoy = EnvoyProcess::start(EnvoyOptions::new(bootstrap)).await?;
        wait_until("policy in force on both workers", Duration::from_secs(20), || async {
            let status = control.status().await?;
            let proxy = &status["proxies"][0];
            let is_in_force = proxy["policies"].as_array().is_some_and(|policies| !policies.is_empty());
            Ok((is_in_force && proxy["workers"].as_u64() >= Some(2)).then_some(()))
        })
        .await?;
        Ok(Self { engine, control, envoy })
    }

    /// Open-loop chat requests of three classes over the three phases.
    pub(crate) fn plan(&self, phases: &Phases, overload: f64) -> Plan {
        let base = CAPACITY_RPS * BASE;
        let surge = CAPACITY_RPS * overload - base;
        let traffic = SHARES.iter().map(|share| {
            let (calm, surging) = (base * share.of_base, base * share.of_base + surge * share.of_surge);
            let lengths = [phases.surge_at, phases.falls_at - phases.surge_at, phases.ends_at - phases.falls_at];
            let segments = [(lengths[0], calm), (lengths[1], surging), (lengths[2], calm)];
            Traffic { class: share.class.to_owned(), request: request(share.key), arrivals: Arrivals::segments(Pace::Poisson, &segments) }
        });
        Plan {
            target: self.envoy.address(),
            seed: SEED,
            traffic: traffic.collect(),
            max_in_flight: 4096,
            request_timeout: Duration::from_secs(20),
            first_byte_timeout: None,
            worker_header: None,
        }
    }

    /// Ends everything in the order in which a person would: traffic has stopped, then proxy, control plane, engine.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        let within = Duration::from_secs(10);
        self.envoy.process().terminate(within).await?;
        self.control.process().terminate(within).await?;
        self.engine.process().terminate(within).await?;
        Ok(())
    }
}

fn request(key: &str) -> Template {
    // Four characters a token.
    let prompt = "word".repeat(PROMPT_TOKENS);
    let body = json!({
        "model": "sim-8b",
        "stream": true,
        "stream_options": {"include_usage": true},
        "max_tokens": ANSWER_TOKENS,
        "messages": [{"role": "user", "content": prompt}],
    });
    Template::post_json("/v1/chat/completions", &body).header("authorization", &format!("Bearer {key}"))
}
