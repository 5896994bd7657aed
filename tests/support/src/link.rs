//! A network link that can be cut: a TCP relay on loopback that holds everything back while it is.
//!
//! What a cut does is what a network does: nothing arrives and nothing says so. Connections stay open, new ones are accepted and lead
//! nowhere; when the link is mended, what was held back arrives.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A link. It ends, with its connections, when it is dropped.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    state: Arc<watch::Sender<State>>,
    relay: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    target: Option<SocketAddr>,
    is_cut: bool,
}

impl Link {
    /// A link to `target`; without one it leads nowhere until [`Self::lead_to`].
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(target: Option<SocketAddr>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(watch::Sender::new(State { target, is_cut: false }));
        let relay = tokio::spawn(accept(listener, state.clone()));
        Ok(Self { address, state, relay })
    }

    /// Where it begins.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where connections that come from now on lead.
    pub fn lead_to(&self, target: SocketAddr) {
        self.state.send_modify(|state| state.target = Some(target));
    }

    /// Lets nothing through any more.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.is_cut = true);
    }

    /// Lets everything through again.
    pub fn mend(&self) {
        self.state.send_modify(|state| state.is_cut = false);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.relay.abort();
    }
}

async fn accept(listener: TcpListener, state: Arc<watch::Sender<State>>) {
    while let Ok((near, _)) = listener.accept().await {
        tokio::spawn(relay(near, state.subscribe()));
    }
}

async fn relay(near: TcpStream, mut state: watch::Receiver<State>) -> Result<()> {
    let open = state.wait_for(|state| !state.is_cut && state.target.is_some()).await?.target;
    let Some(target) = open else { return Ok(()) };
    let far = TcpStream::connect(target).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    // When one direction ends, the connection does.
    tokio::select! {
        ended = pass(near_in, far_out, state.clone()) => ended,
        ended = pass(far_in, near_out, state) => ended,
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<State>) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = from.read(&mut buffer).await?;
        state.wait_for(|state| !state.is_cut).await?;
        if n == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..n]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn what_a_cut_link_holds_back_arrives_when_it_is_mended() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let link = Link::start(Some(server.local_addr().unwrap())).await.unwrap();
        let mut client = TcpStream::connect(link.address()).await.unwrap();
        let (mut served, _) = server.accept().await.unwrap();
        let mut word = [0; 4];
        client.write_all(b"open").await.unwrap();
        served.read_exact(&mut word).await.unwrap();
        link.cut();
        client.write_all(b"held").await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(100), served.read_exact(&mut word)).await.is_err());
        link.mend();
        served.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"held");
    }
}
