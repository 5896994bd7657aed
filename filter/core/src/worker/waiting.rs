//! Requests that wait in one worker, and how they get their answers.

use super::{PoolRef, Worker};
use crate::admission::{self, Admission};
use crate::pool::overload::Answer;
use crate::queue::Ticket;
use crate::time::Timestamp;

/// A stream that waited and has an answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Released {
    Answered {
        pool: PoolRef,
        ticket: Ticket,
    },
    /// Its queue is gone.
    Orphan {
        stream: u32,
    },
}

/// What a stream that asks for its answer gets.
pub(crate) enum Collected {
    /// It still waits.
    Nothing,
    /// Nobody governs it any more.
    Orphaned,
    /// The decision.
    Decided { state: usize, admission: Admission },
}

impl Worker {
    /// The next stream that waited and has an answer: the adapter continues it with [`crate::stream::Stream::release`]. To be asked after
    /// every event and tick, at most [`crate::resume::RESUMES_PER_CALLBACK`] times in one callback of a proxy.
    pub fn next_released(&mut self) -> Option<u32> {
        while let Some(released) = self.released.pop_front() {
            let stream = match released {
                Released::Orphan { stream } => Some(stream),
                // Its client may have left meanwhile.
                Released::Answered { pool, ticket } => {
                    self.pool_mut(pool).and_then(|pool| pool.overload.as_ref()?.queue.as_ref()?.answered(ticket))
                }
            };
            if stream.is_some() {
                return stream;
            }
        }
        None
    }

    /// Whether any stream has an answer that was not collected, as far as is known without looking.
    #[must_use]
    #[inline]
    pub fn has_released(&self) -> bool {
        !self.released.is_empty()
    }

    /// Work of a pool has become free: whoever waits for it and fits is answered.
    #[inline(never)]
    pub(crate) fn answer_waiting(&mut self, pool: PoolRef, now: Timestamp) {
        self.now = self.now.max(now);
        let now = self.now;
        let Some(index) = self.index_of(pool) else { return };
        let Self { pools, rng, released, .. } = self;
        if let Some(of) = pools.get_mut(index) {
            // Nobody is held for a policy that only watches.
            let is_heard = !of.policy.stage().is_shadow();
            let mut answered = |ticket| released.extend(is_heard.then_some(Released::Answered { pool, ticket }));
            admission::answer_waiting(of, now, rng, &mut answered);
        }
    }

    /// Answers whoever expired, then whoever fits, in every pool.
    pub(super) fn answer_all(&mut self) {
        let now = self.now;
        let Self { pools, rng, released, .. } = self;
        for (index, of) in pools.iter_mut().enumerate() {
            let pool = PoolRef { index, uid: of.uid };
            let is_heard = !of.policy.stage().is_shadow();
            let mut answered = |ticket| released.extend(is_heard.then_some(Released::Answered { pool, ticket }));
            admission::answer_expired(of, now, rng, &mut answered);
            admission::answer_waiting(of, now, rng, &mut answered);
        }
    }

    /// The answer to a stream that waited.
    pub(crate) fn collect(&mut self, pool: PoolRef, ticket: Ticket, now: Timestamp) -> Collected {
        self.now = self.now.max(now);
        let (now, index) = (self.now, self.index_of(pool));
        let Self { pools, rng, .. } = self;
        let Some(of) = index.and_then(|index| pools.get_mut(index)) else { return Collected::Orphaned };
        let Some(queue) = of.overload.as_mut().and_then(|load| load.queue.as_mut()) else { return Collected::Orphaned };
        match queue.collect(ticket) {
            None if queue.waits(ticket) => Collected::Nothing,
            None => Collected::Orphaned,
            Some(Answer::Admitted { held, state }) => {
                Collected::Decided { state, admission: admission::start_waiting(of, now, rng, held, state) }
            }
            Some(Answer::Refused { cause, retry_after }) => {
                Collected::Decided { state: usize::MAX, admission: Admission::Refused { cause, retry_after } }
            }
        }
    }

    /// The client of a stream that waits has left.
    pub(crate) fn abandon(&mut self, pool: PoolRef, ticket: Ticket, now: Timestamp) {
        if let Some(of) = self.pool_mut(pool) {
            admission::abandon(of, ticket);
        }
        self.answer_waiting(pool, now);
    }
}
