//! The budget of streams: the most responses at once that keep the time between tokens in its objective and the engines' queues empty.
//!
//! Unbounded until something shows a bound: the time between tokens, a queue that stands in the engines, or their own refusals. A budget
//! that does not bind is never learned from.

use core::time::Duration;

use super::fit::FitSums;
use super::flow::EngineSample;
use super::headroom::Headroom;
use super::meter::{Tick, weight};
use crate::time::Timestamp;

/// Memory of the time between tokens as it is now.
const TPOT_MEMORY_S: f64 = 1.0;
/// Memory of the streams behind the responses that end: about the length of a response.
const ENDED_MEMORY_S: f64 = 8.0;
/// Period of a sample of the fit, its memory, and the samples behind a line that is believed.
const FIT_PERIOD: Duration = Duration::from_millis(500);
const FIT_MEMORY_S: f64 = 60.0;
const FIT_MIN_COUNT: f64 = 12.0;
/// Share of the largest number of streams ever seen beyond which a line is not trusted.
const FIT_TRUST: f64 = 1.5;
/// Part of the prefill that would go with so many streams in the long run that counts against them. The prefill budget holds the time between
/// tokens; the bound on streams is for what it cannot hold: a batch whose decoding alone takes too long. Responses that end early are
/// short, so that after a step of the load the prefill of a stream is taken for half as much again as it is.
const PREFILL_PART: f64 = 0.5;
/// Memory of the bound by the time between tokens, where the engines are read: a step of it stops or starts prefill in all workers at once.
/// Without a reading the time is that of responses that have ended, and late as it is.
const BOUND_MEMORY_S: f64 = 2.0;
/// Interval over which the smallest queue of the engines is the one that stands.
const STANDING_INTERVAL: Duration = Duration::from_millis(400);
/// Queue of the engines that is tolerated, as a part of what runs, and at least one request an engine: what was just handed over.
const STANDING_PART: f64 = 0.02;
/// Time during which a bound that the engines' own queue has shown is not passed by the rule against starving.
const REMEMBERED: Duration = Duration::from_secs(10);
/// Growth when work waits and nothing else is short, and the ticks of it before. Source: design invariant 8.
const STARVED_GROWTH: f64 = 1.1;
const STARVED_TICKS: u32 = 2;
/// Batch of an engine below which its size is not what makes a step long: reading the weights is.
const LEAST_BATCH: f64 = 16.0;
/// Least bound: a budget must be able to learn again.
const LEAST: f64 = 1.0;

/// What the budget needs to know of a tick.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamInput {
    /// Streams in flight.
    pub(super) in_flight: f64,
    /// Of them, those that have had their first token.
    pub(super) decoding: f64,
    /// Engines; at least 1.
    pub(super) engines: f64,
    /// The newest reading of the engines; `None` when nobody reads them.
    pub(super) engine: Option<EngineSample>,
    /// Standing wait in the engines when nobody reads them, in seconds; 0: none that stands.
    pub(super) standing_s: f64,
    /// Streams admitted per second.
    pub(super) admitted_rate: f64,
    /// Part of the tokens of output that come after another one: a response of `n` has `n − 1` gaps.
    pub(super) gaps_part: f64,
    /// Mean time between tokens that is aimed at, in seconds.
    pub(super) tpot_aim_s: f64,
    /// Whether responses have more than a few tokens.
    pub(super) is_streaming: bool,
    /// Mean time between tokens of the responses that have ended lately, in seconds.
    pub(super) ended_tpot_s: Option<f64>,
    /// Part of the engines' time that prefill takes now, 0 to 1.
    pub(super) prefill_share: f64,
    /// What prefill adds to a step for each decoding stream when as many requests begin as end, in seconds.
    pub(super) prefill_per_stream_s: f64,
    /// Whether work waits while latency is within its objective and the KV cache has room.
    pub(super) hungry: bool,
    /// Part of the admitted requests that the engines refused, 0 to 1.
    pub(super) refused: f64,
    /// Whether more prompts are in flight than the prefill budget lets through: then they are the queue in the engines.
    pub(super) has_excess_prompts: bool,
    /// Whether more streams bring no more work, as the covariance says.
    pub(super) futile: bool,
}

/// The queue of the engines over an interval.
#[derive(Debug, Clone, Copy)]
struct Standing {
    began: Timestamp,
    least: f64,
    running: f64,
}

#[derive(Debug, Clone)]
pub(super) struct StreamBudget {
    limit: Option<f64>,
    tpot_s: f64,
    tokens_per_s: f64,
    decoding: f64,
    steady_s: f64,
    fit: FitSums,
    fit_at: Option<Timestamp>,
    most: f64,
    engine_before: Option<(Timestamp, u64)>,
    standing: Option<Standing>,
    shown_at: Option<Timestamp>,
    starved: u32,
    headroom: Headroom,
    within_tpot: Option<f64>,
    bound: Option<f64>,
}

impl StreamBudget {
    pub(super) fn new() -> Self {
        Self {
            limit: None,
            tpot_s: 0.0,
            tokens_per_s: 0.0,
            decoding: 0.0,
            steady_s: 0.0,
            fit: FitSums::default(),
            fit_at: None,
            most: 0.0,
            engine_before: None,
            standing: None,
            shown_at: None,
            starved: 0,
            headroom: Headroom::new(),
            within_tpot: None,
            bound: None,
        }
    }

    /// The bound in streams; `None`: nothing has shown one.
    pub(super) fn bound(&self) -> Option<f64> {
        self.bound
    }

    /// Time between tokens now, by Little's law: streams that decode over tokens per second. In seconds; 0: not known.
    pub(super) fn tpot_s(&self) -> f64 {
        self.tpot_s
    }

    pub(super) fn step(&mut self, tick: &Tick, input: &StreamInput) {
        self.most = self.most.max(input.in_flight);
        self.follow_tpot(tick, input);
        if input.refused > 0.0 {
            self.headroom.fall(tick.now, input.refused);
            self.tighten(tick.now, input.in_flight);
        } else {
            self.headroom.recover(tick.now, input.in_flight as u64);
        }
        self.follow_queue(tick, input);
        if input.futile {
            self.tighten(tick.now, 0.95 * input.in_flight);
        }
        self.grow(tick, input);
        let by_limit = self.limit.map(|limit| limit * self.headroom.part());
        self.follow_bound(tick, input);
        let by_tpot = self.within_tpot;
        self.bound = match (by_limit, by_tpot) {
            (Some(a), Some(b)) => Some(a.min(b).max(LEAST)),
            (Some(one), None) | (None, Some(one)) => Some(one.max(LEAST)),
            (None, None) => None,
        };
    }

    /// With the engines' count of tokens `tpot = decoding / (gaps per second)`, both averaged alike: that of now. Without it, that of the
    /// responses that have ended, against the streams of the time in which they were made.
    fn follow_tpot(&mut self, tick: &Tick, input: &StreamInput) {
        if !input.is_streaming {
            (self.tpot_s, self.steady_s) = (0.0, 0.0);
            return;
        }
        match input.engine.filter(|sample| sample.output_tokens > 0) {
            Some(sample) => {
                let Some((rate, seconds)) = self.engine_rate(&sample) else { return };
                let weight = weight(seconds, TPOT_MEMORY_S);
                self.tokens_per_s += weight * (rate - self.tokens_per_s);
                self.decoding += weight * (input.decoding - self.decoding);
                self.tpot_s = if self.tokens_per_s > 1.0 { self.decoding / (input.gaps_part * self.tokens_per_s) } else { 0.0 };
            }
            None => {
                self.decoding += weight(tick.seconds, ENDED_MEMORY_S) * (input.decoding - self.decoding);
                self.tpot_s = input.ended_tpot_s.unwrap_or(self.tpot_s);
            }
        }
        self.fit_tpot(tick, input);
    }

    fn fit_tpot(&mut self, tick: &Tick, input: &StreamInput) {
        let decode_s = self.tpot_s * (1.0 - input.prefill_share.clamp(0.0, 0.95));
        self.steady_s = decode_s + PREFILL_PART * input.prefill_per_stream_s * self.decoding;
        let due = self.fit_at.is_none_or(|at| tick.now.since(at) >= FIT_PERIOD);
        if due && self.tpot_s > 0.0 {
            let seconds = self.fit_at.map_or(0.0, |at| tick.now.since(at).as_secs_f64());
            self.fit.scale(1.0 - weight_of(seconds));
            self.fit.observe(self.decoding / input.engines, self.steady_s);
            self.fit_at = Some(tick.now);
        }
    }

    /// Tokens per second between this reading and the one before, and the seconds between them; `None` for the same or a first one.
    fn engine_rate(&mut self, sample: &EngineSample) -> Option<(f64, f64)> {
        let (at, before) = self.engine_before.unwrap_or((sample.at, sample.output_tokens));
        let seconds = sample.at.since(at).as_secs_f64();
        if seconds > 0.0 || self.engine_before.is_none() {
            self.engine_before = Some((sample.at, sample.output_tokens));
        }
        (seconds > 0.0).then(|| (sample.output_tokens.saturating_sub(before) as f64 / seconds, seconds))
    }

    fn follow_bound(&mut self, tick: &Tick, input: &StreamInput) {
        let now = self.most_within_tpot(input);
        self.within_tpot = match (self.within_tpot.filter(|_| input.engine.is_some()), now) {
            (Some(before), Some(now)) => Some(before + weight(tick.seconds, BOUND_MEMORY_S) * (now - before)),
            _ => now,
        };
    }

    /// Largest number of streams whose time between tokens meets the objective.
    ///
    /// The time is the steady one: what decoding takes now, and [`PREFILL_PART`] of the prefill that goes with so many streams. While the
    /// engines fill up they prefill more than that, which the prefill budget bounds. With a good fit `engines · (objective − a) / b`. Else
    /// `D · objective / tpot(D)`, which is never too much when the time grows as `a + b·D` with `a ≥ 0`, and comes closer every time.
    fn most_within_tpot(&self, input: &StreamInput) -> Option<f64> {
        if self.steady_s <= 0.0 || self.decoding < 1.0 {
            return None;
        }
        let proportional = self.decoding * input.tpot_aim_s / self.steady_s;
        let line = self.fit.line(FIT_MIN_COUNT).filter(|line| line.slope > 0.0 && line.intercept >= 0.0);
        let fitted = line.map(|line| input.engines * (input.tpot_aim_s - line.intercept) / line.slope);
        // A line is believed within what was seen and never against the present: above the objective the proportion decides.
        let most = match fitted {
            Some(fitted) if self.steady_s <= input.tpot_aim_s => fitted.min(FIT_TRUST * self.most).max(proportional),
            _ => proportional,
        };
        Some(most.max(LEAST_BATCH * input.engines))
    }

    /// A queue that stands in the engines while their batch does not grow is what was admitted too much: it is taken away. While the
    /// batch grows the queue is prompts on their way in, which the prefill budget bounds.
    fn follow_queue(&mut self, tick: &Tick, input: &StreamInput) {
        let (queue, running) = match input.engine {
            Some(sample) => (sample.waiting as f64, sample.running as f64),
            None => (input.admitted_rate * input.standing_s, input.in_flight),
        };
        let standing = self.standing.get_or_insert(Standing { began: tick.now, least: queue, running });
        standing.least = standing.least.min(queue);
        let Standing { began, least, running: running_before } = *standing;
        if tick.now.since(began) < STANDING_INTERVAL {
            return;
        }
        self.standing = None;
        // A request that comes while a step is computed waits for its end.
        let coming = input.admitted_rate * self.tpot_s;
        let tolerated = if input.engine.is_some() { (STANDING_PART * running).max(input.engines).max(coming) } else { 0.0 };
        if !input.has_excess_prompts && least > tolerated && running <= (1.0 + STANDING_PART) * running_before {
            self.tighten(tick.now, input.in_flight - (least - tolerated));
        }
    }

    fn tighten(&mut self, now: Timestamp, to: f64) {
        self.shown_at = Some(now);
        let to = to.max(LEAST);
        self.limit = Some(self.limit.map_or(to, |limit| limit.min(to)));
    }

    /// `+ max(1, 0.1·√L)` a tick while the limit binds, and a tenth at once when the pool starves and no queue was seen lately.
    fn grow(&mut self, tick: &Tick, input: &StreamInput) {
        let Some(limit) = self.limit else { return };
        let binds = input.in_flight >= super::prefill::BINDS * limit * self.headroom.part();
        let shown = self.shown_at.is_some_and(|at| tick.now.since(at) < REMEMBERED);
        self.starved = if input.hungry && binds { self.starved.saturating_add(1) } else { 0 };
        if self.starved >= STARVED_TICKS && !shown {
            self.starved = 0;
            self.limit = Some(limit * STARVED_GROWTH);
        } else if self.starved > 0 {
            self.limit = Some(limit + (0.1 * libm::sqrt(limit)).max(1.0) * (10.0 * tick.seconds).min(10.0));
        }
    }
}

fn weight_of(seconds: f64) -> f64 {
    weight(seconds, FIT_MEMORY_S)
}
