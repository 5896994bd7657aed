//! The stored policies: durable before they are acknowledged, published in the order in which they were stored.
//!
//! One file in the data directory holds them, in a transactional database: after a kill at any moment an acknowledged change is
//! there and an unacknowledged one is there whole or not at all.

mod conflicts;
mod disk;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use headgate_core::policy::Policy;
use headgate_protos::v1;
use tokio::sync::broadcast;

use crate::clock::unix_ms;
use crate::document::{CheckedPolicy, Violations};
use crate::fleet::{Fleet, PolicySet, StoredPolicy};
use disk::Disk;

/// Most policies at once: as many as a filter holds (`headgate_core::discovery::MAX_RESOURCES`).
pub const MAX_POLICIES: usize = headgate_core::discovery::MAX_RESOURCES;
/// Changes that a watcher may fall behind before it has to begin anew.
const WATCH_DEPTH: usize = 256;

/// The stored policies. Cheap to clone; all clones are one store. Its calls write to disk and block.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    // Held from the check to the publication, so that changes are published in the order of their commits.
    state: Mutex<State>,
    fleet: Fleet,
    changes: broadcast::Sender<PolicyChange>,
}

struct State {
    disk: Disk,
    policies: BTreeMap<String, Entry>,
}

/// A stored policy in both forms.
#[derive(Clone)]
struct Entry {
    stored: Arc<StoredPolicy>,
    policy: Arc<Policy>,
}

/// A change, as a watcher sees it.
#[derive(Clone, Debug, PartialEq)]
pub enum PolicyChange {
    /// A policy was created or replaced.
    Applied(Arc<StoredPolicy>),
    /// The policy of this name was deleted.
    Deleted(String),
}

/// What a change expects to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Anything.
    Any,
    /// No policy of the name.
    Absent,
    /// This version.
    Version(String),
}

/// What came of an application.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// What is now stored.
    pub stored: Arc<StoredPolicy>,
    /// Whether anything changed: applying the same content again does not.
    pub changed: bool,
}

/// The store cannot be opened or written. What was acknowledged before is not affected.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The data directory cannot be made or opened.
    #[error("data directory {path}: {source}")]
    Directory {
        /// Path.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The database failed, for example because the disk is full or another server holds it.
    #[error("policy database: {0}")]
    Database(#[from] redb::Error),
    /// The file was written by another version of Headgate.
    #[error("policy database: schema {got} is not {expected}, the one that this version reads")]
    Schema {
        /// Schema of the file.
        got: u64,
        /// Schema that this version reads.
        expected: u64,
    },
    /// A stored policy cannot be read or is not valid for this version of Headgate.
    #[error("policy database: policy `{name}`: {problem}")]
    Unreadable {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: String,
    },
}

/// A change that was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// There is no such policy.
    #[error("policy `{name}` does not exist")]
    NotFound {
        /// Its name.
        name: String,
    },
    /// Another version is in force than expected.
    #[error("policy `{name}`: expected {expected}, found {found}")]
    Conflict {
        /// Its name.
        name: String,
        /// What was expected.
        expected: Expected,
        /// The version that was found; [`Expected::Absent`] for none.
        found: Expected,
    },
    /// The policy and another one cannot both be in force.
    #[error("{0}")]
    Refused(Violations),
    /// There is no room for another policy.
    #[error("there are {MAX_POLICIES} policies, which is the most")]
    Full,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

// === impl Store ===

impl Store {
    /// Opens the store in `directory`, which is created when it is not there, and publishes what it holds.
    pub fn open(directory: &Path, fleet: Fleet) -> Result<Self, StoreError> {
        let disk = Disk::open(directory)?;
        let mut policies = BTreeMap::new();
        for stored in disk.load()? {
            let name = stored.policy.name.clone();
            let policy = Policy::try_from_wire(&stored.policy)
                .map_err(|errors| StoreError::Unreadable { name: name.clone(), problem: errors.to_string().replace('\n', "; ") })?;
            policies.insert(name, Entry { stored: Arc::new(stored), policy: Arc::new(policy) });
        }
        let store = Self {
            inner: Arc::new(Inner { state: Mutex::new(State { disk, policies }), fleet, changes: broadcast::Sender::new(WATCH_DEPTH) }),
        };
        store.inner.publish(&store.inner.lock());
        Ok(store)
    }

    /// Creates or replaces a policy. When it returns, the policy is on disk and published.
    pub fn apply(&self, checked: &CheckedPolicy, expected: &Expected) -> Result<Applied, ChangeError> {
        let mut state = self.inner.lock();
        let name = checked.wire().name.clone();
        let current = state.policies.get(&name);
        expect(&name, expected, current)?;
        if let Some(current) = current.filter(|current| current.stored.policy == *checked.wire()) {
            return Ok(Applied { stored: current.stored.clone(), changed: false });
        }
        if current.is_none() && state.policies.len() >= MAX_POLICIES {
            return Err(ChangeError::Full);
        }
        state.refuse_conflicts(checked)?;
        let stored = Arc::new(StoredPolicy { policy: checked.wire().clone(), changed_at_unix_ms: unix_ms() });
        state.disk.put(&stored)?;
        state.policies.insert(name, Entry { stored: stored.clone(), policy: Arc::new(checked.policy().clone()) });
        self.inner.publish(&state);
        self.inner.announce(PolicyChange::Applied(stored.clone()));
        Ok(Applied { stored, changed: true })
    }

    /// Says whether [`Self::apply`] would accept a policy beside the others, without storing it.
    pub fn check(&self, checked: &CheckedPolicy) -> Result<(), ChangeError> {
        self.inner.lock().refuse_conflicts(checked)
    }

    /// Deletes a policy. When it returns, the deletion is on disk and published.
    pub fn delete(&self, name: &str, expected: &Expected) -> Result<(), ChangeError> {
        let mut state = self.inner.lock();
        let Some(current) = state.policies.get(name) else { return Err(ChangeError::NotFound { name: name.to_owned() }) };
        expect(name, expected, Some(current))?;
        state.disk.remove(name)?;
        state.policies.remove(name);
        self.inner.publish(&state);
        self.inner.announce(PolicyChange::Deleted(name.to_owned()));
        Ok(())
    }

    /// One policy.
    pub fn get(&self, name: &str) -> Option<Arc<StoredPolicy>> {
        self.inner.lock().policies.get(name).map(|entry| entry.stored.clone())
    }

    /// All policies, by name.
    pub fn list(&self) -> Vec<Arc<StoredPolicy>> {
        self.inner.lock().stored()
    }

    /// All policies, and every change that is made after that. A receiver that falls far behind is told so and must begin anew.
    pub fn watch(&self) -> (Vec<Arc<StoredPolicy>>, broadcast::Receiver<PolicyChange>) {
        let state = self.inner.lock();
        (state.stored(), self.inner.changes.subscribe())
    }
}

// === impl Inner ===

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A poisoned state is still whole: memory changes only after the disk has, by one insertion or removal.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, state: &State) {
        let policies = state.policies.iter().map(|(name, entry)| (name.clone(), entry.stored.clone())).collect();
        self.fleet.publish_policies(PolicySet { policies });
    }

    fn announce(&self, change: PolicyChange) {
        // Nobody may be watching.
        let _ = self.changes.send(change);
    }
}

// === impl State ===

impl State {
    fn stored(&self) -> Vec<Arc<StoredPolicy>> {
        self.policies.values().map(|entry| entry.stored.clone()).collect()
    }

    fn refuse_conflicts(&self, checked: &CheckedPolicy) -> Result<(), ChangeError> {
        let name = &checked.wire().name;
        let others = self.policies.iter().filter(|(other, _)| *other != name).map(|(_, entry)| &*entry.policy);
        conflicts::with_others(checked.policy(), others).map_or(Ok(()), |violations| Err(ChangeError::Refused(violations)))
    }
}

// === impl Expected ===

impl Expected {
    /// Reads the field of a request: empty for anything, `none` for no policy, else a version.
    pub fn parse(text: &str) -> Self {
        match text {
            "" => Self::Any,
            "none" => Self::Absent,
            version => Self::Version(version.to_owned()),
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any version"),
            Self::Absent => f.write_str("no policy"),
            Self::Version(version) => write!(f, "version {version}"),
        }
    }
}

fn expect(name: &str, expected: &Expected, current: Option<&Entry>) -> Result<(), ChangeError> {
    let found = current.map_or(Expected::Absent, |current| Expected::Version(current.stored.policy.version.clone()));
    if *expected == Expected::Any || *expected == found {
        return Ok(());
    }
    Err(ChangeError::Conflict { name: name.to_owned(), expected: expected.clone(), found })
}

/// Encoded form of a stored policy: the message, preceded by the time of its change.
fn record(stored: &StoredPolicy) -> Vec<u8> {
    let mut bytes = stored.changed_at_unix_ms.to_be_bytes().to_vec();
    bytes.extend(prost::Message::encode_to_vec(&stored.policy));
    bytes
}

fn from_record(name: &str, bytes: &[u8]) -> Result<StoredPolicy, StoreError> {
    let unreadable = |problem: String| StoreError::Unreadable { name: name.to_owned(), problem };
    let Some((time, message)) = bytes.split_first_chunk::<8>() else { return Err(unreadable("the record is too short".to_owned())) };
    let policy: v1::Policy = prost::Message::decode(message).map_err(|error| unreadable(error.to_string()))?;
    Ok(StoredPolicy { policy, changed_at_unix_ms: u64::from_be_bytes(*time) })
}
