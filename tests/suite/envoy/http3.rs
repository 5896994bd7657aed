//! HTTP/3 as a client that prefers it uses it: told by `alt-svc` over TLS, then asked over QUIC.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::{Buf as _, Bytes};
use headgate_test_support::authority::Authority;
use headgate_test_support::{EnvoyVersion, wait_until};
use headgate_tests::mesh::PATIENCE;
use headgate_tests::upstream::Upstream;
use http::{Request, Response};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;

use crate::gateway::{Gateway, document, endpoint, entry, healthy, pool};

/// Longest time of one request.
const LIMIT: Duration = Duration::from_secs(5);

pub(crate) async fn a_request_over_quic_is_served(version: EnvoyVersion) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::new("authority");
    authority.server().write(folder.path(), "server");
    let file = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let upstream = Upstream::start().await?;
    let secure = entry(json!({"tls": {"certificateFile": file("server.pem"), "keyFile": file("server.key")}, "http3": true}))?;
    let port = u16::try_from(secure["spec"]["port"].as_u64().context("the port")?)?;
    let parts = [
        pool("llm", &[endpoint(upstream.address())]),
        document("Route", "all", &json!({"rules": [{"backends": [{"pool": "llm"}]}]})),
        secure,
    ];
    let gateway = Gateway::start(version, None, &parts).await?;
    gateway.wait_for_endpoints("the endpoint", |page| healthy(page, "llm", 1)).await?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let before = upstream.total();
    let client = client(&authority.pem)?;
    // The listener for QUIC opens a moment after the cluster is there.
    let (response, body) = wait_until("an answer over QUIC", PATIENCE, || async { Ok(ask(&client, address).await.ok()) }).await?;
    ensure!(response.status() == 200, "{response:?}");
    ensure!(body == b"answered by the upstream\n"[..], "{body:?}");
    ensure!(upstream.total() > before, "the upstream was asked");
    ensure!(gateway.envoy.stat("http.public.downstream_cx_http3_total").await? > 0, "it was HTTP/3");
    Ok(())
}

fn client(authority: &str) -> Result<quinn::Endpoint> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(authority.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let mut endpoint = quinn::Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?)));
    Ok(endpoint)
}

async fn ask(client: &quinn::Endpoint, address: SocketAddr) -> Result<(Response<()>, Bytes)> {
    tokio::time::timeout(LIMIT, exchange(client, address)).await?
}

async fn exchange(client: &quinn::Endpoint, address: SocketAddr) -> Result<(Response<()>, Bytes)> {
    let connection = client.connect(address, "localhost")?.await?;
    let (mut driver, mut sender) = h3::client::new(h3_quinn::Connection::new(connection)).await?;
    // It ends with the connection, when `sender` is dropped.
    let driver = tokio::spawn(async move { std::future::poll_fn(|context| driver.poll_close(context)).await });
    let mut stream = sender.send_request(Request::get("https://localhost/v1/models").body(())?).await?;
    stream.finish().await?;
    let response = stream.recv_response().await?;
    let mut body = Vec::new();
    while let Some(mut piece) = stream.recv_data().await? {
        body.extend_from_slice(&piece.copy_to_bytes(piece.remaining()));
    }
    driver.abort();
    Ok((response, body.into()))
}
