//! One GET of a metrics page, bounded in time and size.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::{StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::page::{self, PageError, Reading};

/// Longest page that is read, in bytes. vLLM's has 30 to 100 KB.
const MAX_PAGE_BYTES: usize = 1 << 20;
/// Longest time for connection, request and page.
pub(super) const TIMEOUT: Duration = Duration::from_millis(250);

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
    /// Its page is too long.
    #[error("the page is longer than {MAX_PAGE_BYTES} bytes")]
    TooLong,
    /// Its page cannot be used.
    #[error(transparent)]
    Page(#[from] PageError),
}

/// A client for all engines: one idle connection to each, no redirects, no TLS.
#[derive(Clone, Debug)]
pub(super) struct EngineClient(Client<HttpConnector, Empty<Bytes>>);

// === impl EngineClient ===

impl EngineClient {
    pub(super) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(TIMEOUT));
        Self(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector))
    }

    /// Reads the page at `url`.
    pub(super) async fn read(&self, url: &Uri) -> Result<Reading, ScrapeError> {
        // Dropping the exchange closes its connection, so a page that never ends takes nothing with it.
        let page = tokio::time::timeout(TIMEOUT, self.page(url)).await.map_err(|_| ScrapeError::Timeout)??;
        Ok(page::read(&page)?)
    }

    async fn page(&self, url: &Uri) -> Result<Bytes, ScrapeError> {
        let response = self.0.get(url.clone()).await.map_err(|error| ScrapeError::Unreachable(deepest(&error)))?;
        if response.status() != StatusCode::OK {
            return Err(ScrapeError::Status(response.status()));
        }
        match Limited::new(response.into_body(), MAX_PAGE_BYTES).collect().await {
            Ok(page) => Ok(page.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(ScrapeError::TooLong),
            Err(error) => Err(ScrapeError::Unreachable(error.to_string())),
        }
    }
}

/// The innermost cause says what to mend.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
