//! The service `envoy.service.accesslog.v3.AccessLogService`: latencies from the access logs of proxies that cannot run the filter's own
//! stream, into the same histograms.
//!
//! Envoy sends entries without waiting for an answer, drops them when a stream is backed up and says so only in its own statistics: what
//! comes this way is as complete as the log is. Proxies whose filter reports a pool are left out, so that nothing counts twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use envoy_types::pb::envoy::data::accesslog::v3::HttpAccessLogEntry;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::AccessLogService;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{Identifier, LogEntries};
use envoy_types::pb::envoy::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use headgate_core::fleet::PolicySet;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use self::entry::{Outcome, Pools};
use crate::clock::Clock;
use crate::control_loop::SharedLedger;
use crate::fleet::Fleet;
use crate::gateway::EndpointLatencies;
use crate::identity::Caller;

pub(crate) mod entry;
#[cfg(test)]
mod tests;

/// Longest message, in bytes. Envoy sends when its buffer has 16 KiB, unless `buffer_size_bytes` says otherwise.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Streams at once: Envoy opens one a worker and log.
pub const MAX_STREAMS: usize = 4096;
/// Longest `node.id` and log name, in bytes.
const MAX_NAME_BYTES: usize = 512;

/// The service. Cheap to clone; all clones count together.
#[derive(Clone)]
pub struct AccessLogs {
    ledger: SharedLedger,
    policies: watch::Receiver<Arc<PolicySet>>,
    clock: Clock,
    counters: Arc<Counters>,
    room: Arc<Semaphore>,
    shutdown: CancellationToken,
    endpoints: EndpointLatencies,
}

/// What came of the entries, since the control plane began.
#[derive(Debug, Default)]
pub struct Counters {
    by_outcome: [AtomicU64; Outcome::ALL.len()],
    refused_streams: AtomicU64,
}

// === impl Counters ===

impl Counters {
    /// Entries by what became of them.
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Outcome::ALL.iter().zip(&self.by_outcome).map(|(outcome, count)| (outcome.as_str(), count.load(Ordering::Relaxed)))
    }

    /// Streams that were refused.
    pub fn refused_streams(&self) -> u64 {
        self.refused_streams.load(Ordering::Relaxed)
    }

    fn count(&self, outcome: Outcome) {
        self.by_outcome[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }
}

// === impl AccessLogs ===

impl AccessLogs {
    /// A service that books into `ledger` by the policies of `fleet`, and ends its streams at `shutdown`.
    pub fn new(fleet: &Fleet, ledger: SharedLedger, clock: Clock, counters: Arc<Counters>, shutdown: CancellationToken) -> Self {
        let room = Arc::new(Semaphore::new(MAX_STREAMS));
        Self { ledger, policies: fleet.policies(), clock, counters, room, shutdown, endpoints: EndpointLatencies::default() }
    }

    /// Tells `endpoints` the time to the first byte of each endpoint too.
    #[must_use]
    pub fn timing(mut self, endpoints: EndpointLatencies) -> Self {
        self.endpoints = endpoints;
        self
    }

    async fn read(mut self, caller: &Caller, mut messages: Streaming<StreamAccessLogsMessage>) -> Result<(), Status> {
        let mut pools = Pools::of(&self.policies.borrow_and_update());
        let mut node_id = None;
        loop {
            let message = tokio::select! {
                () = self.shutdown.cancelled() => return Err(Status::unavailable("the control plane is shutting down")),
                message = messages.message() => message?,
            };
            let Some(StreamAccessLogsMessage { identifier, log_entries }) = message else { return Ok(()) };
            let node_id = match (&mut node_id, identifier) {
                (Some(node_id), _) => node_id,
                (none, identifier) => {
                    let checked = checked_node(identifier)?;
                    caller.require_node(&checked, None)?;
                    none.insert(checked)
                }
            };
            if self.policies.has_changed().unwrap_or(false) {
                pools = Pools::of(&self.policies.borrow_and_update());
            }
            // What TCP proxies log is of no request.
            if let Some(LogEntries::HttpLogs(logs)) = log_entries {
                self.book(node_id, &pools, &logs.log_entry);
            }
        }
    }

    fn book(&self, node_id: &str, pools: &Pools, entries: &[HttpAccessLogEntry]) {
        let now = self.clock.now();
        let mut ledger = self.ledger.lock();
        for entry in entries {
            if let Some((endpoint, latency)) = entry::endpoint_latency(entry) {
                self.endpoints.record(now, endpoint, latency);
            }
            let outcome = match pools.read(entry) {
                Err(outcome) => outcome,
                Ok(read) if ledger.is_reported(node_id, read.pool) => Outcome::Reported,
                Ok(read) if ledger.record_latencies(now, read.pool, read.class, read.model, &read.samples) => Outcome::Booked,
                Ok(_) => Outcome::NoPool,
            };
            self.counters.count(outcome);
        }
    }
}

#[tonic::async_trait]
impl AccessLogService for AccessLogs {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let Ok(_place) = self.room.try_acquire() else {
            self.counters.refused_streams.fetch_add(1, Ordering::Relaxed);
            return Err(Status::resource_exhausted(format!("{MAX_STREAMS} access-log streams are open; there is room for no more")));
        };
        let caller = Caller::of(request.extensions())?;
        self.clone().read(&caller, request.into_inner()).await?;
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}

/// The node that logs. Envoy names it in the first message of a stream.
fn checked_node(identifier: Option<Identifier>) -> Result<String, Status> {
    let Identifier { node, log_name } = identifier.ok_or_else(|| Status::invalid_argument("identifier: is missing"))?;
    if log_name.len() > MAX_NAME_BYTES {
        return Err(Status::invalid_argument(format!("identifier.log_name: {} bytes is above {MAX_NAME_BYTES}", log_name.len())));
    }
    let id = node.map(|node| node.id).unwrap_or_default();
    match id.len() {
        0 => Err(Status::invalid_argument("identifier.node.id: is missing")),
        1..=MAX_NAME_BYTES => Ok(id),
        got => Err(Status::invalid_argument(format!("identifier.node.id: {got} bytes is outside 1..={MAX_NAME_BYTES}"))),
    }
}
