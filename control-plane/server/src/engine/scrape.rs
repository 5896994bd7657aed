//! One GET of a metrics page, bounded in time and size, read while it comes.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::header::{CONTENT_ENCODING, HOST, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::page::{PageError, PageReader, Reading};

/// Longest time for connection, request and page.
pub(super) const TIMEOUT: Duration = Duration::from_millis(250);
/// Bytes of a response that are buffered at once; its headers must fit.
const MAX_BUFFER_BYTES: usize = 64 << 10;

/// Why an engine could not be read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ScrapeError {
    /// It does not answer.
    #[error("no answer: {0}")]
    Unreachable(String),
    /// It does not answer in time.
    #[error("no whole answer within {} ms", TIMEOUT.as_millis())]
    Timeout,
    /// It answers something else.
    #[error("answered {0}")]
    Status(StatusCode),
    /// Its page is compressed although nobody asked for that: what it would unfold to has no bound.
    #[error("the page is compressed, which was not asked for")]
    Compressed,
    /// It could not be read when the tape was recorded.
    #[error("{0}")]
    Recorded(String),
    /// Its page cannot be used.
    #[error(transparent)]
    Page(#[from] PageError),
}

/// A client for all engines: one idle connection to each, no redirects, no TLS, no compression.
#[derive(Clone, Debug)]
pub(super) struct EngineClient(Client<HttpConnector, Empty<Bytes>>);

// === impl EngineClient ===

impl EngineClient {
    pub(super) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(TIMEOUT));
        let mut builder = Client::builder(TokioExecutor::new());
        Self(builder.pool_max_idle_per_host(1).http1_max_buf_size(MAX_BUFFER_BYTES).build(connector))
    }

    /// Reads the page at `url` from the engine at `address`.
    pub(super) async fn read(&self, url: &Uri, address: SocketAddr) -> Result<Reading, ScrapeError> {
        // Dropping the exchange closes its connection, so a page that never ends takes nothing with it.
        tokio::time::timeout(TIMEOUT, self.page(url, address)).await.map_err(|_| ScrapeError::Timeout)?
    }

    async fn page(&self, url: &Uri, address: SocketAddr) -> Result<Reading, ScrapeError> {
        let response = self.0.request(request(url, address)?).await.map_err(|error| ScrapeError::Unreachable(deepest(&error)))?;
        if response.status() != StatusCode::OK {
            return Err(ScrapeError::Status(response.status()));
        }
        if response.headers().get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(ScrapeError::Compressed);
        }
        let (mut reader, mut body) = (PageReader::default(), response.into_body());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ScrapeError::Unreachable(deepest(&error)))?;
            if let Some(piece) = frame.data_ref() {
                reader.feed(piece)?;
            }
        }
        Ok(reader.finish()?)
    }
}

/// The request for `url`, sent to `address`, with the name that the URL has in its `Host`.
fn request(url: &Uri, address: SocketAddr) -> Result<Request<Empty<Bytes>>, ScrapeError> {
    let invalid = |error: &dyn std::error::Error| ScrapeError::Unreachable(error.to_string());
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let at = Uri::builder().scheme("http").authority(address.to_string()).path_and_query(path).build().map_err(|error| invalid(&error))?;
    let mut request = Request::get(at).body(Empty::new()).map_err(|error| invalid(&error))?;
    if let Some(host) = url.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()) {
        request.headers_mut().insert(HOST, host);
    }
    Ok(request)
}

/// The innermost cause says what to mend.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
