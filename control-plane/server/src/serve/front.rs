//! What stands between the network and the services: listeners, TLS, rules, audit log.

use std::net::SocketAddr;
use std::path::Path;
use std::{fs, io};

use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

use super::{ServeError, bind, system};
use crate::config::{AuditTarget, Config};
use crate::identity::access::AccessSource;
use crate::identity::audit::Audit;
use crate::identity::listener::{Encryption, Incoming, Protocol};
use crate::identity::{Guard, Rules};

/// Connections that wait to be accepted: when a fleet comes back at once, more of them than that are reset.
const LISTEN_BACKLOG: u32 = 4096;

/// Connections, and the guard behind them.
pub(super) struct Front {
    pub(super) grpc: Incoming,
    pub(super) http: Incoming,
    pub(super) guard: Guard,
}

/// Opens all of it; nothing is accepted before everything is in order.
pub(super) async fn open(config: &Config, shutdown: &CancellationToken) -> Result<Front, ServeError> {
    let grpc = listen("grpc", config.grpc)?;
    let http = listen("http", config.http)?;
    let encryption = match config.security.tls.clone() {
        Some(files) => Encryption::Tls(files.watch(shutdown.clone()).await?),
        None => Encryption::Plain,
    };
    let rules = match config.security.access.clone() {
        Some(file) => Rules::Access(AccessSource { file }.watch(shutdown.clone()).await?),
        None => Rules::Everyone,
    };
    let guard = Guard::new(rules, audit(&config.security.audit)?);
    let incoming = |listener, protocol| {
        Incoming::start(listener, protocol, encryption.clone(), shutdown.clone())
            .map_err(|source| system("read the address of a listener", source))
    };
    Ok(Front { grpc: incoming(grpc, Protocol::Grpc)?, http: incoming(http, Protocol::Http)?, guard })
}

fn listen(flag: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    let listening = || -> io::Result<TcpListener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restart must not wait for connections of the one before to be forgotten.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(LISTEN_BACKLOG)
    };
    listening().map_err(|source| bind(flag, address, source))
}

fn audit(target: &AuditTarget) -> Result<Audit, ServeError> {
    let AuditTarget::File { path, max_bytes } = target else { return Ok(Audit::without_file()) };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let opened = fs::create_dir_all(folder).and_then(|()| Audit::open(path, *max_bytes));
    opened.map_err(|source| ServeError::AuditLog { path: path.clone(), source })
}
