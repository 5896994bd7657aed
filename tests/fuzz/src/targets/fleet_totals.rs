//! The books of the fleet and the control loop over them, under reports that may say anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use headgate_core::fleet::{ClassTotals, Controls, Ledger, LimitsLifetime, PolicySet, PoolView, Ring, Shares, StepInputs, StoredPolicy};
use headgate_core::overload::EngineSample;
use headgate_core::policy::Policy;
use headgate_core::time::Timestamp;
use headgate_protos::v1;
use prost::Message;

use super::build;
use crate::{Marks, Source};

/// Steps of one story at most.
const MAX_STEPS: usize = 40;
const NODES: [&str; 3] = ["a", "b", ""];
const LIFETIME: LimitsLifetime = LimitsLifetime { ttl: Duration::from_secs(3), decay: Duration::from_secs(3) };

struct Books {
    ledger: Ledger,
    controls: Controls,
    now: Timestamp,
    /// The newest totals of each pool and class.
    seen: BTreeMap<(String, String), ClassTotals>,
}

pub(super) fn run(input: &[u8]) -> u64 {
    Marks::of(input, story)
}

fn story(input: &[u8], marks: &mut Marks) {
    let mut source = Source::new(input);
    let mut books =
        Books { ledger: Ledger::default(), controls: Controls::new(LIFETIME), now: Timestamp::from_millis(1), seen: BTreeMap::new() };
    books.set_policies(&mut source);
    for _ in 0..MAX_STEPS {
        if source.is_empty() {
            break;
        }
        books.now = books.now + source.span();
        match source.below(12) {
            0 => books.set_policies(&mut source),
            1 => books.ledger.expire(books.now),
            2..=4 => books.control(&mut source, marks),
            _ => books.report(&mut source, marks),
        }
        books.check(marks);
    }
}

impl Books {
    fn set_policies(&mut self, source: &mut Source<'_>) {
        let mut set = PolicySet::default();
        for (name, pool) in [("demo", "llm"), ("second", "other")] {
            let policy = build::policy(source, name, pool);
            if Policy::try_from_wire(&policy).is_ok() {
                set.policies.insert(name.to_owned(), Arc::new(StoredPolicy { policy, changed_at_unix_ms: 0 }));
            }
        }
        self.ledger.set_policies(&set);
        // The server numbers from its calendar, in milliseconds.
        let invalid = self.controls.set_policies(self.now, source.number() >> 8, &set);
        assert!(invalid.is_empty(), "{invalid:?}");
        // A pool that is gone begins anew when it comes back, and so does a class.
        let view = self.ledger.view(self.now);
        let is_there = |pool: &str, class: &str| view.get(pool).is_some_and(|pool| pool.classes.iter().any(|there| there.class == class));
        self.seen.retain(|(pool, class), _| is_there(pool, class));
    }

    fn report(&mut self, source: &mut Source<'_>, marks: &mut Marks) {
        let workers = (0..source.below(3)).map(|_| build::worker_report(source, self.now.as_nanos())).collect();
        let mut report = v1::LoadReport { node_id: source.text(&NODES), workers, ..Default::default() };
        if source.is_so(16) {
            let mut bytes = report.encode_to_vec();
            bytes.truncate(source.below(bytes.len() + 1));
            report = v1::LoadReport::decode(bytes.as_slice()).unwrap_or_default();
        }
        marks.note(("booked", self.ledger.record(self.now, &report)));
    }

    fn control(&mut self, source: &mut Source<'_>, marks: &mut Marks) {
        let loads = self.ledger.view(self.now);
        let sample = source.is_so(128).then(|| engine_sample(source, self.now));
        let (ledger, now) = (&self.ledger, self.now);
        let inputs = StepInputs {
            loads: &loads,
            gpu_memory: &|_, _| None,
            capacity: &|_, _| 1.0,
            engines: &|_| sample,
            rings: &|_| Ring::default(),
            shares: &|pool| ledger.shares(now, pool),
        };
        if let Some(table) = self.controls.step(now, &inputs) {
            for (pool, node) in table.pools.keys().flat_map(|pool| NODES.map(|node| (pool, node))) {
                let limits = table.for_node(node, pool).expect("the pool has limits");
                marks.note(("pushed", limits.overload.is_some(), limits.classes.len()));
                assert_finite(&limits);
            }
        }
        let _ = self.controls.views();
    }

    fn check(&mut self, marks: &mut Marks) {
        let view = self.ledger.view(self.now);
        for (name, pool) in &view {
            self.check_pool(name, pool);
            marks.note((pool.flow.is_some(), pool.proxies, pool.classes.len()));
            assert_shares(&self.ledger.shares(self.now, name));
        }
        let _ = (self.ledger.worker_counters(), self.ledger.unaccounted(), self.ledger.unreadable());
    }

    fn check_pool(&mut self, name: &str, pool: &PoolView) {
        for class in &pool.classes {
            let key = (name.to_owned(), class.class.clone());
            let before = self.seen.insert(key, class.totals.clone()).unwrap_or_default();
            let grows = |one: &ClassTotals| [one.offered, one.admitted, one.completed, one.failed, one.cancelled];
            let fell = grows(&before).iter().zip(grows(&class.totals)).any(|(before, after)| after < *before);
            let refused_fell = before.refused.iter().zip(class.totals.refused).any(|(before, after)| after < *before);
            assert!(!fell && !refused_fell, "{name} {}: {:?} after {before:?}", class.class, class.totals);
            let _ = self.ledger.ttft(self.now, name, &class.class);
        }
    }
}

fn engine_sample(source: &mut Source<'_>, at: Timestamp) -> EngineSample {
    EngineSample {
        at,
        epoch: source.number(),
        kv_used_tokens: source.number(),
        kv_total_tokens: source.number(),
        kv_fullest: source.float(),
        running: source.number(),
        waiting: source.number(),
        preemptions: source.number(),
        output_tokens: source.number(),
        engines: source.number32(),
        tpot_p95: None,
        slowest: source.float(),
    }
}

fn assert_shares(shares: &Shares) {
    let parts = || shares.by_node.values().chain([&shares.newcomer]);
    assert!(parts().all(|share| (0.0..=1.0).contains(&share.rate) && (0.0..=1.0).contains(&share.safe)), "{shares:?}");
    let whole: f64 = shares.by_node.values().map(|share| share.rate).sum();
    assert!(whole <= 1.0 + 1e-9, "{shares:?}");
}

/// Nothing that a proxy is told is no number, infinite or negative.
fn assert_finite(limits: &v1::Limits) {
    let is_sane = |number: f64| number.is_finite() && number >= 0.0;
    for class in &limits.classes {
        assert!([class.rate_rps, class.burst, class.drain_rps, class.safe_rps].into_iter().all(is_sane), "{class:?}");
    }
    assert!(limits.ttl_ms > 0 && is_sane(limits.drain_rps), "{limits:?}");
    if let Some(overload) = &limits.overload {
        super::overload_controller::assert_wire(overload);
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    super::random_seeds(800)
}
