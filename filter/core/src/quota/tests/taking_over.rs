//! A new leader, which knows nothing, and those who hold something of an earlier one.

use super::sharing::Fleet;
use super::*;
use std::vec::Vec;

const CAPACITY: f64 = 1000.0;
const BUSY: [(f64, usize); 3] = [(600.0, 0), (300.0, 0), (300.0, 0)];

/// Three proxies with all of the capacity, and a new leader.
fn fleet() -> Fleet {
    let mut fleet = Fleet::new(3, terms(CAPACITY));
    fleet.rounds(30, &BUSY);
    fleet.new_leader();
    fleet
}

#[test]
fn a_newcomer_has_its_part_as_soon_as_the_others_have_told_what_they_hold() {
    let mut fleet = fleet();
    let before = fleet.granted();
    let newcomer = fleet.join();
    let rates: Vec<(f64, usize)> = BUSY.iter().copied().chain([(200.0, 0)]).collect();
    let mut had_all_at = None;
    for round in 1..=60 {
        fleet.round(&rates);
        let granted = fleet.granted();
        assert!(granted.iter().sum::<f64>() <= CAPACITY, "{granted:?}");
        assert!(granted[1] > 0.98 * before[1].min(200.0), "nobody falls for it below its even part: {granted:?}");
        if granted[newcomer] > 195.0 {
            had_all_at = had_all_at.or(Some(round));
        }
    }
    assert!(had_all_at.is_some_and(|round| round <= 15), "within 1.5 s of rounds of 100 ms: {had_all_at:?}");
}

#[test]
fn what_nobody_tells_of_is_granted_as_it_ends() {
    let mut fleet = fleet();
    fleet.proxies.clear();
    let newcomer = fleet.join();
    let mut after = |rounds: usize| {
        fleet.rounds(rounds, &[(2000.0, 0)]);
        fleet.granted()[newcomer]
    };
    assert_eq!(after(30), 0.0, "everything may be in force for three seconds");
    let half = after(15);
    assert!(half > 0.3 * CAPACITY && half < 0.5 * CAPACITY, "{half} halfway");
    let whole = after(25);
    assert!(whole > 0.98 * CAPACITY && whole <= 0.99 * CAPACITY, "{whole}: the safe part may be in force for long");
}

/// Else what others hold would count as told of.
#[test]
fn a_holder_that_is_called_twice_tells_once() {
    let mut fleet = Fleet::new(2, terms(CAPACITY));
    fleet.rounds(30, &[(600.0, 0), (600.0, 0)]);
    let before = fleet.granted();
    fleet.new_leader();
    let (mut now, proxy) = (fleet.now, &mut fleet.proxies[0]);
    let mut calls = Vec::new();
    for _ in 0..7 {
        now = now + Duration::from_millis(100);
        let report = proxy.report(now);
        fleet.leader.hear(now, &proxy.key, &report);
        calls.extend(fleet.leader.step(now));
    }
    assert_eq!(calls.iter().filter(|call| call.grant.lease.is_none()).count(), 2, "{calls:?}");
    for call in &calls {
        now = now + Duration::from_millis(100);
        proxy.accept(now, &call.grant);
        now = now + Duration::from_millis(10);
        let report = proxy.report(now);
        fleet.leader.hear(now, &proxy.key, &report);
    }
    fleet.leader.step(now);
    let granted = fleet.leader.view(now).committed;
    assert!(granted <= before[0] + 1e-9, "{granted} after {before:?}: the other one may hold the rest");
}

#[test]
fn who_claims_more_than_there_is_takes_nothing_from_those_who_have_told() {
    let mut fleet = fleet();
    let (liar, claim) = (fleet.join(), Lease { rates: [1e18; CLASSES], safe: 1e18, burst: 1e18 });
    fleet.proxies[liar].claims = Some(claim);
    let rates: Vec<(f64, usize)> = BUSY.iter().copied().chain([(10.0, 0)]).collect();
    fleet.rounds(10, &rates);
    let view = fleet.leader.view(fleet.now);
    assert!(view.committed <= CAPACITY * (1.0 + 1e-9), "taken back at once: {view:?}");
    let granted = fleet.granted();
    assert!(granted.iter().take(3).sum::<f64>() > 0.9 * CAPACITY, "{granted:?}");
}
