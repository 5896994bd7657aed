//! A quota over a thousand proxies whose demand moves: how much of it is used, how soon, and whether it is ever passed.
//!
//! Allocator, leases and purses are the production code's, and every report and grant goes over the wire's messages. Time, arrivals and what
//! becomes of messages are the world's: each takes its time, some are lost, some come twice, some proxies are cut off for a while, and
//! another control plane may begin that knows nothing. After every message, grant and request what is in force and what was used is checked.

use std::ops::Range;
use std::time::Duration;

use headgate_core::quota::{Allocator, CLASSES, Grant, Terms};
use headgate_core::time::Timestamp;
use serde::Serialize;

use crate::rng::Rng;
use crate::world::Violation;

mod document;
mod figures;
mod mail;
mod proxy;
#[cfg(test)]
mod tests;

pub use self::document::{STANDARD, is_document};
pub use self::figures::{Figures, Window};
use self::mail::Mail;
use self::proxy::{Heard, Proxy, Report};

const TICK: Duration = Duration::from_millis(10);
/// The control plane decides so often, in ticks.
const STEP_TICKS: u64 = 5;
/// Proxies report so often.
const REPORT_TICKS: u64 = 10;
/// Part of the capacity by which a sum of so many rates may be wrong.
const ROUNDING: f64 = 1e-12;
/// Over so long utilisation is told.
const WINDOW_TICKS: u64 = 50;

/// What is asked of a quota, and what goes wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// Name.
    pub name: String,
    /// What it shows.
    pub summary: String,
    /// How long it is played.
    pub duration: Duration,
    /// Proxies.
    pub proxies: usize,
    /// Of them, those that are asked for [`factor`](Self::factor) times as much; others after each shift.
    pub hot: usize,
    /// Units per second that each of the others is asked for.
    pub base: f64,
    /// How much more the hot ones are asked for.
    pub factor: f64,
    /// When others become hot, in order.
    pub shifts: Vec<Duration>,
    /// Capacity in parts of what is asked for.
    pub load: f64,
    /// Time for which a proxy can save, in seconds.
    pub burst_s: f64,
    /// Part by which the sum of the leases may pass the capacity for the time of a move; 0: strict.
    pub overbook: f64,
    /// What becomes of messages.
    pub network: Network,
    /// Proxies that are cut off for a time.
    pub cuts: Vec<Cut>,
    /// When another control plane begins, which knows nothing.
    pub new_leaders: Vec<Duration>,
}

/// What becomes of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Network {
    /// Part that is lost.
    pub loss: f64,
    /// Part that comes a second time, late.
    pub duplication: f64,
}

/// Proxies that neither hear nor are heard for a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cut {
    /// From when.
    pub at: Duration,
    /// For how long.
    pub lasts: Duration,
    /// How many: the first ones.
    pub proxies: usize,
}

struct World<'a> {
    scenario: &'a Scenario,
    seed: u64,
    terms: Terms,
    tick: u64,
    events: u64,
    rng: Rng,
    /// Control planes so far.
    leaders: u64,
    leader: Allocator,
    proxies: Vec<Proxy>,
    heard: Vec<Heard>,
    reports: Mail<Report>,
    grants: Mail<Grant>,
    sent: u64,
    /// What is in force now.
    in_force: f64,
    most_in_force: f64,
    /// Used and paid, less what the capacity has given; the least so far, and the most above that.
    balance: f64,
    least: f64,
    most_at_once: f64,
}

impl Default for Scenario {
    /// Three seconds of calm, then three shifts of demand six seconds apart, to others by a factor of a hundred.
    fn default() -> Self {
        Self {
            name: "quota".to_owned(),
            summary: String::new(),
            duration: Duration::from_secs(21),
            proxies: 1000,
            hot: 20,
            base: 100.0,
            factor: 100.0,
            shifts: [3, 9, 15].map(Duration::from_secs).to_vec(),
            load: 0.8,
            burst_s: 1.0,
            overbook: 0.0,
            network: Network::default(),
            cuts: Vec::new(),
            new_leaders: Vec::new(),
        }
    }
}

/// Plays a scenario. The same seed gives the same figures, to the last bit.
///
/// # Errors
/// With the first moment at which more is in force or was used than may be.
pub fn play(scenario: &Scenario, seed: u64) -> Result<Figures, Violation> {
    let mut world = World::new(scenario, seed);
    let windows = scenario.duration.as_millis() as u64 / (TICK.as_millis() as u64 * WINDOW_TICKS);
    let windows = (0..windows).map(|_| world.window()).collect::<Result<Vec<Window>, Violation>>()?;
    Ok(world.figures(windows))
}

// === impl Scenario ===

impl Scenario {
    /// Capacity, in units per second.
    #[must_use]
    pub fn capacity(&self) -> f64 {
        let (proxies, hot) = (self.proxies as f64, self.hot as f64);
        self.load * self.base * (proxies - hot + hot * self.factor)
    }

    /// Units per second that a proxy is asked for after so many shifts.
    fn demand(&self, proxy: usize, shifts: usize) -> f64 {
        let groups = (self.proxies / self.hot.max(1)).max(1);
        if proxy / self.hot.max(1) == shifts * 7 % groups { self.base * self.factor } else { self.base }
    }

    /// Shifts before `at`.
    fn shifts_at(&self, at: Duration) -> usize {
        self.shifts.iter().filter(|shift| **shift <= at).count()
    }

    fn is_cut_off(&self, proxy: usize, at: Duration) -> bool {
        self.cuts.iter().any(|cut| proxy < cut.proxies && span(cut).contains(&at))
    }
}

fn span(cut: &Cut) -> Range<Duration> {
    cut.at..cut.at + cut.lasts
}

// === impl World ===

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, seed: u64) -> Self {
        let Scenario { burst_s, overbook, proxies, .. } = *scenario;
        let terms = Terms { capacity: scenario.capacity(), overbook, reserve: 0.0025, safe: 0.01, burst_s, floors: [0.0; CLASSES] };
        let began = Timestamp::from_millis(1_000);
        Self {
            scenario,
            seed,
            terms,
            tick: 0,
            events: 0,
            rng: Rng::new(seed, 0),
            leaders: 1,
            leader: Allocator::new(began, 1, terms, true),
            proxies: (0..proxies).map(|index| Proxy::new(index, began, burst_s)).collect(),
            heard: vec![Heard::default(); proxies],
            reports: Mail::default(),
            grants: Mail::default(),
            sent: 0,
            in_force: 0.0,
            most_in_force: 0.0,
            balance: 0.0,
            least: 0.0,
            most_at_once: 0.0,
        }
    }

    fn elapsed(&self) -> Duration {
        TICK * u32::try_from(self.tick).unwrap_or(u32::MAX)
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_000) + self.elapsed()
    }

    /// What is used in one window of what could be.
    fn window(&mut self) -> Result<Window, Violation> {
        let begins = self.elapsed();
        let (mut offered, mut used) = (0.0, 0.0);
        for _ in 0..WINDOW_TICKS {
            self.advance(&mut offered, &mut used)?;
        }
        let seconds = (self.elapsed() - begins).as_secs_f64();
        let could = f64::min(offered, self.terms.capacity * seconds);
        Ok(Window {
            at_s: begins.as_secs_f64(),
            offered_per_s: offered / seconds,
            used_per_s: used / seconds,
            in_force_per_s: self.in_force,
            utilisation: if could > 0.0 { used / could } else { 1.0 },
        })
    }

    /// One tick: messages arrive, the control plane decides, requests come, proxies report.
    fn advance(&mut self, offered: &mut f64, used: &mut f64) -> Result<(), Violation> {
        self.tick += 1;
        let now = self.now();
        // What is in force falls with time.
        self.in_force = self.proxies.iter().map(|proxy| proxy.in_force(now)).sum();
        self.check()?;
        self.begin_leader();
        self.deliver()?;
        if self.tick.is_multiple_of(STEP_TICKS) {
            self.step();
        }
        self.balance -= self.terms.capacity * (1.0 + self.terms.overbook) * TICK.as_secs_f64();
        self.least = self.least.min(self.balance);
        let shifts = self.scenario.shifts_at(self.elapsed());
        for index in 0..self.proxies.len() {
            let requests = poisson(&mut self.rng, self.scenario.demand(index, shifts) * TICK.as_secs_f64());
            let proxy = &mut self.proxies[index];
            self.balance -= proxy.paid();
            *offered += f64::from(requests);
            *used += f64::from(proxy.serve(now, requests));
            self.balance += proxy.paid();
            self.check()?;
            if (self.tick + index as u64).is_multiple_of(REPORT_TICKS) {
                let report = self.proxies[index].report(now);
                self.reports.send(self.tick, index, report, &self.scenario.network, &mut self.rng);
            }
        }
        Ok(())
    }

    /// Another control plane takes the place of the one before, whose messages stay on their way.
    fn begin_leader(&mut self) {
        let at = self.elapsed();
        if self.scenario.new_leaders.iter().any(|begins| (at - TICK..at).contains(begins)) {
            self.leaders += 1;
            self.leader = Allocator::new(self.now(), self.leaders, self.terms, false);
        }
    }

    fn step(&mut self) {
        for issue in self.leader.step(self.now()) {
            self.sent += 1;
            let proxy = issue.key.node.parse().unwrap_or(usize::MAX);
            self.grants.send(self.tick, proxy, issue.grant, &self.scenario.network, &mut self.rng);
        }
    }

    fn deliver(&mut self) -> Result<(), Violation> {
        let (now, at) = (self.now(), self.elapsed());
        for (proxy, report) in self.reports.arrived(self.tick) {
            if !self.scenario.is_cut_off(proxy, at) {
                self.leader.hear(now, self.proxies[proxy].key(), &self.heard[proxy].take(&report));
            }
        }
        for (index, grant) in self.grants.arrived(self.tick) {
            if self.scenario.is_cut_off(index, at) {
                continue;
            }
            let proxy = &mut self.proxies[index];
            self.in_force -= proxy.in_force(now);
            self.balance -= proxy.paid();
            proxy.accept(now, &grant);
            self.balance += proxy.paid();
            self.in_force += proxy.in_force(now);
            self.check()?;
        }
        Ok(())
    }

    /// After every event: no more is in force than may be, and no more was used at once than that gives and could be saved.
    fn check(&mut self) -> Result<(), Violation> {
        self.events += 1;
        self.most_in_force = self.most_in_force.max(self.in_force);
        self.most_at_once = self.most_at_once.max(self.balance - self.least);
        let limit = self.terms.capacity * (1.0 + self.terms.overbook);
        let savable = limit * self.terms.burst_s;
        let what = if self.in_force > limit * (1.0 + 1e-9) {
            format!("leases of {:.3} a second are in force, {limit:.3} may be", self.in_force)
        } else if self.balance - self.least > savable * (1.0 + 1e-9) {
            format!("{:.3} more than the rate gives were used, {savable:.3} could be saved", self.balance - self.least)
        } else {
            return Ok(());
        };
        Err(Violation {
            what,
            scenario: self.scenario.name.clone(),
            controller: "headgate".to_owned(),
            seed: self.seed,
            event: self.events,
            at_ns: self.now().as_nanos(),
        })
    }

    fn figures(&self, windows: Vec<Window>) -> Figures {
        let grants = self.sent as f64 / self.elapsed().as_secs_f64() / self.scenario.proxies as f64;
        let over = |most: f64, limit: f64| Some((most - limit) / self.terms.capacity).filter(|over| *over > ROUNDING).unwrap_or(0.0);
        Figures {
            overshoot: over(self.most_in_force, self.terms.capacity),
            used_beyond_burst: over(self.most_at_once, self.terms.capacity * self.terms.burst_s),
            grants_per_proxy_per_s: grants,
            events: self.events,
            ..Figures::of(self.scenario, windows)
        }
    }
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
