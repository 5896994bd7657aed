//! What a client has refused of the filter's configuration and is told again, in other bytes, each time after a longer pause.

use std::collections::BTreeMap;
use std::time::Duration;

use headgate_core::rng::Rng;
use headgate_xds::{Change, Resource, ResourceName, ResourceType, Snapshot, StreamEvent, Version};
use tokio::time::Instant;

use crate::resources::retold;

/// Pause before the first retry; each further refusal doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause: beside it the time in which a proxy compiles the module must be nothing.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Part of a pause by which chance stretches it, so that a fleet that refused at once does not compile at once.
const SPREAD: f64 = 0.25;

/// The retries of one client. At most one for each resource that it is told.
#[derive(Debug)]
pub(super) struct Retries {
    by_name: BTreeMap<ResourceName, Retry>,
    rng: Rng,
}

/// One resource that was refused at least once.
#[derive(Debug)]
struct Retry {
    /// Version of the resource as everybody else is told it. With another one the retries begin anew.
    version: Version,
    /// Refusals since it was last accepted.
    refusals: u32,
    /// Attempt that the client is told now; 0: the resource as it is.
    attempt: u32,
    /// When the next attempt is told.
    due: Option<Instant>,
}

// === impl Retries ===

impl Retries {
    /// None yet. `seed` is the client's own.
    pub(super) fn new(seed: u64) -> Self {
        Self { by_name: BTreeMap::new(), rng: Rng::new(seed) }
    }

    /// Takes note of an answer. `shared` is what everybody is told, `told` what this client is.
    pub(super) fn note(&mut self, now: Instant, event: &StreamEvent, shared: &Snapshot, told: &Snapshot) {
        match event {
            // What was accepted without having been applied needs other bytes as well.
            StreamEvent::Rejected { kind: ResourceType::ExtensionConfig, changes, .. }
            | StreamEvent::AcceptedAfterRefusal { kind: ResourceType::ExtensionConfig, changes } => {
                changes.iter().filter(|change| is_newest(told, change)).for_each(|change| self.schedule(now, change, shared));
            }
            StreamEvent::Accepted { kind: ResourceType::ExtensionConfig, changes } => {
                for change in changes {
                    if let Some(retry) = self.by_name.get_mut(&change.name).filter(|_| is_newest(told, change)) {
                        (retry.refusals, retry.due) = (0, None);
                    }
                }
            }
            _ => {}
        }
    }

    fn schedule(&mut self, now: Instant, change: &Change, shared: &Snapshot) {
        let Some(resource) = shared.set(ResourceType::ExtensionConfig).get(&change.name) else { return };
        if retold(resource, 1).is_none() {
            return;
        }
        let begun = || Retry { version: resource.version(), refusals: 0, attempt: 0, due: None };
        let retry = self.by_name.entry(change.name.clone()).or_insert_with(begun);
        retry.refusals = retry.refusals.saturating_add(1);
        retry.due = Some(now + pause(retry.refusals, self.rng.next_f64()));
    }

    /// When the next attempt is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.by_name.values().filter_map(|retry| retry.due).min()
    }

    /// What the client is told at `now` in place of `shared`.
    pub(super) fn apply(&mut self, now: Instant, shared: &Snapshot) -> Snapshot {
        let newest = |name: &ResourceName| shared.set(ResourceType::ExtensionConfig).get(name);
        self.by_name.retain(|name, retry| newest(name).map(Resource::version) == Some(retry.version));
        let mut told = shared.clone();
        for (name, retry) in &mut self.by_name {
            if retry.due.is_some_and(|due| due <= now) {
                (retry.attempt, retry.due) = (retry.attempt.saturating_add(1), None);
                tracing::info!(%name, attempt = retry.attempt, "discovery: tells anew what was refused");
            }
            let again = newest(name).filter(|_| retry.attempt > 0).and_then(|resource| retold(resource, retry.attempt));
            if let Some(again) = again {
                told = told.with_other(again);
            }
        }
        told
    }
}

/// Whether the answer was to what the client is told now.
fn is_newest(told: &Snapshot, change: &Change) -> bool {
    told.set(ResourceType::ExtensionConfig).get(&change.name).map(Resource::version) == change.version
}

/// Pause after so many refusals; `chance` is in `0..1`.
fn pause(refusals: u32, chance: f64) -> Duration {
    let doublings = refusals.saturating_sub(1).min(16);
    (FIRST_PAUSE * (1 << doublings)).min(LONGEST_PAUSE).mul_f64(1.0 + SPREAD * chance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_five_minutes_and_chance_only_stretches_them() {
        let seconds = |refusals| pause(refusals, 0.0).as_secs();
        assert_eq!([1, 2, 3, 9, 10, 1_000, u32::MAX].map(seconds), [1, 2, 4, 256, 300, 300, 300]);
        assert_eq!(pause(1, 0.8), Duration::from_millis(1200));
    }
}
