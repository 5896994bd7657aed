//! The cut-off: which part of the offered work is let through to budgets and queue.
//!
//! The budgets alone protect the engines. The cut-off keeps the queue in front of them short and the same levels waiting everywhere: it
//! passes as much work as leaves the queue (feed-forward) plus or minus what brings the queue to its target.

use super::level::{COHORTS, CutOff, LEVELS};
use super::meter::{Demand, Tick, weight};

/// Wait in the queue that is aimed at, as a part of the objective of the time to first token: long enough that no worker's budget idles
/// between two pushes of limits and that the end of a burst finds work, short enough that what is admitted makes its objective. In bursts of
/// 3 s a part of 0.65 does 2 % less work in time, and 1 does 1.5 % more; but under a steady five times the capacity as many as 26 % less and
/// 33 % more requests wait in vain.
const WAIT_PART: f64 = 0.8;
/// Requests that may wait however little the pool does: the queue is spread over the workers of all proxies.
const LEAST_QUEUE: f64 = 8.0;
/// Time in which the queue is brought to its target: a few times the delay of report, step and push (about 0.2 s), so that it is stable.
const CORRECT_S: f64 = 1.0;
/// Memory of the rate at which work leaves the queue while it stands.
const DRAIN_MEMORY_S: f64 = 2.0;
/// Memory of the rate that the pool keeps up, and with which a smaller one is believed.
const CAPACITY_RISE_S: f64 = 3.0;
const CAPACITY_FALL_S: f64 = 10.0;
/// Integral of the error of the queue: its time constant, and its bound as a part of the drain (anti-windup).
const INTEGRAL_S: f64 = 8.0;
const INTEGRAL_MAX: f64 = 0.3;
/// Recovery a tick of 100 ms while the queue is near its target: one point and a twentieth. With the queue below half: a quarter.
const RECOVER_POINTS: f64 = 0.01;
const RECOVER_FACTOR: f64 = 1.05;
const REFILL_POINTS: f64 = 0.03;
const REFILL_FACTOR: f64 = 1.25;
/// Least part of the drain that passes however long the queue is: what is in it is of the boundary class, behind which nothing more important
/// waits, and its deadlines empty it too.
const LEAST_PASSED: f64 = 0.7;
/// Without a queue in the proxy: what is passed beyond the drain, so that the budgets stay full.
const UNQUEUED_EXCESS: f64 = 1.05;

/// Classes that there are levels for.
const CLASSES: usize = (LEVELS / COHORTS) as usize;

/// What the shedder needs to know of a tick.
#[derive(Debug, Clone, Copy)]
pub(super) struct ShedInput<'a> {
    /// Work tokens admitted since the last step.
    pub(super) admitted_work: f64,
    /// Work tokens finished since the last step.
    pub(super) finished_work: f64,
    /// Work tokens in the queue.
    pub(super) queued_work: f64,
    /// Work tokens that the budgets have room for.
    pub(super) room_work: f64,
    /// Work tokens of a mean request.
    pub(super) request_work: f64,
    /// Whether there is a queue in the proxies.
    pub(super) queues: bool,
    /// Largest part that the work in flight takes of its budget.
    pub(super) part: f64,
    /// Objective of the time to first token, in seconds.
    pub(super) ttft_slo_s: f64,
    /// Each class's floor as a part of the capacity.
    pub(super) floors: &'a [f64],
}

#[derive(Debug, Clone)]
pub(super) struct Shedder {
    drain: f64,
    capacity: f64,
    finished: f64,
    integral: f64,
    /// Part of the offered work that passes.
    passed: f64,
    busy: bool,
    offered: f64,
}

impl Shedder {
    pub(super) fn new() -> Self {
        Self { drain: 0.0, capacity: 0.0, finished: 0.0, integral: 0.0, passed: 1.0, busy: false, offered: 0.0 }
    }

    /// Work tokens that the pool finishes per second when busy; 0: not known.
    pub(super) fn capacity(&self) -> f64 {
        self.capacity
    }

    /// Work tokens per second that leave the queue while it stands, or that the pool finishes if that is more; 0: not known.
    ///
    /// While a pool fills up it admits more than it finishes; a waiting request is served at that rate.
    pub(super) fn drain(&self) -> f64 {
        self.capacity.max(self.drain)
    }

    /// Whether work waits or the budgets are full.
    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    /// Offered work over capacity, at least 1 while something is cut off; 1 while nothing is short.
    pub(super) fn excess(&self) -> f64 {
        if self.passed < 1.0 && self.capacity > 0.0 { (self.offered / self.capacity).max(1.0) } else { 1.0 }
    }

    pub(super) fn step(&mut self, tick: &Tick, demand: &Demand, input: &ShedInput<'_>) -> CutOff {
        self.measure(tick, input);
        let slow: f64 = demand.rates().iter().sum();
        self.offered = slow * demand.surge(slow);
        let queue_target = self.queue_target(input);
        let wanted = self.wanted(tick, queue_target, input);
        let target = if wanted >= self.offered || self.offered <= 0.0 { 1.0 } else { (wanted / self.offered).max(0.0) };
        self.move_to(target, tick.seconds, input.queued_work < 0.5 * queue_target);
        if self.passed >= 1.0 {
            return CutOff::NONE;
        }
        cut(demand.rates(), self.passed * slow, &self.floors(input))
    }

    fn floors(&self, input: &ShedInput<'_>) -> [f64; CLASSES] {
        let mut floors = [0.0; CLASSES];
        for (floor, part) in floors.iter_mut().zip(input.floors) {
            *floor = part * self.capacity;
        }
        floors
    }

    fn measure(&mut self, tick: &Tick, input: &ShedInput<'_>) {
        let was_busy = self.busy;
        self.busy = input.queued_work > 0.0 || (input.part >= 0.95 && (self.passed < 1.0 || !input.queues));
        let finished = input.finished_work / tick.seconds;
        self.finished += weight(tick.seconds, CAPACITY_RISE_S) * (finished - self.finished);
        if self.finished > self.capacity {
            self.capacity = self.finished;
        }
        if !(self.busy && was_busy) {
            // Nothing leaves a queue that is empty: less than the pool has kept up is what came, not what it could take.
            self.drain = if self.drain > 0.0 { self.drain.max(self.capacity) } else { 0.0 };
            return;
        }
        // In a tick with more first tokens than ends the work that is over can be negative.
        self.capacity = (self.capacity + weight(tick.seconds, CAPACITY_FALL_S) * (self.finished - self.capacity)).max(0.0);
        let admitted = input.admitted_work / tick.seconds;
        if self.drain <= 0.0 {
            self.drain = admitted.max(self.capacity);
        }
        self.drain += weight(tick.seconds, DRAIN_MEMORY_S) * (admitted - self.drain);
    }

    /// Work per second that should pass: what leaves the queue, corrected towards the queue's target and the room in the budgets.
    ///
    /// `drain + (target − queued + room) / CORRECT_S + integral`; everything before the pool has ever been busy.
    fn wanted(&mut self, tick: &Tick, queue_target: f64, input: &ShedInput<'_>) -> f64 {
        if self.drain <= 0.0 {
            return f64::INFINITY;
        }
        let drain = self.drain;
        if !input.queues {
            return UNQUEUED_EXCESS * drain + input.room_work / CORRECT_S;
        }
        let error = queue_target - input.queued_work + input.room_work;
        if self.busy || self.passed < 1.0 {
            let step = error * tick.seconds / (CORRECT_S * INTEGRAL_S);
            self.integral = (self.integral + step).clamp(-INTEGRAL_MAX * drain, INTEGRAL_MAX * drain);
        } else {
            self.integral = 0.0;
        }
        (drain + error / CORRECT_S + self.integral).max(LEAST_PASSED * drain.max(self.capacity))
    }

    /// Work that should wait, of whatever class: what leaves the queue in the time that a request may wait.
    fn queue_target(&self, input: &ShedInput<'_>) -> f64 {
        (WAIT_PART * input.ttft_slo_s * self.drain).max(LEAST_QUEUE * input.request_work)
    }

    fn move_to(&mut self, target: f64, seconds: f64, short_queue: bool) {
        if target <= self.passed {
            self.passed = target;
            return;
        }
        let (points, factor) = if short_queue { (REFILL_POINTS, REFILL_FACTOR) } else { (RECOVER_POINTS, RECOVER_FACTOR) };
        // The steps are meant for ticks of 100 ms.
        let ticks = (10.0 * seconds).min(10.0);
        let grown = self.passed * (1.0 + (factor - 1.0) * ticks) + points * ticks;
        self.passed = target.min(grown).min(1.0);
    }
}

/// The cut at which `wanted` work per second passes, floors included.
///
/// A class always gets the smaller of its floor and what it offers, so only what it passes beyond that counts against `wanted`:
/// `Σ max(passed, min(floor, offered)) = wanted`. `rates` has one entry a level.
pub(super) fn cut(rates: &[f64], wanted: f64, floors: &[f64]) -> CutOff {
    let classes = || rates.chunks(usize::from(COHORTS)).zip(floors.iter().copied().chain(core::iter::repeat(0.0)));
    // Most have no floor, and need no sum.
    let guaranteed: f64 = classes().map(|(class, floor)| if floor > 0.0 { floor.min(class.iter().sum()) } else { 0.0 }).sum();
    let mut left = wanted - guaranteed;
    let mut level = 0_u16;
    for (class, floor) in classes() {
        let mut passed = 0.0;
        for rate in class {
            let free = (floor - passed).max(0.0);
            let costs = (rate - free).max(0.0);
            if costs > 0.0 && costs >= left {
                let fraction = (free + left.max(0.0)) / rate;
                return CutOff { level, fraction: fraction.clamp(0.0, 1.0) };
            }
            left -= costs;
            passed += rate;
            level = level.saturating_add(1);
        }
    }
    CutOff::NONE
}
