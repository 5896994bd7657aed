//! The stored policies: durable before they are acknowledged, published in the order in which they were stored.
//!
//! They are [`Record`]s of [`Kind::Policy`]; here is what their bodies mean, and which of them can be in force together.

mod conflicts;
mod rollouts;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use headgate_core::policy::Policy;
use headgate_protos::v1;
use tokio::sync::broadcast;

use crate::document::{CheckedPolicy, Violations};
use crate::fleet::{Fleet, PolicySet, StoredPolicy};
pub use crate::records::StoreError;
use crate::records::{Change, Kind, Record, Records, Update, View};
pub use rollouts::Promoted;
pub(crate) use rollouts::halted;

/// Most policies at once: as many as a filter holds (`headgate_core::discovery::MAX_RESOURCES`).
pub const MAX_POLICIES: usize = headgate_core::discovery::MAX_RESOURCES;
/// Changes that a watcher may fall behind before it has to begin anew.
const WATCH_DEPTH: usize = 256;

/// The stored policies. Cheap to clone; all clones are one store. Its calls write to disk or network and block.
#[derive(Clone)]
pub struct Store {
    records: Records,
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    fleet: Fleet,
    changes: broadcast::Sender<PolicyChange>,
}

#[derive(Default)]
struct State {
    policies: BTreeMap<String, Entry>,
    /// The problem of each record that this version of Headgate cannot use, by its name.
    unreadable: BTreeMap<String, String>,
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

/// One revision of a policy.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyRevision {
    /// Number of the store's commit that made it; it rises over all policies.
    pub revision: u64,
    /// Who made it.
    pub author: String,
    /// When, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// The policy; `None` where it was deleted.
    pub policy: Option<v1::Policy>,
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
    /// This revision of it is not known, or no longer.
    #[error("policy `{name}`: revision {revision} is not kept")]
    NoRevision {
        /// Its name.
        name: String,
        /// The revision.
        revision: u64,
    },
    /// This revision says nothing that could be in force.
    #[error("policy `{name}` was deleted in revision {revision}; `headgate policy delete {name}` does that")]
    Deletion {
        /// Its name.
        name: String,
        /// The revision.
        revision: u64,
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
    /// The policies among `records`. Publishes what is in force, and from then on every change, whoever makes it.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn open(records: Records, fleet: Fleet) -> Result<Self, StoreError> {
        let inner = Arc::new(Inner { state: Mutex::default(), fleet, changes: broadcast::Sender::new(WATCH_DEPTH) });
        let follower = inner.clone();
        records.follow(move |update| follower.take(update));
        let unreadable = inner.lock().unreadable.pop_first();
        match unreadable {
            Some((name, problem)) => Err(StoreError::Unreadable { kind: Kind::Policy, name, problem }),
            None => Ok(Self { records, inner }),
        }
    }

    /// Creates or replaces a policy in the name of `author`. When it returns, the policy is durable and published.
    ///
    /// # Errors
    /// [`ChangeError`]; then nothing has changed.
    pub fn apply(&self, checked: &CheckedPolicy, expected: &Expected, author: &str) -> Result<Applied, ChangeError> {
        let wanted = |view: &View| Ok(rollouts::as_it_is_now(view, checked).unwrap_or_else(|| checked.clone()));
        self.put(&checked.wire().name, wanted, expected, author)
    }

    /// Makes what the revision `to` of a policy said a new revision, in the name of `author`. When it returns, that is durable and published.
    /// Also a policy that was deleted comes back so.
    ///
    /// # Errors
    /// [`ChangeError`]; then nothing has changed. [`ChangeError::Refused`] also when this version of Headgate does not take what it said.
    pub fn rollback(&self, name: &str, to: u64, expected: &Expected, author: &str) -> Result<Applied, ChangeError> {
        let said = |view: &View| {
            let is_meant = |record: &&Arc<Record>| record.revision == to;
            let missing = || ChangeError::NoRevision { name: name.to_owned(), revision: to };
            let record = view.history(Kind::Policy, name).iter().find(is_meant).ok_or_else(missing)?;
            if record.body.is_none() {
                return Err(ChangeError::Deletion { name: name.to_owned(), revision: to });
            }
            CheckedPolicy::from_wire(stored(record)?.policy).map_err(ChangeError::Refused)
        };
        self.put(name, said, expected, author)
    }

    /// Stores the policy `name` as `wanted` has it in view of what is stored.
    fn put(
        &self,
        name: &str,
        wanted: impl Fn(&View) -> Result<CheckedPolicy, ChangeError>,
        expected: &Expected,
        author: &str,
    ) -> Result<Applied, ChangeError> {
        let mut unchanged = None;
        let added = self.records.commit(author, |view| {
            let checked = wanted(view)?;
            let current = view.get(Kind::Policy, name).map(|record| stored(record)).transpose()?;
            expect(name, expected, current.as_ref())?;
            unchanged = current.filter(|current| current.policy == *checked.wire());
            if unchanged.is_some() {
                return Ok(Vec::new());
            }
            let others = view.live(Kind::Policy).filter(|record| record.name != name).count();
            if others >= MAX_POLICIES {
                return Err(ChangeError::Full);
            }
            self.check(&checked)?;
            let body = prost::Message::encode_to_vec(checked.wire()).into();
            Ok(vec![Change { kind: Kind::Policy, name: name.to_owned(), body: Some(body) }])
        })?;
        match (added.first(), unchanged) {
            (Some(record), _) => Ok(Applied { stored: Arc::new(stored(record)?), changed: true }),
            (None, Some(stored)) => Ok(Applied { stored: Arc::new(stored), changed: false }),
            // What was not added was unchanged.
            (None, None) => Err(ChangeError::NotFound { name: name.to_owned() }),
        }
    }

    /// Says whether [`Self::apply`] would accept a policy beside the others, without storing it.
    ///
    /// # Errors
    /// [`ChangeError::Refused`] with what keeps them apart.
    pub fn check(&self, checked: &CheckedPolicy) -> Result<(), ChangeError> {
        self.inner.lock().refuse_conflicts(checked, &[])
    }

    /// Deletes a policy in the name of `author`. When it returns, the deletion is durable and published.
    ///
    /// # Errors
    /// [`ChangeError`]; then nothing has changed.
    pub fn delete(&self, name: &str, expected: &Expected, author: &str) -> Result<(), ChangeError> {
        let deletion = |view: &View| {
            let Some(current) = view.get(Kind::Policy, name) else { return Err(ChangeError::NotFound { name: name.to_owned() }) };
            expect(name, expected, Some(&stored(current)?))?;
            rollouts::refuse_with_candidate(view, name)?;
            Ok(rollouts::ending(view, name))
        };
        self.records.commit(author, deletion).map(drop)
    }

    /// What is known of a policy, the oldest revision first: at most [`crate::records::HISTORY_DEPTH`] of them, also of a policy
    /// that was deleted.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn history(&self, name: &str) -> Result<Vec<PolicyRevision>, StoreError> {
        let revision = |record: &Arc<Record>| {
            let Record { revision, ref author, at_unix_ms, ref body, .. } = **record;
            let policy = body.as_ref().map(|_| stored(record).map(|stored| stored.policy)).transpose()?;
            Ok(PolicyRevision { revision, author: author.clone(), at_unix_ms, policy })
        };
        self.records.view().history(Kind::Policy, name).iter().map(revision).collect()
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
        // A poisoned state is still whole: it changes by single insertions and removals.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what was committed, publishes it and tells the watchers.
    fn take(&self, update: &Update<'_>) {
        let mut state = self.lock();
        let mut changes = Vec::new();
        for record in update.changed.iter().filter(|record| record.kind == Kind::Policy) {
            changes.extend(state.take(record));
        }
        let policies = state.policies.iter().map(|(name, entry)| (name.clone(), entry.stored.clone())).collect();
        self.fleet.publish_policies(PolicySet { policies });
        for change in changes {
            // Nobody may be watching.
            let _ = self.changes.send(change);
        }
    }
}

// === impl State ===

impl State {
    /// Takes one record. One that cannot be used changes nothing: the policy of before stays in force.
    fn take(&mut self, record: &Record) -> Option<PolicyChange> {
        self.unreadable.remove(&record.name);
        if record.body.is_none() {
            return self.policies.remove(&record.name).map(|_| PolicyChange::Deleted(record.name.clone()));
        }
        match read(record) {
            Ok(entry) => {
                let change = PolicyChange::Applied(entry.stored.clone());
                self.policies.insert(record.name.clone(), entry);
                Some(change)
            }
            Err(problem) => {
                tracing::error!(policy = record.name, problem, "a stored policy cannot be used; the one before it stays in force");
                self.unreadable.insert(record.name.clone(), problem);
                None
            }
        }
    }

    fn stored(&self) -> Vec<Arc<StoredPolicy>> {
        self.policies.values().map(|entry| entry.stored.clone()).collect()
    }

    /// Whether a policy can be in force beside the others, but for those that are `gone` then.
    fn refuse_conflicts(&self, checked: &CheckedPolicy, gone: &[&str]) -> Result<(), ChangeError> {
        let name = &checked.wire().name;
        let stays = |other: &str| other != name && !gone.contains(&other);
        let others = self.policies.iter().filter(|(other, _)| stays(other)).map(|(_, entry)| &*entry.policy);
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

fn expect(name: &str, expected: &Expected, current: Option<&StoredPolicy>) -> Result<(), ChangeError> {
    let found = current.map_or(Expected::Absent, |current| Expected::Version(current.policy.version.clone()));
    if *expected == Expected::Any || *expected == found {
        return Ok(());
    }
    Err(ChangeError::Conflict { name: name.to_owned(), expected: expected.clone(), found })
}

/// The policy of a record; the empty one of a deletion.
fn stored(record: &Record) -> Result<StoredPolicy, StoreError> {
    let policy = prost::Message::decode(record.body.clone().unwrap_or_default());
    let unreadable =
        |error: prost::DecodeError| StoreError::Unreadable { kind: Kind::Policy, name: record.name.clone(), problem: error.to_string() };
    Ok(StoredPolicy { policy: policy.map_err(unreadable)?, changed_at_unix_ms: record.at_unix_ms })
}

/// Both forms of a record's policy, or what is wrong with it.
fn read(record: &Record) -> Result<Entry, String> {
    let stored = stored(record).map_err(|error| error.to_string())?;
    let policy = Policy::try_from_wire(&stored.policy).map_err(|errors| errors.to_string().replace('\n', "; "))?;
    Ok(Entry { stored: Arc::new(stored), policy: Arc::new(policy) })
}
