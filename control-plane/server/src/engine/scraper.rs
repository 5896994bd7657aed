//! The tasks that read engines, one an engine, and the board on which they write what they found.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use headgate_core::rng::Rng;
use headgate_core::time::Timestamp;
use hyper::Uri;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::page::Reading;
use super::scrape::{EngineClient, ScrapeError};
use crate::clock::Clock;

/// Time between two readings of an engine.
pub const PERIOD: Duration = Duration::from_millis(100);
/// Age at which a reading leaves the decision: three periods.
pub const STALE_AFTER: Duration = Duration::from_millis(300);
/// Engines that are read at once, over all policies.
pub const MAX_ENGINES: usize = 1024;
/// Part of the period by which a reading comes earlier or later, so that many engines are not read in one moment.
const JITTER: f64 = 0.2;
/// Longest wait after failures: an engine that restarts is seen within this time.
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// What is known of one engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineState {
    /// How the last reading went.
    pub health: Health,
    /// The last good reading. It stays after a failure and ages.
    pub reading: Option<Reading>,
    /// When it was asked for: what was admitted later is not in it.
    pub asked_at: Timestamp,
    /// When it came.
    pub read_at: Timestamp,
    /// Number of that reading on the whole board; grows with every good reading of any engine.
    pub epoch: u64,
    /// Preemptions seen since this program began. Unlike the engine's own counter it does not fall when the engine restarts.
    pub preemptions: u64,
    /// How long the last reading took.
    pub took: Duration,
    /// Good and failed readings so far.
    pub readings: u64,
    /// Failed readings so far.
    pub failures: u64,
}

/// How the last reading went.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Health {
    /// Not read yet.
    #[default]
    Starting,
    /// Well.
    Reading,
    /// Not; it is tried again.
    Failing(ScrapeError),
}

/// What is known of all engines, by the address of their page. All clones are one board.
#[derive(Clone, Debug, Default)]
pub struct EngineBoard(Arc<Mutex<Board>>);

#[derive(Debug, Default)]
struct Board {
    engines: BTreeMap<String, EngineState>,
    epoch: u64,
}

/// The tasks. Dropping it ends them.
#[derive(Debug)]
pub struct Engines {
    board: EngineBoard,
    client: EngineClient,
    clock: Clock,
    tasks: JoinSet<()>,
    running: BTreeMap<String, AbortHandle>,
}

// === impl Engines ===

impl Engines {
    /// Without any engine. Must be called within a tokio runtime.
    pub fn new(clock: Clock) -> Self {
        let client = EngineClient::new();
        Self { board: EngineBoard::default(), client, clock, tasks: JoinSet::new(), running: BTreeMap::new() }
    }

    /// Where the readings are.
    pub fn board(&self) -> EngineBoard {
        self.board.clone()
    }

    /// Reads exactly these engines from now on; one that stays keeps what is known of it. Beyond [`MAX_ENGINES`] they are left out.
    pub fn set<'a>(&mut self, urls: impl Iterator<Item = &'a str>) {
        let wanted: BTreeSet<&str> = urls.collect();
        if wanted.len() > MAX_ENGINES {
            tracing::error!(engines = wanted.len(), "more engines than are read; those after the first {MAX_ENGINES} are left out");
        }
        let wanted: BTreeSet<&str> = wanted.into_iter().take(MAX_ENGINES).collect();
        self.running.retain(|url, task| {
            let stays = wanted.contains(url.as_str());
            if !stays {
                task.abort();
            }
            stays
        });
        self.board.lock().engines.retain(|url, _| wanted.contains(url.as_str()));
        for url in wanted {
            if !self.running.contains_key(url) {
                self.board.lock().engines.insert(url.to_owned(), EngineState::default());
                let scraper = Scraper { url: url.to_owned(), board: self.board.clone(), client: self.client.clone(), clock: self.clock };
                self.running.insert(url.to_owned(), self.tasks.spawn(scraper.run()));
            }
        }
        // Tasks that were aborted leave their results behind.
        while self.tasks.try_join_next().is_some() {}
    }
}

/// One engine's task.
struct Scraper {
    url: String,
    board: EngineBoard,
    client: EngineClient,
    clock: Clock,
}

// === impl Scraper ===

impl Scraper {
    async fn run(self) {
        let uri = match self.url.parse::<Uri>() {
            Ok(uri) => uri,
            Err(error) => {
                return self.board.record(&self.url, &Scrape::failed(self.clock.now(), ScrapeError::Unreachable(error.to_string())));
            }
        };
        let mut rng = Rng::new(self.url.bytes().fold(0, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte))));
        // The first reading comes at once: a new policy should not wait for its engines.
        let mut due = Instant::now() + PERIOD.mul_f64(0.5 * rng.next_f64());
        let mut failed = 0_u32;
        loop {
            sleep_until(due).await;
            let asked_at = self.clock.now();
            // Awaited here: an engine is never asked again before it has answered or timed out.
            let result = self.client.read(&uri).await;
            failed = if result.is_ok() { 0 } else { failed.saturating_add(1) };
            self.board.record(&self.url, &Scrape { asked_at, took: self.clock.now().since(asked_at), result });
            due = next(due, Instant::now(), failed, rng.next_f64());
        }
    }
}

/// When to read next: a period after the last time, give or take; after failures later and later. Never in the past, so a machine
/// that stood still does not catch up in a burst.
fn next(due: Instant, now: Instant, failed: u32, chance: f64) -> Instant {
    // The first failures are answered at once: an engine is missed after three periods.
    let doublings = failed.saturating_sub(3).min(5);
    let wait = (PERIOD * 2_u32.pow(doublings)).min(MAX_BACKOFF);
    (due + wait.mul_f64(1.0 + JITTER * (2.0 * chance - 1.0))).max(now)
}

/// One attempt.
pub(super) struct Scrape {
    pub(super) asked_at: Timestamp,
    pub(super) took: Duration,
    pub(super) result: Result<Reading, ScrapeError>,
}

// === impl Scrape ===

impl Scrape {
    fn failed(at: Timestamp, error: ScrapeError) -> Self {
        Self { asked_at: at, took: Duration::ZERO, result: Err(error) }
    }
}

// === impl EngineBoard ===

impl EngineBoard {
    /// What is known of the engine at `url`; `None` when it is not read.
    pub fn get(&self, url: &str) -> Option<EngineState> {
        self.lock().engines.get(url).cloned()
    }

    /// Takes the outcome of one attempt. An engine that is no longer wanted is ignored.
    pub(super) fn record(&self, url: &str, scrape: &Scrape) {
        let mut board = self.lock();
        let epoch = board.epoch + 1;
        let Some(state) = board.engines.get_mut(url) else { return };
        state.take(url, scrape, epoch);
        if scrape.result.is_ok() {
            board.epoch = epoch;
        }
    }

    /// Adds an engine without a task, for tests of what is made of readings.
    #[cfg(test)]
    pub(super) fn insert(&self, url: &str) {
        self.lock().engines.insert(url.to_owned(), EngineState::default());
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        // Every write leaves the board whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl EngineState ===

impl EngineState {
    /// Whether the last good reading is too old to decide on.
    pub fn is_stale(&self, now: Timestamp) -> bool {
        self.reading.is_none() || now.since(self.read_at) > STALE_AFTER
    }

    fn take(&mut self, url: &str, scrape: &Scrape, epoch: u64) {
        self.took = scrape.took;
        self.readings += 1;
        match &scrape.result {
            Ok(reading) => {
                if self.health != Health::Reading {
                    tracing::info!(url, "the engine is read");
                }
                self.preemptions += preempted(self.reading.as_ref(), reading);
                self.health = Health::Reading;
                self.reading = Some(reading.clone());
                self.asked_at = scrape.asked_at;
                self.read_at = scrape.asked_at + scrape.took;
                self.epoch = epoch;
            }
            Err(error) => {
                if !matches!(&self.health, Health::Failing(before) if before == error) {
                    tracing::warn!(url, %error, "the engine cannot be read");
                }
                self.failures += 1;
                self.health = Health::Failing(error.clone());
            }
        }
    }
}

/// Preemptions between two readings. A counter that fell belongs to an engine that began anew; what came before the first reading
/// happened on somebody else's watch.
fn preempted(before: Option<&Reading>, now: &Reading) -> u64 {
    let Some(before) = before.and_then(|reading| reading.preemptions) else { return 0 };
    let now = now.preemptions.unwrap_or(before);
    now.checked_sub(before).unwrap_or(now)
}
