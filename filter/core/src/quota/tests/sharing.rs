//! Who gets what.

use super::plan::{Seat, aim};
use super::*;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

fn seats(wants: &[(f64, f64)]) -> Vec<Seat> {
    let seat = |(high, low): &(f64, f64)| {
        let mut wants = [0.0; CLASSES];
        (wants[0], wants[1]) = (*high, *low);
        Seat { wants, ..Seat::default() }
    };
    wants.iter().map(seat).collect()
}

fn targets(wants: &[(f64, f64)], terms: &Terms) -> Vec<(f64, f64)> {
    let mut seats = seats(wants);
    aim(&mut seats, terms, terms.capacity);
    seats.iter().map(|seat| (seat.target[0], seat.target[1])).collect()
}

fn plain(capacity: f64) -> Terms {
    Terms { safe: 0.0, reserve: 0.0, ..terms(capacity) }
}

#[test]
fn small_wants_are_met_and_large_ones_share_the_rest() {
    assert_eq!(targets(&[(10.0, 0.0), (100.0, 0.0), (200.0, 0.0)], &plain(100.0)), [(10.0, 0.0), (45.0, 0.0), (45.0, 0.0)]);
}

#[test]
fn the_important_class_comes_first_over_all_proxies_but_for_a_floor() {
    let wants = [(50.0, 10.0), (30.0, 100.0)];
    assert_eq!(targets(&wants, &plain(100.0)), [(50.0, 10.0), (30.0, 10.0)]);
    let mut floors = [0.0; CLASSES];
    floors[1] = 0.4;
    assert_eq!(targets(&wants, &Terms { floors, ..plain(100.0) }), [(30.0, 10.0), (30.0, 30.0)]);
}

#[test]
fn what_nobody_wants_goes_half_by_demand_and_half_evenly() {
    assert_eq!(targets(&[(30.0, 0.0), (10.0, 0.0)], &plain(100.0)), [(30.0 + 22.5 + 15.0, 0.0), (10.0 + 7.5 + 15.0, 0.0)]);
    assert_eq!(targets(&[(0.0, 0.0), (0.0, 0.0)], &plain(100.0)), [(50.0, 0.0), (50.0, 0.0)]);
}

proptest! {
    #[test]
    fn targets_sum_to_the_budget_and_no_class_gets_less_than_its_floor_and_want(
        wants in prop::collection::vec((0.0..500.0_f64, 0.0..500.0_f64), 1..30), floor in 0.0..1.0_f64, safe in 0.0..0.5_f64,
    ) {
        let mut floors = [0.0; CLASSES];
        floors[1] = floor * (1.0 - safe);
        let terms = Terms { floors, safe, ..plain(1000.0) };
        let targets = targets(&wants, &terms);
        let sum: f64 = targets.iter().map(|(high, low)| high + low).sum();
        prop_assert!((sum - 1000.0).abs() < 1e-6, "{sum}");
        let low: f64 = targets.iter().map(|(_, low)| low).sum();
        let wanted: f64 = wants.iter().map(|(_, low)| low).sum();
        prop_assert!(low >= wanted.min(floors[1] * 1000.0) - 1e-6, "{low} of {wanted}");
        for ((high, low), (wants_high, wants_low)) in targets.iter().zip(&wants) {
            prop_assert!(high + low + 1e-6 >= (wants_high + wants_low).min(safe * 1000.0 / wants.len() as f64));
        }
    }
}

/// A fleet that reports every 100 ms and is answered at once.
pub(super) struct Fleet {
    pub(super) now: Timestamp,
    pub(super) leader: Allocator,
    pub(super) proxies: Vec<Proxy>,
    /// Grants that were sent in the last round.
    sent: usize,
    /// Leaders and proxies that there have been.
    leaders: u64,
    born: u64,
}

impl Fleet {
    pub(super) fn new(proxies: usize, terms: Terms) -> Self {
        let now = Timestamp::from_millis(5_000);
        let leader = Allocator::new(now, 1, terms, true);
        let mut fleet = Self { now, leader, proxies: Vec::new(), sent: 0, leaders: 1, born: 0 };
        for _ in 0..proxies {
            fleet.join();
        }
        fleet
    }

    /// Another leader begins and knows nothing.
    pub(super) fn new_leader(&mut self) {
        self.leaders += 1;
        self.leader = Allocator::new(self.now, self.leaders, *self.leader.terms(), false);
    }

    /// Another proxy; returns its position.
    pub(super) fn join(&mut self) -> usize {
        self.born += 1;
        self.proxies.push(Proxy::new(self.now, self.proxies.len(), self.born, Duration::ZERO));
        self.proxies.len() - 1
    }

    /// `rates[i]`: units per second that proxy `i` is asked for, and its class.
    pub(super) fn round(&mut self, rates: &[(f64, usize)]) {
        self.now = self.now + Duration::from_millis(100);
        for (proxy, (rate, class)) in self.proxies.iter_mut().zip(rates) {
            proxy.settle(self.now);
            proxy.ask(*class, (rate / 10.0) as u32, 1.0);
            let report = proxy.report(self.now);
            self.leader.hear(self.now, &proxy.key, &report);
        }
        let issues = self.leader.step(self.now);
        self.sent = issues.len();
        for issue in issues {
            let node: usize = issue.key.node.parse().unwrap();
            self.proxies[node].accept(self.now, &issue.grant);
        }
    }

    pub(super) fn rounds(&mut self, count: usize, rates: &[(f64, usize)]) {
        (0..count).for_each(|_| self.round(rates));
    }

    pub(super) fn granted(&self) -> Vec<f64> {
        self.proxies.iter().map(|proxy| proxy.in_force(self.now)).collect()
    }
}

#[test]
fn an_important_class_takes_from_others_across_proxies_within_half_a_second() {
    let mut fleet = Fleet::new(2, terms(1000.0));
    fleet.rounds(30, &[(0.0, 0), (2000.0, 1)]);
    assert!(fleet.granted()[1] > 980.0, "{:?}", fleet.granted());
    fleet.rounds(5, &[(800.0, 0), (2000.0, 1)]);
    assert!(fleet.granted()[0] > 790.0, "{:?}", fleet.granted());
}

#[test]
fn a_newcomer_has_of_the_reserve_at_once() {
    let mut fleet = Fleet::new(3, Terms { reserve: 0.1, ..terms(1000.0) });
    let late = fleet.proxies.pop().unwrap();
    fleet.rounds(30, &[(2000.0, 0), (2000.0, 0)]);
    fleet.proxies.push(late);
    fleet.rounds(2, &[(2000.0, 0), (2000.0, 0), (80.0, 0)]);
    assert!(fleet.granted()[2] > 79.9, "{:?}", fleet.granted());
}

#[test]
fn a_proxy_that_uses_nothing_of_what_it_says_to_need_keeps_no_more_than_an_even_part() {
    // It says so of the most important class, which comes first over all proxies.
    let mut fleet = Fleet::new(4, terms(1000.0));
    let rates = [(0.0, 0), (400.0, 1), (400.0, 1), (400.0, 1)];
    fleet.proxies[0].lie = 1e6;
    fleet.rounds(60, &rates);
    let granted = fleet.granted();
    assert!(granted[0] <= 250.0 * 1.1, "{granted:?}");
    assert!(granted.iter().skip(1).all(|rate| *rate > 240.0), "{granted:?}");
}

#[test]
fn a_proxy_that_needs_most_of_a_quota_has_it_for_as_long_as_it_uses_it() {
    let mut fleet = Fleet::new(4, terms(1000.0));
    let rates = [(5000.0, 0), (40.0, 0), (40.0, 0), (40.0, 0)];
    for _ in 0..20 {
        fleet.rounds(10, &rates);
        assert!(fleet.granted()[0] > 850.0, "{:?}", fleet.granted());
    }
}

#[test]
fn when_nothing_changes_grants_are_only_renewed() {
    let mut fleet = Fleet::new(100, terms(10_000.0));
    let rates: Vec<(f64, usize)> = (0..100).map(|node| (f64::from(node) * 10.0, 0)).collect();
    fleet.rounds(50, &rates);
    let mut sent = vec![];
    for _ in 0..40 {
        fleet.round(&rates);
        sent.push(fleet.sent);
    }
    // Each is renewed once a second, and four seconds are 40 rounds; a purse that is too full or too empty moves few.
    assert!(sent.iter().sum::<usize>() <= 105 * 4, "{sent:?}");
}

#[test]
fn a_capacity_that_shrinks_is_kept_as_soon_as_grants_are_given_back() {
    let mut fleet = Fleet::new(4, terms(1000.0));
    let rates = [(900.0, 0); 4];
    fleet.rounds(20, &rates);
    fleet.leader.set_terms(terms(100.0));
    fleet.rounds(3, &rates);
    assert!(fleet.granted().iter().sum::<f64>() <= 100.0, "{:?}", fleet.granted());
    let view = fleet.leader.view(fleet.now);
    assert!(view.holders.len() == 4 && view.committed <= 100.0 + 1e-9 && view.wanted > 3000.0, "{view:?}");
}
