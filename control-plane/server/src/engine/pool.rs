//! The engines of one pool, as one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use headgate_core::fleet::{Ring, StreamView};
use headgate_core::level::{EngineFacts, EngineMemory};
use headgate_core::overload::{EngineSample, Paces};
use headgate_core::time::Timestamp;

use super::board::{EngineBoard, EngineState, Health, PageEndpoints};
use super::page::Reading;

/// Requests of the pool that must have ended for each of its engines, while one of them stood still, before that one counts as frozen:
/// were they balanced, its part of them would have been none only once in e^10 times.
const FROZEN_AFTER_EACH: u64 = 10;

/// What stands in place of a page's address and of a kind of engine where only responses say anything.
const IN_BAND: &str = "orca";

/// One reading of all engines of a pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolEngines {
    /// The sum over the engines that are neither stale nor frozen; `None` when all are, or there are none.
    pub sample: Option<EngineSample>,
    /// Each engine, in the policy's order and then by network address.
    pub engines: Vec<EngineView>,
    /// Latencies by the engines' own histograms; `None` without engines, and until they are followed ([`super::EngineTimings`]).
    pub latencies: Option<Arc<StreamView>>,
    /// Index of the engine that is worst off of those in the sample: a sum over unlike engines hides it.
    pub worst: Option<usize>,
}

/// One engine, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineView {
    /// Address of its page; `orca` where it is known by its responses alone.
    pub url: String,
    /// Its network address; `None` while the name in the URL stands for none.
    pub address: Option<SocketAddr>,
    /// What is known of it.
    pub state: EngineState,
    /// Why its name could not be resolved, if so.
    pub unresolved: Option<String>,
    /// Age of the reading; `None` before the first.
    pub age: Option<Duration>,
    /// Whether its reading is too old to decide on.
    pub is_stale: bool,
    /// Whether its figures stand still although the pool serves requests.
    pub is_frozen: bool,
}

/// How fast each engine of a pool is, by its page and address.
pub type EnginePaces = Paces<(String, SocketAddr)>;

/// Finds engines whose page is answered but no longer written: a value that cannot be constant is.
///
/// That figures stand still for three of their own periods is not enough: a long step makes them do so too. But while requests of the pool
/// end, somebody's counters must move: where the only engine counts its tokens at every step one such request is proof, elsewhere ten for
/// each engine.
#[derive(Clone, Debug, Default)]
pub struct FreezeWatch {
    /// Requests of the pool that had ended when an engine had stood still for so long that those that end later speak against it.
    still_since: BTreeMap<(String, SocketAddr), u64>,
}

// === impl PoolEngines ===

impl PoolEngines {
    /// The engines of `pool`, by their pages at `urls` and by their responses, as the board knows them. `completed` are the requests of the
    /// pool that ended well, cumulative.
    pub fn read(board: &EngineBoard, now: Timestamp, (pool, urls): (&str, &[String]), completed: u64, watch: &mut FreezeWatch) -> Self {
        let mut in_band = board.in_band(pool);
        let mut engines: Vec<EngineView> = urls.iter().flat_map(|url| EngineView::of_page(board, now, url, &mut in_band)).collect();
        engines.extend(in_band.into_iter().map(|(address, state)| EngineView::new(now, IN_BAND, Some(address), state)));
        watch.look(&mut engines, completed);
        let worst = engines.iter().enumerate().filter(|(_, engine)| engine.counts()).max_by(|(_, a), (_, b)| load(a).total_cmp(&load(b)));
        Self { sample: sum(&engines), latencies: None, worst: worst.map(|(index, _)| index), engines }
    }

    /// Has `paces` follow the engines, and says with the sample how much slower the slowest is. An engine that does not count its tokens takes
    /// no part.
    pub fn compare(&mut self, paces: &mut EnginePaces) {
        let Some(sample) = &mut self.sample else { return };
        let pace = |EngineView { url, address, state, .. }: &EngineView| {
            let reading = state.reading.as_ref().filter(|reading| reading.output_tokens.is_some())?;
            Some(((url.clone(), (*address)?), state.asked_at, reading.running.unwrap_or(0), state.output_tokens))
        };
        paces.read(self.engines.iter().filter(|engine| engine.counts()).filter_map(pace));
        sample.slowest = paces.slowest();
    }

    /// The engines that count, on a ring by their addresses, each as wide as it is fast. Where two pages are of one address it is one engine.
    pub fn ring(&self, paces: &EnginePaces) -> Ring {
        let widths: BTreeMap<&(String, SocketAddr), f64> = paces.widths().collect();
        let place = |EngineView { url, address, .. }: &EngineView| {
            let address = (*address)?;
            Some((address.to_string(), widths.get(&(url.clone(), address)).copied().unwrap_or(1.0)))
        };
        Ring::of(self.engines.iter().filter(|engine| engine.counts()).filter_map(place))
    }

    /// What the engines say of memory: whether NVML's figure means anything, and how full the fullest KV cache is.
    pub fn memory(&self) -> EngineFacts {
        let read: Vec<&Reading> =
            self.engines.iter().filter(|engine| engine.counts()).filter_map(|engine| engine.state.reading.as_ref()).collect();
        let kinds = || read.iter().filter_map(|reading| reading.engine);
        // One that allocates up front makes its device's figure worthless, whatever the others do.
        let up_front = kinds().find(|kind| kind.preallocates() == Some(true)).or_else(|| kinds().next());
        let Some(sample) = &self.sample else { return EngineFacts::Unread };
        let tells = read.iter().any(|reading| reading.kv_fullest.is_some());
        // A response does not say of what kind the engine is; one that tells how full its cache is has allocated it.
        let (engine, preallocates) = up_front.map_or((IN_BAND, None), |kind| (kind.as_str(), kind.preallocates()));
        EngineFacts::Read(EngineMemory { engine, preallocates, kv_fullest: tells.then_some((sample.at, sample.kv_fullest)) })
    }

    /// The engine that is worst off.
    pub fn worst(&self) -> Option<&EngineView> {
        self.engines.get(self.worst?)
    }
}

/// How hard pressed an engine is: the fuller of its KV cache, 0 to 1, and its queue against its batch.
fn load(engine: &EngineView) -> f64 {
    let Some(reading) = &engine.state.reading else { return 0.0 };
    let queue = reading.waiting.unwrap_or(0) as f64 / reading.running.unwrap_or(0).max(1) as f64;
    reading.kv_fullest.unwrap_or(0.0).max(queue)
}

/// The sum over the engines that count. It is as old as the oldest reading and as new, by its epoch, as the newest.
/// What is cumulative is that of all engines: one that goes stale takes none back.
fn sum(engines: &[EngineView]) -> Option<EngineSample> {
    let fresh: Vec<&EngineState> = engines.iter().filter(|engine| engine.counts()).map(|engine| &engine.state).collect();
    let mut sample = EngineSample {
        at: fresh.iter().map(|state| state.asked_at).min()?,
        epoch: fresh.iter().map(|state| state.epoch).max()?,
        kv_used_tokens: 0,
        kv_total_tokens: 0,
        kv_fullest: 0.0,
        running: 0,
        waiting: 0,
        preemptions: engines.iter().map(|engine| engine.state.preemptions).sum(),
        output_tokens: engines.iter().map(|engine| engine.state.output_tokens).sum(),
        engines: u32::try_from(fresh.len()).unwrap_or(u32::MAX),
        slowest: 1.0,
        tpot_p95: None,
    };
    for reading in fresh.iter().filter_map(|state| state.reading.as_ref()) {
        sample.running = sample.running.saturating_add(reading.running.unwrap_or(0));
        sample.waiting = sample.waiting.saturating_add(reading.waiting.unwrap_or(0));
        sample.kv_fullest = sample.kv_fullest.max(reading.kv_fullest.unwrap_or(0.0));
        let total = reading.kv_total_tokens.unwrap_or(0);
        sample.kv_total_tokens = sample.kv_total_tokens.saturating_add(total);
        sample.kv_used_tokens = sample.kv_used_tokens.saturating_add((reading.kv_use.unwrap_or(0.0) * total as f64) as u64);
    }
    // A sum that lacks an engine would say that the pool is smaller and fuller than it is.
    if fresh.iter().any(|state| state.reading.as_ref().is_none_or(|reading| reading.kv_total_tokens.is_none())) {
        (sample.kv_used_tokens, sample.kv_total_tokens) = (0, 0);
    }
    // A rate of tokens needs those of every engine.
    if fresh.iter().any(|state| state.reading.as_ref().is_none_or(|reading| reading.output_tokens.is_none())) {
        sample.output_tokens = 0;
    }
    Some(sample)
}

// === impl EngineView ===

impl EngineView {
    fn new(now: Timestamp, url: &str, address: Option<SocketAddr>, state: EngineState) -> Self {
        Self {
            url: url.to_owned(),
            address,
            is_stale: state.is_stale(now),
            age: state.reading.as_ref().map(|_| now.since(state.read_at)),
            unresolved: None,
            is_frozen: false,
            state,
        }
    }

    /// The engines of a page, each with what it said in its responses, which is taken out of `in_band`.
    fn of_page(board: &EngineBoard, now: Timestamp, url: &str, in_band: &mut BTreeMap<SocketAddr, EngineState>) -> Vec<Self> {
        let PageEndpoints { unresolved, engines } = board.get(url).unwrap_or_default();
        let view = |address, state| Self { unresolved: unresolved.clone(), ..Self::new(now, url, address, state) };
        if engines.is_empty() {
            return vec![view(None, EngineState::default())];
        }
        let mut merged = |(address, state): (SocketAddr, EngineState)| {
            let said = in_band.remove(&address);
            let state = match said {
                Some(said) => state.merged(&said, now),
                None => state,
            };
            view(Some(address), state)
        };
        engines.into_iter().map(&mut merged).collect()
    }

    /// Whether the reading takes part in the decision.
    pub fn counts(&self) -> bool {
        !self.is_stale && !self.is_frozen
    }

    /// One word for its state.
    pub fn word(&self) -> &'static str {
        match (&self.state.health, self.is_stale, self.is_frozen) {
            (Health::Starting, ..) if self.unresolved.is_some() => "unresolved",
            (Health::Starting, ..) => "starting",
            (Health::Reading, false, false) => "ok",
            (Health::Reading, false, true) => "frozen",
            (Health::Reading, true, _) => "stale",
            (Health::Failing(_), ..) => "failing",
        }
    }
}

// === impl FreezeWatch ===

impl FreezeWatch {
    fn look(&mut self, engines: &mut [EngineView], completed: u64) {
        let count = engines.len() as u64;
        let before = std::mem::take(&mut self.still_since);
        for engine in engines {
            let Some(address) = engine.address.filter(|_| engine.state.needs_witness() && !engine.is_stale) else { continue };
            let key = (engine.url.clone(), address);
            let since = before.get(&key).copied().unwrap_or(completed);
            self.still_since.insert(key, since);
            let counts_steps = engine.state.reading.as_ref().is_some_and(|reading| reading.output_tokens.is_some());
            let needed = if count == 1 && counts_steps { 1 } else { FROZEN_AFTER_EACH * count };
            engine.is_frozen = engine.state.stands_still() && completed.saturating_sub(since) >= needed;
        }
    }
}
