//! What an admitted request is to overload control, until it is over: its reservation, and how its tokens came.

use core::time::Duration;

use crate::admission::Held;
use crate::policy::OverloadConfig;
use crate::pool::overload::PoolOverload;
use crate::time::Timestamp;

/// Longest mean piece of a response that is streamed token by token: an event with its JSON is a third of that.
const MAX_EVENT_BYTES: u64 = 768;

/// An admitted request under overload control.
#[derive(Debug)]
pub(super) struct Load {
    held: Held,
    admitted_at: Timestamp,
    first_token_at: Option<Timestamp>,
    /// Pieces of the response's body, and their bytes.
    pieces: u32,
    bytes: u64,
}

/// How a request ended, for overload control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It had its response to the end.
    Served,
    /// It failed.
    Failed,
    /// Anything else: the client left, or the response is an error of the client's.
    Other,
}

impl Load {
    pub(super) fn new(now: Timestamp, held: Held) -> Self {
        Self { held, admitted_at: now, first_token_at: None, pieces: 0, bytes: 0 }
    }

    /// Whether it holds something of `load`: the policy may have lost its overload control meanwhile and have another now.
    pub(super) fn is_of(&self, load: &PoolOverload) -> bool {
        self.held.number == load.number
    }

    pub(super) fn count_pieces(&mut self, pieces: u32, bytes: u64) {
        self.pieces = self.pieces.saturating_add(pieces);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Whether the body came token by token.
    fn is_streamed(&self) -> bool {
        self.pieces > 1 && self.bytes <= u64::from(self.pieces) * MAX_EVENT_BYTES
    }

    /// Tokens of the output: the pieces of a stream, else what the bytes suggest.
    fn output_tokens(&self, config: &OverloadConfig) -> u32 {
        let by_bytes = (self.bytes as f64 / config.bytes_per_token) as u32;
        if self.is_streamed() { self.pieces } else { by_bytes.max(self.pieces) }
    }

    /// The first piece of the body has come, which need not be a token: either way the prompt is done with.
    pub(super) fn on_first_byte(&mut self, load: &mut PoolOverload) {
        self.held.reservation.on_first_token(&mut load.flow);
    }

    /// The first token came at `at`.
    pub(super) fn on_first_token(&mut self, load: &mut PoolOverload, at: Timestamp) {
        if self.first_token_at.is_none() {
            self.first_token_at = Some(at);
            let service_us = micros(at.since(self.admitted_at));
            load.flow.service_ttft_us.record(service_us);
            load.flow.ttft_fit.observe(f64::from(self.held.reservation.size.prompt), service_us as f64);
        }
    }

    /// The request, which arrived at `arrived`, is over: gives back what it holds, and learns from it; the time between tokens, if
    /// the response came token by token.
    pub(super) fn on_end(
        self,
        load: &mut PoolOverload,
        config: &OverloadConfig,
        now: Timestamp,
        arrived: Timestamp,
        outcome: Outcome,
    ) -> Option<Duration> {
        let (tokens, is_streamed) = (self.output_tokens(config), self.is_streamed());
        let Self { held, admitted_at: _, first_token_at, pieces, bytes: _ } = self;
        let size = held.reservation.size;
        held.reservation.end(&mut load.flow);
        let class = held.class.index();
        // What was produced is known only now; what a client that left has had counts, too.
        let excess = f64::from(tokens) - f64::from(size.output);
        load.usage.serve(now, class, held.tenant, config.output_weight * excess);
        match outcome {
            Outcome::Failed => {
                load.flow.failed += 1;
                None
            }
            Outcome::Other => None,
            Outcome::Served => {
                if tokens > 0 {
                    load.estimates.note_output(class, tokens);
                }
                load.flow.output_tokens += u64::from(tokens);
                load.flow.responses += 1;
                let first = first_token_at?;
                let tpot = is_streamed.then(|| now.since(first) / pieces.saturating_sub(1).max(1));
                if let Some(tpot) = tpot {
                    load.flow.tpot_us.record(micros(tpot));
                }
                let is_good = first.since(arrived) <= config.ttft_slo && tpot.is_none_or(|tpot| tpot <= config.tpot_slo);
                if is_good {
                    let work = f64::from(size.prompt) + config.output_weight * f64::from(tokens);
                    load.flow.good_work = load.flow.good_work.saturating_add(work as u64);
                }
                tpot
            }
        }
    }
}

pub(super) fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
