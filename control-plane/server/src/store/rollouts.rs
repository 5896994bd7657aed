//! Candidates in the store: how far each has come, and how it ends.

use headgate_protos::v1;
use prost::Message;

use super::{Applied, ChangeError, Expected, Store, expect, stored};
use crate::document::{CheckedPolicy, Violations};
use crate::fleet::StoredPolicy;
use crate::records::{Change, Kind, View};

/// What became of a candidate that was promoted.
#[derive(Clone, Debug, PartialEq)]
pub struct Promoted {
    /// The policy that says now what the candidate said.
    pub applied: Applied,
    /// What it said before.
    pub before: v1::Policy,
}

impl Store {
    /// How far the candidate `name` has come; `None` when that is not known of the version in force.
    pub fn rollout(&self, name: &str) -> Option<v1::RolloutState> {
        rollout(&self.records.view(), name)
    }

    /// Stores how far a candidate has come, and with it the candidate itself where that changes it, if the version `expected` of it is still
    /// in force. Returns what is in force then; `None` when it is another version meanwhile.
    ///
    /// # Errors
    /// [`ChangeError`]; then nothing has changed.
    pub fn advance(
        &self,
        expected: &str,
        next: Option<&v1::Policy>,
        state: &v1::RolloutState,
        author: &str,
    ) -> Result<Option<v1::Policy>, ChangeError> {
        let name = &state.candidate;
        let mut in_force = None;
        self.records.commit(author, |view| {
            in_force = None;
            let current = view.get(Kind::Policy, name).map(|record| stored(record)).transpose()?;
            let Some(current) = current.filter(|current| current.policy.version == expected) else {
                return Ok::<_, ChangeError>(Vec::new());
            };
            let mut changes = Vec::new();
            let mut state = state.clone();
            let mut policy = current.policy;
            if let Some(next) = next {
                let checked = CheckedPolicy::from_wire(next.clone()).map_err(ChangeError::Refused)?;
                self.check(&checked)?;
                policy = checked.wire().clone();
                changes.push(put_policy(&policy));
            }
            state.candidate_version.clone_from(&policy.version);
            changes.push(put_state(&state));
            in_force = Some(policy);
            Ok(changes)
        })?;
        Ok(in_force)
    }

    /// Makes what the candidate `name` says the policy beside which it is tried, and deletes the candidate, in the name of `author`. When it
    /// returns, both are durable and published at once.
    ///
    /// # Errors
    /// [`ChangeError`]; then nothing has changed.
    pub fn promote(&self, name: &str, expected: &Expected, author: &str) -> Result<Promoted, ChangeError> {
        let mut before = None;
        let added = self.records.commit(author, |view| {
            let (candidate, of) = candidate(view, name)?;
            expect(name, expected, Some(&candidate))?;
            let current = view.get(Kind::Policy, &of).map(|record| stored(record)).transpose()?;
            let current = current.ok_or_else(|| ChangeError::NotFound { name: of.clone() })?;
            let checked = CheckedPolicy::from_wire(promoted(candidate.policy, &of)?).map_err(ChangeError::Refused)?;
            self.inner.lock().refuse_conflicts(&checked, &[name])?;
            before = Some(current.policy);
            Ok::<_, ChangeError>([vec![put_policy(checked.wire())], ending(view, name)].concat())
        })?;
        match (added.first(), before) {
            (Some(record), Some(before)) => Ok(Promoted { applied: Applied { stored: stored(record)?.into(), changed: true }, before }),
            // A commit that decides on something adds it.
            _ => Err(ChangeError::NotFound { name: name.to_owned() }),
        }
    }

    /// Has the candidate `name` govern nothing any more, for `reason`, in the name of `author`. When it returns, that is durable and
    /// published.
    ///
    /// # Errors
    /// [`ChangeError`]; then nothing has changed.
    pub fn abort(&self, name: &str, reason: &str, author: &str) -> Result<Applied, ChangeError> {
        let state = |policy: &v1::Policy, of: String| {
            let applied_version = policy.version.clone();
            v1::RolloutState { candidate: name.to_owned(), of, applied_version, ..v1::RolloutState::default() }
        };
        let mut in_force = None;
        let added = self.records.commit(author, |view| {
            let (candidate, of) = candidate(view, name)?;
            let state = rollout(view, name).unwrap_or_else(|| state(&candidate.policy, of));
            let next = halted(candidate.policy.clone(), reason).ok_or_else(|| no_canary(name))?;
            let checked = CheckedPolicy::from_wire(next).map_err(ChangeError::Refused)?;
            let candidate_version = checked.wire().version.clone();
            if candidate_version == candidate.policy.version {
                in_force = Some(candidate);
                return Ok(Vec::new());
            }
            let state = v1::RolloutState { candidate_version, phase: v1::RolloutPhase::Aborted.into(), ..state };
            Ok::<_, ChangeError>(vec![put_policy(checked.wire()), put_state(&state)])
        })?;
        let changed = !added.is_empty();
        let stored = added.first().map(|record| stored(record)).transpose()?.or(in_force);
        stored.map(|stored| Applied { stored: stored.into(), changed }).ok_or_else(|| no_canary(name))
    }
}

/// How far a candidate has come; `None` unless that is known of the version in force.
fn rollout(view: &View, name: &str) -> Option<v1::RolloutState> {
    let state = v1::RolloutState::decode(view.get(Kind::Rollout, name)?.body.clone()?).ok()?;
    let current = stored(view.get(Kind::Policy, name)?).ok()?;
    (state.candidate_version == current.policy.version).then_some(state)
}

/// The policy that is in force where somebody applies `wanted`: of a candidate that has come further, or was aborted, since exactly that was
/// applied, what it is now. Otherwise a job that applies the same document again and again would begin the rollout anew each time.
pub(super) fn as_it_is_now(view: &View, wanted: &CheckedPolicy) -> Option<CheckedPolicy> {
    let state = rollout(view, &wanted.wire().name)?;
    let current = stored(view.get(Kind::Policy, &wanted.wire().name)?).ok()?;
    (state.applied_version == wanted.wire().version).then(|| CheckedPolicy::from_wire(current.policy).ok()).flatten()
}

/// What keeps a policy from being deleted: a candidate that is tried beside it.
pub(super) fn refuse_with_candidate(view: &View, name: &str) -> Result<(), ChangeError> {
    for record in view.live(Kind::Policy) {
        let other = stored(record)?.policy;
        if candidate_of(&other).is_some_and(|of| of == name) {
            let problem = format!("policy `{}` is its candidate; delete or promote that one first", other.name);
            return Err(ChangeError::Refused(Violations::of("name", problem)));
        }
    }
    Ok(())
}

/// The end of a policy, and of what is stored of it as a candidate.
pub(super) fn ending(view: &View, name: &str) -> Vec<Change> {
    let kinds = [Kind::Policy, Kind::Rollout].into_iter().filter(|kind| view.get(*kind, name).is_some());
    kinds.map(|kind| Change { kind, name: name.to_owned(), body: None }).collect()
}

/// The candidate `name`, and the policy beside which it is tried.
fn candidate(view: &View, name: &str) -> Result<(StoredPolicy, String), ChangeError> {
    let found = view.get(Kind::Policy, name).map(|record| stored(record)).transpose()?;
    let found = found.ok_or_else(|| ChangeError::NotFound { name: name.to_owned() })?;
    let of = candidate_of(&found.policy).map(str::to_owned);
    of.map(|of| (found, of)).ok_or_else(|| no_canary(name))
}

fn candidate_of(policy: &v1::Policy) -> Option<&str> {
    Some(policy.spec.as_ref()?.candidate.as_ref()?.of.as_str())
}

fn no_canary(name: &str) -> ChangeError {
    ChangeError::Refused(Violations::of("name", format!("policy `{name}` is no candidate that governs anything")))
}

/// What the policy `of` says when `candidate` is promoted: everything that it says, but for being one.
fn promoted(candidate: v1::Policy, of: &str) -> Result<v1::Policy, ChangeError> {
    let mut spec = candidate.spec.unwrap_or_default();
    let halted = spec.candidate.take().map(|candidate| candidate.halted).unwrap_or_default();
    if !halted.is_empty() {
        let problem = format!("policy `{}` was aborted: {halted}", candidate.name);
        return Err(ChangeError::Refused(Violations::of("name", problem)));
    }
    spec.enforcement = v1::Enforcement::Unspecified.into();
    Ok(v1::Policy { name: of.to_owned(), spec: Some(spec), version: String::new() })
}

/// A candidate that governs nothing any more; `None` when it never governed anything.
pub(crate) fn halted(mut candidate: v1::Policy, reason: &str) -> Option<v1::Policy> {
    let spec = candidate.spec.as_mut()?;
    headgate_core::policy::canary_part(spec)?;
    spec.candidate.as_mut()?.halted = reason.to_owned();
    Some(candidate)
}

fn put_state(state: &v1::RolloutState) -> Change {
    Change { kind: Kind::Rollout, name: state.candidate.clone(), body: Some(state.encode_to_vec().into()) }
}

fn put_policy(policy: &v1::Policy) -> Change {
    Change { kind: Kind::Policy, name: policy.name.clone(), body: Some(policy.encode_to_vec().into()) }
}

#[cfg(test)]
mod tests;
