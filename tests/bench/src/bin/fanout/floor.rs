//! The floor: a server of delta streams that knows no protocol. What it is told to write goes to every stream, as it is.
//!
//! It is a process of its own, as the control plane is, with the same runtime and the same gRPC library, so that what differs is
//! Headgate's work alone. Its standard input carries what to write, each message after its length.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use headgate_protos::discovery::aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer};
use headgate_protos::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse};
use headgate_test_support::process::{self, CpuTime};
use prost::Message as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpSocket;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::codegen::BoxStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// Longest message on its standard input, in bytes.
const MOST_BYTES: u32 = 1 << 22;
/// Connections that wait to be accepted, as many as the control plane lets.
const BACKLOG: u32 = 4096;

/// What every stream writes; nothing before the first push.
type Newest = Option<DeltaDiscoveryResponse>;

/// The floor as the measuring program sees it.
pub(crate) struct FloorProcess {
    // Killed when it is dropped.
    child: Child,
    input: ChildStdin,
    address: SocketAddr,
}

struct Floor {
    newest: watch::Receiver<Newest>,
}

// === impl FloorProcess ===

impl FloorProcess {
    /// Starts this very program as the floor.
    pub(crate) async fn start() -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--serve-floor").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start the floor")?;
        let input = child.stdin.take().context("the floor has no standard input")?;
        let mut first_line = String::new();
        BufReader::new(child.stdout.take().context("the floor has no standard output")?).read_line(&mut first_line).await?;
        let address = first_line.trim().parse().with_context(|| format!("the floor said {first_line:?}, not its address"))?;
        Ok(Self { child, input, address })
    }

    /// Where it serves.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Has it write a response to every stream.
    pub(crate) async fn write(&mut self, response: &DeltaDiscoveryResponse) -> Result<()> {
        let bytes = response.encode_to_vec();
        self.input.write_u32(u32::try_from(bytes.len())?).await?;
        self.input.write_all(&bytes).await?;
        Ok(self.input.flush().await?)
    }

    /// Its processor time so far.
    pub(crate) fn cpu_time(&self) -> Result<CpuTime> {
        process::cpu_time(self.child.id().context("the floor has ended")?)
    }

    /// Its memory in RAM, in bytes.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        process::resident_bytes(self.child.id().context("the floor has ended")?)
    }
}

/// Serves until standard input ends.
pub(crate) async fn serve() -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let listener = socket.listen(BACKLOG)?;
    println!("{}", listener.local_addr()?);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let (newest, receiver) = watch::channel(None);
    let service = AggregatedDiscoveryServiceServer::new(Floor { newest: receiver });
    tokio::select! {
        served = Server::builder().add_service(service).serve_with_incoming(incoming) => Ok(served?),
        read = publish(newest) => read,
    }
}

/// Takes what is to be written from standard input.
async fn publish(newest: watch::Sender<Newest>) -> Result<()> {
    let mut input = tokio::io::stdin();
    loop {
        let length = match input.read_u32().await {
            Ok(length) if length <= MOST_BYTES => length,
            Ok(length) => anyhow::bail!("a message of {length} bytes is longer than {MOST_BYTES}"),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = vec![0; length as usize];
        input.read_exact(&mut bytes).await?;
        newest.send_replace(Some(DeltaDiscoveryResponse::decode(bytes.as_slice())?));
    }
}

// === impl Floor ===

#[tonic::async_trait]
impl AggregatedDiscoveryService for Floor {
    type StreamAggregatedResourcesStream = BoxStream<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = BoxStream<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<BoxStream<DiscoveryResponse>>, Status> {
        Err(Status::unimplemented("delta streams only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<BoxStream<DeltaDiscoveryResponse>>, Status> {
        let mut requests = request.into_inner();
        // What the client says is read, as any server must, and means nothing.
        let reading = without_items(async move { while let Ok(Some(_)) = requests.message().await {} });
        let newest = WatchStream::new(self.newest.clone()).filter_map(|newest| std::future::ready(newest.map(Ok)));
        Ok(Response::new(Box::pin(futures::stream::select(newest, reading))))
    }
}

/// A stream that has no items and ends when `work` does.
fn without_items(
    work: impl Future<Output = ()> + Send + 'static,
) -> impl futures::Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send {
    futures::stream::once(work).filter_map(|()| std::future::ready(None))
}
