//! Durable records: what people have asked for, of every kind, with its history.
//!
//! A [`Record`] is one revision of one named thing. A commit takes a decision on everything that is stored ([`View`]) and makes its
//! changes in one transaction, or none of them: if another replica was quicker, the decision is taken anew. A commit that returns is
//! durable and has been told to every follower of this process, in the order of the revisions. Each kind has an owner that knows what
//! its bodies mean (policies: [`crate::store`]); here they are bytes.

mod disk;
mod encoding;
mod etcd;
#[cfg(test)]
pub(crate) mod tests;
mod view;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

pub use self::view::View;
use crate::clock::unix_ms;
use disk::Disk;

/// Revisions that are kept of one name, the newest among them.
pub const HISTORY_DEPTH: usize = 64;
/// Revisions that are kept altogether. Beyond it those that are no longer in force go, the oldest first.
pub const MAX_ROWS: usize = 8192;
/// Bytes of all bodies together. Beyond it those that are no longer in force go, the oldest first.
pub const MAX_TOTAL_BYTES: usize = 64 << 20;
/// Longest body: etcd takes 1.5 MiB in one request.
pub const MAX_BODY_BYTES: usize = 1 << 20;
/// Most changes of one commit. With as many rows that leave history they are fewer than the 128 operations of an etcd transaction.
pub const MAX_CHANGES: usize = 60;
/// Decisions that are taken anew before a commit gives up: each time another replica has got something done.
const MAX_TRIES: usize = 16;
/// How long a commit that was overtaken waits to hear by what.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(1);

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An admission policy.
    Policy,
    /// A pool of endpoints, for gateways.
    Pool,
    /// A route to pools, for gateways.
    Route,
    /// A gateway: listeners, and what requests have to be.
    Gateway,
    /// How far a candidate has come, by the candidate's name.
    Rollout,
}

/// One revision of one named thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it is about.
    pub kind: Kind,
    /// Its name, unique within its kind.
    pub name: String,
    /// Number of the commit that made it: 1 for the store's first, and one more for each.
    pub revision: u64,
    /// Who made it, as the audit log calls them; [`NOBODY_KNOWN`] from before authors were stored.
    pub author: String,
    /// When, in milliseconds since the Unix epoch, by the clock of the replica that made it.
    pub at_unix_ms: u64,
    /// The encoded message; `None` for a deletion.
    pub body: Option<Bytes>,
}

/// Author of what was stored before authors were.
pub const NOBODY_KNOWN: &str = "unknown";

/// A change to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it is about.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// The encoded message, at most [`MAX_BODY_BYTES`]; `None` deletes.
    pub body: Option<Bytes>,
}

/// What followers are told: the stored records after a commit, and what it changed; the first time everything that is in force.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// Everything, the change included.
    pub view: &'a View,
    /// What has changed; of each name the newest.
    pub changed: &'a [Arc<Record>],
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
    #[error("store: {0}")]
    Database(#[from] redb::Error),
    /// The file was written by another version of Headgate.
    #[error("store: schema {got} is newer than {expected}, the newest that this version reads")]
    Schema {
        /// Schema of the file.
        got: u64,
        /// Schema that this version writes.
        expected: u64,
    },
    /// A stored record cannot be read or is not valid for this version of Headgate.
    #[error("store: {kind} `{name}`: {problem}")]
    Unreadable {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A body is too long.
    #[error("{kind} `{name}`: {got} bytes are more than {MAX_BODY_BYTES}")]
    TooLong {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// Its length.
        got: usize,
    },
    /// What is in force leaves no room for more.
    #[error("the store is full: what is in force may take {MAX_ROWS} records and {MAX_TOTAL_BYTES} bytes")]
    Full,
    /// More changes than one transaction takes.
    #[error("{0} changes at once are more than {MAX_CHANGES}")]
    TooMany(usize),
    /// Other replicas were quicker every time, or this one does not hear what they have done.
    #[error("other replicas changed the store meanwhile, {MAX_TRIES} times or unheard of here; nothing was changed, try again")]
    Overtaken,
    /// Where the records are kept does not answer. A commit that ends so may have been made; a later one tells.
    #[error("the store cannot be reached, and what is in force stays: {0}")]
    Unavailable(String),
}

/// Whether the store can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreHealth {
    /// It can.
    Ok,
    /// It cannot; what was read from it stays in force.
    Failing {
        /// Why.
        problem: String,
    },
}

/// Where commits become durable.
trait Backend: Send + Sync {
    /// Makes `batch` durable, if nothing else has been committed since the revision before it. Blocks.
    fn commit(&self, batch: &Batch) -> Result<Durable, StoreError>;
}

/// What one transaction writes.
#[derive(Debug)]
struct Batch {
    /// Its number; the one before it is the newest that the writer knows.
    revision: u64,
    /// Rows to add.
    added: Vec<Arc<Record>>,
    /// Rows that leave the history.
    dropped: Vec<Arc<Record>>,
}

/// What came of a transaction that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Durable {
    /// It is durable.
    Done,
    /// Something that the writer did not know was committed before; nothing has changed.
    Overtaken,
}

/// The stored records. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct Records {
    inner: Arc<Inner>,
}

struct Inner {
    backend: Box<dyn Backend>,
    // Held over a commit: the writers of one process do not overtake each other.
    writer: Mutex<()>,
    turn: Mutex<Turn>,
    moved: Condvar,
    health: watch::Sender<StoreHealth>,
}

/// Held while a change is told, so that all followers hear of all changes in one order.
struct Turn {
    view: Arc<View>,
    followers: Vec<Follower>,
}

type Follower = Box<dyn FnMut(&Update<'_>) + Send>;

// === impl Records ===

impl Records {
    /// Opens the embedded store in `directory`, which is created when it is not there.
    ///
    /// # Errors
    /// When the directory or the file cannot be used, or its content not be read.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let (disk, view) = Disk::open(directory)?;
        Ok(Self::over(Box::new(disk), view))
    }

    fn over(backend: Box<dyn Backend>, view: View) -> Self {
        let turn = Turn { view: Arc::new(view), followers: Vec::new() };
        let health = watch::Sender::new(StoreHealth::Ok);
        Self { inner: Arc::new(Inner { backend, writer: Mutex::new(()), turn: Mutex::new(turn), moved: Condvar::new(), health }) }
    }

    /// Whether the store can be reached, and changes of that.
    pub fn health(&self) -> watch::Receiver<StoreHealth> {
        self.inner.health.subscribe()
    }

    /// Everything that is stored.
    pub fn view(&self) -> Arc<View> {
        self.inner.turn().view.clone()
    }

    /// Tells `follower` everything that is in force before this returns, and from then on every commit, of this replica or another,
    /// in order. It is called while others wait: it may not block, commit, or ask for the view.
    pub fn follow(&self, mut follower: impl FnMut(&Update<'_>) + Send + 'static) {
        let mut turn = self.inner.turn();
        let view = turn.view.clone();
        let everything: Vec<Arc<Record>> = view.all_live().cloned().collect();
        follower(&Update { view: &view, changed: &everything });
        turn.followers.push(Box::new(follower));
    }

    /// Makes the changes that `decide` wants in view of what is stored, all in one transaction, and returns what was added; nothing
    /// when it wants none. When it returns, they are durable and told to every follower. Writes to disk or network and blocks.
    ///
    /// `decide` is called again when another replica has committed something meanwhile.
    ///
    /// # Errors
    /// That of `decide`, or a [`StoreError`]; then nothing has changed.
    pub fn commit<E: From<StoreError>>(
        &self,
        author: &str,
        mut decide: impl FnMut(&View) -> Result<Vec<Change>, E>,
    ) -> Result<Vec<Arc<Record>>, E> {
        let _writer = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..MAX_TRIES {
            let view = self.view();
            let changes = decide(&view)?;
            if changes.is_empty() {
                return Ok(Vec::new());
            }
            let batch = batch(&view, author, changes)?;
            match self.inner.backend.commit(&batch)? {
                Durable::Done => {
                    self.inner.absorb(&batch.added);
                    return Ok(batch.added);
                }
                Durable::Overtaken if self.inner.wait_past(view.revision()) => {}
                Durable::Overtaken => break,
            }
        }
        Err(StoreError::Overtaken.into())
    }
}

fn batch(view: &View, author: &str, changes: Vec<Change>) -> Result<Batch, StoreError> {
    if changes.len() > MAX_CHANGES {
        return Err(StoreError::TooMany(changes.len()));
    }
    let (revision, at_unix_ms) = (view.revision() + 1, unix_ms());
    let mut added = Vec::with_capacity(changes.len());
    for Change { kind, name, body } in changes {
        let got = body.as_ref().map_or(0, Bytes::len);
        if got > MAX_BODY_BYTES {
            return Err(StoreError::TooLong { kind, name, got });
        }
        added.push(Arc::new(Record { kind, name, revision, author: author.to_owned(), at_unix_ms, body }));
    }
    let mut after = view.clone();
    let dropped = after.add(&added);
    if after.is_over_full() {
        return Err(StoreError::Full);
    }
    Ok(Batch { revision, added, dropped })
}

// === impl Inner ===

impl Inner {
    fn turn(&self) -> MutexGuard<'_, Turn> {
        // A turn that panicked has left a whole view: it is exchanged at once, before followers hear of it.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what has been committed, in the order of the revisions, and tells of it. What is already known is left out.
    fn absorb(&self, records: &[Arc<Record>]) {
        let mut turn = self.turn();
        let known = turn.view.revision();
        let news: Vec<Arc<Record>> = records.iter().filter(|record| record.revision > known).cloned().collect();
        if !news.is_empty() {
            let mut view = View::clone(&turn.view);
            view.add(&news);
            turn.tell(view, &news);
        }
        drop(turn);
        self.moved.notify_all();
    }

    /// Takes everything anew after a gap, and tells what is different.
    fn replace(&self, view: View) {
        let mut turn = self.turn();
        let changed = turn.view.changes_to(&view);
        turn.tell(view, &changed);
        drop(turn);
        self.moved.notify_all();
    }

    /// Returns whether the store was reachable before and is not now, or the other way round.
    fn note_health(&self, now: StoreHealth) -> bool {
        let is_ok = now == StoreHealth::Ok;
        let before = self.health.send_replace(now);
        (before == StoreHealth::Ok) != is_ok
    }

    /// Waits until more than `revision` is known; `false` when that takes too long.
    fn wait_past(&self, revision: u64) -> bool {
        let behind = |turn: &mut Turn| turn.view.revision() <= revision;
        let waited = self.moved.wait_timeout_while(self.turn(), CATCH_UP_LIMIT, behind);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

// === impl Turn ===

impl Turn {
    fn tell(&mut self, view: View, changed: &[Arc<Record>]) {
        self.view = Arc::new(view);
        let update = Update { view: &self.view, changed };
        self.followers.iter_mut().for_each(|follower| follower(&update));
    }
}

// === impl Kind ===

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Policy, Self::Pool, Self::Route, Self::Gateway, Self::Rollout];

    /// Its name in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Pool => "pool",
            Self::Route => "route",
            Self::Gateway => "gateway",
            Self::Rollout => "rollout",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
