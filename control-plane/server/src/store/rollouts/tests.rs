#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::*;
use crate::fleet::Fleet;
use crate::records::Records;

fn policy(name: &str, rest: &str) -> CheckedPolicy {
    let text = format!(
        "{{apiVersion: headgate.dev/v1, kind: AdmissionPolicy, metadata: {{name: {name}}}, spec: {{pool: llm, \
         classes: [{{name: high, whenTripped: reserved_lane}}, {{name: low, whenTripped: refuse}}]{rest}}}}}"
    );
    CheckedPolicy::from_document(&text).unwrap()
}

const CANARY: &str = ", candidate: {of: demo, requestsPercent: 10, rollout: {steps: [50]}}";

fn store(directory: &Path) -> Store {
    Store::open(Records::open(directory).unwrap(), Fleet::new()).unwrap()
}

/// A store with a policy and its candidate, and how far that has come.
fn begun(directory: &Path) -> (Store, v1::Policy, v1::RolloutState) {
    let store = store(directory);
    store.apply(&policy("demo", ""), &Expected::Any, "ann").unwrap();
    let candidate = store.apply(&policy("next", CANARY), &Expected::Any, "ann").unwrap().stored.policy.clone();
    let state = v1::RolloutState {
        candidate: "next".to_owned(),
        of: "demo".to_owned(),
        applied_version: candidate.version.clone(),
        phase: v1::RolloutPhase::Running.into(),
        looks: 3,
        ..v1::RolloutState::default()
    };
    assert!(store.rollout("next").is_none());
    store.advance(&candidate.version, None, &state, "headgate").unwrap();
    (store, candidate, state)
}

fn further(candidate: &v1::Policy) -> v1::Policy {
    crate::rollout::progress::advanced(candidate.clone()).unwrap()
}

#[test]
fn how_far_a_candidate_has_come_survives_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let (before, after) = {
        let (store, candidate, state) = begun(directory.path());
        let state = v1::RolloutState { step: 1, looks: 0, ..state };
        let stored = store.advance(&candidate.version, Some(&further(&candidate)), &state, "headgate").unwrap().unwrap();
        (store.rollout("next"), stored)
    };
    let store = store(directory.path());
    let state = store.rollout("next").unwrap();
    assert_eq!((Some(&state), state.step), (before.as_ref(), 1));
    assert_eq!(state.candidate_version, after.version);
    assert_eq!(store.get("next").unwrap().policy, after);
    assert_eq!(store.history("next").unwrap().last().unwrap().author, "headgate");
}

#[test]
fn a_decision_about_a_version_that_is_no_longer_in_force_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (store, candidate, state) = begun(directory.path());
    let changed = store.apply(&policy("next", ", candidate: {of: demo, requestsPercent: 20}"), &Expected::Any, "bob").unwrap();
    assert_eq!(store.rollout("next"), None, "it is another candidate");
    let aborted = halted(candidate.clone(), "worse").unwrap();
    assert_eq!(store.advance(&candidate.version, Some(&aborted), &state, "headgate").unwrap(), None);
    assert_eq!(store.get("next").unwrap(), changed.stored);
}

#[test]
fn the_same_document_again_begins_nothing_anew_and_another_one_does() {
    let directory = tempfile::tempdir().unwrap();
    let (store, candidate, state) = begun(directory.path());
    let stored = store.advance(&candidate.version, Some(&further(&candidate)), &state, "headgate").unwrap().unwrap();
    let again = store.apply(&policy("next", CANARY), &Expected::Any, "ci").unwrap();
    assert!(!again.changed && again.stored.policy == stored);
    let aborted = store.abort("next", "the pager", "bob").unwrap();
    assert!(aborted.changed && !store.abort("next", "the pager", "bob").unwrap().changed);
    let again = store.apply(&policy("next", CANARY), &Expected::Any, "ci").unwrap();
    assert!(!again.changed && again.stored == aborted.stored, "it stays aborted");
    assert_eq!(store.rollout("next").unwrap().phase(), v1::RolloutPhase::Aborted);
    assert!(store.apply(&policy("next", ", candidate: {of: demo, requestsPercent: 11}"), &Expected::Any, "bob").unwrap().changed);
    assert_eq!(store.rollout("next"), None);
}

#[test]
fn a_promotion_is_one_change_of_both_and_needs_a_candidate_that_was_not_aborted() {
    let directory = tempfile::tempdir().unwrap();
    let (store, candidate, _) = begun(directory.path());
    let (_, mut changes) = store.watch();
    let promoted = store.promote("next", &Expected::Version(candidate.version), "bob").unwrap();
    assert_eq!(promoted.before, *policy("demo", "").wire());
    assert_eq!(promoted.applied.stored.policy.spec.as_ref().unwrap().candidate, None);
    assert!(store.get("next").is_none() && store.rollout("next").is_none());
    assert_eq!((changes.try_recv().is_ok(), changes.try_recv().is_ok(), changes.try_recv().is_ok()), (true, true, false));
    let revisions = ["demo", "next"].map(|name| store.history(name).unwrap().last().unwrap().revision);
    assert_eq!(revisions[0], revisions[1], "nobody sees one without the other");

    store.apply(&policy("next", CANARY), &Expected::Any, "ann").unwrap();
    store.abort("next", "worse", "bob").unwrap();
    let error = store.promote("next", &Expected::Any, "bob").unwrap_err();
    assert_eq!(error.to_string(), "name: policy `next` was aborted: worse");
    for error in [store.promote("demo", &Expected::Any, "bob").map(drop), store.abort("demo", "", "bob").map(drop)] {
        assert_eq!(error.unwrap_err().to_string(), "name: policy `demo` is no candidate that governs anything");
    }
    assert!(matches!(store.promote("nobody", &Expected::Any, "bob"), Err(ChangeError::NotFound { .. })));
}

#[test]
fn a_candidate_that_only_watched_acts_when_it_is_promoted() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    store.apply(&policy("demo", ""), &Expected::Any, "ann").unwrap();
    store.apply(&policy("next", ", orca: true, enforcement: shadow, candidate: {of: demo}"), &Expected::Any, "ann").unwrap();
    let promoted = store.promote("next", &Expected::Any, "ann").unwrap();
    assert_eq!(promoted.applied.stored.policy, *policy("demo", ", orca: true").wire());
}

#[test]
fn a_policy_beside_which_another_is_tried_cannot_be_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let (store, ..) = begun(directory.path());
    let error = store.delete("demo", &Expected::Any, "bob").unwrap_err();
    assert_eq!(error.to_string(), "name: policy `next` is its candidate; delete or promote that one first");
    store.delete("next", &Expected::Any, "bob").unwrap();
    assert!(store.records.view().get(Kind::Rollout, "next").is_none(), "what is stored of it goes with it");
    store.delete("demo", &Expected::Any, "bob").unwrap();
}

#[test]
fn a_candidate_that_governs_has_the_classes_the_quotas_and_the_control_of_its_policy() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let quota = ", quotas: [{name: all, unit: requests, amount: 10}]";
    store.apply(&policy("demo", quota), &Expected::Any, "ann").unwrap();
    let problems = |rest: &str| {
        let refused = store.apply(&policy("next", &format!("{rest}{CANARY}")), &Expected::Any, "ann").unwrap_err().to_string();
        refused.lines().map(|line| line.split(':').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(problems(", overload: {}"), ["overload", "quotas"]);
    assert_eq!(problems(&quota.replace("10", "20")), ["quotas"]);
    let other = CheckedPolicy::from_document(
        "{apiVersion: headgate.dev/v1, kind: AdmissionPolicy, metadata: {name: next}, spec: {pool: llm, \
         classes: [{name: low, whenTripped: refuse}, {name: high, whenTripped: refuse}], quotas: [{name: all, unit: requests, amount: 10}], \
         candidate: {of: demo, requestsPercent: 10}}}",
    );
    let error = store.apply(&other.unwrap(), &Expected::Any, "ann").unwrap_err().to_string();
    assert_eq!(
        error,
        "classes: a candidate that governs and its policy have the same classes in the same order; `next` and `demo` have not"
    );
    store.apply(&policy("next", &format!("{quota}{CANARY}")), &Expected::Any, "ann").unwrap();
    let error = store.apply(&policy("demo", ""), &Expected::Any, "ann").unwrap_err().to_string();
    assert!(error.starts_with("quotas: "), "the policy cannot become another one under its candidate: {error}");
}

#[test]
fn nobody_asks_for_a_candidate_that_governs_everything() {
    for (part, allowed) in [("requestsPercent: 99", true), ("requestsPercent: 100", false), ("proxiesPercent: 100", false)] {
        let text = format!(
            "{{apiVersion: headgate.dev/v1, kind: AdmissionPolicy, metadata: {{name: next}}, spec: {{pool: llm, \
             classes: [{{name: low, whenTripped: refuse}}], candidate: {{of: demo, {part}}}}}}}"
        );
        let read = CheckedPolicy::from_document(&text).map(drop).map_err(|violations| violations.to_string());
        let field = part.split(':').next().unwrap();
        let refusal = format!("candidate.{field}: 100 is outside 1..=99");
        assert_eq!(read, if allowed { Ok(()) } else { Err(refusal) });
    }
}
