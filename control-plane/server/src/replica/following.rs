//! A follower's stream to the leader: what its proxies report goes there, the limits come back and are pushed from here.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use headgate_core::fleet::{LimitsTable, PoolLimits, Term};
use headgate_protos::v1;
use headgate_protos::v1::follower_message::Message;
use headgate_protos::v1::replication_client::ReplicationClient;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use super::devices::DeviceRelay;
use super::{Helm, Peer, Role};
use crate::fleet::Fleet;
use crate::identity::client::ClientFiles;

/// Reports that may wait for the leader before the oldest are dropped. They are cumulative: the next one says it all.
pub const REPORTS: usize = 4096;
/// Messages that may wait for the connection.
const BUFFER: usize = 64;
/// Longest wait for a connection, and for the stream to begin.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// A leader that answers no ping for this long is gone.
const PING: Duration = Duration::from_secs(1);
/// Wait before the leader is tried again. Its limits hold for seconds.
const RETRY: Duration = Duration::from_millis(200);
/// Longest message of a leader: shares of all proxies in some pools.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Everything that following needs.
#[derive(Clone)]
pub struct Following {
    /// Who steers here.
    pub helm: Helm,
    /// Where limits go.
    pub fleet: Fleet,
    /// What this replica's proxies report.
    pub reports: broadcast::Sender<Arc<v1::LoadReport>>,
    /// The devices of this replica's nodes.
    pub devices: DeviceRelay,
    /// How other replicas are spoken to; `None`: in plain text.
    pub peers: Option<ClientFiles>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Files(String),
    #[error("{0}")]
    Connect(#[from] tonic::transport::Error),
    #[error("{}: {}", .0.code(), .0.message())]
    Refused(#[from] Box<tonic::Status>),
    #[error("no answer for {} s", CONNECT_LIMIT.as_secs())]
    Silence,
    #[error("the leader has ended the stream")]
    Ended,
    #[error("it is of the term {got}, not {expected}")]
    OtherTerm { got: Term, expected: Term },
}

// === impl Following ===

impl Following {
    /// Follows whoever leads, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut role = self.helm.role();
        loop {
            let now = role.borrow_and_update().clone();
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = role.changed() => if changed.is_err() { return },
                never = self.follow(now) => match never {},
            }
        }
    }

    async fn follow(&self, role: Role) -> Infallible {
        let Role::Follower { term, leader: Some(leader) } = role else { return std::future::pending().await };
        loop {
            let error = match self.stream(term, &leader).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            tracing::warn!(leader = leader.name, address = leader.address, term, %error, "the stream to the leader broke; it begins anew");
            tokio::time::sleep(RETRY).await;
        }
    }

    /// One stream, until it breaks.
    async fn stream(&self, term: Term, leader: &Peer) -> Result<Infallible, Broken> {
        let endpoint = Endpoint::from_shared(leader.address.clone())?
            .connect_timeout(CONNECT_LIMIT)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .tcp_nodelay(true);
        // Read again each time: certificates are exchanged while the program runs.
        let plain = || ClientFiles { ca: ("client-ca", None), cert: ("tls-cert", None), key: ("tls-key", None) };
        let files = self.peers.clone().unwrap_or_else(plain);
        let connector = files.connector(self.peers.is_some(), None).map_err(Broken::Files)?;
        let channel = endpoint.connect_with_connector(connector).await?;
        let devices = self.devices.run(channel.clone());
        tokio::select! {
            outcome = self.exchange(term, channel) => outcome,
            never = devices => match never {},
        }
    }

    async fn exchange(&self, term: Term, channel: Channel) -> Result<Infallible, Broken> {
        let (to_leader, messages) = mpsc::channel(BUFFER);
        let hello = v1::FollowerHello { replica: self.helm.name().to_owned(), term };
        let mut reports = self.reports.subscribe();
        // There is room: it is the first.
        let _ = to_leader.try_send(v1::FollowerMessage { message: Some(Message::Hello(hello)) });
        let mut client = ReplicationClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let call = tokio::time::timeout(CONNECT_LIMIT, client.follow(ReceiverStream::new(messages))).await;
        let mut answers = call.map_err(|_| Broken::Silence)?.map_err(Box::new)?.into_inner();
        tracing::info!(term, "this replica follows the leader");
        loop {
            tokio::select! {
                answer = answers.message() => self.take(term, answer.map_err(Box::new)?.ok_or(Broken::Ended)?)?,
                report = reports.recv() => {
                    let report = match report {
                        Ok(report) => report,
                        Err(RecvError::Lagged(missed)) => {
                            tracing::debug!(missed, "reports were too many for the stream to the leader");
                            continue;
                        }
                        Err(RecvError::Closed) => return std::future::pending().await,
                    };
                    // A leader that does not read gets fewer; the next report of the proxy says it all.
                    let _ = to_leader.try_send(v1::FollowerMessage { message: Some(Message::Report(report.as_ref().clone())) });
                }
            }
        }
    }

    /// Publishes what the leader has decided, unless another one leads meanwhile.
    fn take(&self, term: Term, message: v1::LeaderMessage) -> Result<(), Broken> {
        if message.term != term {
            return Err(Broken::OtherTerm { got: message.term, expected: term });
        }
        let is_current = matches!(&*self.helm.role().borrow(), Role::Follower { term: current, .. } if *current == term);
        if is_current {
            let named = message.pools.into_iter().filter_map(PoolLimits::from_wire);
            self.fleet.publish_limits(LimitsTable { pools: named.map(|limits| (limits.fleet.pool.clone(), Arc::new(limits))).collect() });
        }
        Ok(())
    }
}
