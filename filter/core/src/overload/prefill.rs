//! The budget of prefill tokens: what the engines prefill in their part of the time to first token.
//!
//! By Little's law a backlog `P` that is worked off at rate `R` takes `P / R`. So `P = R · part` keeps the engines' share of the time
//! to first token at its part, and a budget that binds while it is faster measures a higher rate and grows.

use super::meter::{Tick, weight};

/// Part of the objective of the time to first token that the engines may use; the rest is for the queue in the proxy, which knows
/// priorities and deadlines, and for what the estimate is off.
pub(super) const ENGINE_PART: f64 = 0.25;
/// Backlog that an engine gets before anything is known: a step of chunked prefill (vLLM's default chunk is 2048 tokens). What the rate allows
/// shows within a second, and every worker begins with so much before it knows of the others: with four steps a pool that begins under
/// five times its load refused its first class for seconds, since what was in flight took all of the objective.
const FIRST_TOKENS: f64 = 2048.0;
/// Backlog of an engine below which no budget falls: a budget must be able to learn again. A longer prompt goes alone.
const LEAST_TOKENS: f64 = 1024.0;
/// The same where the time between tokens is what bounds it: a longer prompt goes alone in each worker, so the engines are never idle.
const LEAST_TOKENS_OF_STEPS: f64 = 256.0;
/// Memory of the measured rate: a few times to first token.
const RATE_MEMORY_S: f64 = 1.0;
/// Memory with which the kept rate falls to the measured one while the budget binds, and time constant of a rate that proves itself.
const FALL_S: f64 = 10.0;
const RISE_S: f64 = 0.5;
/// Part of the budget from which on it binds.
pub(super) const BINDS: f64 = 0.9;
/// The same while work waits although the other budgets have room: the parts of the workers do not fill evenly.
const SHORT_BINDS: f64 = 0.5;
/// How far the fitted rate may exceed the one that was seen: the slope of a line says little far beyond its samples.
const FIT_TRUST: f64 = 4.0;

/// Part of the engines' time that prefill can have taken at most while they worked off the measured rate: the rest goes to decoding and to
/// what every step costs.
const MOST_SHARE: f64 = 0.9;

/// Steps whose prompts are in flight at once: one is computed while the next one's come.
const STEPS: f64 = 2.0;
/// Correction of the model of a step: integral gain a second on the relative error (what is to come being predicted, the second over which
/// the time between tokens is averaged is no delay in the loop), and its bounds: that of the model's own error, and below it room to make
/// good what was too much.
const TRIM_PER_S: f64 = 1.0;
const TRIM: (f64, f64) = (0.1, 1.8);
/// Memory of what a step takes without prompts: it changes with the batch, slowly.
const DECODE_MEMORY_S: f64 = 2.0;
/// Memory that is as late as the time between tokens is: its own memory of a second, and the age of what the engines said.
const LAG_S: f64 = 1.2;
/// Memory of how full the budget is while work waits for it, and bounds on that: short, since a rise of the load shows at once in what is in
/// flight. Only what is too full is corrected: a budget that grows is not full before limits and reports have gone round.
const FILL_MEMORY_S: f64 = 0.5;
const FILL: (f64, f64) = (1.0, 1.6);
/// How far what is in flight now may correct the time between tokens.
const AHEAD: (f64, f64) = (0.5, 4.0);

#[derive(Debug, Clone)]
pub(super) struct PrefillBudget {
    measured: f64,
    rate: f64,
    trim: f64,
    decode_s: f64,
    lagged: Lagged,
    seconds_per_token: Option<f64>,
    /// Tokens that are to be in flight.
    wanted: Option<f64>,
    /// What is in flight over what was handed out, while work waits for it.
    fill: f64,
}

/// What the model said of a step, as late as what is measured: streams over tokens per second, each averaged by itself. An average of the
/// times would be ahead of that where they grow at once, since the few long steps of a second make next to none of its tokens.
#[derive(Debug, Clone, Copy, Default)]
struct Lagged {
    streams: f64,
    tokens_per_s: f64,
}

impl Lagged {
    fn follow(&mut self, tick: &Tick, streams: f64, step_s: f64) {
        let weight = weight(tick.seconds, LAG_S);
        self.streams += weight * (streams - self.streams);
        self.tokens_per_s += weight * (streams / step_s.max(1e-6) - self.tokens_per_s);
    }

    fn step_s(&self) -> f64 {
        self.streams / self.tokens_per_s.max(1e-6)
    }
}

/// What the budget needs to know of a tick.
#[derive(Debug, Clone, Copy)]
pub(super) struct PrefillInput {
    /// Prefill tokens in flight.
    pub(super) in_flight: f64,
    /// The budget in force, in tokens; `None`: there is none.
    pub(super) in_force: Option<f64>,
    /// Engines behind the pool; at least 1.
    pub(super) engines: f64,
    /// Seconds of prefill for a token on one engine, fitted.
    pub(super) seconds_per_token: Option<f64>,
    /// Objective of the time to first token, in seconds.
    pub(super) ttft_slo_s: f64,
    /// Time between tokens now, in seconds; 0: not known.
    pub(super) tpot_s: f64,
    /// Requests in the engines' batches now.
    pub(super) running: f64,
    /// Mean time between tokens that is aimed at, in seconds.
    pub(super) tpot_aim_s: f64,
    /// Whether work waits although the other budgets have room: the budget binds however its parts are split among workers.
    pub(super) is_short: bool,
}

impl PrefillBudget {
    pub(super) fn new() -> Self {
        Self {
            measured: 0.0,
            rate: 0.0,
            trim: 1.0,
            decode_s: 0.0,
            lagged: Lagged::default(),
            seconds_per_token: None,
            wanted: None,
            fill: 1.0,
        }
    }

    /// The bound in tokens that is handed out; `None` before the first step.
    ///
    /// It is `wanted / fill`: the classes that may pass it, whole prompts, and shares of workers that do not fill alike make that what is in
    /// flight is not what was handed out. How far shows at once, long before the time between tokens does.
    pub(super) fn bound(&self) -> Option<f64> {
        Some(self.wanted? / self.fill)
    }

    pub(super) fn step(&mut self, tick: &Tick, input: &PrefillInput) {
        let now = tick.finished.prefill_tokens as f64 / tick.seconds;
        self.measured += weight(tick.seconds, RATE_MEMORY_S) * (now - self.measured);
        self.follow_fill(tick, input);
        let binds = self
            .wanted
            .is_some_and(|wanted| input.in_flight >= BINDS * wanted || (input.is_short && input.in_flight >= SHORT_BINDS * wanted));
        if self.measured > self.rate {
            self.rate += weight(tick.seconds, RISE_S) * (self.measured - self.rate);
        } else if binds {
            self.rate += weight(tick.seconds, FALL_S) * (self.measured - self.rate);
        }
        self.seconds_per_token = input.seconds_per_token.map(|fitted| fitted.min(self.most_seconds_per_token(input)));
        let part_s = ENGINE_PART * input.ttft_slo_s;
        let first = FIRST_TOKENS * input.engines;
        let fitted = self.seconds_per_token.map_or(0.0, |seconds| input.engines / seconds.max(1e-9));
        // Before the rate has proved itself the first backlog takes the part; a fit extends what was seen, within its trust.
        let seen = self.rate * part_s;
        let bound = match self.seconds_per_token {
            Some(_) => (fitted * part_s).min((FIT_TRUST * seen).max(first)).max(seen),
            None => seen.max(first),
        };
        let by_tpot = self.within_tpot(tick, input, binds).unwrap_or(f64::INFINITY);
        let by_tpot = by_tpot.max(LEAST_TOKENS_OF_STEPS * input.engines);
        self.wanted = Some(bound.max(LEAST_TOKENS * input.engines).min(by_tpot));
    }

    fn follow_fill(&mut self, tick: &Tick, input: &PrefillInput) {
        let Some(in_force) = input.in_force.filter(|in_force| input.is_short && *in_force > 0.0) else { return };
        self.fill += weight(tick.seconds, FILL_MEMORY_S) * (input.in_flight / in_force - self.fill);
        self.fill = self.fill.clamp(FILL.0, FILL.1);
    }

    /// Whether more is in flight than shares of workers and classes that may pass them explain: the budget has fallen, and what was admitted
    /// before is being worked off.
    pub(super) fn is_exceeded(&self, input: &PrefillInput) -> bool {
        self.wanted.is_some_and(|wanted| input.in_flight > FILL.1 * wanted)
    }

    /// Seconds of prefill for a token on one engine, as fitted but no more than the engines can have taken; `None` until it is known.
    pub(super) fn seconds_per_token(&self) -> Option<f64> {
        self.seconds_per_token
    }

    /// The most that a token can have taken: with prompts that are alike, or a queue in the engines, a fitted slope is mostly noise, but
    /// `rate` tokens per second took no more than the time of all engines.
    fn most_seconds_per_token(&self, input: &PrefillInput) -> f64 {
        MOST_SHARE * input.engines / self.rate.max(1.0)
    }

    /// Part of the engines' time that prefill takes: seconds a token × tokens per second and engine.
    pub(super) fn share(&self, input: &PrefillInput) -> f64 {
        self.seconds_per_token.map_or(0.0, |seconds| seconds * self.measured / input.engines).clamp(0.0, 0.95)
    }

    /// Every prompt in a step makes the tokens of that step wait: a step takes `decode + c · prompt tokens`, `c` seconds a token. So each
    /// engine may compute `(objective − decode) / c` prompt tokens a step, and as many again wait for the next one.
    fn within_tpot(&mut self, tick: &Tick, input: &PrefillInput, binds: bool) -> Option<f64> {
        let seconds_per_token = self.seconds_per_token.filter(|_| input.tpot_s > 0.0)?;
        let decode_s = input.tpot_s * (1.0 - self.share(input));
        self.decode_s += weight(tick.seconds, DECODE_MEMORY_S) * (decode_s - self.decode_s);
        let a_step = (input.tpot_aim_s - self.decode_s).max(0.0) / seconds_per_token.max(1e-9);
        let coming_s = self.coming_tpot_s(tick, input, self.decode_s + seconds_per_token * input.in_flight / (STEPS * input.engines));
        if binds {
            // What the model is off shows in the time between tokens while the budget binds.
            let error = ((input.tpot_aim_s - coming_s) / input.tpot_aim_s.max(1e-6)).clamp(-1.0, 1.0);
            // Tokens that came too slowly do not come again.
            let gain = if error < 0.0 { 2.0 * TRIM_PER_S } else { TRIM_PER_S };
            self.trim = (self.trim * (1.0 + gain * error * tick.seconds.min(1.0))).clamp(TRIM.0, TRIM.1);
        }
        Some(self.trim * STEPS * input.engines * a_step)
    }

    /// The time between tokens that is coming: the measured one, which is a second late, times what the model says has changed since. When
    /// load rises at once the budget would else go on growing for that second, and every response that began before would pay for it.
    ///
    /// A Smith predictor (O. J. M. Smith, "Closer control of loops with dead time", 1957) with a ratio in place of a difference: so what
    /// the model `modelled_s` of a step is off by a factor cancels out.
    fn coming_tpot_s(&mut self, tick: &Tick, input: &PrefillInput, modelled_s: f64) -> f64 {
        self.lagged.follow(tick, input.running.max(1.0), modelled_s);
        input.tpot_s * (modelled_s / self.lagged.step_s().max(1e-6)).clamp(AHEAD.0, AHEAD.1)
    }
}
