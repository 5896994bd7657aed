//! The sequences of an engine: a slab with two intrusive lists, those that run in order of admission and those that end at a step.

use headgate_core::time::Timestamp;

use crate::controller::RequestId;

/// No sequence.
pub(super) const NONE: u32 = u32::MAX;
/// Buckets of the calendar of endings; a sequence further away shares a bucket and is passed over.
const BUCKETS: usize = 2048;

/// Where a sequence is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Phase {
    Queued,
    /// Its prompt is computed.
    Prefill {
        done: u32,
        blocks: u32,
        scheduled: u32,
    },
    /// Since the token clock `since`, when its cache held `length`, until `until`.
    Decode {
        since: u64,
        until: u64,
        length: u32,
    },
    /// Its client left while it was queued.
    Left,
}

/// A sequence.
#[derive(Clone, Debug)]
pub(super) struct Sequence {
    pub(super) id: RequestId,
    pub(super) prompt: u32,
    pub(super) output: u32,
    /// Tokens made before the present decode phase.
    pub(super) made: u32,
    pub(super) submitted_at: Timestamp,
    /// Begin of the first step that worked on it.
    pub(super) scheduled_at: Option<Timestamp>,
    pub(super) phase: Phase,
    older: u32,
    newer: u32,
    due_before: u32,
    due_after: u32,
}

/// The slab and its lists.
#[derive(Clone, Debug)]
pub(super) struct Sequences {
    slab: Vec<Sequence>,
    free: Vec<u32>,
    newest: u32,
    due: Vec<u32>,
}

// === impl Sequence ===

impl Sequence {
    /// Tokens that prefill must compute: the prompt, and after a preemption what had been made.
    pub(super) fn to_compute(&self) -> u32 {
        self.prompt + self.made
    }

    /// Tokens of prefill that are still to be computed.
    pub(super) fn remaining(&self) -> u32 {
        match self.phase {
            Phase::Prefill { done, .. } => self.to_compute() - done,
            _ => self.to_compute(),
        }
    }
}

// === impl Sequences ===

impl Sequences {
    pub(super) fn new() -> Self {
        Self { slab: Vec::new(), free: Vec::new(), newest: NONE, due: vec![NONE; BUCKETS] }
    }

    pub(super) fn insert(&mut self, now: Timestamp, id: RequestId, prompt: u32, output: u32) -> u32 {
        let sequence = Sequence {
            id,
            prompt,
            output,
            made: 0,
            submitted_at: now,
            scheduled_at: None,
            phase: Phase::Queued,
            older: NONE,
            newer: NONE,
            due_before: NONE,
            due_after: NONE,
        };
        match self.free.pop() {
            Some(slot) => {
                self.slab[slot as usize] = sequence;
                slot
            }
            None => {
                self.slab.push(sequence);
                (self.slab.len() - 1) as u32
            }
        }
    }

    pub(super) fn get(&self, slot: u32) -> &Sequence {
        &self.slab[slot as usize]
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> &mut Sequence {
        &mut self.slab[slot as usize]
    }

    pub(super) fn remove(&mut self, slot: u32) {
        self.free.push(slot);
    }

    /// The running sequence that was admitted last; [`NONE`] when none runs.
    pub(super) fn newest(&self) -> u32 {
        self.newest
    }

    /// The running sequences, newest first.
    pub(super) fn running(&self) -> impl Iterator<Item = u32> + '_ {
        let first = (self.newest != NONE).then_some(self.newest);
        std::iter::successors(first, |slot| {
            let older = self.get(*slot).older;
            (older != NONE).then_some(older)
        })
    }

    pub(super) fn link_running(&mut self, slot: u32) {
        let newest = std::mem::replace(&mut self.newest, slot);
        if newest != NONE {
            self.get_mut(newest).newer = slot;
        }
        let sequence = self.get_mut(slot);
        (sequence.older, sequence.newer) = (newest, NONE);
    }

    pub(super) fn unlink_running(&mut self, slot: u32) {
        let Sequence { older, newer, .. } = *self.get(slot);
        if older != NONE {
            self.get_mut(older).newer = newer;
        }
        match newer {
            NONE => self.newest = older,
            newer => self.get_mut(newer).older = older,
        }
    }

    /// First of the sequences that may end when the token clock shows `tokens`.
    pub(super) fn first_due(&self, tokens: u64) -> u32 {
        self.due[bucket(tokens)]
    }

    pub(super) fn next_due(&self, slot: u32) -> u32 {
        self.get(slot).due_after
    }

    pub(super) fn link_due(&mut self, slot: u32, until: u64) {
        let first = std::mem::replace(&mut self.due[bucket(until)], slot);
        if first != NONE {
            self.get_mut(first).due_before = slot;
        }
        let sequence = self.get_mut(slot);
        (sequence.due_before, sequence.due_after) = (NONE, first);
    }

    pub(super) fn unlink_due(&mut self, slot: u32) {
        let Sequence { due_before, due_after, phase, .. } = *self.get(slot);
        let Phase::Decode { until, .. } = phase else { return };
        if due_after != NONE {
            self.get_mut(due_after).due_before = due_before;
        }
        match due_before {
            NONE => self.due[bucket(until)] = due_after,
            before => self.get_mut(before).due_after = due_after,
        }
    }
}

fn bucket(tokens: u64) -> usize {
    (tokens % BUCKETS as u64) as usize
}
