//! Speaks to the control plane, in the one VM of a proxy that leads: shares what the discovery stream delivers with the other VMs, and
//! sends their reports.

use crate::host::{self, BufferKind, LogLevel};
use crate::metrics::Metrics;
use crate::shared::{self, Keys, LimitsSet, ReceivedLimits};
use headgate_core::discovery::{DiscoveryClient, DiscoveryOutput, LimitsSnapshot, NodeIdentity, PolicySnapshot};
use headgate_core::leader::{self, LeaderLease, LeaderStep};
use headgate_core::lease::SLOTS;
use headgate_core::time::Timestamp;
use headgate_core::worker::Worker;
use headgate_protos::plugin::ControlPlane;
use headgate_protos::v1;
use prost::Message;
use std::collections::BTreeMap;
use std::time::Duration;

const DISCOVERY: (&str, &str) = ("envoy.service.discovery.v3.AggregatedDiscoveryService", "DeltaAggregatedResources");
const LOAD_REPORTING: (&str, &str) = ("headgate.v1.LoadReporting", "StreamLoadReports");
/// Time between reports until the control plane gives another, and between two attempts to open their stream.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// A report older than this is of a VM that is gone.
const REPORT_LAPSE: Duration = Duration::from_secs(1);

/// What this VM knows of the control plane.
pub(crate) struct Control {
    /// The target, an encoded `GrpcService`.
    service: Vec<u8>,
    owner: u64,
    generation: u64,
    /// While this VM leads.
    session: Option<Session>,
}

/// What the leader holds.
struct Session {
    discovery: DiscoveryClient,
    discovery_stream: Option<u32>,
    report_stream: Option<u32>,
    received_at: BTreeMap<String, Timestamp>,
    report_every: Duration,
    reported_at: Timestamp,
    sequence: u64,
    node_id: String,
}

impl Control {
    /// For a VM `owner` that runs configuration `generation`.
    pub(crate) fn new(control_plane: &ControlPlane, owner: u64, generation: u64) -> Self {
        Self { service: control_plane.to_grpc_service().encode_to_vec(), owner, generation, session: None }
    }

    /// Every tick: leads or follows.
    pub(crate) fn on_tick(&mut self, now: Timestamp, keys: &Keys, worker: &Worker) {
        if !self.holds_lead(now, &keys.lead) {
            if let Some(session) = self.session.take() {
                session.end();
            }
            return;
        }
        let session = self.session.get_or_insert_with(|| Session::begin(keys, self.owner));
        session.open_streams(now, &self.service);
        if now.since(session.reported_at) >= session.report_every {
            session.reported_at = now;
            session.report(now, keys, worker);
        }
    }

    /// A message on one of the streams.
    pub(crate) fn on_message(&mut self, now: Timestamp, token: u32, size: usize, keys: &Keys) {
        let Some(session) = &mut self.session else { return };
        let Ok(message) = host::buffer(BufferKind::GrpcMessage, size) else { return };
        if session.report_stream == Some(token) {
            if let Ok(response) = v1::LoadReportResponse::decode(message.as_slice()) {
                session.report_every = Duration::from_millis(u64::from(response.report_interval_ms.clamp(20, 60_000)));
            }
        } else if session.discovery_stream == Some(token) {
            match session.discovery.on_message(&message) {
                Ok(output) => session.take_in(now, token, &output, keys),
                Err(fault) => {
                    host::log(LogLevel::Warn, &format!("headgate: {fault}"));
                    let _ = host::cancel_stream(token);
                    session.on_close(now, token);
                }
            }
        }
    }

    /// A stream has ended.
    pub(crate) fn on_close(&mut self, now: Timestamp, token: u32) {
        if let Some(session) = &mut self.session {
            session.on_close(now, token);
        }
    }

    /// The root that opened the streams is gone, and the streams with it.
    pub(crate) fn forget_streams(&mut self) {
        self.session = None;
    }

    /// Gauges that the leader alone sets.
    pub(crate) fn flush(&self, now: Timestamp, worker: &Worker, metrics: &mut Metrics) {
        let Some(session) = &self.session else { return };
        metrics.set("headgate_control_plane_connected".into(), u64::from(session.discovery_stream.is_some()));
        for (index, policy) in worker.policies().enumerate() {
            metrics.set(format!("headgate_limits_epoch.policy.{}", policy.name()), worker.limits_epoch(index));
            if let Some(at) = session.received_at.get(policy.pool()) {
                metrics.set(format!("headgate_limits_age_ms.policy.{}", policy.name()), now.since(*at).as_millis() as u64);
            }
        }
    }

    fn holds_lead(&self, now: Timestamp, key: &str) -> bool {
        let Ok((bytes, cas)) = shared::read_or_create(key, &[]) else { return false };
        match leader::step(now, self.owner, self.generation, LeaderLease::decode(&bytes).as_ref()) {
            LeaderStep::Hold(lease) | LeaderStep::TakeOver(lease) => host::set_shared(key, &lease.encode(), cas).is_ok(),
            LeaderStep::Follow => false,
        }
    }
}

impl Session {
    /// Begins with what an earlier leader has shared.
    fn begin(keys: &Keys, seed: u64) -> Self {
        let text = |path| String::from_utf8(host::property(path).unwrap_or_default()).unwrap_or_default();
        let node_id = text("xds\0node\0id");
        let version = env!("CARGO_PKG_VERSION").into();
        let mut discovery = DiscoveryClient::new(NodeIdentity { id: node_id.clone(), cluster: text("xds\0node\0cluster"), version }, seed);
        let policies = host::shared(&keys.policies).ok().and_then(|(bytes, _)| PolicySnapshot::decode(&bytes)).unwrap_or_default();
        let limits = LimitsSet::read(&keys.limits);
        let known = LimitsSnapshot { revision: 0, limits: limits.pools.iter().filter_map(|pool| pool.limits.clone()).collect() };
        discovery.adopt(&policies, &known);
        let at = |pool: &ReceivedLimits| Some((pool.limits.as_ref()?.pool.clone(), Timestamp::from_nanos(pool.at_ns)));
        Self {
            discovery,
            discovery_stream: None,
            report_stream: None,
            received_at: limits.pools.iter().filter_map(at).collect(),
            report_every: REPORT_EVERY,
            reported_at: Timestamp::ZERO,
            sequence: 0,
            node_id,
        }
    }

    /// Another VM leads now.
    fn end(self) {
        for token in [self.discovery_stream, self.report_stream].into_iter().flatten() {
            let _ = host::cancel_stream(token);
        }
    }

    /// Opens the discovery stream when its backoff is over, and the report stream while that one stands.
    fn open_streams(&mut self, now: Timestamp, service: &[u8]) {
        if self.discovery_stream.is_none() && self.discovery.is_due(now) {
            match host::open_stream(service, DISCOVERY.0, DISCOVERY.1) {
                Ok(token) => {
                    self.discovery_stream = Some(token);
                    for request in self.discovery.open() {
                        let _ = host::send(token, &request.encode_to_vec());
                    }
                }
                // The cluster may not be there yet.
                Err(_) => drop(self.discovery.on_close(now)),
            }
        }
        if self.discovery_stream.is_some() && self.report_stream.is_none() && now.since(self.reported_at) >= REPORT_EVERY {
            self.report_stream = host::open_stream(service, LOAD_REPORTING.0, LOAD_REPORTING.1).ok();
            self.sequence = 0;
        }
    }

    fn on_close(&mut self, now: Timestamp, token: u32) {
        if self.report_stream == Some(token) {
            self.report_stream = None;
            self.reported_at = now;
        } else if self.discovery_stream == Some(token) {
            self.discovery_stream = None;
            self.discovery.on_close(now);
        }
    }

    /// Answers, and shares what is new: the blob first, its number afterwards.
    fn take_in(&mut self, now: Timestamp, token: u32, output: &DiscoveryOutput, keys: &Keys) {
        for reply in &output.replies {
            let _ = host::send(token, &reply.encode_to_vec());
        }
        let has_policies = !output.policies.is_empty() || !output.removed_policies.is_empty();
        if has_policies {
            let policies = self.discovery.policies().cloned().collect();
            let _ = host::set_shared(&keys.policies, &PolicySnapshot { revision: 0, policies }.encode(), 0);
        }
        let has_limits = !output.limits.is_empty() || !output.removed_limits.is_empty();
        if has_limits {
            self.received_at.extend(output.limits.iter().map(|limits| (limits.pool.clone(), now)));
            self.received_at.retain(|pool, _| !output.removed_limits.contains(pool));
            let at_ns = |pool: &str| self.received_at.get(pool).map_or(0, |at: &Timestamp| at.as_nanos());
            let received = |limits: &v1::Limits| ReceivedLimits { at_ns: at_ns(&limits.pool), limits: Some(limits.clone()) };
            let set = LimitsSet { pools: self.discovery.limits().map(received).collect() };
            let _ = host::set_shared(&keys.limits, &set.encode_to_vec(), 0);
        }
        if has_policies || has_limits {
            shared::update(&keys.version, |bytes| {
                let (policies, limits) = shared::decode_pair(bytes);
                Some((shared::encode_pair(policies + u64::from(has_policies), limits + u64::from(has_limits)), ()))
            });
        }
    }

    /// Sends the newest report of every live VM.
    fn report(&mut self, now: Timestamp, keys: &Keys, worker: &Worker) {
        let Some(token) = self.report_stream else { return };
        let is_live = |report: &v1::WorkerReport| now.since(Timestamp::from_nanos(report.at_ns)) <= REPORT_LAPSE;
        let read = |slot| v1::WorkerReport::decode(host::shared(&keys.slot(slot)).ok()?.0.as_slice()).ok();
        let applied = |(index, policy): (usize, &std::sync::Arc<headgate_core::policy::Policy>)| v1::AppliedPolicy {
            name: policy.name().into(),
            version: policy.version().into(),
            limits_epoch: worker.limits_epoch(index),
        };
        self.sequence += 1;
        let report = v1::LoadReport {
            node_id: self.node_id.clone(),
            filter_version: env!("CARGO_PKG_VERSION").into(),
            sequence: self.sequence,
            workers: (0..SLOTS).filter_map(read).filter(is_live).collect(),
            policies: worker.policies().enumerate().map(applied).collect(),
            rejected: self.discovery.rejected().cloned().collect(),
        };
        let _ = host::send(token, &report.encode_to_vec());
    }
}
