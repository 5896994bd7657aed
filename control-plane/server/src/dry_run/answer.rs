//! Two courses side by side, and what they cannot tell.

use headgate_protos::v1;

use super::play::{ClassCourse, Course, LevelCourse};

/// What holds for every dry run.
const ALWAYS: &str =
    "clients would have behaved otherwise after other refusals; budgets, queues, breakers and quotas of the proxies are not played";

/// The answer about `policy`, given what it and the policy in force did over the same frames.
pub(super) fn answer(policy: &v1::Policy, given: &Course, in_force: &v1::Policy, present: &Course) -> v1::DryRunPolicyResponse {
    let kept = given.classes.iter().map(|class| pair(class, present.class(&class.class), Some(class)));
    let dropped = dropped(given, present).map(|class| pair(class, Some(class), None));
    v1::DryRunPolicyResponse {
        policy: Some(policy.clone()),
        in_force: in_force.name.clone(),
        in_force_version: in_force.version.clone(),
        window_ms: u64::try_from(given.window.as_millis()).unwrap_or(u64::MAX),
        classes: kept.chain(dropped).collect(),
        levels: given.levels.iter().zip(&present.levels).map(|(given, present)| level(given, present)).collect(),
        notes: notes(policy, given, in_force, present),
    }
}

/// The classes that only the policy in force has.
fn dropped<'a>(given: &'a Course, present: &'a Course) -> impl Iterator<Item = &'a ClassCourse> {
    present.classes.iter().filter(|class| given.class(&class.class).is_none())
}

fn pair(seen: &ClassCourse, present: Option<&ClassCourse>, given: Option<&ClassCourse>) -> v1::DryRunClass {
    v1::DryRunClass {
        class: seen.class.clone(),
        offered: seen.offered,
        refused: seen.refused,
        refused_in_force: present.map(|course| course.refused_when_played),
        refused_by_policy: given.map(|course| course.refused_when_played),
    }
}

fn level(given: &LevelCourse, present: &LevelCourse) -> v1::DryRunLevel {
    let millis = |course: &LevelCourse| u64::try_from(course.acted.as_millis()).unwrap_or(u64::MAX);
    v1::DryRunLevel {
        kind: given.kind.to_wire().into(),
        acted_in_force_ms: millis(present),
        acted_by_policy_ms: millis(given),
        peak_value: given.peak.0,
        threshold: given.peak.1,
    }
}

fn notes(policy: &v1::Policy, given: &Course, in_force: &v1::Policy, present: &Course) -> Vec<String> {
    let mut notes = vec![ALWAYS.to_owned()];
    for class in dropped(given, present).filter(|class| class.offered > 0) {
        notes.push(format!("class {:?} exists no more: its {} requests would be of other classes", class.class, class.offered));
    }
    for class in given.classes.iter().filter(|class| present.class(&class.class).is_none()) {
        notes.push(format!("class {:?} is new: which requests it would get is not recorded", class.class));
    }
    let (Some(new), Some(old)) = (&policy.spec, &in_force.spec) else { return notes };
    if new.classification != old.classification || new.routes != old.routes {
        notes.push("routes or classification differ: requests are counted in the class that they had".to_owned());
    }
    let memory = |spec: &v1::PolicySpec| {
        spec.levels.as_ref().and_then(|levels| levels.gpu_memory.clone()).map(|level| (level.source, level.devices))
    };
    if memory(new) != memory(old) || new.engines != old.engines || new.orca != old.orca {
        notes.push("GPUs or engines differ: the signals are those that the policy in force watches".to_owned());
    }
    if new.overload.is_some() && old.overload.is_none() {
        notes.push(
            "the policy in force has no overload control, so the proxies have reported no work for it: its cut-off stays open".to_owned(),
        );
    }
    if new.candidate.is_some() || new.enforcement != old.enforcement {
        notes.push("played as if it were in force for everybody and acted".to_owned());
    }
    notes
}
