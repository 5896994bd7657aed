//! A replica of the control plane that tells what a test wants, by the services of `headgate serve`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use headgate::config::FilterDelivery;
use headgate::discovery::Discovery;
use headgate::fleet::{Fleet, RenderedResources};
use headgate::identity::Guard;
use headgate_xds::Resource;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

/// Time in which streams and connections end after the replica was told to.
const STOP_LIMIT: Duration = Duration::from_secs(5);

pub(crate) struct Replica {
    fleet: Fleet,
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    shutdown: CancellationToken,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Replica {
    /// Starts one on a free port.
    pub(crate) async fn start(resources: Vec<Resource>) -> Result<Self> {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), resources).await
    }

    /// Starts one in the place of another that has stopped, with nothing of its memory.
    pub(crate) async fn start_at(address: SocketAddr, resources: Vec<Resource>) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let (address, fleet, shutdown) = (listener.local_addr()?, Fleet::new(), CancellationToken::new());
        let filter = FilterDelivery { wasm: "/none.wasm".into(), control_cluster: "none".into(), control_authority: "none".into() };
        let discovery = Discovery::new(fleet.clone(), filter, shutdown.clone());
        let connections = Arc::new(AtomicUsize::default());
        let counted = connections.clone();
        let incoming = TcpListenerStream::new(listener).inspect(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let server = Server::builder().layer(Guard::open()).add_routes(discovery.routes());
        let server = tokio::spawn(server.serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned()));
        let replica = Self { fleet, address, connections, shutdown, server };
        replica.tell(resources)?;
        Ok(replica)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Tells everybody this and nothing else from now on.
    pub(crate) fn tell(&self, resources: Vec<Resource>) -> Result<()> {
        self.fleet.publish_rendered(RenderedResources::try_new(resources, [])?);
        Ok(())
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        let stopped = tokio::time::timeout(STOP_LIMIT, self.server).await.context("the replica's connections do not end")?;
        Ok(stopped??)
    }
}
