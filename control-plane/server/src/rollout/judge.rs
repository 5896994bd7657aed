//! Whether a candidate is worse than the policy in force: what both did with the requests that they governed, class by class.

use std::fmt;

use headgate_core::histogram::Histogram;

use super::evidence::{Counted, evidence, needed, spent};

/// Part by which the requests must grow from one look to the next: looks cost confidence.
const GROWTH: f64 = 1.25;

/// What one of the two did with the requests of a class since a percentage began.
#[derive(Clone, Debug, Default)]
pub struct Deeds {
    /// Times to first token, in microseconds.
    pub ttft_us: Histogram,
    /// Requests that were refused.
    pub refused: u64,
    /// Responses that ended well.
    pub completed: u64,
    /// Responses that failed.
    pub failed: u64,
}

/// A class under both.
#[derive(Clone, Debug, Default)]
pub struct ClassDeeds {
    /// Its name.
    pub class: String,
    /// The candidate.
    pub candidate: Deeds,
    /// The policy in force.
    pub of: Deeds,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Requests that were not served within the objective: refused, failed, or late.
    Missed,
    /// Responses that failed.
    Failed,
    /// Responses later than the 99th percentile of the policy in force.
    Late,
}

/// How a candidate is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guard {
    /// Objective of the time to first token, in microseconds.
    pub objective_us: u64,
    /// Margins by [`Measure::ALL`], as parts of 1.
    pub margins: [f64; 3],
    /// Requests of either before they are compared, of a class and altogether.
    pub min_samples: u64,
    /// Chance of a wrong abort in the whole rollout, 0 to 1.
    pub alpha: f64,
    /// Percentages of the rollout, which share that chance.
    pub n_steps: u32,
}

/// By how much a candidate is worse.
#[derive(Clone, Debug, PartialEq)]
pub struct Regression {
    /// In what.
    pub measure: Measure,
    /// In which class.
    pub class: String,
    /// Counts of the candidate.
    pub candidate: Counted,
    /// Counts of the policy in force.
    pub of: Counted,
    /// Margin, as a part of 1.
    pub margin: f64,
    /// Evidence, in nats.
    pub evidence: f64,
    /// Evidence that was needed.
    pub needed: f64,
}

// === impl Measure ===

impl Measure {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Missed, Self::Failed, Self::Late];

    const fn says(self) -> &'static str {
        match self {
            Self::Missed => "requests not served within their objective",
            Self::Failed => "responses failed",
            Self::Late => "responses later than the 99th percentile of the policy in force",
        }
    }
}

// === impl Deeds ===

impl Deeds {
    /// What came since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            ttft_us: self.ttft_us.diff(&before.ttft_us),
            refused: self.refused.saturating_sub(before.refused),
            completed: self.completed.saturating_sub(before.completed),
            failed: self.failed.saturating_sub(before.failed),
        }
    }

    /// Requests that say something: refused, failed, or with a first token. One whose client went away before says nothing.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.ttft_us.count().saturating_add(self.refused).saturating_add(self.failed)
    }

    fn counted(&self, measure: Measure, objective_us: u64, late_us: u64) -> Counted {
        let started = self.ttft_us.count();
        match measure {
            Measure::Missed => Counted { bad: self.requests() - self.ttft_us.count_at_most(objective_us), of: self.requests() },
            Measure::Failed => Counted { bad: self.failed, of: self.failed.saturating_add(self.completed) },
            Measure::Late => Counted { bad: started - self.ttft_us.count_at_most(late_us), of: started },
        }
    }
}

// === impl ClassDeeds ===

impl ClassDeeds {
    /// The counts of the candidate and of the policy in force.
    #[must_use]
    pub fn counted(&self, measure: Measure, objective_us: u64) -> (Counted, Counted) {
        let late_us = self.of.ttft_us.quantile(0.99).unwrap_or(u64::MAX);
        (self.candidate.counted(measure, objective_us, late_us), self.of.counted(measure, objective_us, late_us))
    }
}

// === impl Guard ===

impl Guard {
    /// Whether there are enough requests of both for a look, and for the next percentage.
    #[must_use]
    pub fn has_enough(&self, classes: &[ClassDeeds]) -> bool {
        let (candidate, of) = requests(classes);
        candidate.min(of) >= self.min_samples
    }

    /// Requests of the candidate at which it is looked at again, after a look with so many.
    #[must_use]
    pub fn next_look(&self, requests: u64) -> u64 {
        ((requests as f64 * GROWTH) as u64).max(requests + 1)
    }

    /// Looks for the `look`-th time at this percentage, from 1. In which measure of which class the candidate is worse, if in any: over all
    /// looks, classes, measures and percentages together that is wrong with a chance of at most `alpha`.
    #[must_use]
    pub fn look(&self, classes: &[ClassDeeds], look: u32) -> Option<Regression> {
        let n_comparisons = classes.len().max(1) as f64 * Measure::ALL.len() as f64;
        let needed = needed(self.alpha * spent(look) / (n_comparisons * f64::from(self.n_steps.max(1))));
        let compare = |deeds: &ClassDeeds, measure: Measure, margin: f64| {
            let (candidate, of) = deeds.counted(measure, self.objective_us);
            let evidence = if candidate.of.min(of.of) < self.min_samples { 0.0 } else { evidence(of, candidate, margin) };
            (evidence >= needed).then(|| Regression { measure, class: deeds.class.clone(), candidate, of, margin, evidence, needed })
        };
        let by_measure =
            |deeds| Measure::ALL.into_iter().zip(self.margins).filter_map(move |(measure, margin)| compare(deeds, measure, margin));
        classes.iter().flat_map(by_measure).max_by(|one, other| one.evidence.total_cmp(&other.evidence))
    }
}

/// Requests of the candidate and of the policy in force, over all classes.
#[must_use]
pub fn requests(classes: &[ClassDeeds]) -> (u64, u64) {
    classes.iter().fold((0, 0), |(candidate, of), class| (candidate + class.candidate.requests(), of + class.of.requests()))
}

// === impl Regression ===

impl fmt::Display for Regression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { measure, class, candidate, of, margin, evidence, needed } = self;
        let part = |counted: &Counted| format!("{:.2} % of {}", 100.0 * counted.part(), counted.of);
        write!(
            f,
            "class {class}: {} {}, under the policy in force {}; the margin is {:.2} points, the evidence {evidence:.1} of {needed:.1} needed",
            part(candidate),
            measure.says(),
            part(of),
            100.0 * margin
        )
    }
}

#[cfg(test)]
mod tests;
