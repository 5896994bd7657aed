//! The leading VM's conversation with the control plane, without I/O: what to open, send and share comes back as [`Effect`]s.
//!
//! The caller reports what became of an effect ([`Session::on_open`]), hands messages and ends of streams in, and calls
//! [`Session::on_tick`] all the while.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use headgate_protos::v1;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

use crate::discovery::{DiscoveryClient, LimitsSnapshot, NodeIdentity, PolicySnapshot};
use crate::shared::{ReceivedLimits, SharedLimits};
use crate::time::Timestamp;

/// Time between reports until the control plane gives another, and between two attempts to open their stream.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// A report older than this is of a VM that is gone.
const REPORT_LAPSE: Duration = Duration::from_secs(1);

/// A stream to the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Delta discovery.
    Discovery,
    /// Load reports.
    Reports,
}

impl Link {
    /// Service and method.
    #[must_use]
    pub const fn method(self) -> (&'static str, &'static str) {
        match self {
            Self::Discovery => ("envoy.service.discovery.v3.AggregatedDiscoveryService", "DeltaAggregatedResources"),
            Self::Reports => ("headgate.v1.LoadReporting", "StreamLoadReports"),
        }
    }
}

/// What the caller does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Open the stream, then [`Session::on_open`].
    Open(Link),
    /// Send a message.
    Send(Link, Vec<u8>),
    /// Reset the stream; [`Session::on_close`] is not to be called for it.
    Reset(Link),
    /// Share what changed, then raise the revisions.
    Share {
        /// A [`PolicySnapshot`], if the policies changed.
        policies: Option<Vec<u8>>,
        /// A [`SharedLimits`], if the limits changed.
        limits: Option<Vec<u8>>,
    },
}

/// The conversation.
#[derive(Debug)]
pub struct Session {
    discovery: DiscoveryClient,
    has_discovery: bool,
    has_reports: bool,
    received_at: BTreeMap<String, Timestamp>,
    report_every: Duration,
    /// Last report, or last failure of their stream.
    reported_at: Timestamp,
    sequence: u64,
    node: NodeIdentity,
}

impl Session {
    /// Begins with the blobs that an earlier leader has shared; what cannot be read is asked for anew.
    #[must_use]
    #[inline(never)]
    pub fn begin(node: NodeIdentity, seed: u64, policies: &[u8], limits: &[u8]) -> Self {
        let mut discovery = DiscoveryClient::new(node.clone(), seed);
        let SharedLimits { pools } = SharedLimits::read(limits);
        let received_at = |pool: &ReceivedLimits| Some((pool.limits.as_ref()?.pool.clone(), Timestamp::from_nanos(pool.at_ns)));
        let mut known = BTreeMap::new();
        known.extend(pools.iter().filter_map(received_at));
        let limits = LimitsSnapshot { revision: 0, limits: pools.into_iter().filter_map(|pool| pool.limits).collect() };
        discovery.adopt(&PolicySnapshot::decode(policies).unwrap_or_default(), &limits);
        Self {
            discovery,
            has_discovery: false,
            has_reports: false,
            received_at: known,
            report_every: REPORT_EVERY,
            reported_at: Timestamp::ZERO,
            sequence: 0,
            node,
        }
    }

    /// Whether the discovery stream stands.
    #[must_use]
    pub const fn is_connected(&self) -> bool {
        self.has_discovery
    }

    /// Age of the newest limits of `pool`; `None` when there are none.
    #[must_use]
    pub fn limits_age(&self, now: Timestamp, pool: &str) -> Option<Duration> {
        self.received_at.get(pool).map(|at| now.since(*at))
    }

    /// The streams to open: discovery when its backoff is over, reports while discovery stands.
    #[must_use]
    pub fn on_tick(&self, now: Timestamp) -> Option<Effect> {
        if !self.has_discovery {
            return self.discovery.is_due(now).then_some(Effect::Open(Link::Discovery));
        }
        let is_due = !self.has_reports && now.since(self.reported_at) >= REPORT_EVERY;
        is_due.then_some(Effect::Open(Link::Reports))
    }

    /// An [`Effect::Open`] was carried out. A cluster that is not there yet is a reason for failure like any other.
    #[inline(never)]
    pub fn on_open(&mut self, now: Timestamp, link: Link, is_open: bool) -> Vec<Effect> {
        if !is_open {
            self.on_close(now, link);
            return Vec::new();
        }
        match link {
            Link::Reports => {
                self.has_reports = true;
                self.sequence = 0;
                Vec::new()
            }
            Link::Discovery => {
                self.has_discovery = true;
                self.discovery.open().iter().map(|request| Effect::Send(link, request.encode_to_vec())).collect()
            }
        }
    }

    /// A stream has ended.
    pub fn on_close(&mut self, now: Timestamp, link: Link) {
        match link {
            Link::Reports => {
                self.has_reports = false;
                self.reported_at = now;
            }
            Link::Discovery => {
                self.has_discovery = false;
                self.discovery.on_close(now);
            }
        }
    }

    /// A message has come.
    #[inline(never)]
    pub fn on_message(&mut self, now: Timestamp, link: Link, message: &[u8]) -> Vec<Effect> {
        match link {
            Link::Reports => {
                if let Ok(v1::LoadReportResponse { report_interval_ms }) = v1::LoadReportResponse::decode(message) {
                    self.report_every = Duration::from_millis(u64::from(report_interval_ms.clamp(20, 60_000)));
                }
                Vec::new()
            }
            Link::Discovery => self.on_discovery(now, message),
        }
    }

    fn on_discovery(&mut self, now: Timestamp, message: &[u8]) -> Vec<Effect> {
        let Ok(output) = self.discovery.on_message(message) else {
            self.on_close(now, Link::Discovery);
            return Vec::from([Effect::Reset(Link::Discovery)]);
        };
        let mut effects: Vec<_> = output.replies.iter().map(|reply| Effect::Send(Link::Discovery, reply.encode_to_vec())).collect();
        let has_policies = !output.policies.is_empty() || !output.removed_policies.is_empty();
        let has_limits = !output.limits.is_empty() || !output.removed_limits.is_empty();
        self.received_at.extend(output.limits.iter().map(|limits| (limits.pool.clone(), now)));
        self.received_at.retain(|pool, _| !output.removed_limits.contains(pool));
        if has_policies || has_limits {
            effects.push(Effect::Share { policies: has_policies.then(|| self.policies()), limits: has_limits.then(|| self.limits()) });
        }
        effects
    }

    fn policies(&self) -> Vec<u8> {
        PolicySnapshot { revision: 0, policies: self.discovery.policies().cloned().collect() }.encode()
    }

    fn limits(&self) -> Vec<u8> {
        let at_ns = |pool: &str| self.received_at.get(pool).map_or(0, |at| at.as_nanos());
        let received = |limits: &v1::Limits| ReceivedLimits { at_ns: at_ns(&limits.pool), limits: Some(limits.clone()) };
        SharedLimits { pools: self.discovery.limits().map(received).collect() }.encode_to_vec()
    }

    /// Whether it is time for a report.
    #[must_use]
    pub fn is_report_due(&self, now: Timestamp) -> bool {
        self.has_reports && now.since(self.reported_at) >= self.report_every
    }

    /// The report of the proxy from the encoded reports of its VMs, of which those of dead VMs and unreadable ones are left out.
    ///
    /// They go in as they are: a report has thousands of numbers, and to decode and encode them all anew ten times a second would be
    /// most of what the leader does.
    #[inline(never)]
    pub fn report(&mut self, now: Timestamp, workers: impl Iterator<Item = impl AsRef<[u8]>>, policies: Vec<v1::AppliedPolicy>) -> Effect {
        self.reported_at = now;
        self.sequence += 1;
        let report = v1::LoadReport {
            node_id: self.node.id.clone(),
            filter_version: self.node.version.clone(),
            sequence: self.sequence,
            workers: Vec::new(),
            policies,
            rejected: self.discovery.rejected().cloned().collect(),
        };
        let mut bytes = report.encode_to_vec();
        let is_live = |head: &ReportHead| now.since(Timestamp::from_nanos(head.at_ns)) <= REPORT_LAPSE;
        for worker in workers {
            let worker = worker.as_ref();
            if !ReportHead::decode(worker).as_ref().is_ok_and(is_live) {
                continue;
            }
            // Fields of a message may stand in any order (protobuf encoding), so the workers can follow the rest.
            encode_key(WORKERS_FIELD, WireType::LengthDelimited, &mut bytes);
            encode_varint(worker.len() as u64, &mut bytes);
            bytes.extend_from_slice(worker);
        }
        Effect::Send(Link::Reports, bytes)
    }
}

/// Number of `LoadReport.workers`.
const WORKERS_FIELD: u32 = 4;

/// What the leader reads of a [`v1::WorkerReport`].
#[derive(Clone, PartialEq, Message)]
struct ReportHead {
    #[prost(uint64, tag = "3")]
    at_ns: u64,
}

#[cfg(test)]
mod tests;
