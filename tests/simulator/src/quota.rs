//! A quota over a thousand proxies whose demand moves: how much of it is used, how soon, and whether it is ever passed.
//!
//! Allocator, leases and purses are the production code's, and every report and grant goes over the wire's messages. Time, arrivals and what
//! becomes of messages are the world's: each takes its time, some are lost, some come twice, and some proxies are cut off for a while.

use std::collections::VecDeque;
use std::time::Duration;

use headgate_core::quota::{Allocator, CLASSES, Grant, Terms};
use headgate_core::time::Timestamp;
use serde::Serialize;

use crate::rng::Rng;

mod proxy;
#[cfg(test)]
mod tests;

use proxy::{Heard, Proxy, Report};

const TICK: Duration = Duration::from_millis(10);
/// The control plane decides so often, in ticks.
const STEP_TICKS: u64 = 5;
/// Proxies report so often.
const REPORT_TICKS: u64 = 10;
/// A message takes so long at least, with the worker's tick, and up to so much more.
const DELAY_TICKS: u64 = 2;
const JITTER_TICKS: u32 = 4;
/// Over so long utilisation is told.
const WINDOW_TICKS: u64 = 50;
/// Windows before the first shift of demand.
const WARM_UP_WINDOWS: usize = 6;
/// Windows from a shift of demand to the next.
const PHASE_WINDOWS: usize = 12;
/// Windows after a shift in which grants move.
const SETTLING_WINDOWS: usize = 4;
/// When proxies are cut off in the second phase, and for how long, in windows.
const CUT: std::ops::Range<usize> = 2..8;

/// What is asked of a quota, and what goes wrong.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Proxies.
    pub proxies: usize,
    /// Of them, those that are asked for [`factor`](Self::factor) times as much; others after each shift.
    pub hot: usize,
    /// Units per second that each of the others is asked for.
    pub base: f64,
    /// How much more the hot ones are asked for.
    pub factor: f64,
    /// Capacity in parts of what is asked for.
    pub load: f64,
    /// Time for which a proxy can save, in seconds.
    pub burst_s: f64,
    /// What goes wrong.
    pub faults: Faults,
    /// Seed of arrivals and faults.
    pub seed: u64,
}

/// What becomes of messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Part that is lost.
    pub loss: f64,
    /// Part that comes a second time, late.
    pub duplication: f64,
    /// Part of the proxies that is cut off for three seconds of the second phase.
    pub cut_off: f64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Capacity, in units per second.
    pub capacity: f64,
    /// The most that was in force above it, in parts of it; 0: never.
    pub overshoot: f64,
    /// The most that was used at once above what a second's capacity and the burst allow, in parts of a second's capacity; 0: never.
    pub used_beyond_burst: f64,
    /// What was used of what could have been, from 2 s after each shift on.
    pub utilisation: f64,
    /// The same in the worst half second.
    pub worst_window: f64,
    /// Seconds after a shift from which on the mean of what follows is at least 0.98; the worst shift. `None`: never.
    pub converged_s: Option<f64>,
    /// Grants a second for each proxy.
    pub grants_per_proxy_per_s: f64,
}

/// A message on its way.
struct Flying<T> {
    due: u64,
    proxy: usize,
    message: T,
}

struct World {
    scenario: Scenario,
    terms: Terms,
    tick: u64,
    rng: Rng,
    leader: Allocator,
    proxies: Vec<Proxy>,
    heard: Vec<Heard>,
    reports: VecDeque<Flying<Report>>,
    grants: VecDeque<Flying<Grant>>,
    sent: u64,
    most_in_force: f64,
    /// Used less what the capacity has given; the least so far, and the most above that.
    balance: f64,
    least: f64,
    most_at_once: f64,
}

/// Plays a scenario: three seconds of calm, then three shifts of demand six seconds apart.
#[must_use]
pub fn play(scenario: Scenario) -> Figures {
    let mut world = World::new(scenario);
    world.windows(WARM_UP_WINDOWS, 0, 0..0);
    world.sent = 0;
    let phases: Vec<Vec<f64>> = (1..4).map(|phase| world.windows(PHASE_WINDOWS, phase, if phase == 2 { CUT } else { 0..0 })).collect();
    world.figures(&phases)
}

impl World {
    fn new(scenario: Scenario) -> Self {
        let (proxies, hot) = (scenario.proxies as f64, scenario.hot as f64);
        let capacity = scenario.load * scenario.base * (proxies - hot + hot * scenario.factor);
        let terms = Terms { capacity, overbook: 0.0, reserve: 0.0025, safe: 0.01, burst_s: scenario.burst_s, floors: [0.0; CLASSES] };
        let began = Timestamp::from_millis(1_000);
        Self {
            scenario,
            terms,
            tick: 0,
            rng: Rng::new(scenario.seed, 0),
            leader: Allocator::new(began, 1, terms, true),
            proxies: (0..scenario.proxies).map(|index| Proxy::new(index, began)).collect(),
            heard: vec![Heard::default(); scenario.proxies],
            reports: VecDeque::new(),
            grants: VecDeque::new(),
            sent: 0,
            most_in_force: 0.0,
            balance: 0.0,
            least: 0.0,
            most_at_once: 0.0,
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_000) + TICK * u32::try_from(self.tick).unwrap_or(u32::MAX)
    }

    /// Units per second that a proxy is asked for: in each phase others have the most.
    fn rate(&self, proxy: usize, phase: usize) -> f64 {
        let Scenario { hot, base, factor, .. } = self.scenario;
        let groups = (self.scenario.proxies / hot.max(1)).max(1);
        if proxy / hot.max(1) == phase * 7 % groups { base * factor } else { base }
    }

    fn is_cut_off(&self, proxy: usize, is_cut: bool) -> bool {
        is_cut && (proxy as f64) < self.scenario.faults.cut_off * self.scenario.proxies as f64
    }

    /// So many windows, in those of `cut` without some of the proxies; in each, what was used of what could have been.
    fn windows(&mut self, count: usize, phase: usize, cut: std::ops::Range<usize>) -> Vec<f64> {
        let window = |index: usize| {
            let (mut offered, mut used) = (0.0, 0.0);
            for _ in 0..WINDOW_TICKS {
                let (more_offered, more_used) = self.advance(phase, cut.contains(&index));
                offered += more_offered;
                used += more_used;
            }
            used / f64::min(offered, self.terms.capacity * TICK.as_secs_f64() * WINDOW_TICKS as f64)
        };
        (0..count).map(window).collect()
    }

    /// One tick; returns what was asked for and what was used.
    fn advance(&mut self, phase: usize, is_cut: bool) -> (f64, f64) {
        self.tick += 1;
        self.deliver(is_cut);
        let now = self.now();
        if self.tick.is_multiple_of(STEP_TICKS) {
            for issue in self.leader.step(now) {
                self.sent += 1;
                let proxy = issue.key.node.parse().unwrap_or(usize::MAX);
                for due in self.ways() {
                    self.grants.push_back(Flying { due, proxy, message: issue.grant });
                }
            }
        }
        let (mut offered, mut used, mut in_force) = (0.0, 0.0, 0.0);
        for index in 0..self.proxies.len() {
            let mean = self.rate(index, phase) * TICK.as_secs_f64();
            let requests = poisson(&mut self.rng, mean);
            let Some(proxy) = self.proxies.get_mut(index) else { continue };
            let served = proxy.serve(now, requests, self.terms.burst_s);
            offered += f64::from(requests);
            used += f64::from(served);
            in_force += proxy.in_force(now, self.terms.burst_s);
            if (self.tick + index as u64).is_multiple_of(REPORT_TICKS) {
                let message = proxy.report(now, self.terms.burst_s);
                for due in self.ways() {
                    self.reports.push_back(Flying { due, proxy: index, message });
                }
            }
        }
        self.most_in_force = self.most_in_force.max(in_force);
        self.balance += used - self.terms.capacity * TICK.as_secs_f64();
        self.least = self.least.min(self.balance);
        self.most_at_once = self.most_at_once.max(self.balance - self.least);
        (offered, used)
    }

    /// When a message arrives: not at all, once, or twice.
    fn ways(&mut self) -> impl Iterator<Item = u64> + use<> {
        let Faults { loss, duplication, .. } = self.scenario.faults;
        let is_lost = self.rng.unit() < loss;
        let is_doubled = self.rng.unit() < duplication;
        let due = self.tick + DELAY_TICKS + u64::from(self.rng.below(JITTER_TICKS));
        let late = due + 40;
        (!is_lost).then_some(due).into_iter().chain((is_doubled && !is_lost).then_some(late))
    }

    fn deliver(&mut self, is_cut: bool) {
        let (now, tick) = (self.now(), self.tick);
        for report in arrived(&mut self.reports, tick) {
            let is_cut_off = self.is_cut_off(report.proxy, is_cut);
            if let (Some(proxy), Some(heard)) = (self.proxies.get(report.proxy), self.heard.get_mut(report.proxy).filter(|_| !is_cut_off)) {
                self.leader.hear(now, proxy.key(), &heard.take(&report.message));
            }
        }
        for grant in arrived(&mut self.grants, tick) {
            let is_cut_off = self.is_cut_off(grant.proxy, is_cut);
            if let Some(proxy) = self.proxies.get_mut(grant.proxy).filter(|_| !is_cut_off) {
                proxy.accept(now, &grant.message, self.terms.burst_s);
            }
        }
    }

    fn figures(&self, phases: &[Vec<f64>]) -> Figures {
        let capacity = self.terms.capacity;
        let settled: Vec<f64> = phases.iter().flat_map(|phase| phase.iter().skip(SETTLING_WINDOWS)).copied().collect();
        let seconds = (phases.len() * PHASE_WINDOWS) as f64 * WINDOW_TICKS as f64 * TICK.as_secs_f64();
        let owed: f64 = self.proxies.iter().map(Proxy::debt).sum();
        Figures {
            capacity,
            overshoot: ((self.most_in_force - capacity) / capacity).max(0.0),
            used_beyond_burst: ((self.most_at_once - capacity * self.terms.burst_s - owed) / capacity).max(0.0),
            utilisation: mean(&settled),
            worst_window: settled.iter().copied().fold(f64::INFINITY, f64::min),
            converged_s: phases.iter().map(|phase| converged_s(phase)).try_fold(0.0, |worst: f64, at| at.map(|at| worst.max(at))),
            grants_per_proxy_per_s: self.sent as f64 / seconds / self.scenario.proxies as f64,
        }
    }
}

/// The messages that arrive by `tick`, in the order in which they were sent.
fn arrived<T>(flying: &mut VecDeque<Flying<T>>, tick: u64) -> Vec<Flying<T>> {
    let (due, later): (VecDeque<_>, VecDeque<_>) = std::mem::take(flying).into_iter().partition(|message| message.due <= tick);
    *flying = later;
    due.into()
}

/// Seconds from a shift until the mean of all windows that follow is 0.98.
fn converged_s(phase: &[f64]) -> Option<f64> {
    let at = (0..phase.len()).find(|at| mean(phase.get(*at..).unwrap_or_default()) >= 0.98)?;
    Some(at as f64 * WINDOW_TICKS as f64 * TICK.as_secs_f64())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / (values.len() as f64).max(1.0)
}

/// Requests in a time in which `mean` are expected.
fn poisson(rng: &mut Rng, mean: f64) -> u32 {
    if mean > 50.0 {
        return (mean + rng.normal() * mean.sqrt()).max(0.0) as u32;
    }
    let (floor, mut product, mut count) = (libm::exp(-mean), rng.unit(), 0);
    while product > floor {
        product *= rng.unit();
        count += 1;
    }
    count
}
