//! Means over the last requests: what a request of this pool is like.

use super::meter::{Tick, weight};

/// Memory of means over requests: length of prompts and outputs.
/// Long, since responses that end early are short: right after a step of the load they alone are seen.
const MEMORY_S: f64 = 30.0;
/// Requests that such a mean remembers at least, and for how many of them the length that the policy names counts. Enough that the short
/// ones of the first seconds do not set it alone, few enough that a wrong guess is gone as soon as the pool has answered a few times as many.
const LEAST: f64 = 100.0;

/// Means over the last requests.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Means {
    pub(super) prompt_tokens: f64,
    pub(super) output_tokens: f64,
    /// Part of the responses with a time between tokens: more than one piece.
    pub(super) streamed: f64,
    pub(super) admitted_per_s: f64,
    /// Requests behind the means, those that are forgotten taken off.
    prompts: f64,
    outputs: f64,
    responses: f64,
}

impl Means {
    /// Nothing is known but the length of an output that the policy names, and that responses are streamed; that counts for [`LEAST`]
    /// requests.
    pub(super) fn presuming(output_tokens: f64) -> Self {
        Self { output_tokens, outputs: LEAST, streamed: 1.0, responses: LEAST, ..Self::default() }
    }

    pub(super) fn observe(&mut self, tick: &Tick) {
        self.admitted_per_s += weight(tick.seconds, 1.0) * (tick.admitted.streams as f64 / tick.seconds - self.admitted_per_s);
        let memory = (MEMORY_S * self.admitted_per_s).max(LEAST);
        follow(&mut self.prompt_tokens, &mut self.prompts, memory, tick.admitted.prefill_tokens, tick.admitted.streams);
        follow(&mut self.output_tokens, &mut self.outputs, memory, tick.output_tokens, tick.responses);
        follow(&mut self.streamed, &mut self.responses, memory, tick.streamed, tick.responses);
    }

    /// Work tokens of a mean request, at least 1.
    pub(super) fn request_work(&self, output_weight: f64) -> f64 {
        (self.prompt_tokens + output_weight * self.output_tokens).max(1.0)
    }
}

/// `mean ← mean + n / (n + seen) · (sample − mean)` for `n` requests, `seen ← min(seen + n, memory)`: a plain mean of all requests until
/// there are as many as the memory holds, then one that forgets.
fn follow(mean: &mut f64, seen: &mut f64, memory: f64, sum: u64, count: u64) {
    if count == 0 {
        return;
    }
    let (sample, count) = (sum as f64 / count as f64, count as f64);
    *seen = seen.min(memory);
    *mean += count / (count + *seen) * (sample - *mean);
    *seen += count;
}
