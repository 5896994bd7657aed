//! The service `headgate.v1.LoadReporting`: one stream a proxy, into the books.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures::Stream;
use headgate_protos::v1;
use headgate_protos::v1::load_reporting_server::LoadReporting;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::clock::Clock;
use crate::control_loop::SharedLedger;
use crate::engine::EngineBoard;
use crate::fleet::Fleet;
use crate::identity::Caller;

/// Time between reports that proxies are asked for, in milliseconds.
const REPORT_INTERVAL_MS: u32 = 100;
/// Longest `node.id`, in bytes; it is a key of the books and of metrics.
const MAX_NODE_ID_BYTES: usize = 512;

/// Where a report goes, whichever replica it came to.
#[derive(Clone)]
pub struct Books {
    /// Takes what it says of its proxy.
    pub fleet: Fleet,
    /// Takes what it says of its load.
    pub ledger: SharedLedger,
    /// Takes what it says of the loads of engines.
    pub engines: EngineBoard,
    /// The monotonic clock.
    pub clock: Clock,
}

/// The service.
#[derive(Clone)]
pub struct LoadReports {
    books: Books,
    /// What is passed on to the leader, when this replica is none.
    relay: broadcast::Sender<Arc<v1::LoadReport>>,
    shutdown: CancellationToken,
}

type Responses = Pin<Box<dyn Stream<Item = Result<v1::LoadReportResponse, Status>> + Send>>;

// === impl Books ===

impl Books {
    /// Books a report.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when it does not say whose it is.
    pub fn take(&self, report: &v1::LoadReport) -> Result<(), Status> {
        checked_node_id(&report.node_id)?;
        let now = self.clock.now();
        self.ledger.lock().record(now, report);
        self.engines.take_report(now, report);
        self.fleet.proxies().record_report(Instant::now(), report);
        Ok(())
    }
}

// === impl LoadReports ===

impl LoadReports {
    /// A service that books into `books`, hands every report to `relay`, and ends its streams at `shutdown`.
    pub fn new(books: Books, relay: broadcast::Sender<Arc<v1::LoadReport>>, shutdown: CancellationToken) -> Self {
        Self { books, relay, shutdown }
    }

    async fn read(
        self,
        caller: Caller,
        mut reports: Streaming<v1::LoadReport>,
        answers: mpsc::Sender<Result<v1::LoadReportResponse, Status>>,
    ) {
        let mut node_id = None;
        loop {
            let report = tokio::select! {
                () = self.shutdown.cancelled() => {
                    // The proxy may have gone at the same moment.
                    let _ = answers.send(Err(Status::unavailable("the control plane is shutting down"))).await;
                    return;
                }
                report = reports.message() => report,
            };
            let taken = match report {
                Ok(Some(report)) => self.take(&caller, &mut node_id, report, &answers).await,
                Ok(None) => return,
                // Malformed or too long; or the connection's end, of which nobody is left to hear.
                Err(status) => Err(status),
            };
            if let Err(status) = taken {
                let _ = answers.send(Err(status)).await;
                return;
            }
        }
    }

    async fn take(
        &self,
        caller: &Caller,
        node_id: &mut Option<String>,
        mut report: v1::LoadReport,
        answers: &mpsc::Sender<Result<v1::LoadReportResponse, Status>>,
    ) -> Result<(), Status> {
        let is_first = node_id.is_none();
        let node_id = match node_id {
            Some(node_id) => node_id,
            None => {
                let checked = checked_node_id(&report.node_id)?;
                caller.require_node(&checked, None)?;
                node_id.insert(checked)
            }
        };
        if report.node_id.is_empty() {
            report.node_id.clone_from(node_id);
        } else if report.node_id != *node_id {
            return Err(Status::invalid_argument(format!("node_id: changed from `{node_id}` to `{}` within a stream", report.node_id)));
        }
        self.books.take(&report)?;
        let workers = report.workers.len();
        // Nobody listens unless this replica follows another one.
        let _ = self.relay.send(Arc::new(report));
        if is_first {
            tracing::info!(node_id = *node_id, workers, "a proxy reports its load");
            // A proxy that has gone hears nothing; the next read ends the stream.
            let _ = answers.send(Ok(v1::LoadReportResponse { report_interval_ms: REPORT_INTERVAL_MS })).await;
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl LoadReporting for LoadReports {
    type StreamLoadReportsStream = Responses;

    async fn stream_load_reports(&self, request: Request<Streaming<v1::LoadReport>>) -> Result<Response<Responses>, Status> {
        let caller = Caller::of(request.extensions())?;
        let (answers, stream) = mpsc::channel(1);
        tokio::spawn(self.clone().read(caller, request.into_inner(), answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

fn checked_node_id(node_id: &str) -> Result<String, Status> {
    match node_id.len() {
        0 => Err(Status::invalid_argument("node_id: is missing")),
        1..=MAX_NODE_ID_BYTES => Ok(node_id.to_owned()),
        got => Err(Status::invalid_argument(format!("node_id: {got} bytes is outside 1..={MAX_NODE_ID_BYTES}"))),
    }
}
