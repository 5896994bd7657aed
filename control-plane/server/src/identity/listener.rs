//! Connections that are accepted, encrypted where TLS is on, with what is known of the peer.
//!
//! A handshake runs in a task of its own: a peer that stalls delays nobody but itself, and not for long.

mod ends;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use self::ends::Counted;
pub use self::ends::Ends;

use super::certificate::PeerCertificate;
use super::tls::ServerTls;

/// Time for a handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Handshakes at a time; the next connection waits in the system's queue.
const MAX_HANDSHAKES: usize = 4096;
/// Open connections of one listener: two for each proxy of the largest fleet, and some people.
const MAX_CONNECTIONS: usize = 50_000;
/// Connections that are ready and not yet served.
const READY_CONNECTIONS: usize = 64;
/// Pause after the system refused a connection, mostly for want of file descriptors.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

/// Which protocol a listener serves, and so which TLS configuration it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    Grpc,
    /// HTTP.
    Http,
}

/// Whether a listener encrypts.
#[derive(Clone, Debug)]
pub enum Encryption {
    /// No TLS.
    Plain,
    /// TLS with the newest configuration.
    Tls(watch::Receiver<ServerTls>),
}

/// What is known of the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The certificate that it showed and that was found good.
    pub certificate: Option<Arc<PeerCertificate>>,
    /// When its streams end, so that it opens them anew on another connection; `None`: not by age.
    pub moves_at: Option<Instant>,
}

/// Connections of one listener, in the order in which they became ready.
pub struct Incoming {
    ready: mpsc::Receiver<Connection>,
    address: SocketAddr,
    ends: Ends,
}

/// One connection.
pub struct Connection {
    io: Io,
    peer: Peer,
    counted: Counted,
    // Counts the connection until it is dropped.
    _permit: OwnedSemaphorePermit,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

#[derive(Clone)]
struct Acceptor {
    protocol: Protocol,
    encryption: Encryption,
    ready: mpsc::Sender<Connection>,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    ends: Ends,
}

// === impl Incoming ===

impl Incoming {
    /// Accepts from `listener` until `shutdown`.
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn start(listener: TcpListener, protocol: Protocol, encryption: Encryption, shutdown: CancellationToken) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (sender, ready) = mpsc::channel(READY_CONNECTIONS);
        let ends = Ends::default();
        let acceptor = Acceptor {
            protocol,
            encryption,
            ready: sender,
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
            ends: ends.clone(),
        };
        tokio::spawn(async move { shutdown.run_until_cancelled(acceptor.accept(listener)).await });
        Ok(Self { ready, address, ends })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How its connections end.
    pub fn ends(&self) -> Ends {
        self.ends.clone()
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(context).map(|connection| connection.map(Ok))
    }
}

impl axum::serve::Listener for Incoming {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        match self.ready.recv().await {
            Some(connection) => {
                let address = connection.peer.address;
                (connection, address)
            }
            // Nothing comes after the end; the server stops by its own signal.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

// === impl Acceptor ===

impl Acceptor {
    async fn accept(self, listener: TcpListener) {
        loop {
            // Closed only with the semaphores, which live as long as this.
            let Ok(handshake) = self.handshakes.clone().acquire_owned().await else { return };
            let (tcp, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                    continue;
                }
            };
            let Ok(permit) = self.connections.clone().try_acquire_owned() else {
                tracing::warn!(%address, "refused a connection: {MAX_CONNECTIONS} are open");
                continue;
            };
            tokio::spawn(self.clone().take(tcp, address, permit, handshake));
        }
    }

    async fn take(self, tcp: TcpStream, address: SocketAddr, permit: OwnedSemaphorePermit, _handshake: OwnedSemaphorePermit) {
        // Small messages must not wait for acknowledgements.
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%address, %error, "a connection was gone before it was served");
            return;
        }
        let io = match &self.encryption {
            Encryption::Plain => Io::Plain(tcp),
            Encryption::Tls(newest) => {
                let newest = newest.borrow().clone();
                let configuration = if self.protocol == Protocol::Grpc { newest.grpc } else { newest.http };
                match tokio::time::timeout(HANDSHAKE_LIMIT, TlsAcceptor::from(configuration).accept(tcp)).await {
                    Ok(Ok(tls)) => Io::Tls(Box::new(tls)),
                    Ok(Err(error)) => return refuse(address, &error.to_string()),
                    Err(_) => return refuse(address, &format!("no handshake within {} s", HANDSHAKE_LIMIT.as_secs())),
                }
            }
        };
        let peer = Peer { address, certificate: io.certificate().map(Arc::new), moves_at: None };
        // Fails only when the server has stopped.
        let _ = self.ready.send(Connection { io, peer, counted: self.ends.begin(), _permit: permit }).await;
    }
}

fn refuse(address: SocketAddr, reason: &str) {
    tracing::warn!(%address, reason, "TLS: refused a connection");
}

// === impl Connection ===

impl Connection {
    /// The other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Notes that the peer is told to go at `told_at`, and has the streams of the connection end at `moves_at`.
    pub fn move_streams(&mut self, told_at: Instant, moves_at: Instant) {
        self.counted.told_at = Some(told_at);
        self.peer.moves_at = Some(moves_at);
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, Incoming>> for Peer {
    fn connect_info(stream: axum::serve::IncomingStream<'_, Incoming>) -> Self {
        stream.io().peer.clone()
    }
}

impl Io {
    /// The peer's certificate. A verified one that has no readable name is a certificate without names.
    fn certificate(&self) -> Option<PeerCertificate> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => Some(PeerCertificate::of(tls.get_ref().1.peer_certificates()?.first()?)),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Io::Tls(tls) => Pin::new(tls).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_write(context, bytes),
            Io::Tls(tls) => Pin::new(tls).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_write_vectored(context, bytes),
            Io::Tls(tls) => Pin::new(tls).poll_write_vectored(context, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(tcp) => tcp.is_write_vectored(),
            Io::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Io::Tls(tls) => Pin::new(tls).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_shutdown(context),
            Io::Tls(tls) => Pin::new(tls).poll_shutdown(context),
        }
    }
}
