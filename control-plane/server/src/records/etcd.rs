//! The backend of several replicas: etcd.
//!
//! | key, behind [`STORE`] | what |
//! |---|---|
//! | `head` | written by every commit, so its version is the store's revision; its value marks the commit |
//! | `records/KIND/NAME/REVISION` | a row, the revision as 16 hexadecimal digits |
//!
//! A commit is one transaction on the condition that the head has the version before it. A commit that was sent twice finds its own
//! mark in the head, and so knows that the first time it was done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use headgate_protos::etcd as wire;
use headgate_protos::etcd::event::EventType;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Backend, Batch, Durable, Inner, Kind, Record, Records, StoreError, StoreHealth, View, encoding};
use crate::clock::unix_ms;
use crate::etcd::{Etcd, EtcdError, Span, delete, get, if_version, last_read, put};

/// What the store's keys begin with; the election's are others.
const STORE: &str = "/headgate/v1/store/";
const HEAD: &str = "/headgate/v1/store/head";
const ROWS: &str = "/headgate/v1/store/records/";
/// How long a commit waits for etcd, which may be choosing a leader.
const COMMIT_LIMIT: Duration = Duration::from_secs(5);
/// Wait between two attempts to reach a cluster none of whose members answers.
const RETRY: Duration = Duration::from_millis(200);

/// The backend.
pub(super) struct Cluster {
    etcd: Etcd,
    runtime: Handle,
    /// Marks this process's commits.
    writer: String,
    commits: AtomicU64,
}

// === impl Records ===

impl Records {
    /// Opens the store in `etcd`, as the replica `name`, and follows what other replicas commit until `shutdown`. Waits for etcd as
    /// long as it does not answer.
    ///
    /// # Errors
    /// When what is stored cannot be read, or etcd refuses.
    pub async fn connect(etcd: Etcd, name: &str, shutdown: CancellationToken) -> Result<Self, StoreError> {
        let (view, revision) = loop {
            match load(&etcd).await {
                Err(StoreError::Unavailable(problem)) => tracing::warn!(problem, "--store: waiting for etcd"),
                outcome => break outcome?,
            }
            tokio::time::sleep(RETRY).await;
        };
        let writer = format!("{name} {} {}", std::process::id(), unix_ms());
        let cluster = Cluster { etcd: etcd.clone(), runtime: Handle::current(), writer, commits: AtomicU64::new(0) };
        let records = Self::over(Box::new(cluster), view);
        tokio::spawn(follow(etcd, records.inner.clone(), revision, shutdown));
        Ok(records)
    }
}

// === impl Cluster ===

impl Cluster {
    async fn commit(&self, batch: &Batch) -> Result<Durable, StoreError> {
        let mark = format!("{} {}", self.writer, self.commits.fetch_add(1, Ordering::Relaxed));
        let transaction = transaction(batch, &mark);
        let deadline = Instant::now() + COMMIT_LIMIT;
        loop {
            match self.etcd.transact(&transaction).await {
                Ok(answer) if answer.succeeded => return Ok(Durable::Done),
                Ok(answer) => {
                    let is_ours = last_read(&answer).is_some_and(|head| head.value == mark.as_bytes());
                    return Ok(if is_ours { Durable::Done } else { Durable::Overtaken });
                }
                Err(EtcdError::Unavailable(_)) if Instant::now() + RETRY < deadline => tokio::time::sleep(RETRY).await,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Backend for Cluster {
    fn commit(&self, batch: &Batch) -> Result<Durable, StoreError> {
        self.runtime.block_on(Self::commit(self, batch))
    }
}

fn transaction(batch: &Batch, mark: &str) -> wire::TxnRequest {
    let head = put(HEAD, mark.as_bytes().to_vec(), 0);
    let added = batch.added.iter().map(|record| put(&key(record), encoding::encode(record), 0));
    let dropped = batch.dropped.iter().map(|record| delete(&key(record)));
    wire::TxnRequest {
        compare: vec![if_version(HEAD, batch.revision - 1)],
        success: [head].into_iter().chain(added).chain(dropped).collect(),
        failure: vec![get(&Span::key(HEAD))],
    }
}

fn key(record: &Record) -> String {
    format!("{ROWS}{}/{}/{:016x}", record.kind, record.name, record.revision)
}

/// The row of a key and its value; `None` for what is no row, or of a kind that this version does not know.
fn row(pair: &wire::KeyValue) -> Result<Option<Arc<Record>>, StoreError> {
    let parts = || {
        let (kind, rest) = std::str::from_utf8(&pair.key).ok()?.strip_prefix(ROWS)?.split_once('/')?;
        let (name, revision) = rest.rsplit_once('/')?;
        Some((Kind::parse(kind)?, name, u64::from_str_radix(revision, 16).ok()?))
    };
    let Some((kind, name, revision)) = parts() else { return Ok(None) };
    encoding::decode(kind, name, revision, &pair.value).map(Some)
}

/// Everything, and etcd's revision at which it was read.
async fn load(etcd: &Etcd) -> Result<(View, i64), StoreError> {
    let answer = etcd.range(&Span::prefix(STORE)).await?;
    let head = answer.kvs.iter().find(|pair| pair.key == HEAD.as_bytes()).map_or(0, |head| head.version);
    let mut rows = Vec::new();
    for pair in &answer.kvs {
        rows.extend(row(pair)?);
    }
    let revision = answer.header.map_or(0, |header| header.revision);
    Ok((View::of(u64::try_from(head).unwrap_or(0), rows), revision))
}

/// Follows the store until `shutdown`. `revision` is that of etcd up to which everything is known.
async fn follow(etcd: Etcd, inner: Arc<Inner>, mut revision: i64, shutdown: CancellationToken) {
    loop {
        let problem = tokio::select! {
            () = shutdown.cancelled() => return,
            problem = watch(&etcd, &inner, &mut revision) => problem,
        };
        let problem = match problem {
            StoreError::Unavailable(problem) => problem,
            other => other.to_string(),
        };
        if inner.note_health(StoreHealth::Failing { problem: problem.clone() }) {
            tracing::warn!(problem, "the store cannot be reached; what is in force stays, and policies cannot be changed");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// One watch, until it breaks; returns why it did.
async fn watch(etcd: &Etcd, inner: &Inner, revision: &mut i64) -> StoreError {
    match try_watch(etcd, inner, revision).await {
        Ok(()) => StoreError::Unavailable("etcd has ended the watch".to_owned()),
        Err(error) => error,
    }
}

async fn try_watch(etcd: &Etcd, inner: &Inner, revision: &mut i64) -> Result<(), StoreError> {
    let mut answers = etcd.watch(&Span::prefix(STORE), *revision + 1).await?;
    while let Some(answer) = answers.message().await.map_err(|status| StoreError::Unavailable(status.message().to_owned()))? {
        if answer.compact_revision > 0 {
            // What happened in between is gone from etcd's log; what came of it is there.
            let (view, read_at) = load(etcd).await?;
            inner.replace(view);
            *revision = read_at;
            answers = etcd.watch(&Span::prefix(STORE), *revision + 1).await?;
            continue;
        }
        if answer.canceled {
            return Err(StoreError::Unavailable(format!("etcd has ended the watch: {}", answer.cancel_reason)));
        }
        let mut rows = Vec::new();
        for pair in answer.events.iter().filter(|event| event.r#type() == EventType::Put).filter_map(|event| event.kv.as_ref()) {
            match row(pair) {
                Ok(row) => rows.extend(row),
                Err(error) => tracing::error!(%error, "a record that was committed cannot be read; it is left out"),
            }
        }
        // An answer holds whole commits, in order; followers hear of one at a time.
        for commit in rows.chunk_by(|one, next| one.revision == next.revision) {
            inner.absorb(commit);
        }
        if inner.note_health(StoreHealth::Ok) {
            tracing::info!("the store can be reached again");
        }
        *revision = answer.header.map_or(*revision, |header| header.revision.max(*revision));
    }
    Ok(())
}

impl From<EtcdError> for StoreError {
    fn from(error: EtcdError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_found_again_by_its_key_whatever_is_in_its_name() {
        for name in ["demo", "a/b", "ä b"] {
            let (kind, name, author) = (Kind::Route, name.to_owned(), "ann".to_owned());
            let record = Record { kind, name, revision: 0x1f, author, at_unix_ms: 7, body: Some(bytes::Bytes::from_static(b"x")) };
            let value = encoding::encode(&record).into();
            let pair = wire::KeyValue { key: key(&record).into_bytes().into(), value, ..wire::KeyValue::default() };
            assert_eq!(row(&pair).unwrap().as_deref(), Some(&record));
        }
    }

    #[test]
    fn what_is_no_row_is_left_alone() {
        for key in [HEAD.to_owned(), format!("{ROWS}policy"), format!("{ROWS}spaceship/x/0000000000000001"), format!("{ROWS}policy/x/y")] {
            let pair = wire::KeyValue { key: key.into_bytes().into(), ..wire::KeyValue::default() };
            assert!(row(&pair).unwrap().is_none());
        }
    }
}
