//! Metrics pages of engines: one address each, kept-alive connections, a page as long as vLLM's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use headgate_test_support::artefact::workspace_root;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Length of a page, in bytes. vLLM's has 30 to 100 KB.
const PAGE_BYTES: usize = 40_000;

/// The pages.
pub(super) struct EnginePages {
    urls: Vec<String>,
    served: Arc<AtomicU64>,
}

// === impl EnginePages ===

impl EnginePages {
    pub(super) async fn start(engines: u32) -> Result<Self> {
        let fixture = std::fs::read_to_string(workspace_root().join("control-plane/server/src/engine/page/fixtures/vllm.txt"))?;
        let response: Arc<[u8]> = response(&fixture).into_bytes().into();
        let served = Arc::new(AtomicU64::new(0));
        let mut urls = Vec::new();
        for _ in 0..engines {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
            urls.push(format!("http://{}/metrics", listener.local_addr()?));
            tokio::spawn(listen(listener, response.clone(), served.clone()));
        }
        Ok(Self { urls, served })
    }

    pub(super) fn urls(&self) -> &[String] {
        &self.urls
    }

    /// Pages that were read so far.
    pub(super) fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

/// The fixture with as many more series as a page has.
fn response(fixture: &str) -> String {
    let mut page = fixture.to_owned();
    for bucket in 0.. {
        if page.len() >= PAGE_BYTES {
            break;
        }
        page.push_str(&format!(
            "vllm:request_decode_time_seconds_bucket{{engine=\"0\",le=\"{bucket}.0\",model_name=\"meta-llama/Llama-3.1-8B-Instruct\"}} {}.0\n",
            811 + bucket
        ));
    }
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\n\r\n{page}", page.len())
}

async fn listen(listener: TcpListener, response: Arc<[u8]>, served: Arc<AtomicU64>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve(stream, response.clone(), served.clone()));
    }
}

/// Answers every request of a connection; its end ends the task.
async fn serve(mut stream: TcpStream, response: Arc<[u8]>, served: Arc<AtomicU64>) {
    let _ = stream.set_nodelay(true);
    let (mut buffer, mut request) = ([0; 2048], Vec::new());
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        request.extend_from_slice(&buffer[..read]);
        while let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") {
            request.drain(..end + 4);
            if stream.write_all(&response).await.is_err() {
                return;
            }
            served.fetch_add(1, Ordering::Relaxed);
        }
    }
}
