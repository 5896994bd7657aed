//! dcgm-exporter's pages as a device source, where no agent can run.
//!
//! A page has no time of its own: the exporter repeats what it collected last, by default for 30 s. So a sample counts as taken when a
//! page was asked for that differs from the one before; one that only repeats makes nothing younger. The energy counter, which only
//! grows, tells an idle GPU from an exporter that stands still. Run the exporter with `--collect-interval=1000` and give the policy's
//! level `sampleMs: 1000` or more.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::header::CONTENT_ENCODING;
use hyper::{StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio_util::sync::CancellationToken;

use self::page::{Page, PageError};
use super::{DeviceBoard, DeviceState, SampleError, SourceState};
use crate::clock::Clock;

mod page;

/// Longest page that is read, in bytes. One of eight GPUs with a pod each has 60 KB.
const MAX_PAGE_BYTES: usize = 4 << 20;
/// Longest time for connection, request and page.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Time between two pages.
const PERIOD: Duration = Duration::from_millis(500);

/// Why a page could not be read.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("no answer: {0}")]
    Unreachable(String),
    #[error("no whole answer within {} ms", TIMEOUT.as_millis())]
    Timeout,
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("the page is compressed, which was not asked for")]
    Compressed,
    #[error("the page is longer than {MAX_PAGE_BYTES} bytes")]
    TooLong,
    #[error(transparent)]
    Page(#[from] PageError),
}

/// Reads the exporter at `url` until `shutdown`, onto `board`. The node is named as the page names the host, else as the URL does.
pub async fn follow(url: Uri, board: DeviceBoard, clock: Clock, shutdown: CancellationToken) {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(TIMEOUT));
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector);
    let named = url.authority().map_or_else(|| url.to_string(), ToString::to_string);
    let mut exporter = Exporter { state: DeviceState { node: named.into(), ..DeviceState::starting("dcgm-exporter") }, last: None };
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        let asked_at = clock.now();
        let page = tokio::time::timeout(TIMEOUT, fetch(&client, &url)).await.unwrap_or(Err(FetchError::Timeout));
        exporter.take(asked_at, page);
        if let Err(error) = board.publish(clock.now(), Arc::new(exporter.state.clone())) {
            tracing::warn!(%url, %error, "the exporter's GPUs have no place");
        }
    }
}

async fn fetch(client: &Client<HttpConnector, Empty<Bytes>>, url: &Uri) -> Result<Page, FetchError> {
    let response = client.get(url.clone()).await.map_err(|error| FetchError::Unreachable(error.to_string()))?;
    if response.status() != StatusCode::OK {
        return Err(FetchError::Status(response.status()));
    }
    if response.headers().get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(FetchError::Compressed);
    }
    match Limited::new(response.into_body(), MAX_PAGE_BYTES).collect().await {
        Ok(body) => Ok(Page::read(&body.to_bytes())?),
        Err(error) if error.is::<LengthLimitError>() => Err(FetchError::TooLong),
        Err(error) => Err(FetchError::Unreachable(error.to_string())),
    }
}

/// What is known of one exporter.
struct Exporter {
    state: DeviceState,
    last: Option<Page>,
}

// === impl Exporter ===

impl Exporter {
    fn take(&mut self, asked_at: headgate_core::time::Timestamp, page: Result<Page, FetchError>) {
        match page {
            Ok(page) => {
                self.state.state = SourceState::Sampling;
                if self.last.as_ref() == Some(&page) {
                    return;
                }
                if let (None, Some(host)) = (&self.last, &page.host) {
                    self.state.node = host.as_str().into();
                }
                self.state.take(asked_at, page.readings());
                self.state.details = Arc::new(page.details());
                self.last = Some(page);
            }
            Err(error) => {
                let problem = error.to_string();
                let failing = SourceState::Failing(SampleError::Agent { problem });
                if self.state.state != failing {
                    tracing::warn!(node = %self.state.node, %error, "the exporter cannot be read");
                }
                self.state.state = failing;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use headgate_core::time::Timestamp;

    use super::*;

    fn page(power: &str) -> Page {
        let text = include_str!("dcgm/fixtures/two-a100.txt").replace("61.338", power);
        Page::read(text.as_bytes()).unwrap()
    }

    #[tokio::test]
    async fn an_endless_page_ends_in_a_failing_source_and_takes_no_memory() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url: Uri = format!("http://{}/metrics", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            // A response that comes before its request is none.
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            // 100 MiB, unless nobody reads them.
            for _ in 0..100 << 4 {
                if stream.write_all(&[b'x'; 64 << 10]).await.is_err() {
                    return;
                }
            }
        });
        let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        let error = fetch(&client, &url).await.unwrap_err();
        assert!(matches!(error, FetchError::TooLong), "{error}");
        let mut exporter = Exporter { state: DeviceState::starting("dcgm-exporter"), last: None };
        exporter.take(Timestamp::ZERO, Err(error));
        let wanted = SampleError::Agent { problem: "the page is longer than 4194304 bytes".to_owned() };
        assert_eq!(exporter.state.state, SourceState::Failing(wanted));
    }

    #[test]
    fn a_page_that_repeats_makes_nothing_younger() {
        let mut exporter = Exporter { state: DeviceState::starting("dcgm-exporter"), last: None };
        let at = Timestamp::from_millis;
        exporter.take(at(1000), Ok(page("61.338")));
        assert_eq!((exporter.state.sampled_at, exporter.state.epoch, &*exporter.state.node), (Some(at(1000)), 1, "gpu-node-7"));
        exporter.take(at(1500), Ok(page("61.338")));
        assert_eq!((exporter.state.sampled_at, exporter.state.epoch), (Some(at(1000)), 1));
        exporter.take(at(2000), Err(FetchError::TooLong));
        assert!(matches!(exporter.state.state, SourceState::Failing(_)));
        exporter.take(at(2500), Ok(page("62.1")));
        assert_eq!((exporter.state.sampled_at, exporter.state.epoch, &exporter.state.state), (Some(at(2500)), 2, &SourceState::Sampling));
    }
}
