//! Closed-loop load that keeps a server busy at little cost to itself: for measuring processor time per request.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// No response to these fixed requests is larger.
const MAX_RESPONSE: usize = 64 * 1024;

/// What a server did while it was kept busy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saturation {
    /// Responses with a status below 400.
    pub admitted: u64,
    /// All other responses.
    pub refused: u64,
    /// Time that it took.
    pub elapsed: Duration,
}

impl Saturation {
    /// All responses.
    #[must_use]
    pub fn responses(&self) -> u64 {
        self.admitted + self.refused
    }
}

/// Sends `request` (the bytes of one HTTP/1.1 request) over `connections` connections, the next as soon as the answer is there, for
/// `duration`. Answers must have a `content-length`.
///
/// # Errors
/// When a connection fails or an answer is no HTTP/1.1 response with a length.
pub async fn saturate(target: SocketAddr, request: &[u8], connections: usize, duration: Duration) -> Result<Saturation> {
    let began = Instant::now();
    let until = began + duration;
    let mut loops = JoinSet::new();
    for _ in 0..connections {
        let request = request.to_vec();
        loops.spawn(async move { keep_busy(target, &request, until).await });
    }
    // While this spins, the client's thread never sleeps, so no response has to wake it: a wake-up is paid by the server, and the slower
    // the server the more of them there are.
    let mut spinning = JoinSet::new();
    spinning.spawn(async {
        loop {
            tokio::task::yield_now().await;
        }
    });
    let mut sum = Saturation::default();
    while let Some(done) = loops.join_next().await {
        let one = done??;
        sum.admitted += one.admitted;
        sum.refused += one.refused;
    }
    sum.elapsed = began.elapsed();
    Ok(sum)
}

async fn keep_busy(target: SocketAddr, request: &[u8], until: Instant) -> Result<Saturation> {
    let mut stream = TcpStream::connect(target).await.with_context(|| format!("cannot connect to {target}"))?;
    stream.set_nodelay(true)?;
    let mut seen = Saturation::default();
    let mut buffer = vec![0; MAX_RESPONSE];
    while Instant::now() < until {
        stream.write_all(request).await?;
        match read_response(&mut stream, &mut buffer).await? {
            ..400 => seen.admitted += 1,
            400.. => seen.refused += 1,
        }
    }
    Ok(seen)
}

/// Reads one response and returns its status.
async fn read_response(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<u16> {
    let mut filled = 0;
    loop {
        let free = buffer.get_mut(filled..).filter(|free| !free.is_empty()).context("the response is too large")?;
        match stream.read(free).await? {
            0 => bail!("the connection was closed"),
            read => filled += read,
        }
        if let Some((status, size)) = parse(&buffer[..filled])?
            && filled >= size
        {
            return Ok(status);
        }
    }
}

/// Status and whole size of a response, once its headers are there.
fn parse(bytes: &[u8]) -> Result<Option<(u16, usize)>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end]).context("the headers are no text")?;
    let status = head.get(9..12).and_then(|digits| digits.parse().ok()).ok_or_else(|| anyhow!("no status in {head}"))?;
    let length = head.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = length.context("no content-length")?.1.trim().parse()?;
    Ok(Some((status, end + 4 + length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_size_is_known_once_the_headers_are_whole() {
        let response = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 3\r\n\r\nno\n";
        assert_eq!(parse(&response[..40]).unwrap(), None);
        assert_eq!(parse(response).unwrap(), Some((429, response.len())));
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
