//! What is known of every engine: the board on which the tasks write and from which the control loop reads.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use headgate_core::latency::Latencies;
use headgate_core::time::Timestamp;

use super::page::Reading;
use super::scrape::ScrapeError;
use super::timings::gained as gained_latencies;

mod in_band;

use self::in_band::LoadListener;

/// Time between two readings of an engine.
pub const PERIOD: Duration = Duration::from_millis(100);
/// Age at which a reading leaves the decision: three periods.
pub const STALE_AFTER: Duration = Duration::from_millis(300);
/// Age at which what an engine said in a response leaves the decision. It is as old as the response at most, and as many come as there are
/// responses: an engine that answers nobody for a second says nothing.
pub const IN_BAND_STALE_AFTER: Duration = Duration::from_secs(1);
/// Engines that are read at once, over all policies.
pub const MAX_ENGINES: usize = 1024;
/// Periods of its own that an engine's figures may stand still before it may be frozen.
const STILL_PERIODS: u32 = 3;
/// Periods of its own after which requests that are reported to have ended may be a witness: those that ended before its figures changed
/// last have been reported by then.
const WITNESS_PERIODS: u32 = 2;
/// What is left of the longest standstill after each change: an engine that had a long step once is not trusted for ever.
const STILL_MEMORY: f64 = 0.98;

/// What is known of one engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineState {
    /// How it is known.
    pub source: LoadSource,
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
    /// Tokens of output seen since this program began, without those made while the engine could not be read.
    pub output_tokens: u64,
    /// Latencies that its own histograms have told since this program began, without those of a time in which it could not be read.
    pub latencies: Arc<Latencies>,
    /// Times that its counters began anew: restarts.
    pub restarts: u64,
    /// When a reading last differed from the one before.
    pub changed_at: Timestamp,
    /// Longest time that its figures stood still while it worked, and moved again after all. Some engines publish every step, others once
    /// a second.
    pub longest_still: Duration,
    /// How long the last reading took.
    pub took: Duration,
    /// Good and failed readings so far.
    pub readings: u64,
    /// Failed readings so far.
    pub failures: u64,
}

/// How an engine's load is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoadSource {
    /// By its metrics page.
    #[default]
    Page,
    /// By its responses (ORCA), which are newer than its page or take its place.
    InBand,
    /// By a recording of its page.
    Tape,
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

/// What is known of all engines, by the address of their page and the network address behind it. All clones are one board.
#[derive(Clone, Debug, Default)]
pub struct EngineBoard(Arc<Mutex<Board>>);

#[derive(Debug, Default)]
struct Board {
    pages: BTreeMap<String, PageEndpoints>,
    /// By pool: what engines have said in their responses.
    in_band: BTreeMap<String, BTreeMap<SocketAddr, EngineState>>,
    /// By `node.id`: who reads the loads in the proxy's reports.
    listeners: BTreeMap<String, LoadListener>,
    epoch: u64,
}

/// The engines behind one address of a page.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PageEndpoints {
    /// Why its name could not be resolved the last time; `None`: it could, or was not tried yet.
    pub unresolved: Option<String>,
    /// The engines, by network address.
    pub engines: BTreeMap<SocketAddr, EngineState>,
}

/// One attempt to read an engine's page, now or on a tape.
pub(crate) struct Scrape {
    pub(crate) asked_at: Timestamp,
    pub(crate) took: Duration,
    pub(crate) result: Result<Reading, ScrapeError>,
}

// === impl LoadSource ===

impl LoadSource {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Page => "scrape",
            Self::InBand => "orca",
            Self::Tape => "tape",
        }
    }
}

// === impl EngineBoard ===

impl EngineBoard {
    /// What is known of the engines at `url`; `None` when it is not read.
    pub fn get(&self, url: &str) -> Option<PageEndpoints> {
        self.lock().pages.get(url).cloned()
    }

    /// What the engine that serves at `address` says of itself; `None` when nobody has read it lately. Its page may be on another port: then
    /// it is the only engine of that machine.
    pub fn reading_at(&self, now: Timestamp, address: SocketAddr) -> Option<Reading> {
        let board = self.lock();
        let known = || board.pages.values().flat_map(|page| &page.engines).chain(board.in_band.values().flatten());
        // Whether it is fresh or not: an engine that says nothing must not get its neighbour's load.
        let at = match known().any(|(at, _)| *at == address) {
            true => address,
            false => {
                let neighbours: BTreeSet<SocketAddr> = known().map(|(at, _)| *at).filter(|at| at.ip() == address.ip()).collect();
                neighbours.first().copied().filter(|_| neighbours.len() == 1)?
            }
        };
        let fresh = known().filter(|(other, state)| **other == at && !state.is_stale(now) && !state.stands_still());
        fresh.max_by_key(|(_, state)| state.read_at)?.1.reading.clone()
    }

    /// Keeps exactly these pages.
    pub(super) fn keep<'a>(&self, urls: impl Iterator<Item = &'a str> + Clone) {
        let mut board = self.lock();
        board.pages.retain(|page, _| urls.clone().any(|url| url == page));
        for url in urls {
            board.pages.entry(url.to_owned()).or_default();
        }
    }

    /// The name behind `url` stands for these addresses now; engines that stay keep what is known of them. Returns those that are read,
    /// which are fewer when there are more than [`MAX_ENGINES`] on the board.
    pub(super) fn set_endpoints(&self, url: &str, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut board = self.lock();
        let elsewhere: usize = board.pages.iter().filter(|(page, _)| *page != url).map(|(_, page)| page.engines.len()).sum();
        let Some(page) = board.pages.get_mut(url) else { return Vec::new() };
        page.unresolved = None;
        let kept: Vec<SocketAddr> = addresses.iter().copied().take(MAX_ENGINES.saturating_sub(elsewhere)).collect();
        page.engines.retain(|address, _| kept.contains(address));
        for address in &kept {
            page.engines.entry(*address).or_default();
        }
        kept
    }

    /// The name behind `url` could not be resolved: the engines that are known stay.
    pub(super) fn set_unresolved(&self, url: &str, problem: String) {
        if let Some(page) = self.lock().pages.get_mut(url) {
            page.unresolved = Some(problem);
        }
    }

    /// Takes the outcome of one attempt. An engine that is no longer wanted is ignored.
    pub(super) fn record(&self, url: &str, address: SocketAddr, source: LoadSource, scrape: Scrape) {
        let mut board = self.lock();
        let epoch = board.epoch + 1;
        let Some(state) = board.pages.get_mut(url).and_then(|page| page.engines.get_mut(&address)) else { return };
        let is_good = scrape.result.is_ok();
        state.source = source;
        state.take(url, address, scrape, epoch);
        if is_good {
            board.epoch = epoch;
        }
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
        let most = match self.source {
            LoadSource::Page | LoadSource::Tape => STALE_AFTER,
            LoadSource::InBand => IN_BAND_STALE_AFTER,
        };
        self.reading.is_none() || now.since(self.read_at) > most
    }

    /// Whether its figures have stood still for three of its own periods. That alone is no fault: an engine without work has nothing to
    /// change, and one in a long step neither. What comes with a response is written for it, and the same where requests come one by one.
    pub fn stands_still(&self) -> bool {
        self.has_been_still_for(STILL_PERIODS)
    }

    /// Whether its figures have stood still for so long that requests of the pool that end from now on speak against it.
    pub fn needs_witness(&self) -> bool {
        self.has_been_still_for(WITNESS_PERIODS)
    }

    fn has_been_still_for(&self, periods: u32) -> bool {
        self.source != LoadSource::InBand
            && self.reading.is_some()
            && self.read_at.since(self.changed_at) > periods * self.longest_still.max(PERIOD)
    }

    /// The same engine by its page and by its responses: what the newer one says, and what only a page says as long as that is fresh.
    pub fn merged(self, in_band: &Self, now: Timestamp) -> Self {
        let Some(said) = in_band.reading.as_ref().filter(|_| in_band.read_at > self.read_at && !in_band.is_stale(now)) else {
            return self;
        };
        let page = if self.is_stale(now) { Reading::default() } else { self.reading.unwrap_or_default() };
        let reading = Reading {
            kv_use: said.kv_use.or(page.kv_use),
            kv_fullest: said.kv_fullest.or(page.kv_fullest),
            waiting: said.waiting.or(page.waiting),
            running: said.running.or(page.running),
            kv_total_tokens: said.kv_total_tokens.or(page.kv_total_tokens),
            ..page
        };
        let (source, health, asked_at, read_at) = (LoadSource::InBand, Health::Reading, in_band.asked_at, in_band.read_at);
        Self { source, health, reading: Some(reading), asked_at, read_at, epoch: in_band.epoch, ..self }
    }

    fn take(&mut self, url: &str, address: SocketAddr, scrape: Scrape, epoch: u64) {
        self.took = scrape.took;
        self.readings += 1;
        match scrape.result {
            Ok(reading) => {
                if self.health != Health::Reading {
                    let engine = reading.engine.map_or("", super::EngineKind::as_str);
                    tracing::info!(url, %address, engine, "the engine is read");
                }
                self.health = Health::Reading;
                self.follow(scrape.asked_at, scrape.asked_at + scrape.took, reading);
                self.epoch = epoch;
            }
            Err(error) => {
                if !matches!(&self.health, Health::Failing(before) if *before == error) {
                    tracing::warn!(url, %address, %error, "the engine cannot be read");
                }
                self.failures += 1;
                self.health = Health::Failing(error);
            }
        }
    }

    fn follow(&mut self, asked_at: Timestamp, read_at: Timestamp, reading: Reading) {
        let before = self.reading.replace(reading);
        let reading = self.reading.as_ref();
        if before.as_ref() != reading {
            // What was seen of an engine without work says nothing of how often it publishes.
            let worked = before.as_ref().is_some_and(|before| before.running.unwrap_or(0) > 0);
            let still = if worked { read_at.since(self.changed_at) } else { Duration::ZERO };
            self.longest_still = self.longest_still.mul_f64(STILL_MEMORY).max(still.min(MAX_STILL));
            self.changed_at = read_at;
        }
        let gain = |of: fn(&Reading) -> Option<u64>| gained(before.as_ref().and_then(of), reading.and_then(of));
        let (preemptions, tokens) = (gain(|reading| reading.preemptions), gain(|reading| reading.output_tokens));
        self.preemptions = self.preemptions.saturating_add(preemptions.count());
        // Tokens make a rate, which what was not seen would falsify.
        if read_at.since(self.read_at) <= STALE_AFTER {
            self.output_tokens = self.output_tokens.saturating_add(tokens.count());
        }
        let latencies = reading.map(|reading| gained_latencies(before.as_ref(), reading)).unwrap_or_default();
        if latencies.count() > 0 && read_at.since(self.read_at) <= LONGEST_GAP {
            Arc::make_mut(&mut self.latencies).merge(&latencies);
        }
        self.restarts += u64::from(matches!(preemptions, Gain::Anew(_)) || matches!(tokens, Gain::Anew(_)));
        (self.asked_at, self.read_at) = (asked_at, read_at);
    }
}

/// Longest time between two readings of which the difference is of now.
const LONGEST_GAP: Duration = Duration::from_secs(10);
/// Longest standstill that is learned: an engine that hung for a minute must not be believed for three.
const MAX_STILL: Duration = Duration::from_secs(5);

/// What a counter has gained between two readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gain {
    More(u64),
    /// It fell: the engine began anew, and this is what it has counted since.
    Anew(u64),
}

// === impl Gain ===

impl Gain {
    fn count(self) -> u64 {
        match self {
            Self::More(count) | Self::Anew(count) => count,
        }
    }
}

/// The gain of a counter; what came before the first reading happened on somebody else's watch.
fn gained(before: Option<u64>, now: Option<u64>) -> Gain {
    match (before, now) {
        (Some(before), Some(now)) => now.checked_sub(before).map_or(Gain::Anew(now), Gain::More),
        _ => Gain::More(0),
    }
}
