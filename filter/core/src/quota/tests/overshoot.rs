//! Strict is strict: whatever happens to messages and to those who send them.

use super::*;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

const CAPACITY: f64 = 1000.0;
const PROXIES: usize = 5;

#[derive(Clone, Debug)]
enum Act {
    /// Time passes.
    Wait(u64),
    /// One proxy reports; the report is on its way.
    Report(usize),
    /// Any message that is on its way arrives; with `true` it stays on its way as well.
    ArriveAtLeader(prop::sample::Index, bool),
    ArriveAtProxy(prop::sample::Index, bool),
    LoseReport(prop::sample::Index),
    LoseGrant(prop::sample::Index),
    /// The leader grants.
    Step,
    /// One proxy is asked for so much, in requests of one unit.
    Ask(usize, usize, u32),
    /// One proxy is asked for one request of so many units, which may be more than it can save.
    AskLarge(usize, usize, u32),
    /// One proxy starts anew and knows nothing.
    RestartProxy(usize),
    /// Another leader begins and knows nothing; what the one before has sent is on its way.
    NewLeader,
    /// Everybody who is not cut off reports, is heard and answered, so many times 100 ms.
    Calm(usize, u8),
}

fn act() -> impl Strategy<Value = Act> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (1..300_u64).prop_map(Act::Wait),
        1 => (1_000..9_000_u64).prop_map(Act::Wait),
        4 => (0..PROXIES).prop_map(Act::Report),
        4 => (index(), any::<bool>()).prop_map(|(index, again)| Act::ArriveAtLeader(index, again)),
        4 => (index(), any::<bool>()).prop_map(|(index, again)| Act::ArriveAtProxy(index, again)),
        1 => index().prop_map(Act::LoseReport),
        1 => index().prop_map(Act::LoseGrant),
        4 => Just(Act::Step),
        4 => (0..PROXIES, 0..3_usize, 1..2000_u32).prop_map(|(proxy, class, requests)| Act::Ask(proxy, class, requests)),
        1 => (0..PROXIES, 0..3_usize, 1..5000_u32).prop_map(|(proxy, class, cost)| Act::AskLarge(proxy, class, cost)),
        1 => (0..PROXIES).prop_map(Act::RestartProxy),
        1 => Just(Act::NewLeader),
        4 => (0..=PROXIES, 1..40_u8).prop_map(|(cut_off, rounds)| Act::Calm(cut_off, rounds)),
    ]
}

struct World {
    now: Timestamp,
    terms: Terms,
    fence: u64,
    leader: Allocator,
    proxies: Vec<Proxy>,
    reports: Vec<(HolderKey, HolderReport)>,
    grants: Vec<(usize, Grant)>,
    born: u64,
    used: f64,
    /// What was owed by who started anew: used, and never paid.
    forgiven: f64,
    /// Least of what was used less what the capacity gave, so far.
    least: f64,
    began: Timestamp,
    granted_ever: f64,
    savable_ever: f64,
}

impl World {
    fn new(terms: Terms) -> Self {
        let now = Timestamp::from_millis(1_000_000);
        let ahead = |node: usize| Duration::from_secs(node as u64 * 1_000);
        Self {
            now,
            terms,
            fence: 1,
            leader: Allocator::new(now, 1, terms, true),
            proxies: (0..PROXIES).map(|node| Proxy::new(now, node, node as u64 + 1, ahead(node))).collect(),
            reports: Vec::new(),
            grants: Vec::new(),
            born: PROXIES as u64,
            used: 0.0,
            forgiven: 0.0,
            least: 0.0,
            began: now,
            granted_ever: 0.0,
            savable_ever: 0.0,
        }
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Wait(ms) => self.now = self.now + Duration::from_millis(*ms),
            Act::Report(proxy) => self.report(*proxy),
            Act::ArriveAtLeader(index, again) if !self.reports.is_empty() => {
                let at = index.index(self.reports.len());
                let (key, report) = self.reports[at].clone();
                if !again {
                    self.reports.remove(at);
                }
                self.leader.hear(self.now, &key, &report);
            }
            Act::ArriveAtProxy(index, again) if !self.grants.is_empty() => {
                let at = index.index(self.grants.len());
                let (node, grant) = self.grants[at];
                if !again {
                    self.grants.remove(at);
                }
                self.proxies[node].accept(self.now, &grant);
            }
            Act::LoseReport(index) if !self.reports.is_empty() => drop(self.reports.remove(index.index(self.reports.len()))),
            Act::LoseGrant(index) if !self.grants.is_empty() => drop(self.grants.remove(index.index(self.grants.len()))),
            Act::Step => self.step(),
            Act::Ask(proxy, class, requests) => {
                self.proxies[*proxy].settle(self.now);
                self.used += f64::from(self.proxies[*proxy].ask(*class, *requests, 1.0));
            }
            Act::AskLarge(proxy, class, cost) => {
                self.proxies[*proxy].settle(self.now);
                self.used += f64::from(self.proxies[*proxy].ask(*class, 1, f64::from(*cost)) * cost);
            }
            Act::RestartProxy(node) => {
                self.born += 1;
                self.forgiven += self.proxies[*node].purse.debt();
                self.proxies[*node] = Proxy::new(self.now, *node, self.born, Duration::from_secs(self.born * 77));
            }
            Act::NewLeader => {
                self.fence += 1;
                self.leader = Allocator::new(self.now, self.fence, self.terms, false);
            }
            Act::Calm(cut_off, rounds) => (0..*rounds).for_each(|round| self.calm_round(*cut_off, round)),
            Act::ArriveAtLeader(..) | Act::ArriveAtProxy(..) | Act::LoseReport(_) | Act::LoseGrant(_) => {}
        }
        self.check();
    }

    fn report(&mut self, proxy: usize) {
        let report = self.proxies[proxy].report(self.now);
        self.reports.push((self.proxies[proxy].key.clone(), report));
    }

    fn step(&mut self) {
        for issue in self.leader.step(self.now) {
            self.grants.push((issue.key.node.parse().unwrap(), issue.grant));
        }
    }

    fn calm_round(&mut self, cut_off: usize, round: u8) {
        self.now = self.now + Duration::from_millis(100);
        for node in (0..PROXIES).filter(|node| *node != cut_off) {
            self.proxies[node].settle(self.now);
            let asked = if node == usize::from(round) % 3 { 300 } else { 40 };
            self.used += f64::from(self.proxies[node].ask(node % 3, asked, 1.0));
            let report = self.proxies[node].report(self.now);
            let key = self.proxies[node].key.clone();
            self.leader.hear(self.now, &key, &report);
        }
        for issue in self.leader.step(self.now) {
            let node: usize = issue.key.node.parse().unwrap();
            if node == cut_off {
                self.grants.push((node, issue.grant));
            } else {
                self.proxies[node].accept(self.now, &issue.grant);
            }
        }
        self.check();
    }

    fn check(&mut self) {
        let limit = self.terms.capacity * (1.0 + self.terms.overbook) + 1e-6;
        let in_force: f64 = self.proxies.iter().map(|proxy| proxy.in_force(self.now)).sum();
        assert!(in_force <= limit, "{in_force} of {limit} in force");
        self.granted_ever = self.granted_ever.max(in_force);
        let savable: f64 = self.proxies.iter().map(|proxy| proxy.savable(self.now)).sum();
        assert!(savable <= self.terms.capacity * self.terms.burst_s + 1e-6, "{savable} can be saved");
        self.savable_ever = self.savable_ever.max(savable);
        // What is owed is paid before anything else passes; what was paid until now counts now.
        self.proxies.iter_mut().for_each(|proxy| proxy.settle(self.now));
        let owed: f64 = self.proxies.iter().map(|proxy| proxy.purse.debt()).sum();
        assert!(owed <= limit * CLASSES as f64 * MAX_DEBT.as_secs_f64(), "{owed} owed");
        let balance = self.used - owed - self.forgiven - limit * self.now.since(self.began).as_secs_f64();
        self.least = self.least.min(balance);
        assert!(balance - self.least <= limit * self.terms.burst_s + 1e-3, "{} used at once", balance - self.least);
    }
}

fn run(terms: Terms, acts: &[Act]) -> World {
    let mut world = World::new(terms);
    acts.iter().for_each(|act| world.act(act));
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn strict_never_passes_the_capacity(acts in prop::collection::vec(act(), 1..150)) {
        run(terms(CAPACITY), &acts);
    }

    #[test]
    fn fast_passes_it_by_no_more_than_one_percent(acts in prop::collection::vec(act(), 1..150)) {
        run(Terms { overbook: 0.01, ..terms(CAPACITY) }, &acts);
    }

    #[test]
    fn with_a_large_safe_part_and_reserve_too(acts in prop::collection::vec(act(), 1..150)) {
        run(Terms { safe: 0.5, reserve: 0.2, ..terms(CAPACITY) }, &acts);
    }
}

#[test]
fn the_model_reaches_the_capacity() {
    // What the properties say is worth something only where the capacity is at stake.
    let world = run(terms(CAPACITY), &[Act::Calm(PROXIES, 30)]);
    assert!(world.granted_ever > 0.98 * CAPACITY, "{}", world.granted_ever);
    assert!(world.savable_ever > 0.9 * CAPACITY, "{}", world.savable_ever);
    let acts = [Act::Calm(PROXIES, 30), Act::NewLeader, Act::Calm(PROXIES, 90), Act::RestartProxy(0), Act::Calm(1, 90)];
    let world = run(terms(CAPACITY), &acts);
    let now: f64 = world.proxies.iter().map(|proxy| proxy.in_force(world.now)).sum();
    assert!(now > 0.95 * CAPACITY, "{now} after a new leader, a restart and a partition");
}

#[test]
fn a_new_leader_lets_nobody_fall() {
    let mut world = run(terms(CAPACITY), &[Act::Calm(PROXIES, 30)]);
    let before: f64 = world.proxies.iter().map(|proxy| proxy.in_force(world.now)).sum();
    world.act(&Act::NewLeader);
    for round in 0..100 {
        world.calm_round(PROXIES, round);
        let now: f64 = world.proxies.iter().map(|proxy| proxy.in_force(world.now)).sum();
        assert!(now > 0.98 * before, "{now} of {before}, {round} rounds after the new leader began");
    }
}

#[test]
fn without_a_leader_everybody_comes_to_the_safe_part_and_then_to_nothing() {
    let mut world = run(terms(CAPACITY), &[Act::Calm(PROXIES, 30)]);
    let sum = |world: &World| world.proxies.iter().map(|proxy| proxy.in_force(world.now)).sum::<f64>();
    world.act(&Act::Wait(6_500));
    let safe = sum(&world);
    assert!(safe > 0.5 * 0.01 * CAPACITY && safe < 0.011 * CAPACITY, "{safe}");
    world.act(&Act::Wait(601_000));
    assert_eq!(sum(&world), 0.0);
}
