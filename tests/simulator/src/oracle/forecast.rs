//! What one engine will do with what it has, and whether one more request would still go well.

use std::time::Duration;

use headgate_core::time::Timestamp;

use super::DEADLINE_MARGIN;
use crate::controller::RequestId;
use crate::engine::{Engine, LlmConfig};

/// Part of the KV blocks that future use may reach: what the last blocks would hold is lost to rounding.
pub(super) const KV_TARGET: f64 = 0.99;
/// Part of the objective of the time between tokens that the steps may take on average.
const TPOT_TARGET: f64 = 0.9;
/// Steps that pass before a new sequence decodes: the one that runs and the one that computes its prompt.
const STEPS_TO_FIRST_TOKEN: f64 = 2.0;
/// Steps more than that which are kept free before a deadline: the step that runs may have just begun, with prompts of its own.
const MARGIN_STEPS: f64 = 2.0;
/// Longest time of service of a plain server that is reckoned with, over its median: what it will be is drawn when it begins.
const PLAIN_MARGIN: f64 = 2.0;
/// Prefill work that may be saved up, in seconds of engine time: a burst of prompts lengthens few steps of each response.
const SAVED_S: f64 = 0.15;
/// Tokens that a sequence's last block holds beyond its length, on average and with the one that it is about to need.
const ROUNDING: f64 = 12.0;

/// A sequence: tokens now and tokens to come, both by the state at the last look.
#[derive(Clone, Copy, Debug)]
struct Ahead {
    remaining: f64,
    length: f64,
}

/// One engine's future.
#[derive(Debug)]
pub(super) struct Forecast {
    tpot_s: f64,
    /// By tokens to come, most first.
    ahead: Vec<Ahead>,
    /// Sent there and not seen in its batch at the last look: prompt and output.
    sent: Vec<(RequestId, u32, u32)>,
    /// Sent there without a first token so far, in prompt tokens.
    backlog: Vec<(RequestId, u32)>,
    /// Seconds of prefill that the objective of the time between tokens leaves, saved up.
    saved_s: f64,
    refreshed_at: Timestamp,
    shape: Option<LlmConfig>,
    places: u32,
    kv_tokens: f64,
    factor: f64,
    service_s: f64,
}

// === impl Forecast ===

impl Forecast {
    pub(super) fn new(tpot: Duration) -> Self {
        Self {
            tpot_s: tpot.as_secs_f64() * TPOT_TARGET,
            ahead: Vec::new(),
            sent: Vec::new(),
            backlog: Vec::new(),
            saved_s: SAVED_S,
            refreshed_at: Timestamp::ZERO,
            shape: None,
            places: 0,
            kv_tokens: 0.0,
            factor: 1.0,
            service_s: 0.0,
        }
    }

    /// Looks at the engine.
    pub(super) fn refresh(&mut self, now: Timestamp, engine: &Engine) {
        let elapsed = now.since(self.refreshed_at).as_secs_f64();
        self.refreshed_at = now;
        self.factor = engine.factor();
        self.shape = engine.llm().copied();
        self.places = engine.llm().map_or_else(|| engine.plain().map_or(0, |plain| plain.concurrency), |llm| llm.max_sequences);
        self.kv_tokens = engine.kv_total_tokens() as f64 * KV_TARGET;
        self.service_s = engine.step_time(0).as_secs_f64();
        self.ahead.clear();
        for running in engine.batch() {
            let first = if running.made == 0 { 1.0 } else { 0.0 };
            let remaining = f64::from(running.output_tokens - running.made.min(running.output_tokens)) + first;
            self.ahead.push(Ahead { remaining, length: f64::from(running.prompt_tokens + running.made) + ROUNDING });
            self.sent.retain(|(id, ..)| *id != running.id);
        }
        for (_, prompt, output) in &self.sent {
            self.ahead.push(ahead(*prompt, *output));
        }
        self.ahead.sort_unstable_by(|a, b| b.remaining.total_cmp(&a.remaining));
        // What the objective leaves of each second once the decodes have had theirs.
        let share = 1.0 - (self.decode_s() / self.tpot_s).min(1.0);
        self.saved_s = (self.saved_s + elapsed * share).min(SAVED_S);
    }

    /// What a step would take that only decodes, once all that it has decodes.
    fn decode_s(&self) -> f64 {
        let Some(shape) = self.shape else { return self.service_s };
        let tokens: f64 = self.ahead.iter().map(|ahead| ahead.length).sum();
        self.factor * (shape.base_s + shape.per_sequence_s * self.ahead.len() as f64 + shape.per_kv_token_s * tokens)
    }

    /// Whether the batch has a place.
    pub(super) fn has_place(&self) -> bool {
        match self.shape {
            Some(_) => self.ahead.len() < self.places as usize,
            None => self.backlog.len() < self.places as usize,
        }
    }

    /// Part of its places or of its cache in use, whichever is more.
    pub(super) fn load(&self) -> f64 {
        let used: f64 = self.ahead.iter().map(|ahead| ahead.length).sum();
        let count = if self.shape.is_some() { self.ahead.len() } else { self.backlog.len() };
        (count as f64 / f64::from(self.places.max(1))).max(used / self.kv_tokens.max(1.0))
    }

    /// Whether a request could still have its first token by `deadline` if nothing else waited for the engine.
    pub(super) fn is_in_time(&self, now: Timestamp, deadline: Timestamp, prompt_tokens: u32) -> bool {
        self.first_token_s(prompt_tokens) <= deadline.since(now + DEADLINE_MARGIN).as_secs_f64()
    }

    /// The earliest moment at which a prompt of no length would have its first token.
    pub(super) fn soonest(&self, now: Timestamp) -> Timestamp {
        let prompts: u32 = self.backlog.iter().map(|(_, prompt)| *prompt).sum();
        let prompts = if self.shape.is_some() { prompts } else { 0 };
        now + DEADLINE_MARGIN + Duration::from_secs_f64(self.first_token_s(prompts))
    }

    /// Whether a request that must have its first token by `deadline` may start now.
    pub(super) fn fits(&self, now: Timestamp, deadline: Timestamp, prompt_tokens: u32, output_tokens: u32) -> bool {
        let prompts: u32 = self.backlog.iter().map(|(_, prompt)| *prompt).sum();
        // A request may overdraw what is saved, or a prompt longer than it would never start; the debt keeps others waiting.
        self.shape.is_none_or(|_| self.saved_s > 0.0)
            && self.first_token_s(prompt_tokens + prompts) <= deadline.since(now + DEADLINE_MARGIN).as_secs_f64()
            && self.shape.is_none_or(|_| self.peak_with(ahead(prompt_tokens, output_tokens)) <= self.kv_tokens)
    }

    /// Seconds until that many prompt tokens are computed and the token after them is there.
    fn first_token_s(&self, prompt_tokens: u32) -> f64 {
        let Some(shape) = self.shape else { return PLAIN_MARGIN * self.service_s };
        let steps = STEPS_TO_FIRST_TOKEN + MARGIN_STEPS + f64::from(prompt_tokens) / f64::from(shape.step_tokens);
        self.factor * shape.per_prefill_token_s * f64::from(prompt_tokens) + self.service_s * steps
    }

    /// Counts a request as sent there.
    pub(super) fn admit(&mut self, id: RequestId, prompt_tokens: u32, output_tokens: u32) {
        self.backlog.push((id, prompt_tokens));
        let Some(shape) = self.shape else { return };
        self.saved_s -= self.factor * shape.per_prefill_token_s * f64::from(prompt_tokens);
        self.sent.push((id, prompt_tokens, output_tokens));
        let new = ahead(prompt_tokens, output_tokens);
        let at = self.ahead.partition_point(|other| other.remaining > new.remaining);
        self.ahead.insert(at, new);
    }

    pub(super) fn on_first_token(&mut self, id: RequestId) {
        if self.shape.is_some() {
            self.backlog.retain(|(other, _)| *other != id);
        }
    }

    pub(super) fn on_end(&mut self, id: RequestId) {
        self.backlog.retain(|(other, _)| *other != id);
        self.sent.retain(|(other, ..)| *other != id);
    }

    /// Largest future use of the cache, in tokens, with one more sequence. Use grows by a token a step for each sequence and falls when
    /// one ends, so that its peaks are the last steps of sequences.
    fn peak_with(&self, new: Ahead) -> f64 {
        let (mut count, mut length, mut peak, mut is_counted) = (0.0, 0.0, 0.0_f64, false);
        for one in &self.ahead {
            if !is_counted && new.remaining >= one.remaining {
                (count, length, is_counted) = (count + 1.0, length + new.length, true);
                peak = peak.max(length + count * new.remaining);
            }
            (count, length) = (count + 1.0, length + one.length);
            peak = peak.max(length + count * one.remaining);
        }
        if !is_counted {
            peak = peak.max(length + new.length + (count + 1.0) * new.remaining);
        }
        peak
    }
}

fn ahead(prompt_tokens: u32, output_tokens: u32) -> Ahead {
    Ahead { remaining: f64::from(output_tokens) + STEPS_TO_FIRST_TOKEN, length: f64::from(prompt_tokens) + ROUNDING - STEPS_TO_FIRST_TOKEN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_where_the_long_sequence_meets_the_last_steps_of_the_short() {
        let mut forecast = Forecast::new(Duration::from_millis(100));
        forecast.ahead = vec![Ahead { remaining: 100.0, length: 50.0 }, Ahead { remaining: 10.0, length: 200.0 }];
        // After 10 steps: 60 + 210 with the short one; after 100: 150 alone.
        assert!((forecast.peak_with(Ahead { remaining: 0.0, length: 0.0 }) - 270.0).abs() < 1e-9);
        // A third of 40 tokens and 20 steps: after 10 steps 60 + 210 + 50, after 20 steps 70 + 60.
        assert!((forecast.peak_with(Ahead { remaining: 20.0, length: 40.0 }) - 320.0).abs() < 1e-9);
    }
}
