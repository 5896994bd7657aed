//! The engine's metrics page as the control plane gets it: the engine's own, one that stands still, or garbage without end.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use headgate_test_support::http_client;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Length of a page of garbage.
const GARBAGE_BYTES: usize = 100 << 20;

/// What the page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// What the engine says now.
    Now,
    /// What it said last.
    TheSame,
    /// 100 MiB of noise as fast as they are taken.
    GarbageFast,
    /// The same, a KiB every 10 ms.
    GarbageSlowly,
}

/// A page in front of an engine's; it ends with its owner.
pub(crate) struct Page {
    shown: Arc<Shown>,
    address: SocketAddr,
    server: JoinHandle<()>,
}

struct Shown {
    engine: SocketAddr,
    says: Mutex<(Says, Bytes)>,
    noise: Bytes,
    /// Bytes of garbage that were taken.
    garbage: AtomicU64,
}

// === impl Page ===

impl Page {
    /// Serves on a free port what the engine at `engine` says.
    pub(crate) async fn start(engine: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let mut noise = vec![0; 64 << 10];
        StdRng::seed_from_u64(1).fill(&mut noise[..]);
        let says = Mutex::new((Says::Now, Bytes::new()));
        let shown = Arc::new(Shown { engine, says, noise: noise.into(), garbage: AtomicU64::new(0) });
        let router = Router::new().fallback(answer).with_state(shown.clone());
        let server = tokio::spawn(async move {
            // It ends when the task is aborted, and nobody reads an error then.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { shown, address, server })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/metrics", self.address)
    }

    /// From the next reading on.
    pub(crate) fn say(&self, says: Says) {
        self.shown.lock().0 = says;
    }

    pub(crate) fn garbage_taken(&self) -> u64 {
        self.shown.garbage.load(Ordering::SeqCst)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.server.abort();
    }
}

// === impl Shown ===

impl Shown {
    fn lock(&self) -> MutexGuard<'_, (Says, Bytes)> {
        self.says.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn now(&self) -> Response {
        let Ok(page) = http_client::get(self.engine, "/metrics").await else { return StatusCode::BAD_GATEWAY.into_response() };
        self.lock().1 = page.body.clone();
        (page.status, page.body).into_response()
    }

    /// Pieces of noise until there are as many bytes as a page has, each after `pause`.
    fn garbage(self: Arc<Self>, size: usize, pause: Duration) -> Response {
        let piece = self.noise.slice(..size);
        let pieces = stream::unfold(0, move |sent| {
            let (shown, piece) = (self.clone(), piece.clone());
            async move {
                if sent >= GARBAGE_BYTES {
                    return None;
                }
                tokio::time::sleep(pause).await;
                shown.garbage.fetch_add(piece.len() as u64, Ordering::SeqCst);
                let sent = sent + piece.len();
                Some((Ok::<_, std::convert::Infallible>(piece), sent))
            }
        });
        Body::from_stream(pieces).into_response()
    }
}

async fn answer(State(shown): State<Arc<Shown>>) -> Response {
    let (says, kept) = shown.lock().clone();
    match says {
        Says::Now => shown.now().await,
        Says::TheSame => kept.into_response(),
        Says::GarbageFast => shown.clone().garbage(64 << 10, Duration::ZERO),
        Says::GarbageSlowly => shown.clone().garbage(1 << 10, Duration::from_millis(10)),
    }
}
