//! The engines of one pool, as one.

use std::time::Duration;

use headgate_core::overload::EngineSample;
use headgate_core::time::Timestamp;

use super::scraper::{EngineBoard, EngineState, Health};

/// One reading of all engines of a pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolEngines {
    /// The sum over the engines that are not stale; `None` when all are, or there are none.
    pub sample: Option<EngineSample>,
    /// Each engine, in the policy's order.
    pub engines: Vec<EngineView>,
}

/// One engine, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineView {
    /// Address of its page.
    pub url: String,
    /// What is known of it.
    pub state: EngineState,
    /// Age of the reading; `None` before the first.
    pub age: Option<Duration>,
    /// Whether it has left the decision.
    pub is_stale: bool,
}

// === impl PoolEngines ===

impl PoolEngines {
    /// The engines at `urls`, as the board knows them.
    pub fn read(board: &EngineBoard, now: Timestamp, urls: &[String]) -> Self {
        let engines: Vec<EngineView> = urls.iter().map(|url| EngineView::read(board, now, url)).collect();
        Self { sample: sum(&engines), engines }
    }
}

/// The sum over the engines that are not stale. It is as old as the oldest reading and as new, by its epoch, as the newest.
/// Preemptions are those of all engines: one that goes stale takes none back.
fn sum(engines: &[EngineView]) -> Option<EngineSample> {
    let fresh: Vec<&EngineState> = engines.iter().filter(|engine| !engine.is_stale).map(|engine| &engine.state).collect();
    let mut sample = EngineSample {
        at: fresh.iter().map(|state| state.asked_at).min()?,
        epoch: fresh.iter().map(|state| state.epoch).max()?,
        kv_used_tokens: 0,
        kv_total_tokens: 0,
        kv_fullest: 0.0,
        running: 0,
        waiting: 0,
        preemptions: engines.iter().map(|engine| engine.state.preemptions).sum(),
        output_tokens: 0,
        engines: u32::try_from(fresh.len()).unwrap_or(u32::MAX),
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
    Some(sample)
}

// === impl EngineView ===

impl EngineView {
    fn read(board: &EngineBoard, now: Timestamp, url: &str) -> Self {
        let state = board.get(url).unwrap_or_default();
        let age = state.reading.as_ref().map(|_| now.since(state.read_at));
        Self { url: url.to_owned(), is_stale: state.is_stale(now), age, state }
    }

    /// One word for its state.
    pub fn word(&self) -> &'static str {
        match (&self.state.health, self.is_stale) {
            (Health::Starting, _) => "starting",
            (Health::Reading, false) => "ok",
            (Health::Reading, true) => "stale",
            (Health::Failing(_), _) => "failing",
        }
    }
}
