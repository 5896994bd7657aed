//! The books of one pool: what its proxies' reports add up to.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use headgate_protos::v1;

use super::flow::AccountDelta;
use super::latency::LatencyBook;
use super::node::ClassDelta;
use super::served::ServedBook;
use super::{ClassTotals, ClassView, ControlCounters, PoolView, QueueTotals, VIEW_SLICES, VIEW_WINDOW};
use crate::estimator::SlidingHistogram;
use crate::histogram::Histogram;
use crate::overload::Flow;
use crate::policy::CanaryPart;
use crate::time::Timestamp;

/// The books of one pool.
pub(super) struct PoolBook {
    /// Of a candidate that governs: the part of the pool's requests that is its, unless it was halted.
    pub(super) canary: Option<Arm>,
    /// In the policy's order.
    pub(super) classes: Vec<ClassBook>,
    /// What the control loop sees: times to first token of all classes, recent reports only.
    pub(super) ttft: Histogram,
    /// Overload control; `None` as long as no worker has reported any. Counters of recent reports only, no gauges.
    pub(super) flow: Option<Flow>,
    pub(super) queue: QueueTotals,
    pub(super) served: ServedBook,
    pub(super) latency: LatencyBook,
    pub(super) first_report_at: Option<Timestamp>,
}

/// What a candidate that governs, or governed until it was halted, has of its pool.
#[derive(Clone, Copy)]
pub(super) struct Arm {
    pub(super) part: CanaryPart,
    pub(super) is_halted: bool,
}

/// The books of one class.
pub(super) struct ClassBook {
    pub(super) name: String,
    /// Whether a tripped level slows the class: its demand decides how rates are split among proxies.
    pub(super) is_throttled: bool,
    pub(super) totals: ClassTotals,
    pub(super) control: ControlCounters,
    pub(super) window: SlidingHistogram,
    /// Times to first token since the books began, of recent reports; only where a candidate is compared with its policy.
    pub(super) judged_ttft: Option<Histogram>,
}

// === impl PoolBook ===

impl PoolBook {
    pub(super) fn new() -> Self {
        Self {
            canary: None,
            classes: Vec::new(),
            ttft: Histogram::new(),
            flow: None,
            queue: QueueTotals::default(),
            served: ServedBook::default(),
            latency: LatencyBook::default(),
            first_report_at: None,
        }
    }

    pub(super) fn with_classes(mut self, classes: &[v1::PriorityClass]) -> Self {
        let mut before = core::mem::take(&mut self.classes);
        for class in classes {
            let kept = before.iter().position(|book| book.name == class.name).map(|at| before.swap_remove(at));
            let mut book = kept.unwrap_or_else(|| ClassBook::new(&class.name));
            book.is_throttled = class.when_tripped() == v1::WhenTripped::GradientThrottle;
            self.classes.push(book);
        }
        self
    }

    /// Whether a candidate is compared here. What is counted begins anew with each comparison.
    pub(super) fn set_judged(&mut self, is_judged: bool) {
        for class in &mut self.classes {
            class.judged_ttft = is_judged.then(|| class.judged_ttft.take().unwrap_or_default());
        }
    }

    /// Books one difference; returns the requests among it that count as demand for a throttled rate.
    pub(super) fn add(&mut self, now: Timestamp, delta: &ClassDelta<'_>, is_recent: bool) -> u64 {
        let Some(book) = self.classes.iter_mut().find(|book| book.name == delta.class) else { return 0 };
        book.totals.add(&delta.totals);
        if !is_recent {
            return 0;
        }
        book.control.offered = book.control.offered.saturating_add(delta.totals.offered);
        book.control.admitted = book.control.admitted.saturating_add(delta.totals.admitted);
        book.control.failed = book.control.failed.saturating_add(delta.totals.failed);
        book.control.completed = book.control.completed.saturating_add(delta.totals.completed);
        book.control.refused = delta.totals.refused.iter().fold(book.control.refused, |sum, more| sum.saturating_add(*more));
        if let Some(ttft) = &delta.ttft {
            book.window.add(now, ttft);
            if let Some(judged) = &mut book.judged_ttft {
                judged.add_delta(ttft);
            }
            self.ttft.add_delta(ttft);
        }
        if book.is_throttled { delta.totals.offered } else { 0 }
    }

    /// Books what a worker adds to the work of the pool; returns the work tokens that were asked of it.
    pub(super) fn add_account(&mut self, delta: &AccountDelta, is_recent: bool) -> u64 {
        self.queue.add(delta.queue);
        let flow = self.flow.get_or_insert_default();
        if !is_recent {
            return 0;
        }
        flow.add(&delta.flow);
        flow.add_samples(&delta.samples);
        delta.flow.offered.total()
    }

    pub(super) fn view(&self) -> PoolView {
        let class = |book: &ClassBook| ClassView {
            class: book.name.clone(),
            totals: book.totals.clone(),
            control: book.control,
            in_flight: 0,
            waiting: 0,
        };
        PoolView {
            classes: self.classes.iter().map(class).collect(),
            ttft: Some(self.ttft.clone()),
            flow: self.flow.clone(),
            queue: self.queue,
            queued_bytes: 0,
            served: self.served.newest(),
            first_report_at: self.first_report_at,
            proxies: 0,
        }
    }
}

// === impl ClassBook ===

impl ClassBook {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            is_throttled: false,
            totals: ClassTotals::default(),
            control: ControlCounters::default(),
            window: SlidingHistogram::new(VIEW_WINDOW, VIEW_SLICES),
            judged_ttft: None,
        }
    }
}
