//! The fleet: as many delta streams as proxies, each on a connection of its own.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use headgate_protos::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use headgate_protos::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use headgate_protos::envoy_core::Node;
use headgate_protos::{LIMITS_TYPE_URL, POLICY_TYPE_URL};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// Requests of a stream that wait for the connection: a subscription of each of two types, or one ACK.
const QUEUED_REQUESTS: usize = 4;
/// Envoy's defaults for a gRPC stream that fails: 0.5 s doubled to 30 s at most, each time a random part of it.
const RETRY_BASE: Duration = Duration::from_millis(500);
const MOST_RETRIES: u32 = 12;

/// A policy that reached a proxy.
pub(crate) struct Arrival {
    /// When it was read.
    pub(crate) at: Instant,
    /// The response, for the first proxy alone: the floor sends it again.
    pub(crate) response: Option<DeltaDiscoveryResponse>,
    /// Version of the policy in it.
    pub(crate) version: String,
    /// Bytes of the response.
    pub(crate) bytes: usize,
}

/// Proxies that run until they are dropped.
pub(crate) struct Fleet {
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    tasks: JoinSet<Result<()>>,
    proxies: usize,
    /// Their streams stay open, nobody reads them.
    _stuck: Vec<Stream>,
}

struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Fleet {
    /// Connects them all at once. `stuck` more subscribe and never read what they are sent.
    pub(crate) async fn connect(address: SocketAddr, proxies: usize, stuck: usize) -> Result<Self> {
        let (sender, arrivals) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        for index in 0..proxies {
            let sender = sender.clone();
            tasks.spawn(async move { proxy(open(address, index).await?, index, &sender).await });
        }
        let mut unread = Vec::with_capacity(stuck);
        for index in proxies..proxies + stuck {
            unread.push(open(address, index).await?);
        }
        Ok(Self { arrivals, tasks, proxies, _stuck: unread })
    }

    /// Waits until every proxy has the policy of one version, whichever it is: that of the last arrival to complete a set.
    ///
    /// # Errors
    /// When that has not happened `within`, or a stream ended.
    pub(crate) async fn receive_all(&mut self, within: Duration) -> Result<Vec<Arrival>> {
        let mut received: Vec<Arrival> = Vec::with_capacity(self.proxies);
        let complete = async {
            while received.len() < self.proxies {
                tokio::select! {
                    arrival = self.arrivals.recv() => received.push(arrival.context("no proxy is left")?),
                    Some(ended) = self.tasks.join_next() => return ended?.and_then(|()| anyhow::bail!("a proxy's stream ended")),
                }
            }
            Ok(())
        };
        let outcome = tokio::time::timeout(within, complete).await;
        outcome.with_context(|| format!("{} of {} proxies have the policy after {within:?}", received.len(), self.proxies))??;
        let first = received.first().map(|arrival| arrival.version.clone()).unwrap_or_default();
        ensure!(received.iter().all(|arrival| arrival.version == first), "some proxies got another version than {first}");
        Ok(received)
    }
}

/// One proxy: subscribes as the filter does, acknowledges everything, tells of every policy.
async fn proxy(mut stream: Stream, index: usize, arrivals: &mpsc::UnboundedSender<Arrival>) -> Result<()> {
    while let Some(response) = stream.responses.message().await? {
        let at = Instant::now();
        stream.requests.send(ack(&response)).await?;
        let policy = response.resources.first().filter(|_| response.type_url == POLICY_TYPE_URL);
        if let Some(version) = policy.map(|policy| policy.version.clone()) {
            let bytes = response.encoded_len();
            let response = (index == 0).then_some(response);
            // The fleet is being dropped.
            let Ok(()) = arrivals.send(Arrival { at, response, version, bytes }) else { break };
        }
    }
    Ok(())
}

/// Opens a stream, as often as it takes: a server that thousands come back to at once lets some wait, as every proxy knows.
async fn open(address: SocketAddr, index: usize) -> Result<Stream> {
    let mut outcome = try_open(address, index).await;
    for attempt in 0..MOST_RETRIES {
        if outcome.is_ok() {
            break;
        }
        let pause = RETRY_BASE * (1 << attempt.min(5));
        tokio::time::sleep(pause.mul_f64(rand::random())).await;
        outcome = try_open(address, index).await;
    }
    outcome
}

async fn try_open(address: SocketAddr, index: usize) -> Result<Stream> {
    let channel: Channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
    let (requests, receiver) = mpsc::channel(QUEUED_REQUESTS);
    for type_url in [POLICY_TYPE_URL, LIMITS_TYPE_URL] {
        requests.send(subscribe(type_url, index)).await?;
    }
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let responses = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await?.into_inner();
    Ok(Stream { requests, responses })
}

fn subscribe(type_url: &str, index: usize) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(Node { id: format!("proxy-{index}"), ..Node::default() }),
        type_url: type_url.into(),
        resource_names_subscribe: vec!["*".into()],
        ..DeltaDiscoveryRequest::default()
    }
}

fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..DeltaDiscoveryRequest::default()
    }
}
