//! How far candidates have come, for people.

use headgate_protos::v1;
use serde::{Deserialize, Serialize};

/// One candidate that governs a part of the requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RolloutView {
    /// Its name.
    pub candidate: String,
    /// Name of the policy beside it.
    pub of: String,
    /// `running`, `complete` (waits to be promoted) or `aborted`.
    pub phase: String,
    /// Its percentage and those that follow.
    pub percents: Vec<u32>,
    /// `requests` or `proxies`.
    pub part_of: String,
    /// When the rollout began, in milliseconds since the Unix epoch.
    pub began_at_unix_ms: u64,
    /// When this percentage did.
    pub step_at_unix_ms: u64,
    /// Time until the next one at the earliest, in milliseconds.
    pub hold_left_ms: u64,
    /// Requests of either that are wanted before the next one.
    pub min_samples: u32,
    /// Looks at this percentage.
    pub looks: u32,
    /// Why it was aborted; empty otherwise.
    pub halted: String,
    /// What was counted at this percentage; known to the replica that leads.
    pub classes: Vec<RolloutClassView>,
}

/// One class of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RolloutClassView {
    /// Its name.
    pub class: String,
    /// What the candidate did.
    pub candidate: RolloutCountsView,
    /// What the policy in force did.
    pub of: RolloutCountsView,
}

/// What was counted under one of the two.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RolloutCountsView {
    /// Requests that were refused, failed or had a first token.
    pub requests: u64,
    /// Of those, not served within the objective.
    pub missed: u64,
    /// Responses that are over.
    pub responses: u64,
    /// Of those, failed.
    pub failed: u64,
    /// Responses that had a first token.
    pub started: u64,
    /// Of those, later than the 99th percentile of the policy in force.
    pub late: u64,
}

// === impl RolloutView ===

impl From<&v1::RolloutStatus> for RolloutView {
    fn from(status: &v1::RolloutStatus) -> Self {
        let state = status.state.clone().unwrap_or_default();
        let class = |class: &v1::RolloutClass| RolloutClassView {
            class: class.class.clone(),
            candidate: class.candidate.unwrap_or_default().into(),
            of: class.of.unwrap_or_default().into(),
        };
        let phase = match state.phase() {
            v1::RolloutPhase::Unspecified | v1::RolloutPhase::Running => "running",
            v1::RolloutPhase::Complete => "complete",
            v1::RolloutPhase::Aborted => "aborted",
        };
        Self {
            phase: phase.to_owned(),
            candidate: state.candidate,
            of: state.of,
            percents: status.percents.clone(),
            part_of: if status.by_proxies { "proxies" } else { "requests" }.to_owned(),
            began_at_unix_ms: state.began_at_unix_ms,
            step_at_unix_ms: state.step_at_unix_ms,
            hold_left_ms: status.hold_left_ms,
            min_samples: status.min_samples,
            looks: state.looks,
            halted: status.halted.clone(),
            classes: status.classes.iter().map(class).collect(),
        }
    }
}

impl RolloutView {
    /// One line for people: where it is, and what comes next.
    pub fn line(&self) -> String {
        let Self { candidate, of, phase, percents, part_of, hold_left_ms, min_samples, halted, classes, .. } = self;
        let percent = percents.first().copied().unwrap_or_default();
        let head = format!("candidate {candidate} of policy {of}");
        let requests: u64 = classes.iter().map(|class| class.candidate.requests).sum();
        let beside: u64 = classes.iter().map(|class| class.of.requests).sum();
        match (phase.as_str(), percents.get(1)) {
            ("aborted", _) => format!("{head}: aborted, {halted}"),
            ("complete", _) => {
                format!("{head}: complete at {percent} % of the {part_of}; `headgate policy promote {candidate}` promotes it")
            }
            (_, next) => {
                let next = next.map_or_else(|| "complete".to_owned(), |next| format!("{next} %"));
                let wait = format!("{:.0} s and with {min_samples} requests of each", *hold_left_ms as f64 / 1000.0);
                format!("{head}: {percent} % of the {part_of}, {next} after {wait}; so far {requests}, and {beside} beside it")
            }
        }
    }
}

impl From<v1::RolloutCounts> for RolloutCountsView {
    fn from(counts: v1::RolloutCounts) -> Self {
        let v1::RolloutCounts { requests, missed, responses, failed, started, late } = counts;
        Self { requests, missed, responses, failed, started, late }
    }
}
