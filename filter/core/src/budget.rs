//! What a request is reserved and gives back: prefill until its first token, KV tokens and its stream until its end, each exactly once.

use crate::overload::{Budgets, Flow, Term, Work};

/// Size of a request as far as it can be known when it arrives, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Size {
    pub(crate) prompt: u32,
    pub(crate) output: u32,
}

impl Size {
    /// The work that it does.
    pub(crate) fn work(self) -> Work {
        let prompt = u64::from(self.prompt);
        Work { prefill_tokens: prompt, kv_tokens: prompt + u64::from(self.output), streams: 1 }
    }

    /// Work tokens: `prompt + weight · output`, at least 1.
    pub(crate) fn work_tokens(self, output_weight: f64) -> u64 {
        self.weighted_tokens(output_weight) as u64
    }

    /// The same before it is cut to a whole number.
    pub(crate) fn weighted_tokens(self, output_weight: f64) -> f64 {
        (f64::from(self.prompt) + output_weight * f64::from(self.output)).max(1.0)
    }
}

/// A budget that has no room.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Lack {
    pub(crate) term: Term,
    /// What would be in flight with the request.
    pub(crate) value: u64,
    pub(crate) budget: u64,
}

/// The first budget that has no room for `work` besides `in_flight`. One request fits always, or a budget that is smaller than a
/// request would never be tried again. Prefill is rounded: a worker's part of it is a few prompts at most, so a prompt is admitted when
/// that brings what is in flight closer to the budget than leaving it out, `used + prompt / 2 ≤ budget`. On average a budget is met that
/// way, where one that is never passed would leave half a prompt of every worker unused, and one that may be passed would exceed it by that.
pub(crate) fn lack(in_flight: Work, work: Work, budgets: &Budgets) -> Option<Lack> {
    if in_flight.streams == 0 {
        return None;
    }
    let sum = in_flight.plus(work);
    let kinds = [
        (Term::Kv, in_flight.kv_tokens, sum.kv_tokens, budgets.kv_tokens),
        (Term::Prefill, in_flight.prefill_tokens, sum.prefill_tokens, budgets.prefill_tokens),
        (Term::Decode, in_flight.streams, sum.streams, budgets.streams),
    ];
    kinds.into_iter().find_map(|(term, used, value, budget)| {
        let reached = if term == Term::Prefill { used.midpoint(value) } else { value };
        let budget = budget.filter(|budget| used > 0 && reached > *budget)?;
        Some(Lack { term, value, budget })
    })
}

/// What one admitted request holds. It is neither copied nor cloned: whoever has it gives it back with [`Reservation::end`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a reservation that is not given back is lost to everybody"]
pub(crate) struct Reservation {
    pub(crate) size: Size,
    /// Whether the prompt is still to be computed.
    has_prefill: bool,
}

impl Reservation {
    /// Takes the work of a request that is admitted.
    pub(crate) fn take(flow: &mut Flow, size: Size) -> Self {
        flow.in_flight = flow.in_flight.plus(size.work());
        flow.admitted = flow.admitted.plus(size.work());
        Self { size, has_prefill: true }
    }

    /// Gives the prefill back; once. Its tokens, if it was not given back before.
    pub(crate) fn on_first_token(&mut self, flow: &mut Flow) -> Option<u64> {
        let prefill_tokens = u64::from(self.size.prompt);
        core::mem::take(&mut self.has_prefill).then(|| {
            give_back(flow, Work { prefill_tokens, ..Work::NONE });
            prefill_tokens
        })
    }

    /// Gives back all that is left.
    pub(crate) fn end(self, flow: &mut Flow) {
        let Self { size, has_prefill } = self;
        let work = size.work();
        give_back(flow, if has_prefill { work } else { Work { prefill_tokens: 0, ..work } });
    }

    /// Gives everything back as if it had never been taken: the request was not admitted after all.
    pub(crate) fn undo(self, flow: &mut Flow) {
        let work = self.size.work();
        flow.in_flight = flow.in_flight.minus(work);
        flow.admitted = flow.admitted.minus(work);
    }
}

fn give_back(flow: &mut Flow, work: Work) {
    flow.in_flight = flow.in_flight.minus(work);
    flow.finished = flow.finished.plus(work);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { prompt: 100, output: 20 };

    #[test]
    fn everything_taken_is_given_back_once_whenever_the_first_token_comes() {
        for tokens in 0..3 {
            let mut flow = Flow::default();
            let mut reservation = Reservation::take(&mut flow, SIZE);
            assert_eq!(flow.in_flight, Work { prefill_tokens: 100, kv_tokens: 120, streams: 1 });
            for _ in 0..tokens {
                reservation.on_first_token(&mut flow);
                assert_eq!(flow.in_flight, Work { prefill_tokens: 0, kv_tokens: 120, streams: 1 });
            }
            reservation.end(&mut flow);
            assert_eq!((flow.in_flight, flow.admitted, flow.finished), (Work::NONE, SIZE.work(), SIZE.work()));
        }
    }

    #[test]
    fn one_request_fits_into_any_budget_and_a_second_only_where_there_is_room() {
        let budgets = |kv| Budgets { kv_tokens: Some(kv), ..Budgets::UNBOUNDED };
        assert_eq!(lack(Work::NONE, SIZE.work(), &budgets(1)), None);
        assert_eq!(lack(SIZE.work(), SIZE.work(), &budgets(240)), None);
        assert_eq!(lack(SIZE.work(), SIZE.work(), &budgets(239)), Some(Lack { term: Term::Kv, value: 240, budget: 239 }));
        let prefill = |tokens| Budgets { prefill_tokens: Some(tokens), ..Budgets::UNBOUNDED };
        assert_eq!(lack(SIZE.work(), SIZE.work(), &prefill(150)), None, "200 are as near to 150 as 100");
        assert_eq!(lack(SIZE.work(), SIZE.work(), &prefill(149)), Some(Lack { term: Term::Prefill, value: 200, budget: 149 }));
        let decoding = Work { prefill_tokens: 0, ..SIZE.work() };
        assert_eq!(lack(decoding, SIZE.work(), &prefill(50)), None, "nobody else's prompt waits");
    }
}
