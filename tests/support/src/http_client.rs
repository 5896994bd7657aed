//! A plain HTTP/1.1 client for admin pages, status pages and single requests.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// No single request of a test may take longer.
const LIMIT: Duration = Duration::from_secs(30);

/// A whole response.
#[derive(Clone, Debug)]
pub struct Response {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its whole body.
    pub body: Bytes,
}

impl Response {
    /// The header's value, when it is there and readable.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as text, with replacement characters where it is none.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("no JSON: {}", self.text()))
    }
}

/// `GET path` on a connection of its own.
///
/// # Errors
/// When no whole response comes.
pub async fn get(address: SocketAddr, path: &str) -> Result<Response> {
    let request = Request::get(path).body(Bytes::new())?;
    send(address, request).await
}

/// `POST path` with a JSON body on a connection of its own.
///
/// # Errors
/// When no whole response comes.
pub async fn post_json(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: &serde_json::Value) -> Result<Response> {
    let mut request = Request::post(path).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(address, request.body(Bytes::from(body.to_string()))?).await
}

/// Sends `request` on a connection of its own and reads the whole response. `host` is added when it is missing.
///
/// # Errors
/// When no whole response comes within 30 s.
pub async fn send(address: SocketAddr, request: Request<Bytes>) -> Result<Response> {
    let uri = request.uri().clone();
    timeout(LIMIT, exchange(address, request)).await.map_err(|_| anyhow!("no response to {uri} from {address} in {LIMIT:?}"))?
}

async fn exchange(address: SocketAddr, mut request: Request<Bytes>) -> Result<Response> {
    if !request.headers().contains_key("host") {
        request.headers_mut().insert("host", address.to_string().parse()?);
    }
    let stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request.map(Full::new)).await?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    drop(sender);
    driver.abort();
    Ok(Response { status: parts.status, headers: parts.headers, body })
}

/// Sends bytes as they are, malformed ones too, closes the sending side, and returns all that comes back.
///
/// # Errors
/// When the peer does not close within `within`. A reset counts as an answer: what came before it is returned.
pub async fn send_raw(address: SocketAddr, bytes: &[u8], within: Duration) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
    let mut answer = Vec::new();
    let talk = async {
        // The peer may have refused what came first and closed before the rest is written.
        if stream.write_all(bytes).await.is_ok() {
            let _ = stream.shutdown().await;
        }
        let _ = stream.read_to_end(&mut answer).await;
    };
    ensure!(timeout(within, talk).await.is_ok(), "{address} keeps the connection open after {within:?}");
    Ok(answer)
}
