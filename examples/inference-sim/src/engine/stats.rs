//! What the engine counts: the numbers behind `/metrics`.

use std::time::Duration;

/// Upper bounds in seconds of vLLM's time-to-first-token buckets.
pub(super) const TTFT_BOUNDS: &[f64] =
    &[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0];
/// Upper bounds in seconds of vLLM's inter-token-latency buckets.
pub(super) const INTER_TOKEN_BOUNDS: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
/// Upper bounds in seconds of vLLM's request-latency buckets (end to end, queue).
pub(super) const REQUEST_BOUNDS: &[f64] =
    &[0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0];

/// A Prometheus histogram of durations with fixed bounds.
#[derive(Clone, Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One count per bound, not cumulative, then one for everything above the last bound.
    counts: Vec<u64>,
    sum: Duration,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Histogram {
        Histogram { bounds, counts: vec![0; bounds.len() + 1], sum: Duration::ZERO }
    }

    pub(super) fn observe(&mut self, value: Duration) {
        let seconds = value.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        self.counts[bucket] += 1;
        self.sum += value;
    }

    /// Each finite bound with the count of observations at or below it, in order.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        self.bounds.iter().zip(&self.counts).scan(0, |below, (bound, count)| {
            *below += count;
            Some((*bound, *below))
        })
    }

    /// Observations so far.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Sum of all observations in seconds.
    pub fn sum_seconds(&self) -> f64 {
        self.sum.as_secs_f64()
    }
}

/// Cumulative counts since the engine started.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Times a running sequence lost its blocks and went back to the queue.
    pub preemptions: u64,
    /// Prompt tokens of sequences whose prefill finished, each sequence counted once.
    pub prompt_tokens: u64,
    /// Tokens produced.
    pub generation_tokens: u64,
    /// Sequences that ended on their own before `max_tokens`.
    pub finished_stop: u64,
    /// Sequences that ended at `max_tokens`.
    pub finished_length: u64,
    /// Sequences whose client went away.
    pub finished_abort: u64,
    /// Submissions refused because the queue was full.
    pub rejections: u64,
    /// Submission to first token.
    pub time_to_first_token: Histogram,
    /// Token to next token of the same sequence, preemption included.
    pub inter_token_latency: Histogram,
    /// Submission to first being scheduled.
    pub queue_time: Histogram,
    /// Submission to last token.
    pub end_to_end: Histogram,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats {
            preemptions: 0,
            prompt_tokens: 0,
            generation_tokens: 0,
            finished_stop: 0,
            finished_length: 0,
            finished_abort: 0,
            rejections: 0,
            time_to_first_token: Histogram::new(TTFT_BOUNDS),
            inter_token_latency: Histogram::new(INTER_TOKEN_BOUNDS),
            queue_time: Histogram::new(REQUEST_BOUNDS),
            end_to_end: Histogram::new(REQUEST_BOUNDS),
        }
    }
}
