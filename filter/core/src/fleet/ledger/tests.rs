//! The arithmetic of the books.

use std::borrow::ToOwned;
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
fn what_a_report_names_twice_is_read_once_and_what_it_no_longer_names_is_forgotten() {
    let mut ledger = ledger();
    for (at_ms, offered) in [(100, 5), (200, 7)] {
        let mut twice = worker(0, 7, at_ms, offered);
        let class = v1::ClassReport { offered: offered + 100, ..twice.pools[0].classes[0].clone() };
        twice.pools[0].classes.insert(0, v1::ClassReport { class: "high".to_owned(), ..Default::default() });
        twice.pools[0].classes.push(class);
        twice.pools.push(worker(0, 7, at_ms, offered + 100).pools.remove(0));
        ledger.record(at(at_ms), &report("n", vec![twice]));
        assert_eq!((mid(&ledger, at(at_ms)).totals.offered, mid(&ledger, at(at_ms)).in_flight), (offered, 3));
    }
    let silent = v1::WorkerReport { pools: Vec::new(), ..worker(0, 7, 300, 0) };
    ledger.record(at(300), &report("n", vec![silent]));
    assert_eq!(mid(&ledger, at(300)).in_flight, 0);
    ledger.record(at(400), &report("n", vec![worker(0, 7, 400, 2)]));
    assert_eq!(mid(&ledger, at(400)).totals.offered, 9, "a policy that is back counts from zero");
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

/// A worker under overload control that has admitted `requests`, each of 100 prompt tokens and 50 of output, and finished all but one.
fn loaded_worker(slot: u32, vm_epoch: u64, at_ms: u64, requests: u64) -> v1::WorkerReport {
    let mut worker = worker(slot, vm_epoch, at_ms, requests);
    let work = |requests: u64| v1::Work { prefill_tokens: 100 * requests, kv_tokens: 150 * requests, streams: requests };
    let mut ttft = Histogram::new();
    (0..requests).for_each(|_| ttft.record(5000));
    worker.pools[0].overload = Some(v1::OverloadReport {
        in_flight: Some(work(requests.min(1))),
        admitted: Some(work(requests)),
        finished: Some(work(requests.saturating_sub(1))),
        offered_level_deltas: vec![130],
        offered_work: vec![200 * requests],
        queue: Some(v1::QueueReport {
            requests: 2,
            bytes: 300,
            work: 400,
            oldest_ms: 70,
            released: requests,
            expired: 1,
            ..Default::default()
        }),
        service_ttft_us: Some(ttft.to_wire()),
        responses: requests,
        output_tokens: 50 * requests,
        good_work: 200 * requests,
        ..Default::default()
    });
    worker
}

fn flow(ledger: &Ledger, now: Timestamp) -> Flow {
    ledger.view(now)["pool"].flow.clone().expect("a worker has reported work")
}

#[test]
fn work_of_all_workers_is_added_and_gauges_are_those_of_the_living() {
    let mut ledger = ledger();
    ledger.record(at(100), &report("a", vec![loaded_worker(0, 1, 100, 0), loaded_worker(1, 2, 100, 0)]));
    ledger.record(at(200), &report("a", vec![loaded_worker(0, 1, 200, 3), loaded_worker(1, 2, 200, 5)]));
    let seen = flow(&ledger, at(250));
    assert_eq!((seen.admitted.streams, seen.finished.streams, seen.in_flight.streams), (8, 6, 2));
    assert_eq!((seen.offered.at(130), seen.good_work, seen.offered_requests), (1600, 1600, 8));
    assert_eq!((seen.service_ttft_us.count(), seen.queued_requests, seen.queued_work), (8, 4, 800));
    assert_eq!(seen.oldest_wait, Duration::from_millis(70));
    let view = &ledger.view(at(250))["pool"];
    assert_eq!((view.queue.released, view.queue.expired, view.queued_bytes), (8, 2, 600));
    let later = flow(&ledger, at(2300));
    assert_eq!((later.in_flight.streams, later.queued_requests, later.admitted.streams), (0, 0, 8), "silent workers hold nothing");
}

#[test]
fn lost_and_repeated_reports_of_work_are_exact_and_a_restart_counts_from_zero() {
    let mut ledger = ledger();
    ledger.record(at(100), &report("a", vec![loaded_worker(0, 1, 100, 0)]));
    // Reports of 10 and 20 requests are lost.
    for _ in 0..3 {
        ledger.record(at(400), &report("a", vec![loaded_worker(0, 1, 400, 30)]));
    }
    ledger.record(at(410), &report("a", vec![loaded_worker(0, 1, 200, 10)]));
    assert_eq!(flow(&ledger, at(410)).admitted.streams, 30);
    ledger.record(at(500), &report("a", vec![loaded_worker(0, 2, 500, 4)]));
    assert_eq!(flow(&ledger, at(500)).admitted.streams, 34, "another VM");
    ledger.record(at(600), &report("a", vec![loaded_worker(0, 2, 600, 1)]));
    assert_eq!(flow(&ledger, at(600)).admitted.streams, 35, "a policy that came back in the same VM");
}

#[test]
fn work_behind_a_gap_is_no_burst() {
    let mut ledger = ledger();
    ledger.record(at(100), &report("a", vec![loaded_worker(0, 1, 100, 1000)]));
    assert_eq!(flow(&ledger, at(100)).admitted.streams, 0, "of a proxy seen for the first time nothing is recent");
    ledger.record(at(200), &report("a", vec![loaded_worker(0, 1, 200, 1010)]));
    ledger.record(at(9000), &report("a", vec![loaded_worker(0, 1, 9000, 5000)]));
    assert_eq!(flow(&ledger, at(9000)).admitted.streams, 10);
    assert_eq!(flow(&ledger, at(9000)).in_flight.streams, 1, "the gauge is true again");
}

#[test]
fn a_report_of_work_that_cannot_be_read_is_counted_and_the_next_one_catches_up() {
    let mut ledger = ledger();
    ledger.record(at(100), &report("a", vec![loaded_worker(0, 1, 100, 0)]));
    let mut broken = loaded_worker(0, 1, 200, 10);
    broken.pools[0].overload.as_mut().unwrap().offered_level_deltas.push(9000);
    ledger.record(at(200), &report("a", vec![broken]));
    assert_eq!((flow(&ledger, at(200)).admitted.streams, ledger.unreadable()), (0, 1));
    ledger.record(at(300), &report("a", vec![loaded_worker(0, 1, 300, 12)]));
    assert_eq!(flow(&ledger, at(300)).admitted.streams, 12);
}

/// Reports of one second are many; it counts once.
#[test]
fn a_second_of_which_many_reports_tell_counts_once() {
    let mut ledger = ledger();
    let told = |at_ms: u64, second: u64| {
        let mut worker = loaded_worker(0, 1, at_ms, 0);
        let pool = &mut worker.pools[0];
        pool.policy_version = "1".to_owned();
        let overload = pool.overload.as_mut().unwrap();
        (overload.served_second, overload.served_slot_deltas, overload.served_work) = (second, vec![1; 80], vec![50; 80]);
        report("a", vec![worker])
    };
    for (at_ms, second) in [(100, 1), (200, 1), (300, 1), (1200, 2), (1300, 2)] {
        ledger.record(at(at_ms), &told(at_ms, second));
    }
    let mut limits = v1::OverloadLimits::default();
    ledger.view(at(1300))["pool"].served.as_ref().unwrap().write(&mut limits);
    assert_eq!(limits.served_work, [99; 80], "two seconds of 50, the first a little ago");
}

#[test]
fn under_overload_control_the_demand_is_work() {
    let mut ledger = ledger();
    for (node, requests) in [("a", 30), ("b", 10)] {
        ledger.record(at(100), &report(node, vec![loaded_worker(0, 1, 100, 0)]));
        ledger.record(at(200), &report(node, vec![loaded_worker(0, 1, 200, requests)]));
    }
    let shares = ledger.shares(at(200), "pool").by_node;
    assert!((shares["a"].rate - (0.05 / 3.0 + 0.95 * 0.75)).abs() < 1e-9, "{shares:?}");
}

proptest! {
    /// Any order of reports, some lost, some repeated: the books hold what the newest of each VM says.
    #[test]
    fn the_books_of_work_hold_the_newest_of_each_vm(order in proptest::collection::vec((0..3_u32, 0..40_u64), 1..60)) {
        let mut ledger = ledger();
        let mut newest = BTreeMap::new();
        for slot in 0..3 {
            ledger.record(at(1), &report("a", vec![loaded_worker(slot, 7, 1, 0)]));
        }
        for (slot, step) in order {
            ledger.record(at(10 + step), &report("a", vec![loaded_worker(slot, 7, 10 + step, step)]));
            let newest = newest.entry(slot).or_insert(0);
            *newest = step.max(*newest);
        }
        let admitted = flow(&ledger, at(100)).admitted;
        prop_assert_eq!(admitted.streams, newest.values().sum::<u64>());
        prop_assert_eq!(admitted.kv_tokens, 150 * admitted.streams);
    }
}
