//! Means over the last requests: what a request of this pool is like.

use super::meter::{Tick, weight};

/// Memory of means over requests: length of prompts and outputs, rate of admission.
/// Long, since responses that end early are short: right after a step of the load they alone are seen.
const MEANS_MEMORY_S: f64 = 30.0;
/// Requests that such a mean remembers at least.
const MEANS_LEAST: f64 = 100.0;

/// Means over the last requests.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Means {
    pub(super) prompt_tokens: f64,
    pub(super) output_tokens: f64,
    pub(super) admitted_per_s: f64,
}

impl Means {
    pub(super) fn observe(&mut self, tick: &Tick) {
        self.admitted_per_s += weight(tick.seconds, 1.0) * (tick.admitted.streams as f64 / tick.seconds - self.admitted_per_s);
        follow(&mut self.prompt_tokens, tick.admitted.prefill_tokens, tick.admitted.streams, self.admitted_per_s);
        follow(&mut self.output_tokens, tick.output_tokens, tick.responses, self.admitted_per_s);
    }

    /// Work tokens of a mean request, at least 1.
    pub(super) fn request_work(&self, output_weight: f64) -> f64 {
        (self.prompt_tokens + output_weight * self.output_tokens).max(1.0)
    }
}

/// `mean ← mean + n / (n + memory · rate) · (sample − mean)` for `n` requests: they count by their number, over the memory at that rate.
fn follow(mean: &mut f64, sum: u64, count: u64, per_s: f64) {
    if count == 0 {
        return;
    }
    let sample = sum as f64 / count as f64;
    let weight = count as f64 / (count as f64 + (MEANS_MEMORY_S * per_s).max(MEANS_LEAST));
    *mean = if *mean > 0.0 { *mean + weight * (sample - *mean) } else { sample };
}
