//! One request inside the engine.

use super::SimTime;
use super::blocks::BlockId;

/// Names one sequence for the life of the engine; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub(super) u64);

/// What a client asks for, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submission {
    /// Tokens of the prompt; 0 counts as 1, an engine has no empty prompt.
    pub prompt_tokens: u32,
    /// Tokens after which generation ends; 0 is a pooling request (an embedding): it ends with its prefill.
    pub output_tokens: u32,
    /// What the end is called when `output_tokens` is reached.
    pub finish: FinishReason,
}

/// Why a sequence ended, in OpenAI's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its answer.
    Stop,
    /// `max_tokens` was reached.
    Length,
}

impl FinishReason {
    /// The value of `finish_reason` on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// The state of one sequence. Known tokens are the prompt and what was generated so far; a token comes out of the step
/// in which all known tokens have their keys and values in the cache.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    pub(super) submission: Submission,
    pub(super) generated: u32,
    /// Known tokens whose keys and values are in the cache; 0 after a preemption, which throws them away.
    pub(super) computed: u32,
    /// Tokens that the step in progress computes for this sequence.
    pub(super) scheduled: u32,
    pub(super) blocks: Vec<BlockId>,
    pub(super) submitted_at: SimTime,
    pub(super) first_scheduled_at: Option<SimTime>,
    pub(super) last_token_at: Option<SimTime>,
    pub(super) prefilled_before: bool,
}

/// What kind of work a sequence needs next; the two cost differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Known tokens are missing from the cache: a new prompt, or everything again after a preemption.
    Prefill,
    /// One token is missing: the one generated last.
    Decode,
}

impl Sequence {
    pub(super) fn new(id: SequenceId, submission: Submission, submitted_at: SimTime) -> Sequence {
        let submission = Submission { prompt_tokens: submission.prompt_tokens.max(1), ..submission };
        Sequence {
            id,
            submission,
            generated: 0,
            computed: 0,
            scheduled: 0,
            blocks: Vec::new(),
            submitted_at,
            first_scheduled_at: None,
            last_token_at: None,
            prefilled_before: false,
        }
    }

    /// Known tokens that are not in the cache; at least 1 between steps.
    pub(super) fn remaining(&self) -> u32 {
        self.submission.prompt_tokens + self.generated - self.computed
    }

    pub(super) fn phase(&self) -> Phase {
        if self.generated > 0 && self.remaining() == 1 { Phase::Decode } else { Phase::Prefill }
    }
}
