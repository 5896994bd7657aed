//! An upstream that counts what reaches it and answers after as long as the request asks for.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use headgate_core::envoy::DESTINATION_ENDPOINT;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A running upstream; it ends with its owner.
pub struct Upstream {
    address: SocketAddr,
    counts: Arc<Counts>,
    server: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    total: AtomicU64,
    in_flight: AtomicU64,
    peak: AtomicU64,
    forged: AtomicU64,
    /// Requests whose destination is this upstream, and those whose is another.
    named: AtomicU64,
    misled: AtomicU64,
    /// What every answer says of the load.
    load: Option<&'static str>,
}

impl Upstream {
    /// Serves on a free port. `x-delay-ms` delays an answer, `x-status` sets its status, and it blames the dependency that `x-blames` names.
    pub async fn start() -> Result<Self> {
        Self::serve(Counts::default()).await
    }

    /// One that tells `load` with every answer, in the text form of ORCA.
    pub async fn telling(load: &'static str) -> Result<Self> {
        Self::serve(Counts { load: Some(load), ..Counts::default() }).await
    }

    async fn serve(counts: Counts) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let counts = Arc::new(counts);
        let router = Router::new().route("/metrics", get(page)).fallback(answer).with_state((address, counts.clone()));
        let server = tokio::spawn(async move {
            // It ends when the task is aborted, and nobody reads an error then.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, counts, server })
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests so far.
    pub fn total(&self) -> u64 {
        self.counts.total.load(Ordering::SeqCst)
    }

    /// Most requests in flight at once since the last call.
    pub fn take_peak(&self) -> u64 {
        self.counts.peak.swap(0, Ordering::SeqCst)
    }

    /// Requests that the filter has sent here, and those that it has sent to another upstream and that came here all the same.
    pub fn named_and_misled(&self) -> (u64, u64) {
        (self.counts.named.load(Ordering::SeqCst), self.counts.misled.load(Ordering::SeqCst))
    }

    /// Requests that still had an `x-headgate-` header of the client's.
    pub fn forged(&self) -> u64 {
        self.counts.forged.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Counts a request as in flight until it is dropped, which a client that goes away causes too.
struct InFlight(Arc<Counts>);

impl InFlight {
    fn begin(counts: Arc<Counts>) -> Self {
        let now = counts.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        counts.peak.fetch_max(now, Ordering::SeqCst);
        Self(counts)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The page of an engine that makes ten tokens for each request.
async fn page(State((_, counts)): State<(SocketAddr, Arc<Counts>)>) -> String {
    let (running, tokens) = (counts.in_flight.load(Ordering::SeqCst), 10 * counts.total.load(Ordering::SeqCst));
    format!(
        "vllm:num_requests_running {running}\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.1\nvllm:generation_tokens_total {tokens}\n"
    )
}

async fn answer(State((address, counts)): State<(SocketAddr, Arc<Counts>)>, headers: HeaderMap) -> Response {
    counts.total.fetch_add(1, Ordering::SeqCst);
    if let Some(named) = headers.get(DESTINATION_ENDPOINT) {
        let count = if *named == *address.to_string() { &counts.named } else { &counts.misled };
        count.fetch_add(1, Ordering::SeqCst);
    }
    if headers.keys().any(|name| name.as_str().starts_with("x-headgate-")) {
        counts.forged.fetch_add(1, Ordering::SeqCst);
    }
    let load = counts.load;
    let _in_flight = InFlight::begin(counts);
    if let Some(delay) = number(&headers, "x-delay-ms") {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    let status = number(&headers, "x-status").and_then(|status| u16::try_from(status).ok()).unwrap_or(200);
    let mut response = (StatusCode::from_u16(status).unwrap_or(StatusCode::OK), "answered by the upstream\n").into_response();
    if let Some(dependency) = headers.get("x-blames") {
        response.headers_mut().insert("x-headgate-failed-dependency", dependency.clone());
    }
    if let Some(load) = load {
        response.headers_mut().insert("endpoint-load-metrics", HeaderValue::from_static(load));
    }
    response
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}
