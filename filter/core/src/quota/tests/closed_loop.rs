//! A thousand proxies whose demand moves: how much of the quota is used, and how soon.

use super::*;
use crate::rng::Rng;
use std::collections::VecDeque;
use std::vec::Vec;

const PROXIES: usize = 1000;
const TICK: Duration = Duration::from_millis(10);
/// One way between proxy and control plane, with the worker's tick.
const DELAY_TICKS: u64 = 3;
/// The control plane decides so often.
const STEP_TICKS: u64 = 5;
/// Proxies report so often.
const REPORT_TICKS: u64 = 10;

/// Requests in a time in which `mean` are expected.
fn poisson(rng: &mut Rng, mean: f64) -> u32 {
    if mean > 50.0 {
        let normal = (0..12).map(|_| rng.next_f64()).sum::<f64>() - 6.0;
        return (mean + normal * libm::sqrt(mean)).max(0.0) as u32;
    }
    let (floor, mut product, mut count) = (libm::exp(-mean), rng.next_f64(), 0);
    while product > floor {
        product *= rng.next_f64();
        count += 1;
    }
    count
}

struct World {
    tick: u64,
    rng: Rng,
    terms: Terms,
    leader: Allocator,
    proxies: Vec<Proxy>,
    reports: VecDeque<(u64, HolderKey, HolderReport)>,
    grants: VecDeque<(u64, usize, Grant)>,
    sent: u64,
    /// Part of messages that is lost.
    loss: f64,
    most_in_force: f64,
}

impl World {
    fn new(terms: Terms, loss: f64) -> Self {
        let now = Timestamp::from_millis(1_000);
        Self {
            tick: 0,
            rng: Rng::new(11),
            terms,
            leader: Allocator::new(now, 1, terms, true),
            proxies: (0..PROXIES).map(|node| Proxy::new(now, node, node as u64 + 1, Duration::from_secs(node as u64))).collect(),
            reports: VecDeque::new(),
            grants: VecDeque::new(),
            sent: 0,
            loss,
            most_in_force: 0.0,
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_000) + TICK * u32::try_from(self.tick).unwrap()
    }

    /// One tick; returns what was offered and what was used.
    fn advance(&mut self, rate_of: &dyn Fn(usize) -> f64) -> (f64, f64) {
        self.tick += 1;
        let now = self.now();
        while self.reports.front().is_some_and(|(due, ..)| *due <= self.tick) {
            let (_, key, report) = self.reports.pop_front().unwrap();
            self.leader.hear(now, &key, &report);
        }
        if self.tick.is_multiple_of(STEP_TICKS) {
            for issue in self.leader.step(now) {
                self.sent += 1;
                if self.rng.next_f64() >= self.loss {
                    self.grants.push_back((self.tick + DELAY_TICKS, issue.key.node.parse().unwrap(), issue.grant));
                }
            }
        }
        while self.grants.front().is_some_and(|(due, ..)| *due <= self.tick) {
            let (_, node, grant) = self.grants.pop_front().unwrap();
            self.proxies[node].accept(now, &grant);
        }
        let (mut offered, mut used, mut in_force) = (0.0, 0.0, 0.0);
        for (node, proxy) in self.proxies.iter_mut().enumerate() {
            proxy.settle(now);
            let requests = poisson(&mut self.rng, rate_of(node) * TICK.as_secs_f64());
            offered += f64::from(requests);
            used += f64::from(proxy.ask(0, requests, 1.0));
            in_force += proxy.in_force(now);
            if (self.tick + node as u64).is_multiple_of(REPORT_TICKS) {
                let report = proxy.report(now);
                if self.rng.next_f64() >= self.loss {
                    self.reports.push_back((self.tick + DELAY_TICKS, proxy.key.clone(), report));
                }
            }
        }
        self.most_in_force = self.most_in_force.max(in_force);
        (offered, used)
    }

    /// So many windows of 500 ms: in each, what was used of what could have been.
    fn windows(&mut self, count: usize, rate_of: &dyn Fn(usize) -> f64) -> Vec<f64> {
        let window = |_| {
            let (mut offered, mut used) = (0.0, 0.0);
            for _ in 0..50 {
                let (more_offered, more_used) = self.advance(rate_of);
                offered += more_offered;
                used += more_used;
            }
            used / f64::min(offered, self.terms.capacity * 0.5)
        };
        (0..count).map(window).collect()
    }
}

/// 20 proxies of which others each time have a hundred times the demand of the rest.
fn skewed(phase: usize, base: f64) -> impl Fn(usize) -> f64 {
    move |node| if node / 20 == phase * 7 { base * 100.0 } else { base }
}

fn shifts(base: f64, load: f64, loss: f64) -> (World, Vec<Vec<f64>>) {
    let demand = base * (980.0 + 20.0 * 100.0);
    let mut world = World::new(terms(demand * load), loss);
    world.windows(6, &skewed(0, base));
    world.sent = 0;
    let phases = (1..4).map(|phase| world.windows(12, &skewed(phase, base))).collect();
    (world, phases)
}

#[test]
fn a_thousand_proxies_use_their_quota_two_seconds_after_demand_has_moved_a_hundredfold() {
    // With half of what is asked for, two thirds of the capacity are in the small shares, whose demand is known least well.
    for (load, least) in [(0.8, 0.98), (0.5, 0.97), (1.2, 0.98)] {
        let (world, phases) = shifts(100.0, load, 0.0);
        std::println!("capacity {load} of the demand: {phases:.3?}; {} grants in 18 s", world.sent);
        assert!(world.most_in_force <= world.terms.capacity, "{}", world.most_in_force);
        for phase in &phases {
            assert!(phase[4..].iter().all(|part| *part >= least), "capacity {load} of the demand: {phase:?}");
        }
        assert!(world.sent < 18 * 1000 * 2, "{}: each grant once a second, and about as many that move", world.sent);
    }
}

#[test]
fn small_proxies_lose_little_by_chance() {
    let (_, phases) = shifts(5.0, 0.8, 0.0);
    std::println!("{phases:.3?}");
    assert!(phases.iter().all(|phase| phase[4..].iter().all(|part| *part >= 0.90)), "{phases:?}");
}

#[test]
fn lost_messages_cost_time_and_no_overshoot() {
    let (world, phases) = shifts(100.0, 0.8, 0.1);
    std::println!("{phases:.3?}; {} grants in 18 s", world.sent);
    assert!(world.most_in_force <= world.terms.capacity);
    assert!(phases.iter().all(|phase| phase[6..].iter().all(|part| *part >= 0.97)), "{phases:?}");
}
