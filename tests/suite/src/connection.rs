//! One keep-alive connection, so that a test knows that its requests meet the same worker.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use headgate_test_support::http_client::Response;
use http::Request;
use http::request::Builder;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// An open connection.
pub struct Connection {
    address: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Connects to `address`.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { address, sender })
    }

    /// `GET path` with `headers`.
    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
        self.send(Request::get(path), headers, Bytes::new()).await
    }

    /// `POST path` with `headers` and a JSON body.
    pub async fn post(&mut self, path: &str, headers: &[(&str, &str)], body: &Value) -> Result<Response> {
        self.send(Request::post(path).header("content-type", "application/json"), headers, Bytes::from(body.to_string())).await
    }

    async fn send(&mut self, mut request: Builder, headers: &[(&str, &str)], body: Bytes) -> Result<Response> {
        request = request.header("host", self.address.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.sender.ready().await?;
        let response = self.sender.send_request(request.body(Full::new(body))?).await?;
        let (parts, body) = response.into_parts();
        Ok(Response { status: parts.status, headers: parts.headers, body: body.collect().await?.to_bytes() })
    }
}
