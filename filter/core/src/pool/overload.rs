//! Overload control of one policy in one worker: what is in flight, who waits, what was learned.

use alloc::vec::Vec;
use core::time::Duration;

use headgate_protos::v1;

use crate::admission::Held;
use crate::aperture::{Aperture, Extent};
use crate::budget::Size;
use crate::control::PoolState;
use crate::fairness::Usage;
use crate::histogram::Told;
use crate::in_band::Yields;
use crate::level::{LevelState, LevelStatus};
use crate::limits::HeldLimits;
use crate::limits::work::{self, WorkLimits};
use crate::output_estimate::{Estimates, Presumed};
use crate::overload::{COHORTS, Flow, OverloadController, OverloadSignals, RecentLevels};
use crate::permits::MAX_CLASSES;
use crate::policy::{ClassId, OverloadConfig, Policy, QueueConfig, RungKind};
use crate::pool::quotas::Charges;
use crate::queue::{AdmissionQueue, Bounds, Pace};
use crate::reason::Cause;
use crate::record::{FNV_OFFSET, fnv1a};
use crate::retry_budget::RetryBudget;
use crate::throttle::TokenBucket;
use crate::time::Timestamp;

/// Weight of the newest 100 ms in the rates of offered work: 2 s.
const RATE_ALPHA: f64 = 0.05;
/// Weight of the newest 100 ms in the rate by which the proxy's budgets are split among its workers: 10 s. Requests hold their part of a
/// budget for that long, so a split that followed every burst would leave one worker over its part, and idle, while another had room.
const SPLIT_ALPHA: f64 = 0.01;
/// Part of the pool's drain that a class can expect however much the classes above it ask for.
const MIN_DRAIN_PART: f64 = 0.05;

/// What a waiting request needs in order to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) size: Size,
    /// What it has been charged.
    pub(crate) charges: Charges,
    /// Until then it starts only where there is plenty of room: a rung of the ladder makes its class wait.
    pub(crate) held_until: Timestamp,
}

/// The answer to a request that waited.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It starts; `state` is the position of the state that counts it, whatever becomes of the policy's classes.
    Admitted {
        held: Held,
        state: usize,
    },
    Refused {
        cause: Cause,
        retry_after: Duration,
    },
}

/// The queue of a pool.
pub(crate) type WaitQueue = AdmissionQueue<Need, Answer>;

/// What became of those who waited, cumulative.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct QueueCounts {
    pub(crate) released: u64,
    pub(crate) expired: u64,
    pub(crate) abandoned: u64,
    pub(crate) overflowed: u64,
}

/// Work offered by one class.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Offered {
    pub(crate) total: u64,
    seen: u64,
    rate: f64,
    slow_rate: f64,
}

/// Overload control of one policy.
#[derive(Debug)]
pub(crate) struct PoolOverload {
    /// Tells it from every other that the pool ever had.
    pub(crate) number: u64,
    /// Number of its newest queue among all that the pool ever had.
    queue_number: u64,
    pub(crate) flow: Flow,
    /// Of its histograms: wait in the queue, time to first token, time between tokens.
    told: [Told; 3],
    pub(crate) in_force: WorkLimits,
    pub(crate) queue: Option<WaitQueue>,
    pub(crate) counts: QueueCounts,
    pub(crate) usage: Usage,
    pub(crate) estimates: Estimates,
    pub(crate) yields: Yields,
    pub(crate) retries: RetryBudget,
    pub(crate) offered: [Offered; MAX_CLASSES],
    pub(crate) levels: RecentLevels,
    pub(crate) floors: [TokenBucket; MAX_CLASSES],
    pub(crate) aperture: Aperture,
    controller: OverloadController,
    rated_at: Timestamp,
    /// Whether the pool's breaker let nothing or only probes through.
    was_stopped: bool,
}

impl PoolOverload {
    /// For a policy that has overload control; `None` for one that has none. `number` is new in its pool.
    pub(crate) fn new(now: Timestamp, policy: &Policy, number: u64) -> Option<Self> {
        let config = policy.overload()?;
        let controller = OverloadController::new(now, policy);
        let usage = usage(now, policy);
        Some(Self {
            number,
            queue_number: number << 16,
            flow: Flow::default(),
            told: Default::default(),
            in_force: WorkLimits::of_local(controller.state()),
            queue: config.queue.map(|_| queue(policy, &usage).numbered(number << 16)),
            counts: QueueCounts::default(),
            usage,
            estimates: Estimates::default(),
            yields: Yields::default(),
            retries: RetryBudget::default(),
            offered: [Offered::default(); MAX_CLASSES],
            levels: RecentLevels::new(),
            floors: core::array::from_fn(|_| TokenBucket::new(now, 0.0, 0.0)),
            aperture: Aperture::default(),
            controller,
            rated_at: now,
            was_stopped: false,
        })
    }

    /// Follows a changed policy. Who waits goes on waiting; where the policy no longer has a queue, the streams that it held are
    /// returned: nobody answers them any more.
    pub(crate) fn set_policy(&mut self, now: Timestamp, former: &Policy, policy: &Policy) -> Option<WaitQueue> {
        self.controller.set_policy(now, policy);
        let has_same_tenants = former.tenants().iter().map(|tenant| &tenant.name).eq(policy.tenants().iter().map(|tenant| &tenant.name));
        let has_same_classes = former.classes().iter().map(|class| &class.name).eq(policy.classes().iter().map(|class| &class.name));
        if !(has_same_tenants && has_same_classes) {
            self.usage = usage(now, policy);
            self.estimates = Estimates::default();
            self.offered = [Offered::default(); MAX_CLASSES];
            self.reshape(former, policy);
        }
        let has_queue = policy.overload().is_some_and(|config| config.queue.is_some());
        match (has_queue, &self.queue) {
            (true, None) => {
                self.queue_number += 1;
                self.queue = Some(queue(policy, &self.usage).numbered(self.queue_number));
            }
            (false, Some(_)) => return self.queue.take(),
            _ => {}
        }
        None
    }

    fn reshape(&mut self, former: &Policy, policy: &Policy) {
        let Some(queue) = &mut self.queue else { return };
        let last = policy.classes().len().saturating_sub(1);
        let class_of = |name: &str| policy.classes().iter().position(|class| class.name == name).unwrap_or(last);
        let classes: Vec<usize> = former.classes().iter().map(|class| class_of(&class.name)).collect();
        let unknown = self.usage.index(None);
        let tenant_of = |name: &str| policy.tenants().iter().position(|tenant| tenant.name == name).map_or(unknown, |index| index as u16);
        let tenants: Vec<u16> = former.tenants().iter().map(|tenant| tenant_of(&tenant.name)).collect();
        let usage = &self.usage;
        queue.reshape(
            (policy.classes().len(), usage.tenants()),
            |waiting| {
                waiting.class = ClassId::new(classes.get(waiting.class.index()).copied().unwrap_or(last));
                waiting.tenant = tenants.get(usize::from(waiting.tenant)).copied().unwrap_or(unknown);
            },
            |waiting| usage.served(waiting.class.index(), waiting.tenant),
        );
    }

    /// Takes whom the fleet served work; limits of another policy mean other tenants.
    pub(crate) fn follow_fleet(&mut self, now: Timestamp, policy: &Policy, wire: &v1::Limits) {
        if let Some(told) = wire.overload.as_ref().filter(|_| wire.policy_version == policy.version()) {
            self.usage.follow_fleet(now, &told.served_slot_deltas, &told.served_work);
        }
    }

    /// Every 100 ms: what is offered, who waits, and for whom that is in vain.
    pub(crate) fn take_stock(&mut self, now: Timestamp, breaker: v1::BreakerState) {
        let is_stopped = matches!(breaker, v1::BreakerState::Open | v1::BreakerState::HalfOpen);
        if self.was_stopped && !is_stopped {
            self.controller.begin_slow_start(now, 1.0);
        }
        self.was_stopped = is_stopped;
        let elapsed_s = now.since(self.rated_at).as_secs_f64();
        self.rated_at = now;
        for offered in &mut self.offered {
            let rate = offered.total.saturating_sub(offered.seen) as f64 / elapsed_s.max(1e-3);
            let towards = |before: f64, alpha: f64| before + alpha * (rate - before);
            let (slow_rate, total) = (towards(offered.slow_rate, SPLIT_ALPHA), offered.total);
            *offered = Offered { total, seen: total, rate: towards(offered.rate, RATE_ALPHA), slow_rate };
        }
        if let Some(factor) = self.usage.on_tick(now)
            && let Some(queue) = &mut self.queue
        {
            queue.rescale(factor);
        }
        self.measure_queue(now);
        self.look_ahead(now);
    }

    /// One turn of the worker's own controller. It runs while the control plane decides, too: it must have learned the pool when it is
    /// alone.
    pub(crate) fn control(&mut self, now: Timestamp, series: u64, levels: &PoolState) {
        let signals = OverloadSignals { series, flow: &self.flow, engine: None, level_pressure: pressure(levels) };
        self.controller.step(now, &signals);
    }

    /// Every tick: takes stock, and puts into force what holds at `now` for a worker with `share` of its proxy and `aperture` of that's
    /// engines, one of `workers`.
    pub(crate) fn enforce(
        &mut self,
        now: Timestamp,
        limits: Option<&HeldLimits>,
        (share, aperture): (f64, Extent),
        workers: u32,
        config: &OverloadConfig,
    ) {
        self.levels.drain_into(&mut self.flow.offered);
        self.in_force = work::in_force(limits, self.controller.state(), now, share);
        let engines = limits.filter(|_| config.picks_endpoint).map_or(&[][..], |limits| limits.engines(now));
        self.aperture.follow(engines, aperture);
        for (bucket, floor) in self.floors.iter_mut().zip(self.in_force.floors_work_per_s) {
            bucket.set_rate(now, floor, floor);
        }
        let bounds = config.queue.map(|queue| self.bounds(queue, workers));
        if let (Some(queue), Some(bounds)) = (&mut self.queue, bounds) {
            queue.set_bounds(bounds);
        }
    }

    /// This worker's part of the queue: of its requests no more than a multiple of those that may be in flight. The parts
    /// are even: a part that followed the demand would shrink faster than requests leave, and the sum would pass the proxy's bound.
    fn bounds(&self, config: QueueConfig, workers: u32) -> Bounds {
        let in_flight = self.flow.in_flight;
        let mean_kv = in_flight.kv_tokens.checked_div(in_flight.streams).unwrap_or(1).max(1);
        let by_kv = self.in_force.budgets.kv_tokens.map(|budget| budget / mean_kv);
        let may_run = [by_kv, self.in_force.budgets.streams].into_iter().flatten().min().map(|most| most.max(1) as f64);
        let by_depth = may_run.map_or(f64::INFINITY, |most| most * config.max_depth_factor);
        let requests = f64::from(config.max_requests / workers.max(1)).min(by_depth).max(1.0);
        Bounds { requests: requests as u32, bytes: config.max_bytes / u64::from(workers.max(1)) }
    }

    fn measure_queue(&mut self, now: Timestamp) {
        let Some(queue) = &self.queue else { return };
        self.flow.queued_requests = u64::from(queue.len());
        self.flow.queued_work = queue.work();
        self.flow.oldest_wait = queue.oldest().map_or(Duration::ZERO, |arrived| now.since(arrived));
    }

    /// Finds out who waits in vain, at what leaves the queue now. Of a class all of which is to start nobody does: it may pass the budgets.
    fn look_ahead(&mut self, now: Timestamp) {
        let from_class = usize::from(self.starts_all_of(ClassId::new(0)));
        let pace = Pace { drain: self.in_force.drain_work_per_s, growth: self.usage.growth(now), from_class };
        if let Some(queue) = self.queue.as_mut().filter(|_| pace.drain > 0.0) {
            queue.look_ahead(now, pace);
        }
    }

    /// What every request is presumed to be like.
    pub(crate) fn presumed(&self, config: &OverloadConfig) -> Presumed {
        let learned = self.in_force.output_tokens;
        Presumed {
            tokens_per_byte: self.in_force.prompt_factor / config.bytes_per_token,
            output_tokens: if learned > 0.0 { learned } else { f64::from(config.output_tokens) },
        }
    }

    /// Whether a request's size says what it costs: a model's prompt does. A server without a KV cache, of which no page tells one, may take as
    /// long for any request, and to prefer small ones there is to do less work.
    pub(crate) fn has_sizes(&self) -> bool {
        self.in_force.budgets.kv_tokens.is_some()
    }

    /// Whether all of a class is to start: it is the first, and nothing of it is cut off.
    pub(crate) fn starts_all_of(&self, class: ClassId) -> bool {
        class.index() == 0 && self.in_force.cut_off.level >= COHORTS
    }

    /// Whether size counts in the order of a class that waits. Where all of it is to start, short ones first only makes long ones late.
    pub(crate) fn orders_by_size(&self, class: ClassId) -> bool {
        self.has_sizes() && !self.starts_all_of(class)
    }

    /// Work tokens per second that the requests of a class can expect: what the pool drains beyond the classes above it, but at least its
    /// floor and a twentieth. 0 while the drain is unknown.
    pub(crate) fn drain_of(&self, class: ClassId) -> f64 {
        let drain = self.in_force.drain_work_per_s;
        let above: f64 = self.offered.iter().take(class.index()).map(|offered| offered.rate).sum();
        let floor = self.in_force.floors_work_per_s.get(class.index()).copied().unwrap_or(0.0);
        (drain - above).max(floor.min(drain)).max(drain * MIN_DRAIN_PART)
    }

    /// Work tokens per second that this worker could use: what it is offered and, in a second, what waits.
    pub(crate) fn work_wanted(&self) -> f64 {
        self.offered.iter().map(|offered| offered.slow_rate).sum::<f64>() + self.flow.queued_work as f64
    }

    /// The first engaged rung that acts on a class and is of the kind that `pick` takes.
    pub(crate) fn rung<'a, T>(
        &self,
        config: &'a OverloadConfig,
        class: ClassId,
        pick: impl Fn(usize, &'a RungKind) -> Option<T>,
    ) -> Option<T> {
        let rungs = config.ladder.iter().zip(self.in_force.rungs).enumerate();
        rungs
            .filter(|(_, (rung, engaged))| *engaged && rung.classes.contains(&class))
            .find_map(|(index, (rung, _))| pick(index, &rung.kind))
    }

    /// Cumulative state on the wire; gauges are of the last control tick, but for what is in flight.
    pub(crate) fn report(&self, limits_epoch: u64) -> v1::OverloadReport {
        let flow = &self.flow;
        let (offered_level_deltas, offered_work) = flow.offered.to_wire();
        let (served_second, served) = self.usage.told();
        let QueueCounts { released, expired, abandoned, overflowed } = self.counts;
        let [wait_told, service_told, tpot_told] = &self.told;
        let queue = self.queue.as_ref().map(|queue| v1::QueueReport {
            requests: queue.len(),
            bytes: queue.bytes(),
            work: queue.work(),
            oldest_ms: u32::try_from(flow.oldest_wait.as_millis()).unwrap_or(u32::MAX),
            released,
            expired,
            abandoned,
            overflowed,
            wait_us: wait_told.of(&flow.queue_wait_us),
        });
        v1::OverloadReport {
            in_flight: Some(flow.in_flight.to_wire()),
            admitted: Some(flow.admitted.to_wire()),
            finished: Some(flow.finished.to_wire()),
            offered_level_deltas,
            offered_work,
            queue,
            service_ttft_us: service_told.of(&flow.service_ttft_us),
            tpot_us: tpot_told.of(&flow.tpot_us),
            ttft_fit: Some(flow.ttft_fit.to_wire()),
            output_tokens: flow.output_tokens,
            responses: flow.responses,
            retries: flow.retries,
            good_work: flow.good_work,
            engine_refusals: flow.engine_refusals,
            limits_epoch,
            served_second,
            served_slot_deltas: served.slot_deltas.clone(),
            served_work: served.work.clone(),
        }
    }
}

fn queue(policy: &Policy, usage: &Usage) -> WaitQueue {
    // The bounds come with the first limits in force.
    AdmissionQueue::new(policy.classes().len(), usage.tenants(), Bounds { requests: 1, bytes: 0 })
}

fn usage(now: Timestamp, policy: &Policy) -> Usage {
    // The same in every worker that has the policy.
    let key = fnv1a(policy.name().as_bytes(), FNV_OFFSET);
    Usage::new(now, policy.classes().len(), policy.tenants().len(), key)
}

/// The largest `value / threshold` of the levels that can say something.
fn pressure(levels: &PoolState) -> f64 {
    let is_known = |level: &&LevelStatus| {
        let is_silent = matches!(level.state, LevelState::Disabled | LevelState::Learning | LevelState::Stale);
        !is_silent && level.threshold > 0.0
    };
    levels.levels.iter().filter(is_known).map(|level| level.value / level.threshold).fold(0.0, f64::max)
}
