//! The engine model: a continuous-batching scheduler over a paged KV cache, after vLLM's V1 scheduler.
//!
//! Pure and deterministic: no clock, no I/O, no randomness. Time is a parameter and results do not depend on how often
//! [`Engine::step`] is called, only on what is submitted when.
//!
//! One step takes `decode_base + decode_per_sequence * d + p / prefill_tokens_per_s` for `d` decoding sequences and `p`
//! prompt tokens. Each step serves the running sequences in order of arrival, then admits waiting ones while the token
//! budget, the batch and the free blocks allow. A running sequence that finds no free block takes those of the newest
//! running one, which loses its cache and goes back to the head of the queue to be computed again (the KV cliff).
//! We differ from vLLM: no prefix cache, no speculative decoding, one priority.

mod blocks;
mod sequence;
mod stats;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

pub use blocks::{BlockId, BlockPool};
pub use sequence::{FinishReason, SequenceId, Submission};
pub use stats::{Histogram, Stats};

use sequence::{Phase, Sequence};

/// Time since the engine's origin.
pub type SimTime = Duration;

/// No step is shorter, so that time always advances whatever the rates.
const SHORTEST_STEP: Duration = Duration::from_micros(1);

/// The shape and speed of the engine. Every value is usable; none needs a check.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Blocks of the KV cache.
    pub kv_blocks: NonZeroU32,
    /// Tokens in one block.
    pub block_tokens: NonZeroU32,
    /// Prompt tokens computed per second.
    pub prefill_tokens_per_s: NonZeroU32,
    /// What every step costs, however small its batch: reading the weights.
    pub decode_base: Duration,
    /// What one decoding sequence adds to a step.
    pub decode_per_sequence: Duration,
    /// Most tokens that one step computes, prompt and decode together (vLLM `--max-num-batched-tokens`).
    pub step_tokens: NonZeroU32,
    /// Most sequences that run at once (vLLM `--max-num-seqs`).
    pub max_batch: NonZeroUsize,
    /// Most sequences that wait; a submission beyond it is refused.
    pub max_queue: NonZeroUsize,
    /// Most tokens of one sequence, prompt and output; never more than the whole cache holds.
    pub max_model_tokens: NonZeroU32,
}

impl EngineConfig {
    /// Most tokens of one sequence: `min(max_model_tokens, kv_blocks * block_tokens)`.
    ///
    /// A sequence longer than the cache could never finish.
    pub fn context_tokens(&self) -> u32 {
        let cache = self.kv_blocks.get().saturating_mul(self.block_tokens.get());
        self.max_model_tokens.get().min(cache)
    }
}

/// Why a submission was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// As many sequences wait as may wait.
    QueueFull {
        /// How many wait.
        waiting: usize,
    },
    /// The sequence cannot fit the context.
    TooLong {
        /// Tokens asked for, prompt and output.
        requested: u32,
        /// Tokens that one sequence may have.
        limit: u32,
    },
}

/// What a step produced for one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// The sequence.
    pub id: SequenceId,
    /// End of the step.
    pub at: SimTime,
    /// Tokens produced, 0 (a pooling request that finished) or 1.
    pub tokens: u32,
    /// Set on the last output of a sequence.
    pub finish: Option<FinishReason>,
}

/// The scheduler and its cache.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    pool: BlockPool,
    /// Oldest first; a preempted sequence returns to the front.
    waiting: VecDeque<Sequence>,
    /// In order of admission, so the newest is last.
    running: Vec<Sequence>,
    step_ends_at: Option<SimTime>,
    last_step_end: SimTime,
    next_id: u64,
    stats: Stats,
}

impl Engine {
    /// An idle engine with an empty cache.
    pub fn new(config: EngineConfig) -> Engine {
        let pool = BlockPool::new(config.kv_blocks, config.block_tokens);
        Engine {
            config,
            pool,
            waiting: VecDeque::new(),
            running: Vec::new(),
            step_ends_at: None,
            last_step_end: SimTime::ZERO,
            next_id: 0,
            stats: Stats::default(),
        }
    }

    /// Puts a sequence at the end of the queue. Call [`Engine::step`] with the same `now` first, then again.
    ///
    /// # Errors
    /// [`Rejected::TooLong`] when prompt and output exceed [`EngineConfig::context_tokens`]; [`Rejected::QueueFull`].
    pub fn submit(&mut self, now: SimTime, submission: Submission) -> Result<SequenceId, Rejected> {
        let requested = submission.prompt_tokens.max(1).saturating_add(submission.output_tokens);
        let limit = self.config.context_tokens();
        if requested > limit {
            return Err(Rejected::TooLong { requested, limit });
        }
        if self.waiting.len() >= self.config.max_queue.get() {
            self.stats.rejections += 1;
            return Err(Rejected::QueueFull { waiting: self.waiting.len() });
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.waiting.push_back(Sequence::new(id, submission, now));
        Ok(id)
    }

    /// Removes a sequence and gives its blocks back at once. `false` when it is not there any more.
    pub fn abort(&mut self, id: SequenceId) -> bool {
        let found = if let Some(index) = self.running.iter().position(|sequence| sequence.id == id) {
            Some(self.running.remove(index))
        } else {
            let index = self.waiting.iter().position(|sequence| sequence.id == id);
            index.and_then(|index| self.waiting.remove(index))
        };
        let Some(mut sequence) = found else { return false };
        self.pool.release(&mut sequence.blocks);
        self.stats.finished_abort += 1;
        true
    }

    /// Runs every step that ends at or before `now` and starts the next one; what they produced, in order.
    pub fn step(&mut self, now: SimTime) -> Vec<Output> {
        let mut outputs = Vec::new();
        loop {
            if let Some(end) = self.step_ends_at {
                if end > now {
                    return outputs;
                }
                self.finish_step(end, &mut outputs);
            }
            let Some(start) = self.next_start().filter(|start| *start <= now) else { return outputs };
            self.start_step(start);
        }
    }

    /// When [`Engine::step`] has something to do next; `None` while the engine is idle.
    pub fn next_step_at(&self) -> Option<SimTime> {
        self.step_ends_at.or_else(|| self.next_start())
    }

    /// Sequences in the batch.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences in the queue, preempted ones included.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The KV cache.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Share of the KV cache in use, `0..=1`.
    pub fn kv_usage(&self) -> f64 {
        f64::from(self.pool.in_use()) / f64::from(self.pool.capacity())
    }

    /// Counts since the start.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// The next step starts when the last one ended, or when work arrives at an idle engine.
    fn next_start(&self) -> Option<SimTime> {
        if !self.running.is_empty() {
            return Some(self.last_step_end);
        }
        self.waiting.front().map(|sequence| sequence.submitted_at.max(self.last_step_end))
    }

    fn start_step(&mut self, start: SimTime) {
        let mut plan = StepPlan { budget: self.config.step_tokens.get(), prefill_tokens: 0, decodes: 0 };
        let preempted = self.schedule_running(&mut plan);
        // Admitting right after a preemption would hand the freed blocks to a sequence that steals them back.
        if !preempted {
            self.admit_waiting(start, &mut plan);
        }
        let decode = self.config.decode_per_sequence.saturating_mul(plan.decodes);
        let prefill = f64::from(plan.prefill_tokens) / f64::from(self.config.prefill_tokens_per_s.get());
        let duration = self.config.decode_base + decode + Duration::from_secs_f64(prefill);
        self.step_ends_at = Some(start + duration.max(SHORTEST_STEP));
    }

    /// Gives every running sequence its tokens, oldest first; `true` when one had to be preempted for that.
    fn schedule_running(&mut self, plan: &mut StepPlan) -> bool {
        let mut preempted = false;
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &self.running[index];
            let tokens = sequence.remaining().min(plan.budget);
            if tokens == 0 {
                break;
            }
            let missing = self.pool.missing(&sequence.blocks, sequence.computed + tokens);
            while missing > self.pool.free() && self.running.len() > index {
                self.preempt_newest();
                preempted = true;
            }
            // Gone when it was itself the newest.
            let Some(sequence) = self.running.get_mut(index) else { break };
            plan.give(sequence, tokens);
            self.pool.grow(&mut sequence.blocks, sequence.computed + tokens);
            index += 1;
        }
        preempted
    }

    fn preempt_newest(&mut self) {
        let Some(mut sequence) = self.running.pop() else { return };
        self.pool.release(&mut sequence.blocks);
        sequence.computed = 0;
        sequence.scheduled = 0;
        self.stats.preemptions += 1;
        self.waiting.push_front(sequence);
    }

    fn admit_waiting(&mut self, start: SimTime, plan: &mut StepPlan) {
        while self.running.len() < self.config.max_batch.get() && plan.budget > 0 {
            let Some(sequence) = self.waiting.front_mut().filter(|sequence| sequence.submitted_at <= start) else { return };
            let tokens = sequence.remaining().min(plan.budget);
            if !self.pool.grow(&mut sequence.blocks, tokens) {
                return;
            }
            plan.give(sequence, tokens);
            if sequence.first_scheduled_at.is_none() {
                sequence.first_scheduled_at = Some(start);
                self.stats.queue_time.observe(start.saturating_sub(sequence.submitted_at));
            }
            self.running.extend(self.waiting.pop_front());
        }
    }

    fn finish_step(&mut self, end: SimTime, outputs: &mut Vec<Output>) {
        self.step_ends_at = None;
        self.last_step_end = end;
        let (pool, stats) = (&mut self.pool, &mut self.stats);
        self.running.retain_mut(|sequence| {
            sequence.computed += std::mem::take(&mut sequence.scheduled);
            if sequence.remaining() > 0 {
                return true;
            }
            let output = produce(sequence, end, stats);
            outputs.push(output);
            if output.finish.is_some() {
                pool.release(&mut sequence.blocks);
            }
            output.finish.is_none()
        });
    }
}

/// The work of one step while it is put together.
struct StepPlan {
    budget: u32,
    prefill_tokens: u32,
    decodes: u32,
}

impl StepPlan {
    fn give(&mut self, sequence: &mut Sequence, tokens: u32) {
        match sequence.phase() {
            Phase::Decode => self.decodes += 1,
            Phase::Prefill => self.prefill_tokens += tokens,
        }
        sequence.scheduled = tokens;
        self.budget -= tokens;
    }
}

/// The outcome of a step in which everything known about `sequence` came into the cache.
fn produce(sequence: &mut Sequence, at: SimTime, stats: &mut Stats) -> Output {
    if !sequence.prefilled_before {
        sequence.prefilled_before = true;
        stats.prompt_tokens += u64::from(sequence.submission.prompt_tokens);
    }
    let tokens = sequence.submission.output_tokens.min(1);
    if tokens > 0 {
        match sequence.last_token_at {
            None => stats.time_to_first_token.observe(at.saturating_sub(sequence.submitted_at)),
            Some(last) => stats.inter_token_latency.observe(at.saturating_sub(last)),
        }
        sequence.last_token_at = Some(at);
        sequence.generated += tokens;
        stats.generation_tokens += u64::from(tokens);
    }
    let is_finished = sequence.generated == sequence.submission.output_tokens;
    if is_finished {
        stats.end_to_end.observe(at.saturating_sub(sequence.submitted_at));
        match sequence.submission.finish {
            FinishReason::Stop => stats.finished_stop += 1,
            FinishReason::Length => stats.finished_length += 1,
        }
    }
    Output { id: sequence.id, at, tokens, finish: is_finished.then_some(sequence.submission.finish) }
}
