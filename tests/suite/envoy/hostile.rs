//! Requests made to break the filter or to fool it.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use headgate_test_support::http_client::send_raw;
use headgate_test_support::{EnvoyVersion, wait_until};
use headgate_tests::connection::Connection;
use headgate_tests::documents::{key_header, spec};
use headgate_tests::mesh::{Mesh, MeshOptions, PATIENCE};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Requests on the default Envoy; the other versions get a part of them.
const REQUESTS: usize = 10_000;
const REQUESTS_ON_OTHERS: usize = 2_000;
const SEED: u64 = 0x5eed;

/// One request as bytes. None of them knows a key, so none may be anything but `low`.
fn request(rng: &mut StdRng) -> Vec<u8> {
    let path = ["/v1/chat/completions", "/v1/messages", "/v1/models", "/v1/", "/v1/%ff%00", "/v1/../v1/models"][rng.random_range(0..6)];
    let mut head = format!("POST {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n").into_bytes();
    let mut header = |name: &str, value: &[u8]| {
        head.extend_from_slice(name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value);
        head.extend_from_slice(b"\r\n");
    };
    match rng.random_range(0..10) {
        0 => header("x-priority", b"\xff\xfe high"),
        1 => {
            header("x-priority", b"low");
            header("x-priority", b"high");
        }
        2 => {
            for _ in 0..rng.random_range(1..90) {
                header("x-api-key", b"test-key-golden");
            }
        }
        3 => header("x-filler", &vec![b'a'; rng.random_range(50_000..58_000)]),
        4 => {
            header("x-headgate-class", b"high");
            header("x-headgate-reason", b"none");
            header("x-headgate-pool", b"other");
            header("X-Headgate-Fallback", b"direct");
        }
        5 => {
            header("x-forwarded-for", b"127.0.0.1, 10.0.0.1");
            header("x-envoy-internal", b"true");
            header("x-envoy-original-path", b"/v1/high");
        }
        6 => header("authorization", &random_bytes(rng, 1..4_000)),
        7 => header("authorization", b"Bearer "),
        8 => header("x-model", &random_bytes(rng, 1..300)),
        _ => header("x-priority", b"high"),
    }
    let body = random_bytes(rng, 0..2_000);
    // Half of the bodies end before the length they announced.
    let announced = if rng.random() { body.len() } else { body.len() + 1_000 };
    head.extend_from_slice(format!("content-length: {announced}\r\n\r\n").as_bytes());
    head.extend_from_slice(&body);
    head
}

/// Bytes that HTTP/1.1 allows in a header value, most of them no UTF-8.
fn random_bytes(rng: &mut StdRng, length: std::ops::Range<usize>) -> Vec<u8> {
    (0..rng.random_range(length)).map(|_| rng.random_range(0x80..=0xff)).collect()
}

pub(crate) async fn hostile_requests_trap_nothing_and_lift_nobody(version: EnvoyVersion) -> Result<()> {
    let n_requests = if version == EnvoyVersion::pinned_default() { REQUESTS } else { REQUESTS_ON_OTHERS };
    let mesh = Mesh::start(MeshOptions::new(version, spec())?).await?;
    mesh.gpu.set_memory_used(90.0)?;
    wait_until("trip on every worker", PATIENCE, || async {
        let mut refused = 0;
        for _ in 0..4 {
            let response = Connection::open(mesh.envoy.address()).await?.get("/v1/models", &[key_header("low")]).await?;
            refused += usize::from(response.status == 429);
        }
        Ok((refused == 4).then_some(()))
    })
    .await?;
    let before = mesh.upstream.total();
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut answered = 0_usize;
    for _ in 0..n_requests / 50 {
        let batch: Vec<Vec<u8>> = (0..50).map(|_| request(&mut rng)).collect();
        let answers = batch.iter().map(|bytes| ask(mesh.envoy.address(), bytes));
        for status in futures::future::try_join_all(answers).await? {
            // Envoy refuses what is no HTTP (400, 431); the filter refuses the rest; nothing passes and nothing breaks.
            ensure!(!matches!(status, 200 | 500 | 503), "seed {SEED:#x}: answered {status}");
            answered += usize::from(status == 429);
        }
        // Some leave before they are answered.
        send_raw(mesh.envoy.address(), &batch[0], PATIENCE).await?;
    }
    ensure!(mesh.upstream.total() == before, "{} hostile requests reached the upstream", mesh.upstream.total() - before);
    ensure!(answered > n_requests / 2, "only {answered} of {n_requests} were decided by the filter: the test tests something else");
    for trap in ["wasm.envoy.wasm.runtime.v8.crash", "vm_reload_success", "vm_reload_failure"] {
        ensure!(mesh.envoy.stat(trap).await? == 0, "a VM trapped: {trap}");
    }
    forged_headers_do_not_reach_the_upstream(&mesh).await
}

/// Sends bytes and returns the status of the answer, without waiting for the proxy to close.
async fn ask(address: SocketAddr, bytes: &[u8]) -> Result<u16> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(bytes).await?;
    let mut head = [0; 12];
    timeout(PATIENCE, stream.read_exact(&mut head)).await.context("no answer")??;
    std::str::from_utf8(&head[9..])?.parse().context("no status")
}

async fn forged_headers_do_not_reach_the_upstream(mesh: &Mesh) -> Result<()> {
    let forged = [key_header("high"), ("x-headgate-class", "high"), ("x-headgate-pool", "other"), ("x-headgate-fallback", "direct")];
    let response = Connection::open(mesh.envoy.address()).await?.get("/v1/models", &forged).await?;
    ensure!(response.status == 200, "high is answered {}", response.status);
    ensure!(mesh.upstream.forged() == 0, "a client's x-headgate- header reached the upstream");
    Ok(())
}
