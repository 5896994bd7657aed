//! Compares each candidate that governs with its policy, and gives it more, promotes it or aborts it. The replica that leads does so.

use std::collections::BTreeMap;
use std::time::Duration;

use headgate_core::policy::{Canary, Policy, Stage, candidate_books};
use headgate_protos::v1;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::judge::{ClassDeeds, Deeds, Measure};
use super::progress::{Verdict, advanced, decide, guard, hold_left_ms, percents};
use crate::clock::unix_ms;
use crate::control_loop::SharedLedger;
use crate::fleet::{Fleet, PolicySet};
use crate::identity::Caller;
use crate::identity::audit::{Audit, Entry, Outcome};
use crate::replica::Helm;
use crate::store::{ChangeError, Expected, Store, halted};

/// Time between two rounds: within it a candidate that has shown to be worse has lost everything.
const ROUND: Duration = Duration::from_millis(250);

/// What the evaluator reads and writes.
pub struct Evaluator {
    store: Store,
    fleet: Fleet,
    ledger: SharedLedger,
    helm: Helm,
    caller: Caller,
    watched: BTreeMap<String, Watched>,
}

/// What is remembered of one candidate while this replica leads.
struct Watched {
    /// Versions of the candidate and of its policy that are compared.
    versions: (String, String),
    /// What had been counted when that began.
    before: Vec<ClassDeeds>,
    /// Requests at which it is looked at next.
    due: u64,
}

/// A candidate, the policy beside it, and how far it has come.
struct Trial {
    candidate: v1::Policy,
    canary: Canary,
    of: Policy,
    state: v1::RolloutState,
    /// What was counted since the percentage began.
    classes: Vec<ClassDeeds>,
}

// === impl Evaluator ===

impl Evaluator {
    /// An evaluator of the candidates in `store`, by what `ledger` counts, as the replica at `helm`.
    pub fn new(store: Store, fleet: Fleet, ledger: SharedLedger, helm: Helm, audit: Audit) -> Self {
        Self { store, fleet, ledger, helm, caller: Caller::itself(audit), watched: BTreeMap::new() }
    }

    /// Runs until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(ROUND);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut policies = self.fleet.policies();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                Ok(()) = policies.changed() => {}
                _ = tick.tick() => {}
            }
            // The store waits for disk or network.
            let round = tokio::task::spawn_blocking(move || {
                self.round(unix_ms());
                self
            });
            match round.await {
                Ok(evaluator) => self = evaluator,
                Err(error) => return tracing::error!(%error, "candidates are not compared any more"),
            }
        }
    }

    /// One round over all candidates.
    fn round(&mut self, now_unix_ms: u64) {
        let policies = self.fleet.policies().borrow().clone();
        let leads = self.helm.acting_term().is_some();
        let mut told = Vec::new();
        let trials: Vec<Trial> = policies.policies.keys().filter_map(|name| self.trial(&policies, name, leads, now_unix_ms)).collect();
        self.watched.retain(|name, _| leads && trials.iter().any(|trial| trial.candidate.name == *name));
        for trial in trials {
            if leads && let Err(error) = self.act(&trial, now_unix_ms) {
                tracing::error!(candidate = trial.candidate.name, %error, "what a candidate has come to cannot be stored; it stays as it is");
            }
            told.push(trial.status(now_unix_ms));
        }
        self.fleet.publish_rollouts(told);
    }

    /// A candidate that governs, or was aborted.
    fn trial(&mut self, policies: &PolicySet, name: &str, leads: bool, now_unix_ms: u64) -> Option<Trial> {
        let candidate = &policies.policies.get(name)?.policy;
        candidate.spec.as_ref()?.candidate.as_ref()?;
        let Stage::Canary(canary) = Policy::try_from_wire(candidate).ok()?.stage().clone() else { return None };
        let of = Policy::try_from_wire(&policies.policies.get(&canary.of)?.policy).ok()?;
        let begun = || v1::RolloutState {
            candidate: name.to_owned(),
            of: canary.of.clone(),
            applied_version: candidate.version.clone(),
            candidate_version: candidate.version.clone(),
            of_version: of.version().to_owned(),
            phase: if canary.halted.is_some() { v1::RolloutPhase::Aborted.into() } else { v1::RolloutPhase::Running.into() },
            step: 0,
            began_at_unix_ms: now_unix_ms,
            step_at_unix_ms: now_unix_ms,
            looks: 0,
        };
        let state = self.store.rollout(name).unwrap_or_else(begun);
        let classes = if leads && canary.halted.is_none() { self.counted(candidate, &of) } else { Vec::new() };
        Some(Trial { candidate: candidate.clone(), canary, of, state, classes })
    }

    /// What was counted since both versions are compared.
    fn counted(&mut self, candidate: &v1::Policy, of: &Policy) -> Vec<ClassDeeds> {
        let all = self.deeds(of);
        let versions = (candidate.version.clone(), of.version().to_owned());
        let is_known = self.watched.get(&candidate.name).is_some_and(|watched| watched.versions == versions);
        if !is_known {
            self.watched.insert(candidate.name.clone(), Watched { versions, before: all.clone(), due: 0 });
        }
        let before = self.watched.get(&candidate.name).map(|watched| watched.before.as_slice()).unwrap_or_default();
        let nothing = ClassDeeds::default();
        let since = |now: &ClassDeeds| {
            let before = before.iter().find(|before| before.class == now.class).unwrap_or(&nothing);
            ClassDeeds { class: now.class.clone(), candidate: now.candidate.since(&before.candidate), of: now.of.since(&before.of) }
        };
        all.iter().map(since).collect()
    }

    /// Everything that is counted of the classes of `of`, and of its candidate's.
    fn deeds(&self, of: &Policy) -> Vec<ClassDeeds> {
        let ledger = self.ledger.lock();
        let deeds = |books: &str, class: &str| {
            ledger.judged(books, class).map_or_else(Deeds::default, |(ttft, counters)| Deeds {
                ttft_us: ttft.clone(),
                refused: counters.refused,
                completed: counters.completed,
                failed: counters.failed,
            })
        };
        let candidate = candidate_books(of.pool());
        let class = |class: &str| ClassDeeds { class: class.to_owned(), candidate: deeds(&candidate, class), of: deeds(of.pool(), class) };
        of.classes().iter().map(|of_class| class(&of_class.name)).collect()
    }

    /// Does with a candidate what is to be done now.
    fn act(&mut self, trial: &Trial, now_unix_ms: u64) -> Result<(), ChangeError> {
        let Trial { candidate, canary, of, state, classes } = trial;
        if self.store.rollout(&candidate.name).as_ref() != Some(state) || state.of_version != of.version() {
            let state = v1::RolloutState { of_version: of.version().to_owned(), ..state.clone() };
            return self.keep(candidate, None, &state);
        }
        if canary.halted.is_some() {
            return Ok(());
        }
        let guard = guard(canary, of, state.step);
        let due = self.watched.get(&candidate.name).map_or(0, |watched| watched.due).max(guard.min_samples);
        match decide(state, canary, &guard, classes, due, now_unix_ms) {
            Verdict::Continue => Ok(()),
            Verdict::Abort { reason } => self.abort(trial, &reason),
            Verdict::Looked => {
                let requests = super::judge::requests(classes).0;
                if let Some(watched) = self.watched.get_mut(&candidate.name) {
                    watched.due = guard.next_look(requests);
                }
                self.keep(candidate, None, &v1::RolloutState { looks: state.looks + 1, ..state.clone() })
            }
            Verdict::Complete if canary.rollout.auto_promote => self.promote(candidate),
            Verdict::Complete => {
                let phase = v1::RolloutPhase::Complete.into();
                self.keep(candidate, None, &v1::RolloutState { phase, looks: state.looks + 1, ..state.clone() })?;
                self.record("policy.complete", candidate, &candidate.version, None);
                Ok(())
            }
            Verdict::Advance => {
                let next = advanced(candidate.clone());
                let state = v1::RolloutState { step: state.step + 1, looks: 0, step_at_unix_ms: now_unix_ms, ..state.clone() };
                self.keep(candidate, next.as_ref(), &state)
            }
        }
    }

    /// Stores how far a candidate has come, unless it is another one meanwhile.
    fn keep(&self, candidate: &v1::Policy, next: Option<&v1::Policy>, state: &v1::RolloutState) -> Result<(), ChangeError> {
        let stored = self.store.advance(&candidate.version, next, state, self.caller.name())?;
        if let (Some(stored), Some(_)) = (stored, next) {
            tracing::info!(candidate = candidate.name, version = stored.version, step = state.step, "a candidate gets more");
            self.record("policy.advance", candidate, &stored.version, None);
        }
        Ok(())
    }

    fn abort(&self, trial: &Trial, reason: &str) -> Result<(), ChangeError> {
        let Trial { candidate, state, .. } = trial;
        let state = v1::RolloutState { phase: v1::RolloutPhase::Aborted.into(), looks: state.looks + 1, ..state.clone() };
        let next = halted(candidate.clone(), reason);
        if let Some(stored) = self.store.advance(&candidate.version, next.as_ref(), &state, self.caller.name())? {
            tracing::warn!(candidate = candidate.name, reason, "a candidate was aborted; its policy governs everything again");
            self.record("policy.abort", candidate, &stored.version, Some(reason));
        }
        Ok(())
    }

    fn promote(&self, candidate: &v1::Policy) -> Result<(), ChangeError> {
        let promoted = self.store.promote(&candidate.name, &Expected::Version(candidate.version.clone()), self.caller.name())?;
        let stored = &promoted.applied.stored.policy;
        tracing::info!(candidate = candidate.name, policy = stored.name, version = stored.version, "a candidate was promoted");
        self.record("policy.promote", stored, &stored.version, None);
        Ok(())
    }

    fn record(&self, action: &str, policy: &v1::Policy, version: &str, reason: Option<&str>) {
        let previous = Some(policy.version.as_str()).filter(|previous| *previous != version);
        self.caller.audit(&Entry {
            action,
            outcome: Outcome::Done,
            policy: Some(&policy.name),
            version: Some(version),
            previous_version: previous,
            reason,
            ..Entry::default()
        });
    }
}

// === impl Trial ===

impl Trial {
    fn status(&self, now_unix_ms: u64) -> v1::RolloutStatus {
        let Self { canary, of, state, classes, .. } = self;
        let guard = guard(canary, of, state.step);
        let counts = |deeds: &ClassDeeds| {
            let [missed, failed, late] = Measure::ALL.map(|measure| deeds.counted(measure, guard.objective_us));
            let counts = |arm: fn(&(super::evidence::Counted, super::evidence::Counted)) -> super::evidence::Counted| v1::RolloutCounts {
                requests: arm(&missed).of,
                missed: arm(&missed).bad,
                responses: arm(&failed).of,
                failed: arm(&failed).bad,
                started: arm(&late).of,
                late: arm(&late).bad,
            };
            v1::RolloutClass { class: deeds.class.clone(), candidate: Some(counts(|both| both.0)), of: Some(counts(|both| both.1)) }
        };
        v1::RolloutStatus {
            state: Some(state.clone()),
            percents: percents(canary),
            by_proxies: matches!(canary.part, headgate_core::policy::CanaryPart::Proxies(_)),
            hold_left_ms: hold_left_ms(state, canary, now_unix_ms),
            min_samples: canary.rollout.min_samples,
            halted: canary.halted.clone().unwrap_or_default(),
            classes: classes.iter().map(counts).collect(),
        }
    }
}
