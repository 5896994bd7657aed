//! The tasks that read engines: one a page that finds the engines behind it, and one an engine; or one a page that is on a tape.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use headgate_core::rng::Rng;
use hyper::Uri;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use super::board::{EngineBoard, LoadSource, MAX_ENGINES, PERIOD, Scrape};
use super::resolve::{self, Place, RESOLVE_EVERY, Resolver};
use super::scrape::EngineClient;
use crate::clock::Clock;
use crate::device::tape::{Playback, Tap};

/// Part of the period by which a reading comes earlier or later, so that many engines are not read in one moment.
const JITTER: f64 = 0.2;
/// Longest wait after failures: an engine that restarts is seen within this time.
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// Readings under way at once. Engines that do not answer are asked every 2 s for 250 ms each: all of the most that there can be hold 128.
const MAX_CONCURRENT: usize = 256;

/// The tasks. Dropping it ends them.
pub struct Engines {
    reader: Reader,
    tasks: JoinSet<()>,
    running: BTreeMap<String, AbortHandle>,
}

/// What every task needs.
#[derive(Clone)]
pub(super) struct Reader {
    pub(super) board: EngineBoard,
    client: EngineClient,
    pub(super) clock: Clock,
    permits: Arc<Semaphore>,
    resolver: Resolver,
    /// Time between two resolutions of a name.
    resolve_every: Duration,
    /// A tape from which the pages that it has are played.
    playback: Option<Playback>,
    /// The way to the tape on which every reading is recorded.
    tap: Option<Tap>,
}

// === impl Engines ===

impl Engines {
    /// Without any engine. Must be called within a tokio runtime.
    pub fn new(clock: Clock) -> Self {
        Self::with_resolver(clock, resolve::system(), RESOLVE_EVERY)
    }

    pub(super) fn with_resolver(clock: Clock, resolver: Resolver, resolve_every: Duration) -> Self {
        let permits = Arc::new(Semaphore::new(MAX_CONCURRENT));
        let (board, client, playback, tap) = (EngineBoard::default(), EngineClient::new(), None, None);
        let reader = Reader { board, client, clock, permits, resolver, resolve_every, playback, tap };
        Self { reader, tasks: JoinSet::new(), running: BTreeMap::new() }
    }

    /// Where the readings are.
    pub fn board(&self) -> EngineBoard {
        self.reader.board.clone()
    }

    /// Plays the pages that are on this tape, if there is one, instead of asking for them. To be called before [`Engines::set`].
    pub fn play(&mut self, playback: Option<Playback>) {
        self.reader.playback = playback;
    }

    /// Tells every reading to this tape as well. To be called before [`Engines::set`].
    pub fn record(&mut self, tap: Tap) {
        self.reader.tap = Some(tap);
    }

    /// Reads exactly these pages from now on; one that stays keeps what is known of it. Beyond [`MAX_ENGINES`] they are left out.
    pub fn set<'a>(&mut self, urls: impl Iterator<Item = &'a str>) {
        let mut wanted: Vec<&str> = urls.collect();
        wanted.sort_unstable();
        wanted.dedup();
        if wanted.len() > MAX_ENGINES {
            tracing::error!(engines = wanted.len(), "more engines than are read; those after the first {MAX_ENGINES} are left out");
            wanted.truncate(MAX_ENGINES);
        }
        self.running.retain(|url, task| {
            let stays = wanted.contains(&url.as_str());
            if !stays {
                task.abort();
            }
            stays
        });
        self.reader.board.keep(wanted.iter().copied());
        for url in wanted {
            if !self.running.contains_key(url) {
                let task = self.tasks.spawn(self.reader.clone().follow_page(url.to_owned()));
                self.running.insert(url.to_owned(), task);
            }
        }
        // Tasks that were aborted leave their results behind.
        while self.tasks.try_join_next().is_some() {}
    }
}

// === impl Reader ===

impl Reader {
    /// Finds the engines behind a page again and again and reads each of them, until it is aborted.
    async fn follow_page(self, url: String) {
        if let Some(playback) = self.playback.clone().filter(|playback| playback.tape().pages().any(|page| page == url)) {
            return self.play_page(&url, &playback).await;
        }
        let uri = url.parse::<Uri>().ok();
        let Some((uri, place)) = uri.and_then(|uri| Place::of(&uri).map(|place| (uri, place))) else {
            return self.board.set_unresolved(&url, "not the address of a page".to_owned());
        };
        let mut rng = Rng::new(seed(&url));
        // Ends with this task.
        let (mut tasks, mut running) = (JoinSet::new(), BTreeMap::<SocketAddr, AbortHandle>::new());
        loop {
            let addresses = match &place {
                Place::Literal(address) => Ok(vec![*address]),
                Place::Name(host, port) => resolve::resolve(&self.resolver, host, *port).await,
            };
            match addresses {
                Ok(addresses) => {
                    let wanted = self.board.set_endpoints(&url, &addresses);
                    running.retain(|address, task: &mut AbortHandle| {
                        wanted.contains(address) || {
                            task.abort();
                            false
                        }
                    });
                    for address in wanted {
                        let begin = || tasks.spawn(self.clone().read_engine(url.clone(), uri.clone(), address));
                        running.entry(address).or_insert_with(begin);
                    }
                }
                Err(problem) => {
                    tracing::warn!(url, problem, "the engine's name cannot be resolved");
                    self.board.set_unresolved(&url, problem);
                }
            }
            while tasks.try_join_next().is_some() {}
            if matches!(place, Place::Literal(_)) {
                std::future::pending::<()>().await;
            }
            sleep(self.resolve_every.mul_f64(1.0 + JITTER * (2.0 * rng.next_f64() - 1.0))).await;
        }
    }

    /// Reads one engine period after period, until it is aborted.
    async fn read_engine(self, url: String, uri: Uri, address: SocketAddr) {
        let mut rng = Rng::new(seed(&format!("{url} {address}")));
        // The first reading comes at once: a new policy should not wait for its engines.
        let mut due = Instant::now() + PERIOD.mul_f64(0.5 * rng.next_f64());
        let mut failed = 0_u32;
        loop {
            sleep_until(due).await;
            let Ok(permit) = self.permits.acquire().await else { return };
            let asked_at = self.clock.now();
            // Awaited here: an engine is never asked again before it has answered or timed out.
            let result = self.client.read(&uri, address).await;
            drop(permit);
            failed = if result.is_ok() { 0 } else { failed.saturating_add(1) };
            let scrape = Scrape { asked_at, took: self.clock.now().since(asked_at), result };
            self.tell(&url, address, LoadSource::Page, scrape);
            due = next(due, Instant::now(), failed, rng.next_f64());
        }
    }

    /// Brings a reading to the board, and to the tape when one is recorded.
    pub(super) fn tell(&self, url: &str, address: SocketAddr, source: LoadSource, scrape: Scrape) {
        if let Some(tap) = &self.tap {
            tap.engine(url, address, &scrape);
        }
        self.board.record(url, address, source, scrape);
    }
}

/// Begin of a random sequence that differs from engine to engine. FNV-1a.
fn seed(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// When to read next: a period after the last time, give or take; after failures later and later. Never in the past, so a machine
/// that stood still does not catch up in a burst.
fn next(due: Instant, now: Instant, failed: u32, chance: f64) -> Instant {
    // The first failures are answered at once: an engine is missed after three periods.
    let doublings = failed.saturating_sub(3).min(5);
    let wait = (PERIOD * 2_u32.pow(doublings)).min(MAX_BACKOFF);
    (due + wait.mul_f64(1.0 + JITTER * (2.0 * chance - 1.0))).max(now)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn readings_are_a_period_apart_give_or_take_a_fifth_and_failures_make_them_rare() {
        let due = Instant::now();
        let wait = |failed, chance| next(due, due, failed, chance).duration_since(due).as_millis();
        assert_eq!([0.0, 0.5, 1.0].map(|chance| wait(0, chance)), [80, 100, 120]);
        assert_eq!([1, 2, 3, 4, 5, 6, 7, 8, 100].map(|failed| wait(failed, 0.5)), [100, 100, 100, 200, 400, 800, 1600, 2000, 2000]);
        let late = due + Duration::from_secs(5);
        assert_eq!(next(due, late, 0, 0.5), late, "what was missed is not made up for");
    }

    #[test]
    fn two_engines_are_not_read_in_the_same_moments() {
        let times = |name: &str| {
            let mut rng = Rng::new(seed(name));
            (0..20).map(|_| (rng.next_f64() * 1000.0) as u64).collect::<Vec<_>>()
        };
        assert_ne!(times("http://a/metrics 10.0.0.1:80"), times("http://a/metrics 10.0.0.2:80"));
    }

    /// An engine that takes requests and answers none.
    async fn silent(listener: TcpListener, open: Arc<AtomicUsize>, most: Arc<AtomicUsize>, taken: Arc<AtomicUsize>) {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (open, most, taken) = (open.clone(), most.clone(), taken.clone());
            tokio::spawn(async move {
                most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                taken.fetch_add(1, Ordering::SeqCst);
                let mut sink = [0; 1024];
                while let Ok(1..) = stream.read(&mut sink).await {}
                open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    }

    #[tokio::test]
    async fn an_engine_that_does_not_answer_is_not_asked_again_before_it_has_timed_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/metrics", listener.local_addr().unwrap());
        let [open, most, taken] = [(); 3].map(|()| Arc::<AtomicUsize>::default());
        let server = tokio::spawn(silent(listener, open, most.clone(), taken.clone()));
        let mut engines = Engines::new(Clock::start());
        engines.set([url.as_str()].into_iter());
        while taken.load(Ordering::SeqCst) < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(most.load(Ordering::SeqCst), 1);
        server.abort();
    }
}
