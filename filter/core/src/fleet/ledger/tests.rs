//! The arithmetic of the books.

use std::sync::Arc;
use std::vec;

use proptest::prelude::*;

use super::*;
use crate::fleet::StoredPolicy;

const MS: u64 = 1_000_000;

fn policies(classes: &[(&str, v1::WhenTripped)]) -> PolicySet {
    let classes = classes
        .iter()
        .map(|(name, when)| v1::PriorityClass { name: (*name).to_owned(), when_tripped: *when as i32, ..Default::default() })
        .collect();
    let spec = v1::PolicySpec { pool: "pool".to_owned(), classes, ..Default::default() };
    let policy = v1::Policy { name: "demo".to_owned(), spec: Some(spec), version: "1".to_owned() };
    PolicySet { policies: [("demo".to_owned(), Arc::new(StoredPolicy { policy, changed_at_unix_ms: 0 }))].into() }
}

fn ledger() -> Ledger {
    let mut ledger = Ledger::default();
    ledger.set_policies(&policies(&[("high", v1::WhenTripped::ReservedLane), ("mid", v1::WhenTripped::GradientThrottle)]));
    ledger
}

/// A report of the class `mid` with `offered` requests, all admitted and completed, each with a first token after 1 ms.
fn worker(slot: u32, vm_epoch: u64, at_ms: u64, offered: u64) -> v1::WorkerReport {
    let mut ttft = Histogram::new();
    for _ in 0..offered {
        ttft.record(1000);
    }
    let class = v1::ClassReport {
        class: "mid".to_owned(),
        offered,
        admitted: offered,
        completed: offered,
        in_flight: 3,
        waiting: 1,
        refused: vec![v1::ReasonCount { reason: "gpu_memory".to_owned(), count: offered }],
        ttft_us: Some(ttft.to_wire()),
        ..Default::default()
    };
    let pool = v1::PoolReport { policy: "demo".to_owned(), pool: "pool".to_owned(), classes: vec![class], ..Default::default() };
    v1::WorkerReport { slot, vm_epoch, at_ns: at_ms * MS, pools: vec![pool], counters: None }
}

fn report(node: &str, workers: Vec<v1::WorkerReport>) -> v1::LoadReport {
    v1::LoadReport { node_id: node.to_owned(), workers, ..Default::default() }
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn mid(ledger: &Ledger, now: Timestamp) -> ClassView {
    ledger.view(now)["pool"].classes.iter().find(|class| class.class == "mid").unwrap().clone()
}

#[test]
fn a_repeated_report_counts_nothing() {
    let mut ledger = ledger();
    for _ in 0..3 {
        ledger.record(at(100), &report("n", vec![worker(0, 7, 100, 5)]));
    }
    assert_eq!(mid(&ledger, at(100)).totals.offered, 5);
    assert_eq!(mid(&ledger, at(100)).in_flight, 3);
    assert_eq!(mid(&ledger, at(100)).totals.refused_by_reason().collect::<Vec<_>>(), [("gpu_memory", 5)]);
}

#[test]
fn a_restarted_vm_starts_from_zero_and_its_predecessors_late_report_counts_nothing() {
    let mut ledger = ledger();
    ledger.record(at(100), &report("n", vec![worker(0, 7, 100, 5)]));
    ledger.record(at(200), &report("n", vec![worker(0, 8, 200, 2)]));
    ledger.record(at(210), &report("n", vec![worker(0, 7, 90, 4)]));
    assert_eq!(mid(&ledger, at(210)).totals.offered, 7);
}

#[test]
fn a_policy_that_comes_back_in_the_same_vm_counts_from_zero() {
    let mut ledger = ledger();
    ledger.record(at(100), &report("n", vec![worker(0, 7, 100, 50)]));
    ledger.record(at(200), &report("n", vec![worker(0, 7, 200, 2)]));
    assert_eq!(mid(&ledger, at(200)).totals.offered, 52);
}

#[test]
fn what_was_counted_before_the_proxy_was_known_is_in_the_totals_but_is_no_burst_for_the_control_loop() {
    let mut ledger = ledger();
    ledger.record(at(100), &report("n", vec![worker(0, 7, 100, 1000)]));
    assert_eq!(mid(&ledger, at(100)).totals.offered, 1000);
    assert_eq!(mid(&ledger, at(100)).control.offered, 0);
    ledger.record(at(200), &report("n", vec![worker(0, 7, 200, 1010)]));
    assert_eq!(mid(&ledger, at(200)).control.offered, 10);
    assert_eq!(ledger.view(at(200))["pool"].ttft.as_ref().unwrap().count(), 10);
}

#[test]
fn a_gap_in_the_stream_is_no_burst_for_the_control_loop() {
    let mut ledger = ledger();
    ledger.record(at(100), &report("n", vec![worker(0, 7, 100, 0)]));
    ledger.record(at(30_000), &report("n", vec![worker(0, 7, 30_000, 900)]));
    assert_eq!(mid(&ledger, at(30_000)).totals.offered, 900);
    assert_eq!(mid(&ledger, at(30_000)).control.offered, 0);
}

#[test]
fn a_new_vm_in_a_known_proxy_counts_for_the_control_loop_at_once() {
    let mut ledger = ledger();
    ledger.record(at(100), &report("n", vec![worker(0, 7, 100, 0)]));
    ledger.record(at(200), &report("n", vec![worker(0, 7, 200, 0), worker(1, 9, 200, 4)]));
    assert_eq!(mid(&ledger, at(200)).control.offered, 4);
}

#[test]
fn requests_in_flight_of_a_silent_vm_are_not_believed() {
    let mut ledger = ledger();
    ledger.record(at(100), &report("n", vec![worker(0, 7, 100, 1), worker(1, 8, 100, 1)]));
    assert_eq!(mid(&ledger, at(200)).in_flight, 6);
    ledger.record(at(2050), &report("n", vec![worker(0, 7, 2050, 1)]));
    assert_eq!(mid(&ledger, at(2150)).in_flight, 3);
}

#[test]
fn names_that_no_policy_has_do_not_grow_the_books() {
    let mut ledger = ledger();
    let mut strange = worker(0, 7, 100, 5);
    strange.pools[0].pool = "elsewhere".to_owned();
    ledger.record(at(100), &report("n", vec![strange]));
    assert_eq!(ledger.view(at(100)).keys().collect::<Vec<_>>(), ["pool"]);
    assert_eq!(mid(&ledger, at(100)).totals.offered, 0);
}

#[test]
fn totals_survive_a_change_of_the_policy() {
    let mut ledger = ledger();
    ledger.record(at(100), &report("n", vec![worker(0, 7, 100, 5)]));
    ledger.set_policies(&policies(&[("mid", v1::WhenTripped::Refuse), ("low", v1::WhenTripped::Refuse)]));
    assert_eq!(mid(&ledger, at(100)).totals.offered, 5);
}

#[test]
fn demand_decides_the_shares() {
    let mut ledger = ledger();
    for step in 0..20 {
        let now = at(100 * step);
        ledger.record(now, &report("busy", vec![worker(0, 7, 100 * step + 1, 90 * step)]));
        ledger.record(now, &report("calm", vec![worker(0, 8, 100 * step + 1, 10 * step)]));
    }
    let shares = ledger.shares(at(2000), "pool");
    let ratio = shares.by_node["busy"].rate / shares.by_node["calm"].rate;
    // 9 by demand, a little less by the equal part.
    assert!((6.0..9.0).contains(&ratio), "{ratio}");
}

/// One VM's life: requests offered between its reports.
fn lives() -> impl Strategy<Value = Vec<Vec<u64>>> {
    proptest::collection::vec(proptest::collection::vec(0_u64..20, 1..8), 1..4)
}

proptest! {
    #[test]
    fn lost_repeated_and_late_reports_never_over_count_and_the_last_ones_make_it_exact(
        lives in lives(),
        order in proptest::collection::vec((any::<proptest::sample::Index>(), any::<proptest::sample::Index>()), 0..60),
    ) {
        let mut ledger = ledger();
        // Every VM has its own slot, except the last two, which follow each other in slot 0.
        let reports: Vec<Vec<v1::WorkerReport>> = lives.iter().enumerate().map(|(vm, life)| {
            let slot = u32::try_from(vm.saturating_sub(1)).unwrap();
            let mut offered = 0;
            life.iter().enumerate().map(|(step, more)| {
                offered += more;
                worker(slot, vm as u64 + 1, 100 * (step as u64 + 1), offered)
            }).collect()
        }).collect();
        let truth: u64 = lives.iter().flatten().sum();
        let mut before = 0;
        for (vm, step) in order {
            let life = vm.get(&reports);
            ledger.record(at(1), &report("n", vec![step.get(life).clone()]));
            let now = mid(&ledger, at(1)).totals;
            prop_assert!(now.offered >= before, "totals only grow");
            prop_assert!(now.offered <= truth, "{} counted of {truth}", now.offered);
            before = now.offered;
        }
        for life in &reports {
            ledger.record(at(2), &report("n", vec![life.last().unwrap().clone()]));
        }
        prop_assert_eq!(mid(&ledger, at(2)).totals.offered, truth);
        prop_assert_eq!(mid(&ledger, at(2)).totals.completed, truth);
    }
}
