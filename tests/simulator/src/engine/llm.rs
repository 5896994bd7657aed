//! An LLM engine: continuous batching, chunked prefill, paged KV cache, preemption by recomputation, after vLLM's V1 scheduler.
//!
//! A step takes `factor · (base + per_sequence · d + per_prefill_token · p + per_kv_token · k)` for `d` decoding sequences with `k`
//! tokens in their caches and `p` prompt tokens. Every decoding sequence makes one token a step, so `tokens`, the number of steps, is a
//! clock: a sequence that begins to decode at `t` with `n` tokens to go ends at `t + n`, and needs a block whenever its length
//! passes a multiple of the block. Both are found by counting, without a loop over the batch: a step costs O(1) and the prompts
//! and endings in it.
//!
//! We differ from vLLM: no prefix cache, no speculative decoding, first come first served only.

use std::collections::VecDeque;

use headgate_core::time::Timestamp;

use super::{EngineCounters, Output, Running, seconds};
use crate::controller::RequestId;

mod sequences;

use self::sequences::{NONE, Phase, Sequences};

/// Tokens of a block.
pub(super) const BLOCK: u32 = 16;

/// Shape and speed of an engine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LlmConfig {
    /// Blocks of 16 tokens of the KV cache.
    pub kv_blocks: u32,
    /// Most sequences in the batch (`--max-num-seqs`).
    pub max_sequences: u32,
    /// Most tokens that a step computes (`--max-num-batched-tokens`), at least `max_sequences`.
    pub step_tokens: u32,
    /// Most requests that wait; one more is refused.
    pub max_queue: u32,
    /// What every step costs, in seconds: reading the weights, launching kernels.
    pub base_s: f64,
    /// What a decoding sequence adds, in seconds.
    pub per_sequence_s: f64,
    /// What a prompt token adds, in seconds.
    pub per_prefill_token_s: f64,
    /// What a token in the cache of a decoding sequence adds, in seconds.
    pub per_kv_token_s: f64,
}

impl LlmConfig {
    /// An 8B-class model (grouped-query attention, 128 KiB of cache a token) in bfloat16 on one H100: 16 GB of weights over
    /// 3.35 TB/s and 2 ms of overhead; 2 · 8e9 operations a prompt token at a sustained 530 TFLOP/s; 56 GB of cache.
    pub const H100_8B: Self = Self {
        kv_blocks: 26_700,
        max_sequences: 512,
        step_tokens: 2048,
        max_queue: u32::MAX,
        base_s: 0.007,
        per_sequence_s: 20e-6,
        per_prefill_token_s: 30e-6,
        per_kv_token_s: 39e-9,
    };

    /// A 70B-class model (320 KiB of cache a token) in 8 bits on four H100, tensor parallel: 17.5 GB of weights a GPU and 3 ms of
    /// all-reduce; 660,000 tokens of cache.
    pub const H100_X4_70B: Self = Self {
        kv_blocks: 41_000,
        max_sequences: 512,
        step_tokens: 2048,
        max_queue: u32::MAX,
        base_s: 0.010,
        per_sequence_s: 25e-6,
        per_prefill_token_s: 58e-6,
        per_kv_token_s: 25e-9,
    };

    /// Tokens that the cache holds.
    pub fn kv_tokens(&self) -> u64 {
        u64::from(self.kv_blocks) * u64::from(BLOCK)
    }
}

impl Default for LlmConfig {
    /// A 32B-class model (256 KiB of cache a token) with 8-bit weights on one H100, between the two above: 32 GB of weights over
    /// 3.35 TB/s and 2.4 ms of overhead; 2 · 32e9 operations a prompt token at a sustained 700 TFLOP/s (a third of the peak);
    /// 40 GB of cache, 152,000 tokens; 256 KiB over 3.35 TB/s for each token in a decoding cache.
    fn default() -> Self {
        Self {
            kv_blocks: 9500,
            max_sequences: 256,
            step_tokens: 2048,
            max_queue: u32::MAX,
            base_s: 0.012,
            per_sequence_s: 20e-6,
            per_prefill_token_s: 91e-6,
            per_kv_token_s: 78e-9,
        }
    }
}

/// The engine.
#[derive(Clone, Debug)]
pub(super) struct Llm {
    config: LlmConfig,
    sequences: Sequences,
    /// Sequences in arrival order, preempted ones in front; ones that left stay until they are met.
    queue: VecDeque<u32>,
    /// Live ones of `queue`.
    queued: u32,
    /// Sequences in prefill, in order of admission.
    prefill: Vec<u32>,
    free_blocks: u32,
    /// Decoding sequences, and the tokens in their caches.
    decoding: u32,
    decoding_tokens: u64,
    /// Decoding sequences by `(length − tokens) mod BLOCK`: those that need a block at the same step.
    phases: [u32; BLOCK as usize],
    /// Steps so far: the token clock.
    tokens: u64,
    step_ends_at: Option<Timestamp>,
    backlog: u64,
    counters: EngineCounters,
}

impl Llm {
    pub(super) fn new(config: LlmConfig) -> Self {
        let step_tokens = config.step_tokens.max(config.max_sequences).max(1);
        let config = LlmConfig { step_tokens, max_sequences: config.max_sequences.max(1), ..config };
        Self {
            config,
            sequences: Sequences::new(),
            queue: VecDeque::new(),
            queued: 0,
            prefill: Vec::new(),
            free_blocks: config.kv_blocks,
            decoding: 0,
            decoding_tokens: 0,
            phases: [0; BLOCK as usize],
            tokens: 0,
            step_ends_at: None,
            backlog: 0,
            counters: EngineCounters::default(),
        }
    }

    pub(super) fn config(&self) -> &LlmConfig {
        &self.config
    }

    pub(super) fn kv_used_tokens(&self) -> u64 {
        u64::from(self.config.kv_blocks - self.free_blocks) * u64::from(BLOCK)
    }

    pub(super) fn running(&self) -> u32 {
        self.decoding + self.prefill.len() as u32
    }

    pub(super) fn waiting(&self) -> u32 {
        self.queued
    }

    pub(super) fn prefill_backlog(&self) -> u64 {
        self.backlog
    }

    /// The sequences in the batch, newest first.
    pub(super) fn in_batch(&self) -> impl Iterator<Item = Running> + '_ {
        self.sequences.running().map(|slot| {
            let sequence = self.sequences.get(slot);
            Running { id: sequence.id, prompt_tokens: sequence.prompt, made: self.made(slot), output_tokens: sequence.output }
        })
    }

    /// Output tokens that a sequence has so far.
    fn made(&self, slot: u32) -> u32 {
        let sequence = self.sequences.get(slot);
        match sequence.phase {
            Phase::Decode { since, .. } => sequence.made + (self.tokens - since) as u32,
            _ => sequence.made,
        }
    }

    pub(super) fn free_blocks(&self) -> u32 {
        self.free_blocks
    }

    /// What a step would take now that computes `prompt_tokens`.
    pub(super) fn step_s(&self, prompt_tokens: u32) -> f64 {
        let config = &self.config;
        let decode = config.per_sequence_s * f64::from(self.decoding) + config.per_kv_token_s * self.decoding_tokens as f64;
        config.base_s + decode + config.per_prefill_token_s * f64::from(prompt_tokens)
    }

    /// Time from submission to the first step that worked on it.
    pub(super) fn queueing(&self, slot: u32) -> Option<std::time::Duration> {
        let sequence = self.sequences.get(slot);
        sequence.scheduled_at.map(|at| at.since(sequence.submitted_at))
    }

    pub(super) fn counters(&self) -> &EngineCounters {
        &self.counters
    }

    pub(super) fn submit(&mut self, now: Timestamp, id: RequestId, prompt_tokens: u32, output_tokens: u32) -> Option<u32> {
        let (prompt, output) = (prompt_tokens.max(1), output_tokens.max(1));
        let fits = u64::from(prompt) + u64::from(output) <= self.config.kv_tokens();
        if !fits || self.queued >= self.config.max_queue {
            self.counters.refused += 1;
            return None;
        }
        let slot = self.sequences.insert(now, id, prompt, output);
        self.queue.push_back(slot);
        self.queued += 1;
        self.backlog += u64::from(prompt);
        self.counters.accepted += 1;
        Some(slot)
    }

    /// Returns the tokens that it had made.
    pub(super) fn abort(&mut self, slot: u32) -> u32 {
        let (sequence, made) = (self.sequences.get(slot), self.made(slot));
        if made == 0 {
            self.backlog -= u64::from(sequence.prompt);
        }
        match sequence.phase {
            Phase::Queued => {
                self.queued -= 1;
                // It stays in the queue until it is met there; its slot is given back then.
                self.sequences.get_mut(slot).phase = Phase::Left;
                return made;
            }
            Phase::Prefill { blocks, .. } => {
                self.free_blocks += blocks;
                self.prefill.retain(|other| *other != slot);
                self.sequences.unlink_running(slot);
            }
            Phase::Decode { .. } => {
                // Within a step every decoding sequence has the block of the token that it is making.
                self.free_blocks += self.length(slot) / BLOCK + 1;
                self.leave_decode(slot);
            }
            Phase::Left => {}
        }
        self.sequences.remove(slot);
        made
    }

    pub(super) fn next_at(&mut self, now: Timestamp, factor: f64) -> Option<Timestamp> {
        if self.step_ends_at.is_none() && (self.running() > 0 || self.queued > 0) {
            self.begin_step(now, factor);
        }
        self.step_ends_at
    }

    pub(super) fn advance(&mut self, now: Timestamp, factor: f64, outputs: &mut Vec<Output>) {
        if self.step_ends_at.is_some_and(|end| end <= now) {
            self.end_step(outputs);
            if self.running() > 0 || self.queued > 0 {
                self.begin_step(now, factor);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        let counters = self.counters;
        *self = Self { counters, ..Self::new(self.config) };
    }

    fn begin_step(&mut self, now: Timestamp, factor: f64) {
        let preemptions = self.counters.preemptions;
        self.give_blocks_to_decodes();
        let mut budget = self.config.step_tokens.saturating_sub(self.decoding);
        let mut prompt_tokens = self.continue_prefills(&mut budget);
        // What preemption freed belongs to those that run: admitting now would take it from them again.
        if self.counters.preemptions == preemptions {
            prompt_tokens += self.admit(now, &mut budget);
        }
        let took = factor * self.step_s(prompt_tokens);
        self.counters.prefill_tokens += u64::from(prompt_tokens);
        self.counters.steps += 1;
        self.step_ends_at = Some(now + seconds(took).max(std::time::Duration::from_micros(1)));
    }

    /// Every decoding sequence whose last block is full gets one; the newest running sequences give theirs up for that.
    fn give_blocks_to_decodes(&mut self) {
        let due = (u64::from(BLOCK) - self.tokens % u64::from(BLOCK)) % u64::from(BLOCK);
        while self.phases[due as usize] > self.free_blocks {
            if !self.preempt_newest() {
                return;
            }
        }
        self.free_blocks -= self.phases[due as usize];
    }

    fn continue_prefills(&mut self, budget: &mut u32) -> u32 {
        let (mut at, mut total) = (0, 0);
        while let Some(&slot) = self.prefill.get(at) {
            let tokens = self.sequences.get(slot).remaining().min(*budget);
            let Phase::Prefill { done, blocks, .. } = self.sequences.get(slot).phase else { break };
            let missing = (done + tokens).div_ceil(BLOCK) - blocks;
            let mut is_there = true;
            while missing > self.free_blocks && is_there {
                is_there = self.sequences.newest() != slot;
                self.preempt_newest();
            }
            if !is_there {
                break;
            }
            self.free_blocks -= missing;
            self.sequences.get_mut(slot).phase = Phase::Prefill { done, blocks: blocks + missing, scheduled: tokens };
            *budget -= tokens;
            total += tokens;
            at += 1;
        }
        total
    }

    fn admit(&mut self, now: Timestamp, budget: &mut u32) -> u32 {
        let mut total = 0;
        while *budget > 0 && self.running() < self.config.max_sequences {
            let Some(&slot) = self.queue.front() else { break };
            if self.sequences.get(slot).phase == Phase::Left {
                self.queue.pop_front();
                self.sequences.remove(slot);
                continue;
            }
            let tokens = self.sequences.get(slot).to_compute().min(*budget);
            let blocks = tokens.div_ceil(BLOCK);
            if blocks > self.free_blocks {
                break;
            }
            self.queue.pop_front();
            self.queued -= 1;
            self.free_blocks -= blocks;
            let sequence = self.sequences.get_mut(slot);
            sequence.phase = Phase::Prefill { done: 0, blocks, scheduled: tokens };
            sequence.scheduled_at.get_or_insert(now);
            self.sequences.link_running(slot);
            self.prefill.push(slot);
            *budget -= tokens;
            total += tokens;
        }
        total
    }

    /// The newest running sequence loses its cache and goes to the head of the queue; false when none runs. Called between steps only.
    fn preempt_newest(&mut self) -> bool {
        let slot = self.sequences.newest();
        if slot == NONE {
            return false;
        }
        match self.sequences.get(slot).phase {
            Phase::Decode { since, .. } => {
                self.free_blocks += self.length(slot).div_ceil(BLOCK);
                let made = (self.tokens - since) as u32;
                self.leave_decode(slot);
                self.sequences.get_mut(slot).made += made;
            }
            Phase::Prefill { blocks, .. } => {
                self.free_blocks += blocks;
                self.prefill.retain(|other| *other != slot);
                self.sequences.unlink_running(slot);
            }
            Phase::Queued | Phase::Left => return false,
        }
        self.sequences.get_mut(slot).phase = Phase::Queued;
        self.queue.push_front(slot);
        self.queued += 1;
        self.counters.preemptions += 1;
        true
    }

    fn end_step(&mut self, outputs: &mut Vec<Output>) {
        self.step_ends_at = None;
        self.tokens += 1;
        self.decoding_tokens += u64::from(self.decoding);
        self.counters.output_tokens += u64::from(self.decoding);
        let mut slot = self.sequences.first_due(self.tokens);
        while slot != NONE {
            let next = self.sequences.next_due(slot);
            if matches!(self.sequences.get(slot).phase, Phase::Decode { until, .. } if until == self.tokens) {
                outputs.push(Output::Done(self.sequences.get(slot).id));
                self.free_blocks += self.length(slot).div_ceil(BLOCK);
                self.leave_decode(slot);
                self.sequences.remove(slot);
                self.counters.finished += 1;
            }
            slot = next;
        }
        self.end_prefills(outputs);
    }

    fn end_prefills(&mut self, outputs: &mut Vec<Output>) {
        let mut kept = 0;
        for at in 0..self.prefill.len() {
            let slot = self.prefill[at];
            let sequence = self.sequences.get_mut(slot);
            let Phase::Prefill { done, blocks, scheduled } = sequence.phase else { continue };
            sequence.phase = Phase::Prefill { done: done + scheduled, blocks, scheduled: 0 };
            if sequence.remaining() > 0 {
                self.prefill[kept] = slot;
                kept += 1;
            } else {
                self.begin_decode(slot, blocks, outputs);
            }
        }
        self.prefill.truncate(kept);
    }

    /// A computed prompt gives a token at once.
    fn begin_decode(&mut self, slot: u32, blocks: u32, outputs: &mut Vec<Output>) {
        let sequence = self.sequences.get_mut(slot);
        let length = sequence.to_compute();
        if sequence.made == 0 {
            outputs.push(Output::FirstToken(sequence.id));
            self.backlog -= u64::from(sequence.prompt);
        }
        sequence.made += 1;
        self.counters.output_tokens += 1;
        if sequence.made >= sequence.output {
            outputs.push(Output::Done(sequence.id));
            self.free_blocks += blocks;
            self.sequences.unlink_running(slot);
            self.sequences.remove(slot);
            self.counters.finished += 1;
            return;
        }
        let until = self.tokens + u64::from(sequence.output - sequence.made);
        sequence.phase = Phase::Decode { since: self.tokens, until, length };
        self.phases[phase_of(length, self.tokens)] += 1;
        self.decoding += 1;
        self.decoding_tokens += u64::from(length);
        self.sequences.link_due(slot, until);
    }

    /// Tokens in the cache of a decoding sequence.
    fn length(&self, slot: u32) -> u32 {
        match self.sequences.get(slot).phase {
            Phase::Decode { since, length, .. } => length + (self.tokens - since) as u32,
            _ => 0,
        }
    }

    fn leave_decode(&mut self, slot: u32) {
        let length = self.length(slot);
        self.phases[phase_of(length, self.tokens)] -= 1;
        self.decoding -= 1;
        self.decoding_tokens -= u64::from(length);
        self.sequences.unlink_due(slot);
        self.sequences.unlink_running(slot);
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let mut blocks = 0;
        let (mut decoding, mut tokens) = (0, 0);
        for slot in self.sequences.running() {
            match self.sequences.get(slot).phase {
                Phase::Prefill { blocks: held, .. } => blocks += held,
                Phase::Decode { .. } => {
                    let length = self.length(slot);
                    blocks += if self.step_ends_at.is_some() { length / BLOCK + 1 } else { length.div_ceil(BLOCK) };
                    decoding += 1;
                    tokens += u64::from(length);
                }
                Phase::Queued | Phase::Left => return Err(format!("sequence {slot} runs but is queued")),
            }
        }
        let used = self.config.kv_blocks - self.free_blocks;
        if blocks != used {
            return Err(format!("{used} KV blocks are in use but sequences hold {blocks}"));
        }
        if (decoding, tokens) != (self.decoding, self.decoding_tokens) {
            return Err(format!("{decoding} sequences decode {tokens} tokens, counted {} and {}", self.decoding, self.decoding_tokens));
        }
        Ok(())
    }
}

/// `(length − tokens) mod BLOCK`.
fn phase_of(length: u32, tokens: u64) -> usize {
    let block = u64::from(BLOCK);
    ((u64::from(length) % block + block - tokens % block) % block) as usize
}
