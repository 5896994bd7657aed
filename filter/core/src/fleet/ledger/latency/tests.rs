use std::format;
use std::sync::Arc;
use std::vec;

use proptest::prelude::*;

use super::*;
use crate::fleet::{PolicySet, StoredPolicy};
use crate::latency::{ClassLatencies, Models};

const MS: u64 = 1_000_000;

fn ledger() -> Ledger {
    let classes = ["high", "low"].map(|name| v1::PriorityClass { name: name.to_owned(), ..Default::default() }).to_vec();
    let spec = v1::PolicySpec { pool: "pool".to_owned(), classes, ..Default::default() };
    let policy = v1::Policy { name: "demo".to_owned(), spec: Some(spec), version: "1".to_owned() };
    let mut ledger = Ledger::default();
    ledger.set_policies(&PolicySet { policies: [("demo".to_owned(), Arc::new(StoredPolicy { policy, changed_at_unix_ms: 0 }))].into() });
    ledger
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_millis(ms)
}

/// A worker VM that serves one class: what it has counted, and what it says of it.
#[derive(Default)]
struct Vm {
    models: Models,
    class: ClassLatencies,
    truth: Latencies,
}

impl Vm {
    fn serve(&mut self, model: &str, micros: u64) {
        let seated = self.models.seat(Some(model.as_bytes()));
        if let Some(vacated) = seated.vacated {
            self.class.vacate(vacated);
        }
        self.class.record(&self.models, seated.place, &[(Metric::Total, micros)]);
        self.truth.record(Metric::Total, micros);
    }

    fn latency(&self, series: u64) -> v1::LatencyReport {
        v1::LatencyReport { streams: self.class.report("high", series, &self.models).collect() }
    }
}

fn report(node: &str, slot: u32, vm_epoch: u64, at_ms: u64, latency: Option<v1::LatencyReport>) -> v1::LoadReport {
    let class = v1::ClassReport { class: "high".to_owned(), ..Default::default() };
    let pool = v1::PoolReport { policy: "demo".to_owned(), pool: "pool".to_owned(), classes: vec![class], latency, ..Default::default() };
    let worker = v1::WorkerReport { slot, vm_epoch, at_ns: at_ms * MS, pools: vec![pool], counters: None };
    v1::LoadReport { node_id: node.to_owned(), workers: vec![worker], ..Default::default() }
}

/// Everything in the books of the pool, whatever the model.
fn total(ledger: &Ledger, now: Timestamp) -> Latencies {
    let mut sum = Latencies::new();
    ledger.latencies(now, "pool").streams.iter().for_each(|stream| sum.merge(&stream.totals));
    sum
}

fn completeness(ledger: &Ledger, now: Timestamp) -> Completeness {
    ledger.latencies(now, "pool").completeness
}

#[test]
fn percentiles_are_those_of_the_last_minute_and_the_mean_follows_the_newest() {
    let (mut ledger, mut vm) = (ledger(), Vm::default());
    (0..100).for_each(|_| vm.serve("m", 9_000_000));
    ledger.record(at(1_000), &report("n", 0, 1, 1_000, None));
    ledger.record(at(1_100), &report("n", 0, 1, 1_100, Some(vm.latency(1))));
    (0..100).for_each(|_| vm.serve("m", 1_000));
    ledger.record(at(2_000), &report("n", 0, 1, 2_000, Some(vm.latency(1))));
    let of = |now| ledger.latencies(now, "pool").streams[0].recent[2];
    assert_eq!((of(at(2_000)).count, of(at(2_000)).p50_us.unwrap().abs_diff(1_000) <= 8), (200, true));
    assert!(of(at(2_000)).p99_us.unwrap().abs_diff(9_000_000) < 90_000);
    // 9,000,000 + 0.2 · (1,000 − 9,000,000)
    assert_eq!(of(at(2_000)).ewma_us, Some(7_200_200.0));
    assert_eq!(of(at(70_000)).count, 0, "a minute later");
    assert_eq!(total(&ledger, at(70_000)), vm.truth, "the totals stay");
}

#[test]
fn a_model_that_loses_its_place_between_two_reports_moves_no_count_twice() {
    let (mut ledger, mut vm) = (ledger(), Vm::default());
    for turn in 0..200 {
        vm.serve(&format!("model-{}", turn % 23), 1_000 + turn);
        ledger.record(at(1_000 * turn), &report("n", 0, 1, 1_000 * turn + 1, Some(vm.latency(1))));
        assert_eq!(total(&ledger, at(1_000 * turn)), vm.truth, "turn {turn}");
    }
    assert!(completeness(&ledger, at(199_000)).is_complete());
}

#[test]
fn models_over_the_fleet_are_bounded_and_the_rest_is_other() {
    let mut ledger = ledger();
    for index in 0..10_000_u64 {
        let model = format!("model-{index}");
        assert!(ledger.record_latencies(at(index), "pool", "high", &model, &[(Metric::Total, 5)]));
    }
    let streams = ledger.latencies(at(10_000), "pool").streams;
    assert_eq!(streams.len(), MAX_MODELS + 1);
    let other = streams.iter().find(|stream| stream.model.is_empty()).unwrap();
    assert_eq!(other.totals.count(), 10_000 - MAX_MODELS as u64);
    assert!(!ledger.record_latencies(at(0), "pool", "unknown", "m", &[(Metric::Total, 5)]), "no books of that class");
}

#[test]
fn a_restarted_worker_and_a_policy_that_came_back_begin_from_zero_and_what_they_lost_is_said() {
    let (mut ledger, mut first, mut second) = (ledger(), Vm::default(), Vm::default());
    first.serve("m", 5);
    ledger.record(at(0), &report("n", 0, 1, 1, Some(first.latency(1))));
    second.serve("m", 6);
    // The same VM with another series: the policy was deleted and applied anew.
    ledger.record(at(100), &report("n", 0, 1, 100, Some(second.latency(2))));
    assert_eq!((total(&ledger, at(100)).count(), completeness(&ledger, at(100)).lost_series), (2, 1));
    // Another VM in its slot; the first one is silent from now on.
    ledger.record(at(200), &report("n", 0, 2, 200, Some(second.latency(3))));
    assert_eq!(total(&ledger, at(200)).count(), 3);
    assert_eq!(completeness(&ledger, at(2_150)), Completeness { silent_workers: 1, lost_series: 1, unread_workers: 0 });
}

#[test]
fn a_report_that_cannot_be_read_is_said_and_the_next_one_catches_up() {
    let (mut ledger, mut vm) = (ledger(), Vm::default());
    vm.serve("m", 5);
    ledger.record(at(0), &report("n", 0, 1, 1, Some(vm.latency(1))));
    vm.serve("m", 5);
    let mut broken = vm.latency(1);
    broken.streams[0].total_us = Some(v1::Histogram::new([5], [1, 1], 5));
    ledger.record(at(100), &report("n", 0, 1, 100, Some(broken)));
    assert_eq!((total(&ledger, at(100)).count(), completeness(&ledger, at(100)).unread_workers), (1, 1));
    ledger.record(at(200), &report("n", 0, 1, 200, Some(vm.latency(1))));
    assert_eq!(total(&ledger, at(200)), vm.truth);
    assert!(completeness(&ledger, at(200)).is_complete());
}

#[test]
fn a_proxy_that_comes_back_after_it_was_forgotten_is_not_counted_twice() {
    let (mut ledger, mut vm) = (ledger(), Vm::default());
    vm.serve("m", 5);
    ledger.record(at(0), &report("n", 0, 1, 1, Some(vm.latency(1))));
    ledger.expire(at(3_600_000));
    assert_eq!(completeness(&ledger, at(3_600_000)).lost_series, 1, "nobody knows what it counted last");
    vm.serve("m", 5);
    ledger.record(at(3_600_000), &report("n", 0, 1, 3_600_000, Some(vm.latency(1))));
    vm.serve("m", 5);
    ledger.record(at(3_601_000), &report("n", 0, 1, 3_601_000, Some(vm.latency(1))));
    assert_eq!(total(&ledger, at(3_601_000)).count(), 2, "one is missing, none is there twice");
    assert!(!completeness(&ledger, at(3_601_000)).is_complete());
}

/// What VMs serve between their reports: model and microseconds.
fn lives() -> impl Strategy<Value = Vec<Vec<Vec<(u8, u32)>>>> {
    prop::collection::vec(prop::collection::vec(prop::collection::vec((0..14_u8, any::<u32>()), 0..12), 1..7), 1..5)
}

proptest! {
    /// Every VM's reports arrive in any order, some never, some twice; VMs follow each other in a slot; latencies are in some reports only.
    #[test]
    fn totals_are_exact_or_said_to_be_incomplete_whatever_becomes_of_reports(
        lives in lives(),
        arrivals in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<bool>()), 0..80),
        lost in prop::collection::vec(any::<bool>(), 5),
    ) {
        let mut ledger = ledger();
        let mut truths = Vec::new();
        let reports: Vec<Vec<v1::LoadReport>> = lives.iter().enumerate().map(|(index, life)| {
            let mut vm = Vm::default();
            let reports = life.iter().enumerate().map(|(step, served)| {
                served.iter().for_each(|(model, micros)| vm.serve(&format!("m{model}"), u64::from(*micros)));
                // VMs 0 and 1 follow each other in slot 0.
                let slot = u32::try_from(index.saturating_sub(1)).unwrap();
                report("n", slot, index as u64 + 1, 100 * (step as u64 + 1), Some(vm.latency(1)))
            }).collect();
            truths.push(vm.truth);
            reports
        }).collect();
        let mut heard = vec![false; reports.len()];
        let mut highest = 0;
        for (vm, step, has_latency) in arrivals {
            let vm = vm.index(reports.len());
            let mut sent = step.get(&reports[vm]).clone();
            if !has_latency {
                sent.workers[0].pools[0].latency = None;
            }
            ledger.record(at(1), &sent);
            heard[vm] = true;
            let now = total(&ledger, at(1)).count();
            prop_assert!(now >= highest, "totals only grow");
            highest = now;
        }
        let sum_of = |included: &dyn Fn(usize) -> bool| {
            let mut sum = Latencies::new();
            truths.iter().enumerate().filter(|(vm, _)| included(*vm)).for_each(|(_, truth)| sum.merge(truth));
            sum
        };
        prop_assert!(highest <= sum_of(&|_| true).count());
        // The last report of each VM, which all of them but the lost ones deliver.
        for (vm, life) in reports.iter().enumerate().filter(|(vm, _)| !lost[*vm]) {
            let mut last = life.last().unwrap().clone();
            last.workers[0].at_ns = 1_000_000 * MS + vm as u64;
            ledger.record(at(10_000), &last);
            heard[vm] = true;
        }
        // Of a VM that was never heard nobody can know.
        let truth = sum_of(&|vm| heard[vm]);
        let (sum, completeness) = (total(&ledger, at(10_100)), completeness(&ledger, at(10_100)));
        prop_assert!(sum.count() <= truth.count(), "never too much");
        prop_assert!(sum == truth || !completeness.is_complete(), "{} of {} and said to be complete", sum.count(), truth.count());
        let has_lost = (0..reports.len()).any(|vm| heard[vm] && lost[vm]);
        prop_assert_eq!(completeness.is_complete(), !has_lost);
    }
}
