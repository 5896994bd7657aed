//! What happens to a candidate next, as a pure function of how far it has come and of what was counted.

use headgate_core::policy::{Canary, CanaryPart, Policy};
use headgate_protos::v1;

use super::judge::{ClassDeeds, Guard, requests};

/// Longest reason of an abort, in bytes (`policy.proto`).
const MAX_REASON_BYTES: usize = 1024;

/// What happens next.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Nothing.
    Continue,
    /// It was looked at, and nothing was found.
    Looked,
    /// It gets the next percentage.
    Advance,
    /// It has passed its last percentage.
    Complete,
    /// It is worse than the policy in force.
    Abort {
        /// In what, with the figures.
        reason: String,
    },
}

/// How `candidate` is compared with `of`.
#[must_use]
pub fn guard(canary: &Canary, of: &Policy, step: u32) -> Guard {
    let rollout = &canary.rollout;
    let objective = of.overload().map_or(of.levels().p99.limit, |overload| overload.ttft_slo);
    let remaining = u32::try_from(rollout.steps.len()).unwrap_or(u32::MAX);
    Guard {
        objective_us: u64::try_from(objective.as_micros()).unwrap_or(u64::MAX),
        margins: [rollout.attainment_margin, rollout.error_margin, rollout.late_margin].map(|points| points / 100.0),
        min_samples: u64::from(rollout.min_samples),
        alpha: 1.0 - rollout.confidence_percent / 100.0,
        n_steps: step.saturating_add(1).saturating_add(remaining),
    }
}

/// Decides on a candidate that is tried. `due`: requests of it at which it is looked at next. `now_unix_ms` is by the calendar, since a
/// percentage may last longer than any replica leads.
#[must_use]
pub fn decide(state: &v1::RolloutState, canary: &Canary, guard: &Guard, classes: &[ClassDeeds], due: u64, now_unix_ms: u64) -> Verdict {
    if !guard.has_enough(classes) {
        return Verdict::Continue;
    }
    let is_running = state.phase() == v1::RolloutPhase::Running;
    let is_over = is_running && hold_left_ms(state, canary, now_unix_ms) == 0;
    // Nobody goes on without a look at everything that is known.
    if !is_over && requests(classes).0 < due {
        return Verdict::Continue;
    }
    match guard.look(classes, state.looks.saturating_add(1)) {
        Some(regression) => Verdict::Abort { reason: cut(&regression.to_string()) },
        None if is_over && canary.rollout.steps.is_empty() => Verdict::Complete,
        None if is_over => Verdict::Advance,
        None => Verdict::Looked,
    }
}

/// Time that is left of the present percentage, in milliseconds.
#[must_use]
pub fn hold_left_ms(state: &v1::RolloutState, canary: &Canary, now_unix_ms: u64) -> u64 {
    let hold_ms = u64::try_from(canary.rollout.hold.as_millis()).unwrap_or(u64::MAX);
    hold_ms.saturating_sub(now_unix_ms.saturating_sub(state.step_at_unix_ms))
}

/// The candidate with its next percentage; `None` when there is none.
#[must_use]
pub fn advanced(mut policy: v1::Policy) -> Option<v1::Policy> {
    let candidate = policy.spec.as_mut()?.candidate.as_mut()?;
    let rollout = candidate.rollout.as_mut().filter(|rollout| !rollout.steps.is_empty())?;
    let next = rollout.steps.remove(0);
    let percent = if candidate.requests_percent.is_some() { &mut candidate.requests_percent } else { &mut candidate.proxies_percent };
    *percent = Some(next);
    Some(policy)
}

/// The present percentage and those that follow.
#[must_use]
pub fn percents(canary: &Canary) -> Vec<u32> {
    let (CanaryPart::Requests(percent) | CanaryPart::Proxies(percent)) = canary.part;
    [&[percent], canary.rollout.steps.as_slice()].concat()
}

fn cut(text: &str) -> String {
    let end = (0..=text.len().min(MAX_REASON_BYTES)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use headgate_core::policy::Stage;

    use super::super::judge::Deeds;
    use super::*;
    use crate::document::CheckedPolicy;

    fn policy(candidate: &str) -> CheckedPolicy {
        let text = format!(
            "{{apiVersion: headgate.dev/v1, kind: AdmissionPolicy, metadata: {{name: next}}, spec: {{pool: llm, \
             classes: [{{name: low, whenTripped: refuse}}]{candidate}}}}}"
        );
        CheckedPolicy::from_document(&text).unwrap()
    }

    fn canary(of: &CheckedPolicy) -> Canary {
        let Stage::Canary(canary) = of.policy().stage().clone() else { unreachable!("it is one") };
        canary
    }

    /// Requests of both, of which so many were refused.
    fn classes(candidate: (u64, u64), of: (u64, u64)) -> Vec<ClassDeeds> {
        let deeds = |(served, refused): (u64, u64)| {
            let mut deeds = Deeds { refused, completed: served, ..Deeds::default() };
            (0..served).for_each(|_| deeds.ttft_us.record(1000));
            deeds
        };
        vec![ClassDeeds { class: "low".to_owned(), candidate: deeds(candidate), of: deeds(of) }]
    }

    fn verdict(candidate: &str, at_ms: u64, counted: ((u64, u64), (u64, u64))) -> Verdict {
        let canary = canary(&policy(candidate));
        let state = v1::RolloutState { phase: v1::RolloutPhase::Running.into(), step_at_unix_ms: 1000, ..Default::default() };
        let guard = guard(&canary, policy("").policy(), 0);
        decide(&state, &canary, &guard, &classes(counted.0, counted.1), guard.min_samples, at_ms)
    }

    const STEPS: &str = ", candidate: {of: demo, requestsPercent: 5, rollout: {steps: [25, 50], holdMs: 10000, minSamples: 100}}";
    const LAST: &str = ", candidate: {of: demo, proxiesPercent: 5, rollout: {holdMs: 10000, minSamples: 100}}";

    #[test]
    fn a_good_candidate_waits_for_time_and_requests_and_then_goes_on() {
        let good = ((100, 0), (900, 0));
        assert_eq!(verdict(STEPS, 5000, ((99, 0), (900, 0))), Verdict::Continue);
        assert_eq!(verdict(STEPS, 5000, good), Verdict::Looked);
        assert_eq!(verdict(STEPS, 11_000, good), Verdict::Advance);
        assert_eq!(verdict(STEPS, 11_000, ((99, 0), (900, 0))), Verdict::Continue, "time alone shows nothing");
        assert_eq!(verdict(STEPS, 11_000, ((100, 0), (99, 0))), Verdict::Continue, "nor does a candidate without anything beside it");
        assert_eq!(verdict(LAST, 11_000, good), Verdict::Complete);
    }

    #[test]
    fn a_bad_candidate_is_aborted_at_once_whatever_time_it_is() {
        for at_ms in [1000, 11_000] {
            let Verdict::Abort { reason } = verdict(STEPS, at_ms, ((60, 60), (900, 0))) else { unreachable!("half of it is refused") };
            let figures = "class low: 50.00 % of 120 requests not served within their objective, under the policy in force 0.00 % of 900; \
                           the margin is 1.00 points, the evidence ";
            assert!(reason.starts_with(figures), "{reason}");
        }
    }

    #[test]
    fn each_percentage_is_followed_by_the_next_one_until_the_last() {
        let mut now = policy(STEPS);
        let mut seen = vec![percents(&canary(&now))];
        while let Some(next) = advanced(now.wire().clone()) {
            now = CheckedPolicy::from_wire(next).unwrap();
            seen.push(percents(&canary(&now)));
        }
        assert_eq!(seen, [vec![5, 25, 50], vec![25, 50], vec![50]]);
        let n_steps: Vec<u32> = (0..3).zip(&seen).map(|(step, left)| step + u32::try_from(left.len()).unwrap()).collect();
        assert_eq!(n_steps, [3, 3, 3], "the chance of an error is divided by the same number at each");
        assert_eq!(guard(&canary(&now), policy("").policy(), 2).n_steps, 3);
    }

    #[test]
    fn the_objective_is_that_of_the_policy_in_force() {
        let canary = canary(&policy(LAST));
        assert_eq!(guard(&canary, policy("").policy(), 0).objective_us, 8_000_000);
        let of = policy(", overload: {ttftSloMs: 500}");
        assert_eq!(guard(&canary, of.policy(), 0).objective_us, 500_000);
    }
}
