//! Models of what serves requests: an LLM engine and a plain server.

use std::time::Duration;

use headgate_core::time::Timestamp;

use crate::controller::RequestId;
use crate::rng::Rng;

mod llm;
mod plain;
#[cfg(test)]
mod tests;

use self::llm::Llm;
pub use self::llm::LlmConfig;
use self::plain::Plain;
pub use self::plain::PlainConfig;

/// What serves.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineConfig {
    /// An LLM engine.
    Llm(LlmConfig),
    /// A server with a time of service and a bound on concurrency.
    Plain(PlainConfig),
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self::Llm(LlmConfig::default())
    }
}

/// What an engine did for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Its first token is there.
    FirstToken(RequestId),
    /// Its last token is there; the engine has forgotten it.
    Done(RequestId),
}

/// Counters since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineCounters {
    /// Requests accepted.
    pub accepted: u64,
    /// Requests refused: queue full, or too long.
    pub refused: u64,
    /// Requests finished.
    pub finished: u64,
    /// Sequences that lost their cache to others and were computed again.
    pub preemptions: u64,
    /// Prompt tokens computed, those computed again included.
    pub prefill_tokens: u64,
    /// Output tokens made.
    pub output_tokens: u64,
    /// Steps (LLM) or services (plain).
    pub steps: u64,
}

/// A request in an engine's batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Which.
    pub id: RequestId,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Output tokens made so far.
    pub made: u32,
    /// Output tokens that it will have.
    pub output_tokens: u32,
}

/// Index of a request within its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(pub(crate) u32);

/// An engine.
#[derive(Clone, Debug)]
pub struct Engine {
    model: Model,
    factor: f64,
    is_lost: bool,
}

#[derive(Clone, Debug)]
enum Model {
    Llm(Llm),
    Plain(Plain),
}

// === impl Engine ===

impl Engine {
    /// An idle engine; `seed` decides the times of service of a plain server.
    pub fn new(config: &EngineConfig, seed: u64) -> Self {
        let model = match config {
            EngineConfig::Llm(config) => Model::Llm(Llm::new(*config)),
            EngineConfig::Plain(config) => Model::Plain(Plain::new(*config, Rng::new(seed, 0))),
        };
        Self { model, factor: 1.0, is_lost: false }
    }

    /// Part of the KV cache in use, `0..=1`; of a plain server the part of its places.
    pub fn kv_usage(&self) -> f64 {
        self.kv_used_tokens() as f64 / self.kv_total_tokens().max(1) as f64
    }

    /// Tokens that the blocks in use hold; places in use of a plain server.
    pub fn kv_used_tokens(&self) -> u64 {
        match &self.model {
            Model::Llm(llm) => llm.kv_used_tokens(),
            Model::Plain(plain) => u64::from(plain.running()),
        }
    }

    /// Tokens that all blocks hold; places of a plain server.
    pub fn kv_total_tokens(&self) -> u64 {
        match &self.model {
            Model::Llm(llm) => llm.config().kv_tokens(),
            Model::Plain(plain) => u64::from(plain.config().concurrency),
        }
    }

    /// Blocks of the KV cache that are free; free places of a plain server.
    pub fn free_blocks(&self) -> u32 {
        match &self.model {
            Model::Llm(llm) => llm.free_blocks(),
            Model::Plain(plain) => plain.config().concurrency - plain.running(),
        }
    }

    /// Requests in the batch (in service).
    pub fn running(&self) -> u32 {
        match &self.model {
            Model::Llm(llm) => llm.running(),
            Model::Plain(plain) => plain.running(),
        }
    }

    /// Requests in its own queue, preempted ones included.
    pub fn waiting(&self) -> u32 {
        match &self.model {
            Model::Llm(llm) => llm.waiting(),
            Model::Plain(plain) => plain.waiting(),
        }
    }

    /// Prompt tokens accepted whose first token has not come.
    pub fn prefill_backlog(&self) -> u64 {
        match &self.model {
            Model::Llm(llm) => llm.prefill_backlog(),
            Model::Plain(_) => 0,
        }
    }

    /// Requests that it has, running or waiting.
    pub fn outstanding(&self) -> u32 {
        self.running() + self.waiting()
    }

    /// Counters.
    pub fn counters(&self) -> &EngineCounters {
        match &self.model {
            Model::Llm(llm) => llm.counters(),
            Model::Plain(plain) => plain.counters(),
        }
    }

    /// The LLM configuration; `None` for a plain server.
    pub fn llm(&self) -> Option<&LlmConfig> {
        match &self.model {
            Model::Llm(llm) => Some(llm.config()),
            Model::Plain(_) => None,
        }
    }

    /// The plain server's configuration; `None` for an LLM engine.
    pub fn plain(&self) -> Option<&PlainConfig> {
        match &self.model {
            Model::Llm(_) => None,
            Model::Plain(plain) => Some(plain.config()),
        }
    }

    /// Factor on the duration of its steps; 1 is full speed.
    pub fn factor(&self) -> f64 {
        self.factor
    }

    /// The requests in the batch of an LLM engine, newest first; nothing for a plain server.
    pub fn batch(&self) -> impl Iterator<Item = Running> + '_ {
        match &self.model {
            Model::Llm(llm) => Some(llm.in_batch()),
            Model::Plain(_) => None,
        }
        .into_iter()
        .flatten()
    }

    /// What a step would take now that computes `prompt_tokens` besides the batch; the time of service of a plain server.
    pub fn step_time(&self, prompt_tokens: u32) -> Duration {
        match &self.model {
            Model::Llm(llm) => seconds(self.factor * llm.step_s(prompt_tokens)),
            Model::Plain(plain) => plain.config().service.mul_f64(self.factor),
        }
    }

    /// Time that a request spent in the engine's own queue; `None` while it is there.
    pub fn queueing(&self, slot: Slot) -> Option<Duration> {
        match &self.model {
            Model::Llm(llm) => llm.queueing(slot.0),
            Model::Plain(plain) => plain.queueing(slot.0),
        }
    }

    /// Whether it serves.
    pub fn is_alive(&self) -> bool {
        !self.is_lost
    }

    /// Memory of the GPU in use, `0..=1`: an engine that preallocates its cache shows 0.9 from idle to collapse.
    pub fn memory_use(&self) -> f64 {
        0.9
    }

    /// Whether it is gone.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Accepts a request, or refuses it when its queue is full or the request can never fit.
    pub fn submit(&mut self, now: Timestamp, id: RequestId, prompt_tokens: u32, output_tokens: u32) -> Option<Slot> {
        if self.is_lost {
            return None;
        }
        match &mut self.model {
            Model::Llm(llm) => llm.submit(now, id, prompt_tokens, output_tokens),
            Model::Plain(plain) => plain.submit(now, id, prompt_tokens, self.factor),
        }
        .map(Slot)
    }

    /// Forgets a request. Returns the output tokens that it had.
    pub fn abort(&mut self, now: Timestamp, slot: Slot) -> u32 {
        match &mut self.model {
            Model::Llm(llm) => llm.abort(slot.0),
            Model::Plain(plain) => plain.abort(now, slot.0, self.factor),
        }
    }

    /// When [`Engine::advance`] has something to do next, given the present state; `None` while idle. Begins a step of an idle
    /// LLM engine that has work.
    pub fn next_at(&mut self, now: Timestamp) -> Option<Timestamp> {
        match &mut self.model {
            Model::Llm(llm) => llm.next_at(now, self.factor),
            Model::Plain(plain) => plain.next_at(),
        }
    }

    /// Does what is due at `now`, and appends what came of it.
    pub fn advance(&mut self, now: Timestamp, outputs: &mut Vec<Output>) {
        match &mut self.model {
            Model::Llm(llm) => llm.advance(now, self.factor, outputs),
            Model::Plain(plain) => plain.advance(now, self.factor, outputs),
        }
    }

    /// From the next step on, steps take `factor` times as long.
    pub fn derate(&mut self, factor: f64) {
        self.factor = factor.max(1e-3);
    }

    /// The engine is gone: it forgets everything.
    pub fn lose(&mut self) {
        self.is_lost = true;
        match &mut self.model {
            Model::Llm(llm) => llm.clear(),
            Model::Plain(plain) => plain.clear(),
        }
    }

    /// The engine is back, empty.
    pub fn restore(&mut self) {
        self.is_lost = false;
    }

    /// Checks its books: blocks in use are those that its sequences hold, counts agree.
    ///
    /// # Errors
    /// What does not add up. O(sequences).
    pub fn check(&self) -> Result<(), String> {
        match &self.model {
            Model::Llm(llm) => llm.check(),
            Model::Plain(plain) => plain.check(),
        }
    }
}

/// Seconds as a duration; negative or absurd ones saturate.
fn seconds(seconds: f64) -> Duration {
    Duration::from_nanos((seconds * 1e9) as u64)
}
