//! The embedded backend: one file in the data directory, a transactional database. After a kill at any moment an acknowledged
//! commit is there and an unacknowledged one is there whole or not at all.

use std::fs::{self, File};
use std::path::Path;

use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::{Backend, Batch, Durable, Kind, NOBODY_KNOWN, Record, StoreError, View, encoding};

/// Rows by kind, name and revision.
const ROWS: TableDefinition<'_, (&str, &str, u64), &[u8]> = TableDefinition::new("records");
/// Facts about the file.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Key of the schema in [`META`].
const SCHEMA_KEY: &str = "schema";
/// Key of the newest commit's revision in [`META`].
const REVISION_KEY: &str = "revision";
/// Schema that this version writes.
const SCHEMA: u64 = 2;
/// Schema 1: policies by name, each a time in eight bytes, big end first, and the message.
const POLICIES_OF_SCHEMA_1: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("policies");
/// Name of the file in the data directory; it held policies alone at first.
pub(super) const FILE: &str = "policies.redb";

/// The open database. No other process can open it meanwhile.
pub(super) struct Disk {
    database: Database,
}

// === impl Disk ===

impl Disk {
    /// Opens the file, brings it to today's schema, and reads it.
    pub(super) fn open(directory: &Path) -> Result<(Self, View), StoreError> {
        let in_directory = |source| StoreError::Directory { path: directory.display().to_string(), source };
        fs::create_dir_all(directory).map_err(in_directory)?;
        let database = Database::create(directory.join(FILE)).map_err(redb::Error::from)?;
        // The entry of a new file must survive a power cut as well as its content.
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(in_directory)?;
        let disk = Self { database };
        disk.write(migrate)??;
        let view = disk.load()?;
        Ok((disk, view))
    }

    fn load(&self) -> Result<View, StoreError> {
        let transaction = self.database.begin_read().map_err(redb::Error::from)?;
        let revision = transaction.open_table(META).map_err(redb::Error::from)?.get(REVISION_KEY).map_err(redb::Error::from)?;
        let table = transaction.open_table(ROWS).map_err(redb::Error::from)?;
        let mut rows = Vec::new();
        for row in table.iter().map_err(redb::Error::from)? {
            let (key, bytes) = row.map_err(redb::Error::from)?;
            let (kind, name, revision) = key.value();
            // A kind that this version does not know stays in the file for the one that does.
            if let Some(kind) = Kind::parse(kind) {
                rows.push(encoding::decode(kind, name, revision, bytes.value())?);
            }
        }
        Ok(View::of(revision.map_or(0, |revision| revision.value()), rows))
    }

    /// Does `change` and commits it. When either fails, nothing has changed.
    fn write<T>(&self, change: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let mut transaction = self.database.begin_write().map_err(redb::Error::from)?;
        transaction.set_durability(Durability::Immediate).map_err(redb::Error::from)?;
        let outcome = change(&transaction)?;
        transaction.commit().map_err(redb::Error::from)?;
        Ok(outcome)
    }
}

impl Backend for Disk {
    fn commit(&self, batch: &Batch) -> Result<Durable, StoreError> {
        self.write(|transaction| {
            let mut rows = transaction.open_table(ROWS)?;
            for record in &batch.added {
                rows.insert(key(record), encoding::encode(record).as_slice())?;
            }
            for record in &batch.dropped {
                rows.remove(key(record))?;
            }
            transaction.open_table(META)?.insert(REVISION_KEY, batch.revision)?;
            Ok(Durable::Done)
        })
    }
}

fn key(record: &Record) -> (&str, &str, u64) {
    (record.kind.as_str(), &record.name, record.revision)
}

/// Makes the tables of a new file, and those of an old one from what it has. What it cannot read it leaves as it was.
fn migrate(transaction: &WriteTransaction) -> Result<Result<(), StoreError>, redb::Error> {
    let mut meta = transaction.open_table(META)?;
    let schema = meta.get(SCHEMA_KEY)?.map(|schema| schema.value());
    let mut rows = transaction.open_table(ROWS)?;
    match schema {
        Some(SCHEMA) => return Ok(Ok(())),
        None => {}
        Some(1) => {
            let old = match read_schema_1(transaction)? {
                Ok(old) => old,
                Err(error) => return Ok(Err(error)),
            };
            meta.insert(REVISION_KEY, old.last().map_or(0, |record| record.revision))?;
            for record in old {
                rows.insert(key(&record), encoding::encode(&record).as_slice())?;
            }
            transaction.delete_table(POLICIES_OF_SCHEMA_1)?;
        }
        Some(got) => return Ok(Err(StoreError::Schema { got, expected: SCHEMA })),
    }
    meta.insert(SCHEMA_KEY, SCHEMA)?;
    Ok(Ok(()))
}

/// The policies of schema 1, which had neither authors nor an order but that of their times.
fn read_schema_1(transaction: &WriteTransaction) -> Result<Result<Vec<Record>, StoreError>, redb::Error> {
    let table = transaction.open_table(POLICIES_OF_SCHEMA_1)?;
    let mut records = Vec::new();
    for row in table.iter()? {
        let (name, bytes) = row?;
        let (kind, name) = (Kind::Policy, name.value().to_owned());
        let Some((time, body)) = bytes.value().split_first_chunk::<8>() else {
            return Ok(Err(StoreError::Unreadable { kind, name, problem: "the record is too short".to_owned() }));
        };
        let (at_unix_ms, body) = (u64::from_be_bytes(*time), Some(Bytes::copy_from_slice(body)));
        records.push(Record { kind, name, revision: 0, author: NOBODY_KNOWN.to_owned(), at_unix_ms, body });
    }
    records.sort_by_key(|record| record.at_unix_ms);
    for (revision, record) in (1..).zip(&mut records) {
        record.revision = revision;
    }
    Ok(Ok(records))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a file as the first schema did: its tables, its keys, its values.
    fn write_schema_1(directory: &Path, policies: &[(&str, &[u8])], schema: u64) {
        let database = Database::create(directory.join(FILE)).unwrap();
        let transaction = database.begin_write().unwrap();
        let mut table = transaction.open_table(POLICIES_OF_SCHEMA_1).unwrap();
        for (name, value) in policies {
            table.insert(name, *value).unwrap();
        }
        drop(table);
        transaction.open_table(META).unwrap().insert(SCHEMA_KEY, schema).unwrap();
        transaction.commit().unwrap();
    }

    #[test]
    fn a_file_of_the_first_schema_becomes_history_without_authors_and_stays_so() {
        let directory = tempfile::tempdir().unwrap();
        write_schema_1(directory.path(), &[("a", b"\0\0\0\0\0\0\0\x09late"), ("b", b"\0\0\0\0\0\0\0\x05early")], 1);
        let read = || {
            let (_, view) = Disk::open(directory.path()).unwrap();
            let rows = view.live(Kind::Policy).map(|row| (row.name.clone(), row.revision, row.at_unix_ms, row.body.clone().unwrap()));
            assert!(view.live(Kind::Policy).all(|row| row.author == NOBODY_KNOWN));
            (view.revision(), rows.collect::<Vec<_>>())
        };
        let expected = (2, vec![("a".to_owned(), 2, 9, Bytes::from_static(b"late")), ("b".to_owned(), 1, 5, Bytes::from_static(b"early"))]);
        assert_eq!(read(), expected);
        assert_eq!(read(), expected, "the second time it is a file of the second schema");
    }

    #[test]
    fn a_file_of_the_first_schema_that_cannot_be_read_is_left_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        write_schema_1(directory.path(), &[("a", b"short")], 1);
        for _ in 0..2 {
            let error = Disk::open(directory.path()).map(drop).unwrap_err();
            assert_eq!(error.to_string(), "store: policy `a`: the record is too short");
        }
    }

    #[test]
    fn a_file_of_a_newer_schema_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        write_schema_1(directory.path(), &[], 3);
        let error = Disk::open(directory.path()).map(drop).unwrap_err();
        assert_eq!(error.to_string(), "store: schema 3 is newer than 2, the newest that this version reads");
    }
}
