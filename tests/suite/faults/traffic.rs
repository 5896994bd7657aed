//! Clients of every class that ask at a steady pace, well below what the pools can do.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use headgate_test_support::http_client::Response;
use headgate_test_support::wait_until;
use headgate_tests::connection::Connection;
use headgate_tests::documents::key_header;
use headgate_tests::mesh::PATIENCE;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

const CLASSES: [&str; 3] = ["high", "medium", "low"];
/// One of each class for each of the two pools.
const CLIENTS: usize = 2 * CLASSES.len();
/// Time between two requests of a client: answers take half of the first, so that the engine always works on one.
const CHAT_PACE: Duration = Duration::from_millis(200);
const PLAIN_PACE: Duration = Duration::from_millis(40);
const ANSWER_TOKENS: u32 = 8;

/// What a client asks for.
#[derive(Clone, Copy)]
enum Ask {
    /// A streamed answer, of the pool `chat`.
    Chat,
    /// A page, of the pool `plain`.
    Page,
}

/// Clients that ask until told to stop.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    seen: Arc<Seen>,
    clients: Vec<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Seen {
    /// By client.
    served: [AtomicU64; CLIENTS],
    /// Requests without an answer of the engine.
    broken: AtomicU64,
    refused: Mutex<Vec<String>>,
}

/// What became of the requests.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) served: u64,
    pub(crate) broken: u64,
}

// === impl Traffic ===

impl Traffic {
    /// One client of each class for each kind of request.
    pub(crate) fn start(proxy: SocketAddr) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::<Seen>::default());
        let mut clients = Vec::new();
        for (place, class) in (0..).zip(CLASSES) {
            for (ask, pace) in [(Ask::Chat, CHAT_PACE), (Ask::Page, PLAIN_PACE)] {
                let begin = Instant::now() + pace * place / 3;
                let index = clients.len();
                clients.push(tokio::spawn(client(proxy, (index, class), ask, (begin, pace), stop.clone(), seen.clone())));
            }
        }
        Self { stop, seen, clients }
    }

    /// Waits until `n` more requests were served.
    pub(crate) async fn more(&self, n: u64) -> Result<()> {
        let from = self.seen.served();
        wait_until("traffic", PATIENCE, || std::future::ready(Ok((self.seen.served() >= from + n).then_some(())))).await
    }

    /// Waits until every client was served once more: none has a request under way that began before.
    pub(crate) async fn everybody(&self) -> Result<()> {
        let by_client = || self.seen.served.iter().map(|served| served.load(Ordering::SeqCst));
        let from: Vec<u64> = by_client().collect();
        let are_served = || by_client().zip(&from).all(|(now, from)| now > *from);
        wait_until("an answer for every client", PATIENCE, || std::future::ready(Ok(are_served().then_some(())))).await
    }

    /// Requests so far that no engine answered.
    pub(crate) fn broken(&self) -> u64 {
        self.seen.broken.load(Ordering::SeqCst)
    }

    /// Ends the clients.
    ///
    /// # Errors
    /// When one was refused, with the reason that it was given.
    pub(crate) async fn finish(self) -> Result<Outcome> {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.await??;
        }
        let refused = self.seen.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ensure!(refused.is_empty(), "{} requests were refused, as {:?}", refused.len(), refused.first());
        Ok(Outcome { served: self.seen.served(), broken: self.seen.broken.load(Ordering::SeqCst) })
    }
}

async fn client(
    proxy: SocketAddr,
    (index, class): (usize, &'static str),
    ask: Ask,
    (begin, pace): (Instant, Duration),
    stop: Arc<AtomicBool>,
    seen: Arc<Seen>,
) -> Result<()> {
    let chat = json!({"messages": [{"role": "user", "content": "x".repeat(200)}], "max_tokens": ANSWER_TOKENS, "stream": true});
    let mut connection = Connection::open(proxy).await?;
    let mut ticks = interval_at(begin, pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !stop.load(Ordering::SeqCst) {
        ticks.tick().await;
        let response = match ask {
            Ask::Chat => connection.post("/v1/chat/completions", &[key_header(class)], &chat).await,
            Ask::Page => connection.get("/v1/models", &[key_header(class)]).await,
        };
        match response {
            Ok(response) => seen.take((index, class), &response)?,
            // An engine that ends in the middle of its answer ends the client's connection, too.
            Err(_) => {
                seen.broken.fetch_add(1, Ordering::SeqCst);
                connection = Connection::open(proxy).await?;
            }
        }
    }
    Ok(())
}

// === impl Seen ===

impl Seen {
    fn served(&self) -> u64 {
        self.served.iter().map(|served| served.load(Ordering::SeqCst)).sum()
    }

    fn take(&self, (index, class): (usize, &str), response: &Response) -> Result<()> {
        if let Some(reason) = response.header("x-headgate-reason") {
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{class}: {} {reason}", response.status));
            return Ok(());
        }
        let counter = match response.status.as_u16() {
            200 => &self.served[index],
            503 => &self.broken,
            status => anyhow::bail!("{class} is answered {status}: {}", response.text()),
        };
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// The class's action, and whether anything of the pool is cut off or tripped: what must never be.
pub(crate) fn alarms(status: &Value) -> Vec<String> {
    let mut alarms = Vec::new();
    for pool in status["pools"].as_array().into_iter().flatten() {
        let name = &pool["pool"];
        for level in pool["levels"].as_array().into_iter().flatten() {
            if level["state"] == "tripped" || level["state"] == "recovering" || !level["last_trip"].is_null() {
                alarms.push(format!("{name}: level {} is {}", level["kind"], level));
            }
        }
        for class in pool["classes"].as_array().into_iter().flatten() {
            let refused: u64 = class["refused"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
            if class["action"] != "admit" || refused > 0 {
                alarms.push(format!(
                    "{name}: class {} has action {}, refused {}; {}",
                    class["class"], class["action"], class["refused"], pool["overload"]
                ));
            }
        }
        let cut = &pool["overload"]["cut_off"]["level"];
        if cut.as_u64().is_some_and(|level| level < 1024) {
            alarms.push(format!("{name}: cut off at {cut}"));
        }
    }
    alarms
}
