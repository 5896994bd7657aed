//! Latencies by the engines' own histograms: what stands in where neither filters nor access logs tell any.
//!
//! An engine's histogram is as fine as its buckets are: samples are taken to lie evenly in theirs. It knows neither classes nor what a proxy
//! adds to a request's time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use headgate_core::estimator::SlidingHistogram;
use headgate_core::fleet::{StreamBook, StreamView};
use headgate_core::latency::{Latencies, Metric};
use headgate_core::time::Timestamp;

use super::page::Reading;
use super::pool::PoolEngines;

/// Window of the percentile that the controller is told, and the samples that it needs.
const DECISION_WINDOW: Duration = Duration::from_secs(2);
const DECISION_SLICES: u32 = 2;
const DECISION_COUNT: u64 = 10;
/// Time between two views: they are for people.
const VIEW_EVERY: Duration = Duration::from_secs(1);

/// What an engine's histograms have gained between two readings; nothing with the first, which holds what happened on somebody else's watch.
pub(super) fn gained(before: Option<&Reading>, now: &Reading) -> Latencies {
    let mut gained = Latencies::new();
    let Some(before) = before else { return gained };
    for (metric, old, new) in [(Metric::Ttft, &before.ttft, &now.ttft), (Metric::Tpot, &before.tpot, &now.tpot)] {
        if let (Some(old), Some(new)) = (old, new) {
            new.since(old).places().for_each(|(micros, count)| gained.record_many(metric, micros, count));
        }
    }
    gained
}

/// Follows what the engines of one pool tell.
#[derive(Clone, Debug)]
pub struct EngineTimings {
    book: StreamBook,
    /// By page and network address: what has been booked.
    booked: BTreeMap<(String, SocketAddr), Arc<Latencies>>,
    tpot: SlidingHistogram,
    view: Option<(Timestamp, Arc<StreamView>)>,
}

// === impl EngineTimings ===

impl Default for EngineTimings {
    fn default() -> Self {
        let tpot = SlidingHistogram::new(DECISION_WINDOW, DECISION_SLICES);
        Self { book: StreamBook::of_engines(), booked: BTreeMap::new(), tpot, view: None }
    }
}

impl EngineTimings {
    /// Books what `pool` has told since the last time, and adds to it what that says: for people, and for the controller.
    pub fn follow(&mut self, now: Timestamp, pool: &mut PoolEngines) {
        let before = std::mem::take(&mut self.booked);
        for engine in &pool.engines {
            let Some(address) = engine.address else { continue };
            let key = (engine.url.clone(), address);
            // What an engine told before it was the pool's is not booked.
            if let Some(booked) = before.get(&key).filter(|booked| !Arc::ptr_eq(booked, &engine.state.latencies)) {
                let new = engine.state.latencies.diff(booked);
                self.book.add(now, &new);
                self.tpot.merge(now, new.of(Metric::Tpot));
            }
            self.booked.insert(key, engine.state.latencies.clone());
        }
        let recent = self.tpot.window(now);
        let p95 = recent.quantile(0.95).filter(|_| recent.count() >= DECISION_COUNT);
        if let Some(sample) = &mut pool.sample {
            sample.tpot_p95 = p95.map(Duration::from_micros);
        }
        pool.latencies = (!pool.engines.is_empty()).then(|| self.view(now));
    }

    fn view(&mut self, now: Timestamp) -> Arc<StreamView> {
        match &self.view {
            Some((at, view)) if now.since(*at) < VIEW_EVERY => view.clone(),
            _ => {
                let view = Arc::new(self.book.view(now));
                self.view = Some((now, view.clone()));
                view
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::board::{EngineBoard, LoadSource, Scrape};
    use super::super::page::Durations;
    use super::super::pool::FreezeWatch;
    use super::*;

    const URL: &str = "http://llm/metrics";

    /// An engine of which a test writes the page, and who follows it.
    struct Hand {
        board: EngineBoard,
        timings: EngineTimings,
    }

    impl Hand {
        fn new() -> Self {
            let board = EngineBoard::default();
            board.keep([URL].into_iter());
            board.set_endpoints(URL, &[Self::address()]);
            Self { board, timings: EngineTimings::default() }
        }

        fn address() -> SocketAddr {
            SocketAddr::from(([10, 0, 0, 1], 8000))
        }

        /// The page at `ms` has `count` times between tokens of 40 to 60 ms; what the pool says then.
        fn at(&mut self, ms: u64, count: u64) -> PoolEngines {
            let tpot = Some(Durations { buckets: vec![(40_000, 60_000, count)] });
            let reading = Reading { running: Some(1), tpot, ..Reading::default() };
            let scrape = Scrape { asked_at: Timestamp::from_millis(ms), took: Duration::ZERO, result: Ok(reading) };
            self.board.record(URL, Self::address(), LoadSource::Page, scrape);
            let now = Timestamp::from_millis(ms);
            let mut pool = PoolEngines::read(&self.board, now, ("llm", &[URL.to_owned()]), 0, &mut FreezeWatch::default());
            self.timings.follow(now, &mut pool);
            pool
        }
    }

    fn seen(pool: &PoolEngines) -> (u64, Option<u64>, bool) {
        let view = pool.latencies.as_ref().unwrap();
        (view.totals.of(Metric::Tpot).count(), view.recent[1].p50_us, view.tellers.engines)
    }

    #[test]
    fn what_an_engine_counted_before_it_was_read_is_not_booked_and_what_it_counts_then_is() {
        let mut hand = Hand::new();
        let first = hand.at(1000, 500);
        assert_eq!((seen(&first), first.sample.unwrap().tpot_p95), ((0, None, true), None));
        let few = hand.at(1100, 505);
        assert_eq!(few.sample.unwrap().tpot_p95, None, "five are too few to decide on");
        let p95 = hand.at(1200, 600).sample.unwrap().tpot_p95.unwrap();
        assert!((Duration::from_millis(57)..Duration::from_millis(60)).contains(&p95), "{p95:?}");
        let (count, p50, _) = seen(&hand.at(2100, 600));
        assert!(count == 100 && (48_000..52_000).contains(&p50.unwrap()), "{count} {p50:?}");
        assert!(hand.at(5000, 600).sample.unwrap().tpot_p95.is_none(), "nothing of the last two seconds");
    }

    #[test]
    fn an_engine_that_restarts_adds_what_it_counts_anew_and_takes_nothing_back() {
        let mut hand = Hand::new();
        hand.at(1000, 500);
        hand.at(1100, 520);
        hand.at(1200, 7);
        assert_eq!(seen(&hand.at(2300, 10)).0, 20 + 7 + 3);
        assert_eq!(seen(&hand.at(32_000, 900)).0, 30, "what nobody saw for half a minute is of no minute");
    }
}
