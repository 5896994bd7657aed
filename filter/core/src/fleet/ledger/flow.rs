//! Work of overload control in the books: what one report of a worker adds to the one before it.

use headgate_protos::v1;

use crate::histogram::HistogramDelta;
use crate::overload::{Flow, FlowError};

/// What became of the queued requests of one pool, and of what it was asked; each only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueTotals {
    /// Requests that were released to the pool.
    pub released: u64,
    /// Requests whose deadline passed while they waited.
    pub expired: u64,
    /// Requests whose client went away while they waited.
    pub abandoned: u64,
    /// Requests that were refused because the queue was full.
    pub overflowed: u64,
}

/// What a worker said last about one policy's work.
#[derive(Clone, Default)]
pub(super) struct Account {
    /// Without its histograms, which stay as they came.
    pub(super) flow: Flow,
    histograms: [Option<v1::Histogram>; 3],
    pub(super) queue: QueueTotals,
    /// Bytes that its queued requests count for now.
    pub(super) queued_bytes: u64,
}

/// What a report of a worker adds to one policy's work.
#[derive(Default)]
pub(super) struct AccountDelta {
    /// Gauges are left out, and the histograms.
    pub(super) flow: Flow,
    /// What the histograms have grown by, in the order of [`Flow::histograms_of`].
    pub(super) samples: [HistogramDelta; 3],
    pub(super) queue: QueueTotals,
}

// === impl Account ===

impl Account {
    /// The account after a report, and what came since `before`, an earlier account of the same worker.
    ///
    /// Counters that went down belong to a policy that came back: they start from zero.
    pub(super) fn follow(
        before: Option<&Self>,
        pool: &v1::PoolReport,
        report: &v1::OverloadReport,
    ) -> Result<(Self, AccountDelta), FlowError> {
        let queue = report.queue.as_ref().map_or_else(QueueTotals::default, |queue| QueueTotals {
            released: queue.released,
            expired: queue.expired,
            abandoned: queue.abandoned,
            overflowed: queue.overflowed,
        });
        let account = Self {
            flow: Flow::counts_from_wire(report)?.with_classes(&pool.classes),
            histograms: Flow::histograms_of(report).map(Option::<&v1::Histogram>::cloned),
            queue,
            queued_bytes: report.queue.as_ref().map_or(0, |queue| queue.bytes),
        };
        let delta = account.since(before)?;
        Ok((account, delta))
    }

    fn since(&self, before: Option<&Self>) -> Result<AccountDelta, FlowError> {
        let nothing = Self::default();
        let before = before.filter(|before| !self.has_restarted(before)).unwrap_or(&nothing);
        let mut samples = <[HistogramDelta; 3]>::default();
        for (slot, (new, old)) in samples.iter_mut().zip(self.histograms.iter().zip(&before.histograms)) {
            if let Some(new) = new {
                *slot = HistogramDelta::between(old.as_ref(), new)?;
            }
        }
        Ok(AccountDelta { flow: counts_since(&self.flow, &before.flow), samples, queue: self.queue.since(before.queue) })
    }

    fn has_restarted(&self, before: &Self) -> bool {
        let counters = |flow: &Flow| {
            let Flow { admitted, finished, offered_requests, responses, output_tokens, .. } = flow;
            [
                admitted.kv_tokens,
                admitted.streams,
                finished.kv_tokens,
                finished.streams,
                flow.offered.total(),
                *offered_requests,
                *responses,
                *output_tokens,
            ]
        };
        counters(&self.flow).iter().zip(counters(&before.flow)).any(|(new, old)| *new < old)
    }
}

// === impl QueueTotals ===

impl QueueTotals {
    pub(super) fn add(&mut self, other: Self) {
        self.released = self.released.saturating_add(other.released);
        self.expired = self.expired.saturating_add(other.expired);
        self.abandoned = self.abandoned.saturating_add(other.abandoned);
        self.overflowed = self.overflowed.saturating_add(other.overflowed);
    }

    fn since(self, before: Self) -> Self {
        Self {
            released: self.released.saturating_sub(before.released),
            expired: self.expired.saturating_sub(before.expired),
            abandoned: self.abandoned.saturating_sub(before.abandoned),
            overflowed: self.overflowed.saturating_sub(before.overflowed),
        }
    }
}

/// The counters of `new` less those of `old`; its gauges are zero, its histograms empty.
fn counts_since(new: &Flow, old: &Flow) -> Flow {
    Flow {
        admitted: new.admitted.minus(old.admitted),
        finished: new.finished.minus(old.finished),
        offered: new.offered.diff(&old.offered),
        ttft_fit: new.ttft_fit.diff(&old.ttft_fit),
        output_tokens: new.output_tokens.saturating_sub(old.output_tokens),
        responses: new.responses.saturating_sub(old.responses),
        retries: new.retries.saturating_sub(old.retries),
        offered_requests: new.offered_requests.saturating_sub(old.offered_requests),
        good_work: new.good_work.saturating_sub(old.good_work),
        engine_refusals: new.engine_refusals.saturating_sub(old.engine_refusals),
        failed: new.failed.saturating_sub(old.failed),
        ..Flow::default()
    }
}

/// Adds the gauges of `part` to those of `sum`.
pub(super) fn add_gauges(sum: &mut Flow, part: &Flow) {
    sum.in_flight = sum.in_flight.plus(part.in_flight);
    sum.queued_requests = sum.queued_requests.saturating_add(part.queued_requests);
    sum.queued_work = sum.queued_work.saturating_add(part.queued_work);
    sum.oldest_wait = sum.oldest_wait.max(part.oldest_wait);
}
