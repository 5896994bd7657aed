//! Leases of quotas under messages that are lost, repeated, late and overtaken, proxies and leaders that begin anew, and reports that say
//! anything: what is in force never sums above the capacity.

use std::collections::BTreeMap;
use std::sync::Arc;

use headgate_core::fleet::{FleetQuotas, PolicySet, StoredPolicy};
use headgate_core::policy::Policy;
use headgate_core::quota::{Allowance, CLASSES, Grant, Held, PerClass, Purse};
use headgate_core::time::Timestamp;
use headgate_protos::v1;

use crate::{Marks, Source};

/// Steps of one story at most.
const MAX_STEPS: usize = 200;
/// Messages on their way at most.
const MAX_MESSAGES: usize = 32;
const PROXIES: usize = 4;
const QUOTA: &str = "all/requests";

/// A proxy with one worker, which keeps the rules.
struct Proxy {
    held: Held,
    holder: u64,
    /// How far its clock is ahead, in milliseconds.
    ahead_ms: u64,
    purse: Purse,
    asked: PerClass,
    requests: [u64; CLASSES],
    used: f64,
}

struct World {
    now: Timestamp,
    limit: f64,
    burst_s: f64,
    policies: PolicySet,
    quotas: FleetQuotas,
    fence: u64,
    proxies: Vec<Proxy>,
    born: u64,
    reports: Vec<v1::LoadReport>,
    grants: Vec<(usize, v1::QuotaGrant)>,
}

pub(super) fn run(input: &[u8]) -> u64 {
    Marks::of(input, story)
}

fn story(input: &[u8], marks: &mut Marks) {
    let mut source = Source::new(input);
    let mut world = World::new(&mut source);
    for _ in 0..MAX_STEPS {
        if source.is_empty() {
            break;
        }
        world.step(&mut source, marks);
        world.check(marks);
    }
}

/// A policy with one quota, valid whatever is drawn.
fn policy(source: &mut Source<'_>) -> v1::Policy {
    let class =
        |name: &str| v1::PriorityClass { name: name.into(), when_tripped: v1::WhenTripped::Refuse.into(), ..v1::PriorityClass::default() };
    let quota = v1::Quota {
        name: "all".into(),
        unit: v1::QuotaUnit::Requests.into(),
        amount: *source.pick(&[0.001, 0.5, 3.0, 100.0, 1e6, 1e15]),
        mode: source.pick(&[v1::QuotaMode::Strict, v1::QuotaMode::Fast]).to_owned().into(),
        reserve_percent: Some(*source.pick(&[0.0, 0.25, 20.0])),
        safe_percent: Some(*source.pick(&[0.0, 1.0, 50.0])),
        burst_ms: Some(*source.pick(&[100, 1000, 60_000])),
        floors: source.is_so(128).then(|| v1::QuotaFloor { class: "low".into(), percent: 30 }).into_iter().collect(),
        ..v1::Quota::default()
    };
    let spec =
        v1::PolicySpec { pool: "llm".into(), classes: ["high", "low"].map(class).to_vec(), quotas: vec![quota], ..Default::default() };
    v1::Policy { name: "demo".into(), version: "1".into(), spec: Some(spec) }
}

impl World {
    fn new(source: &mut Source<'_>) -> Self {
        let wire = policy(source);
        let checked = Policy::try_from_wire(&wire).expect("every drawn policy is valid");
        let terms = checked.quotas()[0].terms;
        let stored = Arc::new(StoredPolicy { policy: wire, changed_at_unix_ms: 0 });
        let now = Timestamp::from_millis(1_000_000);
        let mut world = Self {
            now,
            limit: terms.capacity * (1.0 + terms.overbook),
            burst_s: terms.burst_s,
            policies: PolicySet { policies: [("demo".to_owned(), stored)].into() },
            quotas: FleetQuotas::default(),
            fence: 0,
            proxies: Vec::new(),
            born: 0,
            reports: Vec::new(),
            grants: Vec::new(),
        };
        world.quotas.begin(1);
        // The quota is new: nobody can hold anything of it.
        world.quotas.set_policies(now, &PolicySet::default());
        world.lead();
        world.proxies = (0..PROXIES).map(|_| world.newborn()).collect();
        world
    }

    fn lead(&mut self) {
        self.fence += 1;
        if self.fence > 1 {
            self.quotas.begin(self.fence);
        }
        self.quotas.set_policies(self.now, &self.policies);
    }

    fn newborn(&mut self) -> Proxy {
        self.born += 1;
        let ahead_ms = self.born * 77_000;
        let purse = Purse::new(self.now + std::time::Duration::from_millis(ahead_ms));
        Proxy { held: Held::new(self.born), holder: self.born, ahead_ms, purse, asked: [0.0; CLASSES], requests: [0; CLASSES], used: 0.0 }
    }

    fn step(&mut self, source: &mut Source<'_>, marks: &mut Marks) {
        let who = source.below(PROXIES);
        match source.below(16) {
            0..=2 => self.now = self.now + source.span() / 2,
            3..=5 => self.report(who),
            6..=7 => self.hear(source),
            8..=9 => self.grant(marks),
            10..=11 => self.deliver(source, marks),
            12 => self.ask(who, source, marks),
            13 if source.is_so(60) => self.proxies[who] = self.newborn(),
            14 if source.is_so(60) => self.lead(),
            15 => self.hear_anything(source),
            _ => self.quotas.expire(self.now),
        }
    }

    fn report(&mut self, who: usize) {
        let proxy = &self.proxies[who];
        let at = proxy.clock(self.now);
        let mark = proxy.held.mark();
        let quota = v1::QuotaReport {
            quota: QUOTA.into(),
            holder: proxy.holder,
            fence: mark.fence,
            sequence: mark.sequence,
            lease: Some(proxy.held.lease(at, self.burst_s).to_wire()),
            asked: proxy.asked.to_vec(),
            requests: proxy.requests.to_vec(),
            used: proxy.used,
            refused: 0,
            saved: proxy.purse.total(),
        };
        self.send(who, proxy.holder, at.as_nanos(), quota);
    }

    fn send(&mut self, who: usize, vm_epoch: u64, at_ns: u64, quota: v1::QuotaReport) {
        let pool = v1::PoolReport { policy: "demo".into(), pool: "llm".into(), quotas: vec![quota], ..v1::PoolReport::default() };
        let worker = v1::WorkerReport { slot: 0, vm_epoch, at_ns, pools: vec![pool], ..v1::WorkerReport::default() };
        if self.reports.len() < MAX_MESSAGES {
            self.reports.push(v1::LoadReport { node_id: who.to_string(), workers: vec![worker], ..v1::LoadReport::default() });
        }
    }

    /// Any report that is on its way arrives, and may stay on its way as well, or is lost.
    fn hear(&mut self, source: &mut Source<'_>) {
        if self.reports.is_empty() {
            return;
        }
        let at = source.below(self.reports.len());
        let report = if source.is_so(60) { self.reports[at].clone() } else { self.reports.swap_remove(at) };
        if !source.is_so(30) {
            self.quotas.record(self.now, &report);
        }
    }

    /// Somebody who keeps no rules reports.
    fn hear_anything(&mut self, source: &mut Source<'_>) {
        let floats = |source: &mut Source<'_>| (0..source.below(10)).map(|_| source.float()).collect::<Vec<f64>>();
        let fence = source.number();
        // A new leader believes what somebody who listens to it says to hold of an earlier one: it has no other way to know.
        let claims = source.is_so(128) && fence != self.fence;
        let quota = v1::QuotaReport {
            quota: source.text(&[QUOTA, "other"]),
            holder: 1 << 40 | source.number(),
            fence,
            sequence: source.number(),
            lease: claims.then(|| v1::QuotaLease { rates: floats(source), safe: source.float(), burst: source.float() }),
            asked: floats(source),
            requests: (0..source.below(10)).map(|_| source.number()).collect(),
            used: source.float(),
            refused: source.number(),
            saved: source.float(),
        };
        let (who, epoch, at) = (PROXIES + source.below(3), source.number(), source.number());
        self.send(who, epoch, at, quota);
        if let Some(report) = self.reports.pop() {
            self.quotas.record(self.now, &report);
        }
    }

    fn grant(&mut self, marks: &mut Marks) {
        if !self.quotas.step(self.now) {
            return;
        }
        let pools: BTreeMap<&str, _> = self.quotas.grants().collect();
        for (node, grants) in pools["llm"].iter() {
            // Whoever keeps no rules is not looked at: what it is granted is the control plane's to count.
            let Some(who) = node.parse().ok().filter(|who| *who < PROXIES) else { continue };
            for grant in grants {
                marks.note(("granted", grant.lease.as_ref().map(|lease| lease.rates.len())));
                if self.grants.len() < MAX_MESSAGES && !self.grants.contains(&(who, grant.clone())) {
                    self.grants.push((who, grant.clone()));
                }
            }
        }
    }

    /// Any grant that is on its way arrives, and may stay on its way as well, or is lost.
    fn deliver(&mut self, source: &mut Source<'_>, marks: &mut Marks) {
        if self.grants.is_empty() {
            return;
        }
        let at = source.below(self.grants.len());
        let (who, grant) = if source.is_so(60) { self.grants[at].clone() } else { self.grants.swap_remove(at) };
        if source.is_so(30) {
            return;
        }
        let (now, burst_s) = (self.now, self.burst_s);
        let proxy = &mut self.proxies[who];
        proxy.settle(now, burst_s);
        let at = proxy.clock(now);
        marks.note(("taken", proxy.held.accept(at, &Grant::from_wire(&grant))));
        proxy.settle(now, burst_s);
    }

    fn ask(&mut self, who: usize, source: &mut Source<'_>, marks: &mut Marks) {
        let (class, cost) = (source.below(3), f64::from(1 + source.number32() % 5000));
        let (now, burst_s) = (self.now, self.burst_s);
        let proxy = &mut self.proxies[who];
        let allowance = proxy.settle(now, burst_s);
        proxy.asked[class] += cost;
        proxy.requests[class] += 1;
        let is_covered = proxy.purse.covers(class, cost, &allowance);
        marks.note(("covered", is_covered, proxy.purse.saved(class) < cost));
        if is_covered {
            proxy.purse.take(class, cost);
            proxy.used += cost;
        }
    }

    fn check(&self, marks: &mut Marks) {
        let in_force: f64 =
            self.proxies.iter().map(|proxy| proxy.held.allowance(proxy.clock(self.now), self.burst_s).rates.iter().sum::<f64>()).sum();
        assert!(in_force <= self.limit * (1.0 + 1e-9), "{in_force} of {} in force", self.limit);
        marks.note(("in force", (in_force / self.limit * 8.0) as u8));
        // Whoever keeps no rules may say to hold anything, which counts as if it were so.
        for view in self.quotas.views(self.now) {
            assert!(view.quota.committed.is_finite() && view.quota.committed >= 0.0, "{} committed", view.quota.committed);
        }
    }
}

impl Proxy {
    fn clock(&self, now: Timestamp) -> Timestamp {
        now + std::time::Duration::from_millis(self.ahead_ms)
    }

    fn settle(&mut self, now: Timestamp, burst_s: f64) -> Allowance {
        let at = self.clock(now);
        let allowance = self.held.allowance(at, burst_s);
        self.purse.settle(at, &allowance);
        allowance
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    super::random_seeds(800)
}
