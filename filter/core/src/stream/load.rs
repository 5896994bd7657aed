//! What an admitted request is to overload control, until it is over: its reservation, and how its tokens came.

use core::time::Duration;

use crate::admission::Held;
use crate::budget::Size;
use crate::in_band::Tally;
use crate::policy::OverloadConfig;
use crate::pool::Pool;
use crate::pool::overload::PoolOverload;
use crate::pool::quotas::Charges;
use crate::time::Timestamp;

/// An admitted request under overload control.
#[derive(Debug)]
pub(super) struct Load {
    held: Held,
    admitted_at: Timestamp,
    first_token_at: Option<Timestamp>,
    /// What is counted of the response's body.
    pub(super) tally: Tally,
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
        Self { held, admitted_at: now, first_token_at: None, tally: Tally::default() }
    }

    /// Whether it holds something of `load`: the policy may have lost its overload control meanwhile and have another now.
    pub(super) fn is_of(&self, load: &PoolOverload) -> bool {
        self.held.number == load.number
    }

    /// Whether the ends of the body's pieces are to be handed over.
    pub(super) const fn looks_at_pieces(&self) -> bool {
        self.held.looks_at_pieces
    }

    /// What it has been charged of quotas, the size for which, and what it has been so far.
    pub(super) fn charges(&self, load: &PoolOverload, config: &OverloadConfig) -> (Charges, Size, Size) {
        let output = self.tally.output_tokens(&load.yields, config.bytes_per_token);
        let prompt = self.tally.usage().prompt.unwrap_or(self.held.reservation.size.prompt);
        (self.held.charges, self.held.reservation.size, Size { prompt, output })
    }

    /// The first piece of the body has come, which need not be a token: either way the prompt is done with. False where nothing is held.
    #[inline(never)]
    pub(super) fn on_first_byte(&mut self, pool: &mut Pool) -> bool {
        let Some(load) = pool.overload.as_mut().filter(|load| self.is_of(load)) else { return false };
        self.held.on_first_token(load);
        true
    }

    /// The first token came at `at`.
    #[inline(never)]
    pub(super) fn on_first_token(&mut self, pool: &mut Pool, at: Timestamp) {
        if let Some(load) = pool.overload.as_mut().filter(|load| self.is_of(load))
            && self.first_token_at.is_none()
        {
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
        let Self { held, admitted_at: _, first_token_at, tally } = self;
        let (usage, counted) = (tally.usage(), tally.counted(&load.yields));
        let tokens = tally.output_tokens(&load.yields, config.bytes_per_token);
        let size = held.reservation.size;
        let prompt = usage.prompt.unwrap_or(size.prompt);
        let (class, tenant) = (held.class.index(), held.tenant);
        held.end(load);
        // What was produced is known only now; what a client that left has had counts, too.
        let excess = config.output_weight * (f64::from(tokens) - f64::from(size.output));
        load.usage.serve(now, class, tenant, excess + f64::from(prompt) - f64::from(size.prompt));
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
                if let Some(tokens) = usage.output {
                    load.yields.learn(counted, tokens);
                }
                let first = first_token_at?;
                let tpot = counted.is_streamed.then(|| time_per_token(now.since(first), counted.pieces, tokens));
                if let Some(tpot) = tpot {
                    load.flow.tpot_us.record(micros(tpot));
                }
                let is_good = first.since(arrived) <= config.ttft_slo && tpot.is_none_or(|tpot| tpot <= config.tpot_slo);
                if is_good {
                    let work = f64::from(prompt) + config.output_weight * f64::from(tokens);
                    load.flow.good_work = load.flow.good_work.saturating_add(work as u64);
                }
                tpot
            }
        }
    }
}

/// Mean time between tokens of a stream whose first piece came `span` before its end: each piece holds equally many. A piece that holds
/// none, as the first and last of some engines, takes no time of its own, so no piece counts for less than one.
fn time_per_token(span: Duration, pieces: u32, tokens: u32) -> Duration {
    let gaps = f64::from(pieces.saturating_sub(1).max(1));
    let per_piece = (f64::from(tokens) / f64::from(pieces.max(1))).max(1.0);
    span.div_f64(gaps * per_piece)
}

pub(super) fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
