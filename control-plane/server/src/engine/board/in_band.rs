//! What engines say of their load in their responses (ORCA), as the filters have read it.
//!
//! A report comes with a response, so there are as many as responses, and none from an idle engine. It is younger than the time that the
//! filter names, on the proxy's monotonic clock.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use headgate_core::fleet::MAX_POLICIES_PER_PROXY;
use headgate_core::time::Timestamp;
use headgate_protos::v1;

use super::super::page::Reading;
use super::{EngineBoard, EngineState, Health, LoadSource, MAX_ENGINES};
use crate::device::PeerClock;

/// Worker VMs of one proxy that are read from one report.
const MAX_WORKERS: usize = 128;
/// Proxies whose reports are followed.
const MAX_PROXIES: usize = 16_384;
/// How much older than the newest a report may be without being of another clock: that of a proxy that came back on another machine.
const LATE_NS: u64 = 10_000_000_000;
/// Endpoints that are read from the report of one policy in one worker.
const MAX_ENDPOINTS: usize = 64;

/// Reads the loads in the reports of one proxy, each once however often it is repeated.
#[derive(Debug, Default)]
pub(super) struct LoadListener {
    clock: PeerClock,
    /// When the newest report was made, on the proxy's clock.
    newest_ns: u64,
    /// The same of the newest load of each endpoint of each pool. Bounded by [`MAX_ENGINES`].
    heard: BTreeMap<(String, SocketAddr), u64>,
}

// === impl LoadListener ===

impl LoadListener {
    fn take(&mut self, now: Timestamp, report: &v1::LoadReport, board: &EngineBoard) {
        let sent_ns = report.workers.iter().map(|worker| worker.at_ns).max().unwrap_or(0);
        if sent_ns.saturating_add(LATE_NS) < self.newest_ns {
            *self = Self::default();
        }
        // A report that lacks its newest worker is no sign of another clock.
        if sent_ns >= self.newest_ns {
            self.newest_ns = sent_ns;
            self.clock.observe(now, sent_ns);
        }
        let workers = report.workers.iter().take(MAX_WORKERS);
        for pool in workers.flat_map(|worker| worker.pools.iter().take(MAX_POLICIES_PER_PROXY)) {
            for load in pool.endpoint_loads.iter().take(MAX_ENDPOINTS) {
                if let Some((address, reading)) = read(load)
                    && self.is_new(&pool.pool, address, load.made_after_ns)
                {
                    let made_after = self.clock.to_ours(now, load.made_after_ns, std::time::Duration::ZERO);
                    board.record_in_band(&pool.pool, address, made_after, reading);
                }
            }
        }
    }

    fn is_new(&mut self, pool: &str, address: SocketAddr, made_after_ns: u64) -> bool {
        let key = (pool.to_owned(), address);
        match self.heard.get_mut(&key) {
            Some(before) if made_after_ns <= *before => false,
            Some(before) => {
                *before = made_after_ns;
                true
            }
            None => {
                if self.heard.len() >= MAX_ENGINES {
                    // Endpoints come and go; those that stay are heard again.
                    self.heard.clear();
                }
                self.heard.insert(key, made_after_ns);
                true
            }
        }
    }
}

/// What one endpoint says; `None` without an address or any figure that can be.
fn read(load: &v1::EndpointLoad) -> Option<(SocketAddr, Reading)> {
    let kv_use = load.kv_cache_use.filter(|part| (0.0..=1.0).contains(part));
    let reading = Reading {
        kv_use,
        kv_fullest: kv_use,
        waiting: load.waiting,
        running: load.running,
        kv_total_tokens: load.kv_total_tokens,
        ..Reading::default()
    };
    let address = load.endpoint.parse().ok()?;
    (reading != Reading::default()).then_some((address, reading))
}

// === impl EngineBoard ===

impl EngineBoard {
    /// Keeps the loads of exactly these pools.
    pub fn keep_in_band<'a>(&self, pools: impl Iterator<Item = &'a str>) {
        let mut board = self.lock();
        let mut before = std::mem::take(&mut board.in_band);
        board.in_band = pools.map(|pool| (pool.to_owned(), before.remove(pool).unwrap_or_default())).collect();
    }

    /// Takes what `report`, which arrived at `now`, says of the engines' loads.
    pub fn take_report(&self, now: Timestamp, report: &v1::LoadReport) {
        let tells = |worker: &v1::WorkerReport| worker.pools.iter().any(|pool| !pool.endpoint_loads.is_empty());
        if !report.workers.iter().any(tells) {
            return;
        }
        let mut listener = self.lock().listeners.remove(&report.node_id).unwrap_or_default();
        listener.take(now, report, self);
        let mut board = self.lock();
        if board.listeners.len() >= MAX_PROXIES {
            // Proxies come and go; one that stays is listened to anew.
            board.listeners.clear();
        }
        board.listeners.insert(report.node_id.clone(), listener);
    }

    /// What the engines of a pool have said in their responses; empty where the policy does not ask for it.
    pub fn in_band(&self, pool: &str) -> BTreeMap<SocketAddr, EngineState> {
        self.lock().in_band.get(pool).cloned().unwrap_or_default()
    }

    /// Takes a load that was made after `made_after`; one that is older than what is known of the engine changes nothing, and so does one of a
    /// pool that nobody asked for.
    fn record_in_band(&self, pool: &str, address: SocketAddr, made_after: Timestamp, reading: Reading) {
        let mut board = self.lock();
        let epoch = board.epoch + 1;
        let Some(engines) = board.in_band.get_mut(pool) else { return };
        if !engines.contains_key(&address) && engines.len() >= MAX_ENGINES {
            // The one that was silent longest is the one that is gone.
            let oldest = engines.iter().min_by_key(|(_, state)| state.read_at).map(|(address, _)| *address);
            oldest.map(|address| engines.remove(&address));
        }
        let state = engines.entry(address).or_insert_with(|| EngineState { source: LoadSource::InBand, ..EngineState::default() });
        if state.reading.is_some() && made_after <= state.asked_at {
            return;
        }
        (state.health, state.epoch) = (Health::Reading, epoch);
        state.readings += 1;
        state.follow(made_after, made_after, reading);
        board.epoch = epoch;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: &str = "llm";

    fn report(at_ms: u64, loads: &[(&str, u64, f64)]) -> v1::LoadReport {
        let load = |(endpoint, made_ms, kv): &(&str, u64, f64)| v1::EndpointLoad {
            endpoint: (*endpoint).to_owned(),
            made_after_ns: made_ms * 1_000_000,
            kv_cache_use: Some(*kv),
            waiting: Some(3),
            ..v1::EndpointLoad::default()
        };
        let endpoint_loads = loads.iter().map(load).collect();
        let pool = v1::PoolReport { pool: POOL.to_owned(), endpoint_loads, ..v1::PoolReport::default() };
        let worker = v1::WorkerReport { at_ns: at_ms * 1_000_000, pools: vec![pool], ..v1::WorkerReport::default() };
        v1::LoadReport { workers: vec![worker], ..v1::LoadReport::default() }
    }

    fn ms(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    fn asked_board() -> EngineBoard {
        let board = EngineBoard::default();
        board.keep_in_band([POOL].into_iter());
        board
    }

    #[test]
    fn a_load_is_as_old_as_the_proxy_says_on_its_own_clock() {
        let (board, mut listener) = (asked_board(), LoadListener::default());
        // The proxy's clock is 5 s ahead; the load was made 40 ms before the report.
        listener.take(ms(1000), &report(6000, &[("10.0.0.1:80", 5960, 0.5)]), &board);
        let engines = board.in_band(POOL);
        let state = &engines[&"10.0.0.1:80".parse().unwrap()];
        assert_eq!((state.asked_at, state.epoch, state.readings), (ms(960), 1, 1));
        assert!(!state.is_stale(ms(1960)) && state.is_stale(ms(1961)), "it is believed for a second");
    }

    #[test]
    fn a_load_counts_once_however_often_it_is_reported() {
        let (board, mut listener) = (asked_board(), LoadListener::default());
        let of = |board: &EngineBoard| board.in_band(POOL).into_values().next().unwrap();
        for n in 0..5 {
            // Each report takes another time on its way.
            listener.take(ms(1000 + n * 100 + n % 3), &report(1000 + n * 100, &[("10.0.0.1:80", 990, 0.5)]), &board);
        }
        assert_eq!((of(&board).readings, of(&board).epoch), (1, 1));
        listener.take(ms(1600), &report(1600, &[("10.0.0.1:80", 1590, 0.7)]), &board);
        assert_eq!((of(&board).readings, of(&board).epoch), (2, 2));
    }

    #[test]
    fn what_nobody_asked_for_or_cannot_be_leaves_no_trace() {
        let (board, mut listener) = (EngineBoard::default(), LoadListener::default());
        listener.take(ms(1000), &report(1000, &[("10.0.0.1:80", 990, 0.5)]), &board);
        assert!(board.in_band(POOL).is_empty(), "no policy asks for it");
        let (board, mut listener) = (asked_board(), LoadListener::default());
        listener.take(ms(1000), &report(1000, &[("nowhere", 990, 0.5), ("10.0.0.1", 990, 0.5)]), &board);
        assert!(board.in_band(POOL).is_empty());
        listener.take(ms(1001), &report(1001, &[("10.0.0.1:80", 990, f64::NAN)]), &board);
        assert_eq!(board.in_band(POOL).into_values().next().unwrap().reading.unwrap().kv_use, None);
    }

    #[test]
    fn engines_are_bounded_and_the_one_silent_longest_makes_room() {
        let (board, mut listener) = (asked_board(), LoadListener::default());
        for n in 0..2 * MAX_ENGINES as u64 {
            let endpoint = format!("10.0.{}.{}:80", n / 256, n % 256);
            listener.take(ms(1000 + n), &report(1000 + n, &[(&endpoint, 1000 + n, 0.5)]), &board);
        }
        let engines = board.in_band(POOL);
        assert_eq!(engines.len(), MAX_ENGINES);
        assert!(engines.contains_key(&"10.0.7.255:80".parse().unwrap()) && !engines.contains_key(&"10.0.0.0:80".parse().unwrap()));
    }
}
