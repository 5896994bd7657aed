//! The service `headgate.v1.Replication`: a leader hears what its followers hear, and tells them what it has decided.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use headgate_core::fleet::Term;
use headgate_protos::v1;
use headgate_protos::v1::follower_message::Message;
use headgate_protos::v1::replication_server::Replication;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{Helm, Role};
use crate::device_reporting::{DeviceReports, Responses as DeviceResponses};
use crate::fleet::{Fleet, LimitsTable, MAX_PROXIES};
use crate::identity::Caller;
use crate::load_reporting::Books;

/// Longest name of a replica, in bytes.
pub const MAX_REPLICA_NAME_BYTES: usize = 253;

/// The service.
#[derive(Clone)]
pub struct ReplicationServer {
    /// Who steers here.
    pub helm: Helm,
    /// Where limits come from.
    pub fleet: Fleet,
    /// Where reports go.
    pub books: Books,
    /// Where devices go.
    pub devices: DeviceReports,
    /// Ends the streams.
    pub shutdown: CancellationToken,
}

type Tables = Pin<Box<dyn Stream<Item = Result<v1::LeaderMessage, Status>> + Send>>;

/// One follower.
struct Follower {
    term: Term,
    reports: Streaming<v1::FollowerMessage>,
    /// Its proxies: it needs no other's share.
    nodes: BTreeSet<String>,
}

// === impl ReplicationServer ===

impl ReplicationServer {
    /// The term in which this replica may lead others now; nobody follows one that is alone.
    fn leading_term(&self) -> Option<Term> {
        self.helm.acting_term().filter(|term| *term > 0)
    }

    async fn begin(&self, mut reports: Streaming<v1::FollowerMessage>) -> Result<Follower, Status> {
        let first = reports.message().await?.and_then(|first| first.message);
        let Some(Message::Hello(v1::FollowerHello { replica, term })) = first else {
            return Err(Status::invalid_argument("hello: must be the first message"));
        };
        if !(1..=MAX_REPLICA_NAME_BYTES).contains(&replica.len()) {
            return Err(Status::invalid_argument(format!("hello.replica: {} is outside 1..={MAX_REPLICA_NAME_BYTES}", replica.len())));
        }
        if self.leading_term() != Some(term) {
            return Err(not_leader(term));
        }
        tracing::info!(replica, term, "a replica follows");
        Ok(Follower { term, reports, nodes: BTreeSet::new() })
    }

    /// Serves one follower until one of the two ends it, or the term ends.
    async fn serve(&self, follower: &mut Follower, answers: &mpsc::Sender<Result<v1::LeaderMessage, Status>>) -> Result<(), Status> {
        let (mut limits, mut role) = (self.fleet.limits(), self.helm.role());
        let mut is_due = true;
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Err(Status::unavailable("the replica is shutting down")),
                _ = role.changed() => {
                    if *role.borrow_and_update() != (Role::Leader { term: follower.term }) {
                        return Err(not_leader(follower.term));
                    }
                }
                // One table waits for the follower at most; while it reads none, newer ones take the place of older ones.
                place = answers.reserve(), if is_due => {
                    let Ok(place) = place else { return Ok(()) };
                    is_due = false;
                    let table = limits.borrow_and_update().clone();
                    // Not sure of the lease: silence, until it is or another one leads.
                    if self.helm.acting_term() == Some(follower.term) {
                        place.send(Ok(message(follower, &table)));
                    }
                }
                changed = limits.changed(), if !is_due => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    is_due = true;
                }
                report = follower.reports.message() => match report?.and_then(|report| report.message) {
                    Some(Message::Report(report)) => {
                        let is_new = !follower.nodes.contains(&report.node_id) && follower.nodes.len() < MAX_PROXIES;
                        self.books.take(&report)?;
                        if is_new {
                            follower.nodes.insert(report.node_id);
                            is_due = true;
                        }
                    }
                    Some(Message::Hello(_)) => return Err(Status::invalid_argument("hello: may be the first message only")),
                    None => return Ok(()),
                },
            }
        }
    }
}

#[tonic::async_trait]
impl Replication for ReplicationServer {
    type FollowStream = Tables;
    type RelayDevicesStream = DeviceResponses;

    async fn follow(&self, request: Request<Streaming<v1::FollowerMessage>>) -> Result<Response<Tables>, Status> {
        Caller::of(request.extensions())?;
        let (answers, stream) = mpsc::channel(1);
        let service = self.clone();
        tokio::spawn(async move {
            let outcome = match service.begin(request.into_inner()).await {
                Ok(mut follower) => service.serve(&mut follower, &answers).await,
                Err(status) => Err(status),
            };
            if let Err(status) = outcome {
                // The follower may have gone at the same moment.
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn relay_devices(&self, request: Request<Streaming<v1::DeviceReport>>) -> Result<Response<DeviceResponses>, Status> {
        Caller::of(request.extensions())?;
        if self.leading_term().is_none() {
            return Err(Status::failed_precondition("this replica does not lead"));
        }
        Ok(self.devices.open_relayed(request.into_inner()))
    }
}

fn not_leader(term: Term) -> Status {
    Status::failed_precondition(format!("this replica does not lead in the term {term}"))
}

fn message(follower: &Follower, table: &Arc<LimitsTable>) -> v1::LeaderMessage {
    let pools = table.pools.values().map(|limits| limits.to_wire(|node| follower.nodes.contains(node))).collect();
    v1::LeaderMessage { term: follower.term, pools }
}
