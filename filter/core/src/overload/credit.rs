//! Work that was admitted after the engines were last read.
//!
//! A reading is old by the time it is used: what was admitted since is not in it. The credit is the difference of two states of one
//! cumulative counter, now and at the reading's time, so it is retired exactly once however late, often or out of order readings come.

use alloc::collections::VecDeque;
use core::time::Duration;

use super::flow::EngineSample;
use super::work::Work;
use crate::time::Timestamp;

/// States kept: six seconds of control ticks. An older reading retires nothing.
const MAX_STATES: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq)]
struct State {
    at: Timestamp,
    admitted: Work,
    in_flight: Work,
}

/// In-flight credit of one pool.
#[derive(Debug, Clone, Default)]
pub(super) struct Credit {
    states: VecDeque<State>,
    retired: Work,
    epoch: u64,
}

impl Credit {
    /// Records the counters as they are now. Counters that went back begin anew, with no credit.
    pub(super) fn record(&mut self, now: Timestamp, admitted: Work, in_flight: Work) {
        let last = self.states.back().map_or(Work::NONE, |state| state.admitted);
        let went_back = last.minus(admitted) != Work::NONE;
        if went_back || self.states.is_empty() {
            self.states.clear();
            self.retired = admitted;
        }
        if self.states.len() >= MAX_STATES {
            self.states.pop_front();
        }
        self.states.push_back(State { at: now, admitted, in_flight });
    }

    /// Forgets all counters, as when a new series begins.
    pub(super) fn restart(&mut self) {
        self.states.clear();
        self.retired = Work::NONE;
    }

    /// Retires what was admitted up to the reading's time. Returns whether the reading is a new one.
    pub(super) fn retire(&mut self, sample: &EngineSample) -> bool {
        if sample.epoch <= self.epoch {
            return false;
        }
        self.epoch = sample.epoch;
        if let Some(state) = self.state_at(sample.at) {
            // Readings may come out of order in time even when their numbers grow: what is retired stays so.
            self.retired = max_of(self.retired, state.admitted);
        }
        true
    }

    /// Work admitted and not yet retired.
    pub(super) fn outstanding(&self) -> Work {
        self.states.back().map_or(Work::NONE, |state| state.admitted.minus(self.retired))
    }

    /// Work that was in flight at a time; `None` when that is not remembered.
    pub(super) fn in_flight_at(&self, at: Timestamp) -> Option<Work> {
        self.state_at(at).map(|state| state.in_flight)
    }

    /// Number of the newest reading; 0: none.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    fn state_at(&self, at: Timestamp) -> Option<State> {
        self.states.iter().rev().find(|state| at.since(state.at) > Duration::ZERO || state.at == at).copied()
    }
}

fn max_of(a: Work, b: Work) -> Work {
    Work {
        prefill_tokens: a.prefill_tokens.max(b.prefill_tokens),
        kv_tokens: a.kv_tokens.max(b.kv_tokens),
        streams: a.streams.max(b.streams),
    }
}
