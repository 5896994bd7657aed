//! A closed-loop HTTP/1.1 client that keeps a server busy at the least cost to itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What one run saw.
#[derive(Debug, Default, Clone)]
pub struct Saturation {
    /// Responses.
    pub requests: u64,
    /// Responses by status.
    pub statuses: BTreeMap<u16, u64>,
}

/// Sends `request` over `connections` keep-alive connections, each as soon as its last response is complete, for `duration`.
///
/// Errs when a connection breaks or a response is not HTTP/1.1 with a `content-length`.
pub fn saturate(address: SocketAddr, request: &[u8], connections: usize, duration: Duration) -> Result<Saturation> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let request: std::sync::Arc<[u8]> = request.into();
    let end = Instant::now() + duration;
    runtime.block_on(async {
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..connections {
            clients.spawn(client(address, request.clone(), end));
        }
        let mut total = Saturation::default();
        while let Some(client) = clients.join_next().await {
            for (status, count) in client.context("a client task ended early")?? {
                total.requests += count;
                *total.statuses.entry(status).or_default() += count;
            }
        }
        Ok(total)
    })
}

async fn client(address: SocketAddr, request: std::sync::Arc<[u8]>, end: Instant) -> Result<BTreeMap<u16, u64>> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    let mut statuses = BTreeMap::new();
    let mut buffer = vec![0; 64 * 1024];
    while Instant::now() < end {
        stream.write_all(&request).await?;
        let status = response(&mut stream, &mut buffer).await?;
        *statuses.entry(status).or_default() += 1;
    }
    Ok(statuses)
}

/// Reads one response and returns its status.
async fn response(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<u16> {
    let mut filled = 0;
    loop {
        let count = stream.read(&mut buffer[filled..]).await?;
        if count == 0 {
            bail!("the server closed a connection after {filled} bytes of a response");
        }
        filled += count;
        if let Some((status, length)) = parse(&buffer[..filled])? {
            if filled >= length {
                return Ok(status);
            }
        }
    }
}

/// Status and whole length of the response at the start of `bytes`, once its head is complete.
fn parse(bytes: &[u8]) -> Result<Option<(u16, usize)>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end]).context("a response head is not text")?;
    let status = head.get(9..12).and_then(|digits| digits.parse().ok()).with_context(|| format!("no status in {head:?}"))?;
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok())
        .with_context(|| format!("no content-length in {head:?}"))?;
    Ok(Some((status, end + 4 + length)))
}
