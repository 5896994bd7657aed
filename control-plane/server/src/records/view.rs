//! Everything that is stored, in memory: what is in force, and what was.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{HISTORY_DEPTH, Kind, MAX_CHANGES, MAX_ROWS, MAX_TOTAL_BYTES, NOBODY_KNOWN, Record};

/// The stored records at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    revision: u64,
    // Of every name its revisions, the newest last; never empty.
    kinds: BTreeMap<Kind, BTreeMap<String, Vec<Arc<Record>>>>,
    n_rows: usize,
    n_bytes: usize,
}

impl View {
    /// Of rows in any order; `revision` is that of the newest commit, whose rows may have left the history.
    pub(super) fn of(revision: u64, mut rows: Vec<Arc<Record>>) -> Self {
        rows.sort_by_key(|row| row.revision);
        let mut view = Self::default();
        rows.into_iter().for_each(|row| view.push(row));
        view.revision = view.revision.max(revision);
        view
    }

    /// Number of the newest commit; 0 when there was none.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The record of this name that is in force.
    pub fn get(&self, kind: Kind, name: &str) -> Option<&Arc<Record>> {
        self.history(kind, name).last().filter(|record| record.body.is_some())
    }

    /// The records of a kind that are in force, by name.
    pub fn live(&self, kind: Kind) -> impl Iterator<Item = &Arc<Record>> {
        let names = self.kinds.get(&kind).into_iter().flat_map(BTreeMap::values);
        names.filter_map(|history| history.last()).filter(|record| record.body.is_some())
    }

    /// What is known of a name, deletions included, the oldest first; the last one is in force unless it is a deletion.
    pub fn history(&self, kind: Kind, name: &str) -> &[Arc<Record>] {
        self.kinds.get(&kind).and_then(|names| names.get(name)).map_or(&[], Vec::as_slice)
    }

    pub(super) fn all_live(&self) -> impl Iterator<Item = &Arc<Record>> {
        Kind::ALL.into_iter().flat_map(|kind| self.live(kind))
    }

    /// What a follower of `self` must hear of to be one of `newer`: of each name the newest revision, where it is another.
    pub(super) fn changes_to(&self, newer: &Self) -> Vec<Arc<Record>> {
        let is_news = |record: &&Arc<Record>| self.history(record.kind, &record.name).last() != Some(record);
        let mut changes: Vec<Arc<Record>> = newer.all_live().filter(is_news).cloned().collect();
        for gone in self.all_live().filter(|record| newer.get(record.kind, &record.name).is_none()) {
            let deletion = newer.history(gone.kind, &gone.name).last().cloned();
            // Its deletion may have left the history since.
            let (revision, author, body) = (newer.revision, NOBODY_KNOWN.to_owned(), None);
            changes.push(deletion.unwrap_or_else(|| Arc::new(Record { revision, author, body, ..Record::clone(gone) })));
        }
        changes
    }

    /// Adds rows in the order of their revisions, and returns what leaves the history for them: at most [`MAX_CHANGES`], the
    /// others leave with the next commit.
    pub(super) fn add(&mut self, rows: &[Arc<Record>]) -> Vec<Arc<Record>> {
        let mut dropped = Vec::new();
        for row in rows {
            self.push(row.clone());
            let too_deep = self.kinds.get(&row.kind).and_then(|names| names.get(&row.name)).filter(|rows| rows.len() > HISTORY_DEPTH);
            dropped.extend(too_deep.and_then(|rows| rows.first()).cloned());
        }
        dropped.iter().for_each(|row| self.remove(row));
        if self.is_over_full() {
            let mut spent: Vec<Arc<Record>> = self.spent().cloned().collect();
            spent.sort_by_key(|row| row.revision);
            for row in spent.into_iter().take(MAX_CHANGES.saturating_sub(dropped.len())) {
                if !self.is_over_full() {
                    break;
                }
                self.remove(&row);
                dropped.push(row);
            }
        }
        dropped
    }

    /// Whether there is more than may be kept.
    pub(super) fn is_over_full(&self) -> bool {
        self.n_rows > MAX_ROWS || self.n_bytes > MAX_TOTAL_BYTES
    }

    /// What is not in force: superseded revisions, and deletions.
    fn spent(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.kinds.values().flat_map(BTreeMap::values).flat_map(|history| {
            let n_live = usize::from(history.last().is_some_and(|record| record.body.is_some()));
            history.iter().take(history.len() - n_live)
        })
    }

    fn push(&mut self, row: Arc<Record>) {
        self.revision = self.revision.max(row.revision);
        self.n_rows += 1;
        self.n_bytes += bytes(&row);
        self.kinds.entry(row.kind).or_default().entry(row.name.clone()).or_default().push(row);
    }

    fn remove(&mut self, row: &Arc<Record>) {
        let Some(names) = self.kinds.get_mut(&row.kind) else { return };
        let Some(history) = names.get_mut(&row.name) else { return };
        let Some(at) = history.iter().position(|other| other.revision == row.revision) else { return };
        history.remove(at);
        if history.is_empty() {
            names.remove(&row.name);
        }
        self.n_rows -= 1;
        self.n_bytes -= bytes(row);
    }
}

fn bytes(row: &Record) -> usize {
    row.body.as_ref().map_or(0, bytes::Bytes::len)
}
