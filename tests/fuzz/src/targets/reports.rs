//! Load reports into the books and on into the control loop: whatever proxies say, totals only grow, histograms that can be read are
//! what they say, and what is pushed is made of finite numbers.

use std::sync::Arc;
use std::time::Duration;

use headgate::document::CheckedPolicy;
use headgate_core::fleet::{Controls, Ledger, LimitsLifetime, PolicySet, Ring, StepInputs, StoredPolicy};
use headgate_core::histogram::Histogram;
use headgate_core::overload::Flow;
use headgate_core::policy::GpuMemoryConfig;
use headgate_core::time::Timestamp;
use headgate_protos::v1;
use prost::Message;

use crate::input::{Input, fingerprint, push_frame};

const POLICY: &str = "apiVersion: headgate.dev/v1\nkind: AdmissionPolicy\nmetadata: {name: demo}\nspec:\n  pool: llm\n  classes:\n  \
                      - {name: high, whenTripped: reserved_lane}\n  - {name: low, whenTripped: refuse}\n  overload: {queue: {}}\n";

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut script = Vec::new();
    for step in 1..4_u64 {
        script.extend([0, 100, 0]);
        push_frame(&mut script, &report(step).encode_to_vec());
    }
    vec![script, absurd()]
}

/// A VM that claims as much as can be, and its successor that claims one more.
fn absurd() -> Vec<u8> {
    let mut script = Vec::new();
    for (vm_epoch, count) in [(1, u64::MAX), (2, u64::MAX), (2, 1)] {
        let mut report = report(vm_epoch);
        report.workers[0].vm_epoch = vm_epoch;
        let pool = &mut report.workers[0].pools[0];
        let class = &mut pool.classes[0];
        (class.offered, class.admitted, class.completed) = (count, count, count);
        class.refused[0].count = count;
        let overload = pool.overload.as_mut().expect("the seed has one");
        overload.admitted = Some(v1::Work { prefill_tokens: count, kv_tokens: count, streams: count });
        overload.offered_work = vec![count, count];
        overload.good_work = count;
        report.workers[0].counters = Some(v1::WorkerCounters { unmatched: count, ..Default::default() });
        script.extend([0, 100, 0]);
        push_frame(&mut script, &report.encode_to_vec());
    }
    script
}

fn report(step: u64) -> v1::LoadReport {
    let mut ttft = Histogram::new();
    (0..step).for_each(|sample| ttft.record(1000 * sample));
    let work = |requests: u64| v1::Work { prefill_tokens: 100 * requests, kv_tokens: 150 * requests, streams: requests };
    let class = v1::ClassReport {
        class: "high".to_owned(),
        offered: 10 * step,
        admitted: 9 * step,
        completed: 8 * step,
        refused: vec![v1::ReasonCount { reason: "gpu_memory".to_owned(), count: step }],
        in_flight: 2,
        ttft_us: Some(ttft.to_wire()),
        ..Default::default()
    };
    let overload = v1::OverloadReport {
        in_flight: Some(work(1)),
        admitted: Some(work(9 * step)),
        finished: Some(work(8 * step)),
        offered_level_deltas: vec![3, 130],
        offered_work: vec![100 * step, 200 * step],
        queue: Some(v1::QueueReport { requests: 2, bytes: 10, released: step, wait_us: Some(ttft.to_wire()), ..Default::default() }),
        service_ttft_us: Some(ttft.to_wire()),
        ttft_fit: Some(v1::FitSums { count: step, x: 10.0, y: 20.0, xx: 30.0, xy: 40.0 }),
        responses: step,
        ..Default::default()
    };
    let pool = v1::PoolReport {
        policy: "demo".to_owned(),
        pool: "llm".to_owned(),
        classes: vec![class],
        overload: Some(overload),
        ..Default::default()
    };
    let worker = v1::WorkerReport { slot: 0, vm_epoch: 7, at_ns: step * 100_000_000, pools: vec![pool], ..Default::default() };
    v1::LoadReport { node_id: "n".to_owned(), sequence: step, workers: vec![worker], ..Default::default() }
}

pub(super) fn run(input: &[u8]) -> u64 {
    let mut input = Input::new(input);
    let policy = CheckedPolicy::from_document(POLICY).expect("the policy is valid").wire().clone();
    let stored = Arc::new(StoredPolicy { policy, changed_at_unix_ms: 0 });
    let mut ledger = Ledger::default();
    let policies = PolicySet { policies: [("demo".to_owned(), stored)].into() };
    ledger.set_policies(&policies);
    let mut controls = Controls::new(LimitsLifetime { ttl: Duration::from_secs(3), decay: Duration::from_secs(10) });
    controls.set_policies(Timestamp::ZERO, 1, &policies);
    let mut now = Timestamp::ZERO;
    let mut before = [0_u64; 4];
    let mut seen = Vec::new();
    for _ in 0..32 {
        if input.is_empty() {
            break;
        }
        if input.byte() % 8 == 7 {
            ledger.expire(now);
        }
        now = now + Duration::from_millis(u64::from(input.short()));
        let Ok(report) = v1::LoadReport::decode(input.frame()) else {
            seen.push(0);
            continue;
        };
        check_pieces(&report);
        ledger.record(now, &report);
        let after = totals(&ledger, now);
        assert!(after.iter().zip(before).all(|(after, before)| *after >= before), "totals fell from {before:?} to {after:?}");
        seen.push(1 + u8::from(after != before) + 2 * u8::from(ledger.unreadable() > 0) + 4 * report.workers.len().min(3) as u8);
        before = after;
        let shares = ledger.shares(now, "llm");
        let sum: f64 = shares.by_node.values().map(|share| share.rate).sum::<f64>() + shares.newcomer.rate;
        assert!((0.0..=1.0 + 1e-9).contains(&sum), "parts sum to {sum}");
        let loads = ledger.view(now);
        let nothing = |_: &str, _: &GpuMemoryConfig| None;
        let share = |_: &str| shares.clone();
        let inputs = StepInputs {
            loads: &loads,
            gpu_memory: &nothing,
            capacity: &|_, _| 1.0,
            engines: &|_| None,
            rings: &|_| Ring::default(),
            shares: &share,
        };
        if let Some(limits) = controls.step(now, &inputs).and_then(|table| table.for_node("n", "llm")) {
            check_limits(&limits);
        }
    }
    fingerprint([seen])
}

fn check_limits(limits: &v1::Limits) {
    let rates = limits.classes.iter().flat_map(|class| [class.rate_rps, class.burst, class.drain_rps, class.safe_rps]);
    let overload = limits.overload.as_ref().expect("the policy has overload control");
    let expected = [overload.cut_fraction, overload.saturation, overload.drain_work_per_s, overload.expected_ttft_ms, overload.retry_ratio];
    let learned = [overload.prompt_factor, overload.output_tokens];
    for number in rates.chain(expected).chain(learned).chain(overload.floor_work_per_s.iter().copied()) {
        assert!(number.is_finite() && number >= 0.0, "{number} in {limits:?}");
    }
    assert!(overload.cut_level <= 1024 && overload.cut_fraction <= 1.0, "{limits:?}");
}

fn totals(ledger: &Ledger, now: Timestamp) -> [u64; 4] {
    let views = ledger.view(now);
    let Some(pool) = views.get("llm") else { return [0; 4] };
    let class = |name: &str| pool.classes.iter().find(|class| class.class == name).map_or(0, |class| class.totals.offered);
    [class("high"), class("low"), pool.queue.released, pool.flow.as_ref().map_or(0, |flow| flow.admitted.streams)]
}

/// Histograms and flows by themselves.
fn check_pieces(report: &v1::LoadReport) {
    for pool in report.workers.iter().flat_map(|worker| &worker.pools) {
        for wire in pool.classes.iter().filter_map(|class| class.ttft_us.as_ref()) {
            if let Ok(histogram) = Histogram::from_wire(wire) {
                let again = Histogram::from_wire(&histogram.to_wire()).expect("what was written can be read");
                assert_eq!(again.count(), histogram.count());
                assert!(histogram.quantile(0.5) <= histogram.quantile(0.99));
            }
        }
        if let Some(Ok(flow)) = pool.overload.as_ref().map(Flow::from_wire) {
            let mut sum = Flow::default();
            sum.add(&flow);
            sum.add(&flow);
        }
    }
}
