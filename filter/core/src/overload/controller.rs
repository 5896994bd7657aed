//! The controller of one pool.

use alloc::vec::Vec;
use core::time::Duration;

use super::aim::{AimInput, TpotAim};
use super::credit::Credit;
use super::flow::{EngineSample, Flow, OverloadSignals};
use super::fuser::Fuser;
use super::guard::CovarianceGuard;
use super::kv::{KvBudget, KvInput};
use super::ladder::Ladder;
use super::latency::{Engines, Latency, QUANTILE_COUNT};
use super::means::Means;
use super::meter::{Demand, Meter, Read, Tick, weight};
use super::prefill::{ENGINE_PART, PrefillBudget, PrefillInput};
use super::ramp::{SlowStart, Smooth};
use super::retries::Retries;
use super::shed::{ShedInput, Shedder};
use super::state::{OverloadState, Term};
use super::streams::{StreamBudget, StreamInput};
use super::work::Budgets;
use crate::policy::{OverloadConfig, Policy};
use crate::time::Timestamp;

/// Queue of the engines at which that term is full: requests an engine, and a part of what runs. Source: the gate of llm-d takes 5 an engine.
const QUEUE_PER_ENGINE: f64 = 5.0;
const QUEUE_PART: f64 = 0.05;
/// Memory of the budgets that are safe when nobody watches, and the part of them that is: a mean is exceeded half of the time.
const SAFE_MEMORY_S: f64 = 10.0;
const SAFE_PART: f64 = 0.9;
/// Mean output and part of the responses with a time between tokens, from which on they have one: an answer in one piece has none.
const LEAST_OUTPUT: f64 = 4.0;
const LEAST_STREAMED: f64 = 0.5;
/// Part of the budgets of KV and streams up to which they are not what work waits for: they are split among workers, unevenly.
const OTHERS_ROOM: f64 = 0.9;

/// Overload control of one pool: one [`step`](Self::step) every control tick (100 ms).
///
/// O([`LEVELS`](super::LEVELS)) work a step. What it allocates is bounded: differences of three histograms.
#[derive(Debug, Clone)]
pub struct OverloadController {
    config: OverloadConfig,
    floors: Vec<f64>,
    meter: Meter,
    demand: Demand,
    credit: Credit,
    latency: Latency,
    aim: TpotAim,
    prefill: PrefillBudget,
    kv: KvBudget,
    streams: StreamBudget,
    guard: CovarianceGuard,
    shedder: Shedder,
    fuser: Fuser,
    ladder: Ladder,
    retries: Retries,
    slow_start: SlowStart,
    smooth: [Smooth; 3],
    means: Means,
    safe: [Option<f64>; 3],
    state: OverloadState,
}

impl OverloadController {
    /// A controller that has learned nothing. A policy without `overload` gets its defaults.
    #[must_use]
    pub fn new(_now: Timestamp, policy: &Policy) -> Self {
        let config = policy.overload().cloned().unwrap_or_default();
        let mut controller = Self {
            floors: floors(policy),
            meter: Meter::default(),
            demand: Demand::new(),
            credit: Credit::default(),
            latency: Latency::default(),
            aim: TpotAim::new(config.tpot_slo.as_secs_f64()),
            prefill: PrefillBudget::new(),
            kv: KvBudget::new(),
            streams: StreamBudget::new(),
            guard: CovarianceGuard::default(),
            shedder: Shedder::new(),
            fuser: Fuser::new(),
            ladder: Ladder::new(&config.ladder),
            retries: Retries::default(),
            slow_start: SlowStart::default(),
            smooth: Default::default(),
            means: Means::presuming(f64::from(config.output_tokens)),
            safe: [None; 3],
            state: OverloadState::fresh(),
            config,
        };
        controller.ladder.step(Timestamp::ZERO, 0.0, &mut controller.state.rungs);
        controller.state.floors_work_per_s = controller.floors.iter().map(|_| 0.0).collect();
        controller
    }

    /// Takes over a changed policy; what was learned of the pool stays.
    pub fn set_policy(&mut self, now: Timestamp, policy: &Policy) {
        self.config = policy.overload().cloned().unwrap_or_default();
        self.floors = floors(policy);
        self.ladder.set_config(&self.config.ladder);
        self.ladder.step(now, self.state.saturation.value, &mut self.state.rungs);
        self.state.floors_work_per_s = self.floors.iter().map(|part| part * self.shedder.capacity()).collect();
    }

    /// Lets the budgets of the part `cold` of the pool (`0..=1`) grow anew from a part of themselves: a breaker has closed, an engine is
    /// back.
    pub fn begin_slow_start(&mut self, now: Timestamp, cold: f64) {
        self.slow_start.begin(now, cold);
    }

    /// One turn: signals to budgets and cut-off. A step that comes too soon after the last one changes nothing.
    pub fn step(&mut self, now: Timestamp, signals: &OverloadSignals<'_>) -> &OverloadState {
        match self.meter.read(now, signals) {
            Read::TooSoon => return &self.state,
            Read::Restarted => {
                self.credit.restart();
                self.demand.restart(&signals.flow.offered);
                self.latency.restart(now, signals.flow);
                self.credit.record(now, signals.flow.admitted, signals.flow.in_flight);
                self.step_budgets(&Tick::idle(now), signals);
            }
            Read::Tick(tick) => {
                self.credit.record(now, signals.flow.admitted, signals.flow.in_flight);
                self.demand.observe(tick.seconds, &signals.flow.offered);
                self.means.observe(&tick);
                self.step_budgets(&tick, signals);
                self.step_cut_off(&tick, signals);
                self.step_saturation(&tick, signals);
            }
        }
        &self.state
    }

    /// The state after the last step.
    #[must_use]
    pub fn state(&self) -> &OverloadState {
        &self.state
    }

    fn step_budgets(&mut self, tick: &Tick, signals: &OverloadSignals<'_>) {
        let flow = signals.flow;
        let sample = signals.engine.as_ref();
        let fresh = sample.is_some_and(|sample| self.credit.retire(sample));
        self.latency.observe(tick, flow, self.engines(sample));
        let aim = AimInput {
            slo_s: self.config.tpot_slo.as_secs_f64(),
            slowest: sample.map_or(1.0, |sample| sample.slowest),
            step_s: self.streams.tpot_s(),
            is_short: flow.queued_requests > 0,
        };
        self.aim.follow(tick, &self.latency.tpot, &aim);
        let ttft_slo_s = self.config.ttft_slo.as_secs_f64();
        let hungry = self.is_hungry(flow, sample);
        let engines = sample.map_or(1.0, |sample| f64::from(sample.engines.max(1)));
        let prefill = PrefillInput {
            in_flight: flow.in_flight.prefill_tokens as f64,
            in_force: self.state.budgets.prefill_tokens.map(|budget| budget as f64),
            engines,
            // Without a reading nobody knows how many engines the slope is of.
            seconds_per_token: sample.and(self.latency.seconds_per_token()),
            ttft_slo_s,
            tpot_s: self.streams.tpot_s(),
            running: sample.map_or(0.0, |sample| sample.running as f64),
            tpot_aim_s: self.aim.seconds(),
            is_short: flow.queued_requests > 0 && self.others_have_room(flow),
        };
        self.prefill.step(tick, &prefill);
        self.step_kv(tick, flow, sample, fresh, hungry);
        self.step_streams(tick, flow, sample, &prefill, hungry);
        let part = self.slow_start.part(tick.now);
        let bounds = [self.prefill.bound(), self.kv.bound(), self.streams.bound()].map(|bound| bound.map(|bound| bound * part));
        self.publish(tick, bounds);
    }

    /// Work waits while latency is within its objective and the engines do not queue.
    fn is_hungry(&self, flow: &Flow, sample: Option<&EngineSample>) -> bool {
        let ttft_ok = self.latency.service.quantile(0.9, QUANTILE_COUNT).is_none_or(|p90| p90 < self.config.ttft_slo / 2);
        let tpot_ok = self.streams.tpot_s() <= self.config.tpot_slo.as_secs_f64();
        let queue_ok = match sample {
            Some(sample) => (sample.waiting as f64) <= engine_queue_reference(sample),
            None => self.latency.standing() <= Latency::standing_target(self.config.ttft_slo),
        };
        flow.queued_requests > 0 && ttft_ok && tpot_ok && queue_ok
    }

    /// Whether KV and streams have room for more than the requests that wait for a prefill.
    fn others_have_room(&self, flow: &Flow) -> bool {
        let others = Budgets { prefill_tokens: None, ..self.state.budgets };
        flow.in_flight.part_of(&others) < OTHERS_ROOM
    }

    fn engines(&self, sample: Option<&EngineSample>) -> Engines {
        match sample {
            Some(sample) if sample.waiting > 0 => Engines::Queue,
            Some(_) => Engines::Clear,
            None if self.shedder.is_busy() => Engines::Unknown,
            None => Engines::Clear,
        }
    }

    fn step_kv(&mut self, tick: &Tick, flow: &Flow, sample: Option<&EngineSample>, fresh: bool, hungry: bool) {
        let Some(sample) = sample.filter(|sample| sample.kv_total_tokens > 0) else {
            self.kv.forget_sample();
            return;
        };
        let then = self.credit.in_flight_at(sample.at).unwrap_or(flow.in_flight);
        let input = KvInput {
            reserved_then: then.kv_tokens as f64,
            reserved_now: flow.in_flight.kv_tokens as f64,
            credit: self.credit.outstanding().prefill_tokens as f64,
            streams: flow.in_flight.streams,
            target: f64::from(self.config.kv_target_percent) / 100.0,
            hungry,
        };
        self.kv.step(tick, sample, fresh, &input);
    }

    fn step_streams(&mut self, tick: &Tick, flow: &Flow, sample: Option<&EngineSample>, prefill: &PrefillInput, hungry: bool) {
        let in_flight = flow.in_flight.streams as f64;
        // Of the prompts without a first token those in the engines' queues are not among what runs.
        let waiting = sample.map_or(0.0, |sample| sample.waiting as f64);
        let prefilling = (flow.in_flight.prefill_tokens as f64 / self.means.prompt_tokens.max(1.0) - waiting).max(0.0);
        let mean_latency = self.latency.service.mean(QUANTILE_COUNT);
        let finished = tick.finished.kv_tokens as f64 / tick.seconds;
        // With their own metrics at hand the engines' queues say more than a covariance.
        let blind = sample.is_none() && self.shedder.is_busy();
        let futile = self.guard.observe(tick.now, in_flight, finished, mean_latency.unwrap_or_default().as_secs_f64()) && blind;
        let standing = self.latency.standing();
        let stands = standing > Latency::standing_target(self.config.ttft_slo);
        let target = f64::from(self.config.kv_target_percent) / 100.0;
        let room = sample.is_none_or(|s| (s.kv_used_tokens as f64) < 0.9 * target * s.kv_total_tokens as f64 || s.kv_total_tokens == 0);
        let refused = tick.engine_refusals as f64 / (tick.admitted.streams.max(tick.engine_refusals).max(1)) as f64;
        let input = StreamInput {
            in_flight,
            decoding: (sample.map_or(in_flight, |sample| sample.running as f64) - prefilling).max(0.0),
            engines: prefill.engines,
            engine: sample.copied(),
            standing_s: if stands && blind { standing.as_secs_f64() } else { 0.0 },
            admitted_rate: self.means.admitted_per_s,
            gaps_part: 1.0 - 1.0 / self.means.output_tokens.max(2.0),
            tpot_aim_s: prefill.tpot_aim_s,
            is_streaming: self.means.streamed >= LEAST_STREAMED && self.means.output_tokens >= LEAST_OUTPUT,
            ended_tpot_s: self.latency.tpot.mean(QUANTILE_COUNT).map(|mean| mean.as_secs_f64()),
            prefill_share: self.prefill.share(prefill),
            prefill_per_stream_s: self.prefill_per_stream_s(prefill),
            hungry: hungry && room,
            refused,
            has_excess_prompts: sample.is_some() && self.prefill.is_exceeded(prefill),
            futile,
        };
        self.streams.step(tick, &input);
    }

    /// What prefill adds to a step for each decoding stream when as many requests begin as end: `prompt / output` tokens.
    fn prefill_per_stream_s(&self, prefill: &PrefillInput) -> f64 {
        let per_token = self.means.prompt_tokens / self.means.output_tokens.max(1.0);
        self.prefill.seconds_per_token().map_or(0.0, |seconds| seconds * per_token / prefill.engines)
    }

    fn publish(&mut self, tick: &Tick, bounds: [Option<f64>; 3]) {
        let mut whole = [None; 3];
        for ((whole, smooth), bound) in whole.iter_mut().zip(&mut self.smooth).zip(bounds) {
            *whole = smooth.step(bound, tick.seconds);
        }
        let mut safe = [None; 3];
        for ((safe, mean), now) in safe.iter_mut().zip(&mut self.safe).zip(whole) {
            if let Some(now) = now.map(|now| now as f64) {
                let before = mean.unwrap_or(now);
                *mean = Some(before + weight(tick.seconds, SAFE_MEMORY_S) * (now - before));
                // What is in force now may be less than what has been, and is then the safer.
                *safe = mean.map(|mean| ((SAFE_PART * mean).min(now) as u64).max(1));
            }
        }
        self.state.budgets = Budgets::of(whole);
        self.state.safe_budgets = Budgets::of(safe);
        self.state.output_tokens = self.means.output_tokens;
        self.state.sample_epoch = self.credit.epoch();
        if let Some(p90) = self.latency.service.quantile(0.9, QUANTILE_COUNT) {
            self.state.expected_ttft = p90;
        }
    }

    fn step_cut_off(&mut self, tick: &Tick, signals: &OverloadSignals<'_>) {
        let flow = signals.flow;
        let output_weight = self.config.output_weight;
        let input = ShedInput {
            admitted_work: tick.admitted.tokens(output_weight),
            finished_work: tick.finished_work(output_weight),
            queued_work: flow.queued_work as f64,
            room_work: self.room_work(flow),
            request_work: self.means.request_work(output_weight),
            queues: self.config.queue.is_some(),
            part: flow.in_flight.part_of(&self.state.budgets),
            ttft_slo_s: self.config.ttft_slo.as_secs_f64(),
            floors: &self.floors,
        };
        self.state.cut_off = self.shedder.step(tick, &self.demand, &input);
        self.state.drain_work_per_s = self.shedder.drain();
        for (floor, part) in self.state.floors_work_per_s.iter_mut().zip(&self.floors) {
            *floor = part * self.shedder.capacity();
        }
        let short = self.shedder.is_busy() || !self.state.cut_off.is_none();
        self.state.retry_ratio = self.retries.step(tick, short, &self.config.retries);
    }

    /// Work tokens that the budgets have room for: requests of mean size that still fit, by the kind that is shortest.
    fn room_work(&self, flow: &Flow) -> f64 {
        let means = &self.means;
        let room = |used: u64, budget: Option<u64>, each: f64| {
            budget.map_or(f64::INFINITY, |budget| budget.saturating_sub(used) as f64 / each.max(1.0))
        };
        let (used, budgets) = (flow.in_flight, &self.state.budgets);
        let requests = room(used.prefill_tokens, budgets.prefill_tokens, means.prompt_tokens)
            .min(room(used.kv_tokens, budgets.kv_tokens, means.prompt_tokens + means.output_tokens))
            .min(room(used.streams, budgets.streams, 1.0));
        requests * means.request_work(self.config.output_weight)
    }

    fn step_saturation(&mut self, tick: &Tick, signals: &OverloadSignals<'_>) {
        let values = self.terms(signals);
        self.state.tpot_is_engines = self.latency.tpot.quantile(0.95, QUANTILE_COUNT).is_none();
        self.state.saturation = self.fuser.fuse(tick.now, values, self.config.fusion);
        self.ladder.step(tick.now, self.state.saturation.value, &mut self.state.rungs);
    }

    /// Terms in the order of [`Term::ALL`].
    ///
    /// Work in flight never exceeds its budget by much, since the workers hold to it. How much more is asked for than the pool can do
    /// shows in the offered work over the capacity, by which the three terms of work grow while something is cut off.
    fn terms(&self, signals: &OverloadSignals<'_>) -> [f64; Term::COUNT] {
        let (flow, budgets) = (signals.flow, &self.state.budgets);
        let excess = self.shedder.excess();
        let part = |used: f64, budget: Option<u64>| budget.map_or(0.0, |budget| excess * used / budget.max(1) as f64);
        let sample = signals.engine.as_ref();
        let kv = match sample.filter(|sample| sample.kv_total_tokens > 0) {
            Some(sample) => {
                let target = f64::from(self.config.kv_target_percent) / 100.0 * sample.kv_total_tokens as f64;
                let used = sample.kv_used_tokens as f64 + self.credit.outstanding().prefill_tokens as f64;
                excess * used / target.max(1.0)
            }
            None => part(flow.in_flight.kv_tokens as f64, budgets.kv_tokens),
        };
        let queue = sample.map_or(0.0, |sample| sample.waiting as f64 / engine_queue_reference(sample));
        [
            part(flow.in_flight.prefill_tokens as f64, budgets.prefill_tokens),
            kv,
            part(flow.in_flight.streams as f64, budgets.streams),
            queue,
            self.ttft_term(),
            self.tpot_term(sample),
            signals.level_pressure,
        ]
    }

    /// `(p95 of the wait in the queue + p95 of the service − unqueued) / (objective − unqueued)`.
    fn ttft_term(&self) -> f64 {
        let Some(service) = self.latency.service.quantile(0.95, QUANTILE_COUNT) else { return 0.0 };
        let wait = self.latency.queue_wait.quantile(0.95, QUANTILE_COUNT).unwrap_or(Duration::ZERO);
        let unqueued = self.latency.unqueued();
        let left = self.config.ttft_slo.saturating_sub(unqueued).max(self.config.ttft_slo.mul_f64(1.0 - ENGINE_PART) / 2);
        (wait + service).saturating_sub(unqueued).as_secs_f64() / left.as_secs_f64().max(1e-3)
    }

    /// By what the filters have seen, else by the engines' own word.
    fn tpot_term(&self, sample: Option<&EngineSample>) -> f64 {
        let seen = self.latency.tpot.quantile(0.95, QUANTILE_COUNT);
        let p95 = seen.or_else(|| sample?.tpot_p95);
        p95.map_or(0.0, |p95| p95.as_secs_f64() / self.config.tpot_slo.as_secs_f64().max(1e-6))
    }
}

/// Requests in the engines' queues at which [`Term::EngineQueue`] is 1: 5 an engine, or a twentieth of those that run if that is more.
#[must_use]
pub fn engine_queue_reference(sample: &EngineSample) -> f64 {
    (QUEUE_PER_ENGINE * f64::from(sample.engines.max(1))).max(QUEUE_PART * sample.running as f64)
}

/// Each class's floor as a part of the capacity.
fn floors(policy: &Policy) -> Vec<f64> {
    policy.classes().iter().map(|class| f64::from(class.floor_percent) / 100.0).collect()
}
