//! Connections that are used again, each with a number: a connection stays on one worker of Envoy, so the number stands for the worker.

use std::cell::RefCell;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// An open connection with no request on it.
pub(crate) struct Connection {
    pub(crate) number: u32,
    pub(crate) sender: SendRequest<Full<Bytes>>,
}

/// The connections of one load, on its one thread.
pub(crate) struct Connections {
    target: SocketAddr,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    idle: Vec<Connection>,
    opened: u32,
}

impl Connections {
    pub(crate) fn new(target: SocketAddr) -> Self {
        Self { target, state: RefCell::default() }
    }

    /// The connection that was idle for the longest time and is still open, or a new one.
    pub(crate) async fn take(&self) -> Result<Connection> {
        while let Some(mut connection) = self.oldest() {
            if connection.sender.ready().await.is_ok() {
                return Ok(connection);
            }
        }
        self.open().await
    }

    /// Oldest first, so that traffic goes over all connections and so over all workers.
    fn oldest(&self) -> Option<Connection> {
        let idle = &mut self.state.borrow_mut().idle;
        (!idle.is_empty()).then(|| idle.remove(0))
    }

    async fn open(&self) -> Result<Connection> {
        let number = {
            let mut state = self.state.borrow_mut();
            state.opened += 1;
            state.opened
        };
        let stream = TcpStream::connect(self.target).await.context("connect")?;
        stream.set_nodelay(true)?;
        let (sender, driver) = handshake(TokioIo::new(stream)).await?;
        tokio::task::spawn_local(async move {
            // What goes wrong on a connection is seen by the request on it.
            let _ = driver.await;
        });
        Ok(Connection { number, sender })
    }

    /// Puts a connection back after a whole response.
    pub(crate) fn put(&self, connection: Connection) {
        if !connection.sender.is_closed() {
            self.state.borrow_mut().idle.push(connection);
        }
    }
}
