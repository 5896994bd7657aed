//! The HTTP listener: status page, `/metrics`, `/throttle/status`, `/healthz`, `/readyz`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use axum::{Extension, Json, Router, middleware};
use headgate_core::control::{ClassAction, ClassDecision};
use headgate_core::fleet::{ClassView, Ledger, PoolControlView, PoolView};
use headgate_core::level::{LevelKind, LevelStatus, SourceReason};
use tokio::sync::watch;

use crate::access_log::Counters as AccessLogCounters;
use crate::clock::{Clock, unix_ms};
use crate::control_loop::{ControlView, SharedLedger};
use crate::device::{DeviceBoard, PoolCapacity};
use crate::fleet::Fleet;
use crate::identity::access::Role;
use crate::identity::listener::Ends;
use crate::identity::{Caller, Guard, guard_page};
use crate::records::StoreHealth;
use crate::replica::Helm;
use crate::status::{
    AlarmStatus, ClassStatus, EngineStatus, GpuStatus, LatencyStatus, LevelView, OverloadStatus, PoolStatus, ProxyStatus, QuotaStatus,
    ReplicaStatus, RolloutView, StatusDocument, TripView, source_text,
};

mod metrics;

/// What the pages read.
#[derive(Clone)]
pub struct Observatory {
    /// Policies, limits, proxies.
    pub fleet: Fleet,
    /// The books.
    pub ledger: SharedLedger,
    /// The devices.
    pub devices: DeviceBoard,
    /// What the control loop has found.
    pub control: watch::Receiver<Arc<ControlView>>,
    /// The monotonic clock.
    pub clock: Clock,
    /// Whether the store is open and gRPC is served.
    pub ready: Arc<AtomicBool>,
    /// How connections of the gRPC listener end.
    pub connections: Ends,
    /// What came of access logs.
    pub access_logs: Arc<AccessLogCounters>,
    /// Who steers.
    pub helm: Helm,
    /// Whether the store can be reached.
    pub store: watch::Receiver<StoreHealth>,
}

/// The routes, behind `guard`.
pub fn router(observatory: Observatory, guard: Guard) -> Router {
    Router::new()
        .route("/", get(|| async { Html(include_str!("http/page.html")) }))
        .route("/metrics", get(metrics_page))
        .route("/throttle/status", get(throttle_status))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(observatory)
        .layer(middleware::from_fn_with_state(guard, guard_page))
}

/// What the caller may view of it.
async fn throttle_status(State(observatory): State<Observatory>, Extension(caller): Extension<Caller>) -> Json<StatusDocument> {
    let mut status = observatory.status();
    status.pools.retain(|pool| caller.may(Role::View, &pool.policy));
    status.rollouts.retain(|rollout| caller.may(Role::View, &rollout.candidate));
    status.alarms.retain(|alarm| caller.may(Role::View, &alarm.policy));
    for proxy in &mut status.proxies {
        proxy.policies.retain(|policy| caller.may(Role::View, &policy.name));
        proxy.rejected.retain(|policy| caller.may(Role::View, &policy.name));
    }
    Json(status)
}

/// All of it or nothing: a scrape with holes would pass for a fleet that is smaller.
async fn metrics_page(State(observatory): State<Observatory>, Extension(caller): Extension<Caller>) -> impl IntoResponse {
    if !caller.may_everywhere(Role::View) {
        return (StatusCode::FORBIDDEN, "needs the role view for all policies (`*`)\n").into_response();
    }
    match metrics::encode(&observatory.status(), &observatory) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// A replica that cannot reach its store is ready all the same: it serves what is in force.
async fn ready(State(observatory): State<Observatory>) -> (StatusCode, String) {
    if !observatory.ready.load(Ordering::Acquire) {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or shutting down\n".to_owned());
    }
    let replica = ReplicaStatus::of(&observatory.helm, &observatory.store.borrow());
    (StatusCode::OK, replica.line().map_or_else(|| "ready\n".to_owned(), |line| format!("ready\n{line}\n")))
}

// === impl Observatory ===

impl Observatory {
    /// Everything, as it is now.
    pub fn status(&self) -> StatusDocument {
        let devices = self.devices.view(self.clock.now());
        let control = self.control.borrow().clone();
        StatusDocument {
            pools: self.pools(&control),
            gpus: GpuStatus::list(&devices),
            gpu_source: source_text(&devices),
            proxies: self.fleet.proxies().views(Instant::now()).into_iter().map(ProxyStatus::from).collect(),
            rollouts: self.fleet.rollouts().iter().map(RolloutView::from).collect(),
            alarms: AlarmStatus::list(&self.fleet.alarms(), self.clock.now()),
            replica: ReplicaStatus::of(&self.helm, &self.store.borrow()),
        }
    }

    fn pools(&self, control: &ControlView) -> Vec<PoolStatus> {
        let now = self.clock.now();
        let mut ledger = self.ledger.lock();
        let quotas = ledger.quotas().views(now);
        let loads = ledger.view(now);
        let nothing = PoolView::default();
        let pool = |(name, view): (&String, &PoolControlView)| {
            let load = loads.get(name).unwrap_or(&nothing);
            let engines = control.engines.get(name);
            PoolStatus {
                pool: name.clone(),
                policy: view.policy.clone(),
                version: view.version.clone(),
                epoch: view.epoch,
                levels: view.state.levels.iter().map(|level| self.level(level, control.memory_sources.get(name))).collect(),
                classes: view.state.classes.iter().map(|decision| class(&ledger, name, decision, load, self.clock)).collect(),
                drain_rps: view.state.drain_rps,
                proxies: load.proxies,
                latencies: LatencyStatus::of(&ledger.latencies(now, name), engines.and_then(|engines| engines.latencies.as_deref())),
                overload: OverloadStatus::of(now, view, load, engines.and_then(|engines| engines.sample.as_ref())),
                gpu_units: control.capacities.get(name).map_or(0.0, |capacity| capacity.units),
                gpu_capacity: control.capacities.get(name).map_or(1.0, PoolCapacity::fraction),
                gpu_problem: control.capacities.get(name).map_or_else(String::new, |capacity| capacity.because.clone()),
                quotas: QuotaStatus::list(&quotas, name),
                engines: engines.map_or_else(Vec::new, EngineStatus::list),
            }
        };
        control.pools.iter().map(pool).collect()
    }

    fn level(&self, level: &LevelStatus, memory: Option<&SourceReason>) -> LevelView {
        let wire = level.to_wire();
        let trip = |trip: &headgate_core::level::LastTrip| {
            let ago_ms = u64::try_from(self.clock.now().since(trip.at).as_millis()).unwrap_or(u64::MAX);
            TripView { at_unix_ms: unix_ms().saturating_sub(ago_ms), ago_ms, value: trip.value, threshold: trip.threshold }
        };
        LevelView {
            kind: level.kind.as_str().to_owned(),
            state: level.state.as_str().to_owned(),
            unit: unit(level.kind).to_owned(),
            value: level.value,
            threshold: level.threshold,
            source: level.source.as_str().to_owned(),
            source_reason: memory.filter(|_| level.kind == LevelKind::GpuMemory).map(SourceReason::text).unwrap_or_default(),
            age_ms: wire.age_ms,
            recovery_remaining_ms: wire.recovery_remaining_ms,
            last_trip: level.last_trip.as_ref().map(trip),
        }
    }
}

const fn unit(kind: LevelKind) -> &'static str {
    match kind {
        LevelKind::Qps => "req/s",
        LevelKind::GpuMemory => "%",
        LevelKind::P99 => "ms",
    }
}

fn class(ledger: &Ledger, pool: &str, decision: &ClassDecision, load: &PoolView, clock: Clock) -> ClassStatus {
    let nothing = ClassView::default();
    let view = load.classes.iter().find(|view| view.class == decision.class).unwrap_or(&nothing);
    let ttft = ledger.ttft(clock.now(), pool, &decision.class);
    let (action, rate_rps, burst) = match decision.action {
        ClassAction::Admit => ("admit", 0.0, 0.0),
        ClassAction::Throttle { rate_rps, burst } => ("throttle", rate_rps, burst),
        ClassAction::Refuse => ("refuse", 0.0, 0.0),
    };
    ClassStatus {
        class: decision.class.clone(),
        action: action.to_owned(),
        because: decision.because.map_or("", LevelKind::as_str).to_owned(),
        rate_rps,
        burst,
        drain_rps: decision.drain_rps,
        offered: view.totals.offered,
        admitted: view.totals.admitted,
        completed: view.totals.completed,
        failed: view.totals.failed,
        cancelled: view.totals.cancelled,
        refused: view.totals.refused_by_reason().map(|(reason, count)| (reason.to_owned(), count)).collect(),
        in_flight: view.in_flight,
        waiting: view.waiting,
        ttft_p50_ms: ttft.p50_ms,
        ttft_p99_ms: ttft.p99_ms,
    }
}
