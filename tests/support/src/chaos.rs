//! Faults on several replicas, one after the other, while policies are written and requests go through a real Envoy.
//!
//! | part | what |
//! |---|---|
//! | [`fault`] | what goes wrong, by a seed |
//! | [`writer`] | writes policies, and knows which of them were acknowledged |
//! | [`watcher`] | looks who acts, and at the limits that every replica pushes |
//! | [`traffic`] | requests through the Envoy |

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;

use crate::control_plane::ControlPlaneOptions;
use crate::envoy::{Bootstrap, EnvoyOptions, EnvoyProcess, HttpFilter, Upstream, WasmFilter};
use crate::replicas::Replicas;
use crate::wait::wait_until;

pub mod fault;
pub mod traffic;
pub mod watcher;
pub mod writer;

use fault::Fault;
use traffic::Traffic;
use watcher::Watch;
use writer::Writer;

/// Longest wait for anything that must come about when nothing hinders it.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a fault lasts, in milliseconds; one that hits the leader lasts until another one leads.
const LASTS_MS: std::ops::Range<u64> = 500..2500;
/// How long nothing goes wrong after a fault, in milliseconds.
const QUIET_MS: std::ops::Range<u64> = 300..1200;

/// What is to happen.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Seed of the schedule.
    pub seed: u64,
    /// How many faults.
    pub faults: usize,
}

/// What happened.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Findings {
    /// Seed of the schedule.
    pub seed: u64,
    /// The faults, in order.
    pub faults: Vec<Happened>,
    /// Policy writes that were acknowledged.
    pub writes_acknowledged: u64,
    /// Policy writes that were refused or not answered.
    pub writes_refused: u64,
    /// Acknowledged writes that some replica did not have afterwards.
    pub writes_lost: Vec<String>,
    /// Requests through the Envoy.
    pub requests: u64,
    /// Those that were not answered 200: how many, and the first of them.
    pub requests_failed: u64,
    /// What the first failed ones were answered.
    pub first_failures: Vec<String>,
    /// Longest time from a fault of the leader to another one's acting, in milliseconds.
    pub worst_new_leader_ms: f64,
    /// Terms in which a replica was seen to act.
    pub terms: u64,
    /// Limits that were seen, by all watchers together.
    pub limits_seen: u64,
    /// Two leaders, or older limits after newer ones.
    pub violations: Vec<String>,
}

/// One fault as it went.
#[derive(Clone, Debug, Serialize)]
pub struct Happened {
    /// What went wrong.
    pub what: String,
    /// When, in seconds from the start.
    pub at_s: f64,
    /// Time until another replica led, in milliseconds; only where the leader was hit.
    pub new_leader_ms: Option<f64>,
}

/// Whether the tasks go on.
#[derive(Clone, Debug, Default)]
pub struct Running(Arc<AtomicBool>);

impl Running {
    /// Whether to end.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn end(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Runs a plan with three replicas and three etcds; `say` is told of every fault.
///
/// # Errors
/// When something does not start, or does not recover when nothing hinders it any more.
pub async fn run(plan: Plan, mut say: impl FnMut(&str)) -> Result<Findings> {
    let mut replicas = Replicas::start(3, &ControlPlaneOptions::new(None)?).await?;
    let writer = Writer::new(replicas.grpc());
    writer.first().await?;
    let filter = HttpFilter::Wasm(WasmFilter::headgate_controlled()?);
    let bootstrap = Bootstrap::new(filter, Upstream::Direct).with_replicas(replicas.grpc());
    let envoy = EnvoyProcess::start(EnvoyOptions::new(bootstrap)).await?;
    wait_until("limits at the Envoy", PATIENCE, || async {
        let control = &replicas.control;
        for one in control {
            let status = one.status().await?;
            if status["proxies"][0]["policies"][0]["limits_epoch"].as_u64() > Some(0) {
                return Ok(Some(()));
            }
        }
        Ok(None)
    })
    .await?;
    let running = Running::default();
    let writes = tokio::spawn(writer.clone().run(running.clone()));
    let traffic = Traffic::start(envoy.address(), running.clone());
    let watch = Watch::start(&replicas, running.clone());
    let mut findings = Findings { seed: plan.seed, ..Findings::default() };
    let outcome = go_wrong(plan, &mut replicas, &writer, &mut findings, &mut say).await;
    running.end();
    writes.await.context("the writer")??;
    traffic.finish(&mut findings).await;
    watch.finish(&mut findings).await;
    outcome?;
    findings.writes_lost.extend(writer.lost().await?);
    (findings.writes_acknowledged, findings.writes_refused) = writer.counts();
    Ok(findings)
}

async fn go_wrong(plan: Plan, replicas: &mut Replicas, writer: &Writer, findings: &mut Findings, say: &mut impl FnMut(&str)) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(plan.seed);
    let began = Instant::now();
    for n in 1..=plan.faults {
        let leader = replicas.leader().await?;
        let fault = Fault::any(&mut rng, leader.index);
        let (lasts, quiet) = (rng.random_range(LASTS_MS), rng.random_range(QUIET_MS));
        let at = Instant::now();
        fault.begin(replicas)?;
        let mut new_leader_ms = None;
        if fault.takes_the_lead(leader.index) {
            let newer = wait_until("another leader", PATIENCE, || async {
                Ok(replicas.standings().await.into_iter().find(|standing| standing.is_acting && standing.term > leader.term))
            });
            newer.await.with_context(|| format!("after {fault}"))?;
            let took = at.elapsed().as_secs_f64() * 1000.0;
            findings.worst_new_leader_ms = findings.worst_new_leader_ms.max(took);
            new_leader_ms = Some(took);
        } else {
            tokio::time::sleep(Duration::from_millis(lasts)).await;
        }
        fault.end(replicas).await?;
        replicas.etcd.wait_healthy().await?;
        replicas.leader().await?;
        findings.writes_lost.extend(writer.lost().await?);
        let happened = Happened { what: fault.to_string(), at_s: at.duration_since(began).as_secs_f64(), new_leader_ms };
        say(&format!(
            "{n}/{}: {}{}",
            plan.faults,
            happened.what,
            new_leader_ms.map_or(String::new(), |ms| format!(", another leads after {ms:.0} ms"))
        ));
        findings.faults.push(happened);
        tokio::time::sleep(Duration::from_millis(quiet)).await;
    }
    Ok(())
}
