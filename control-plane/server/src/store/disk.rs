//! The database file: one table of policies, one of facts about the file itself.

use std::fs::{self, File};
use std::path::Path;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::{StoreError, from_record, record};
use crate::fleet::StoredPolicy;

/// Policies by name.
const POLICIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("policies");
/// Facts about the file.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Key of the schema in [`META`].
const SCHEMA_KEY: &str = "schema";
/// Schema that this version writes and reads.
const SCHEMA: u64 = 1;
/// Name of the file in the data directory.
const FILE: &str = "policies.redb";

/// The open database. No other process can open it meanwhile.
pub(super) struct Disk {
    database: Database,
}

impl Disk {
    pub(super) fn open(directory: &Path) -> Result<Self, StoreError> {
        let in_directory = |source| StoreError::Directory { path: directory.display().to_string(), source };
        fs::create_dir_all(directory).map_err(in_directory)?;
        let database = Database::create(directory.join(FILE)).map_err(redb::Error::from)?;
        // The entry of a new file must survive a power cut as well as its content.
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(in_directory)?;
        let disk = Self { database };
        disk.check_schema()?;
        Ok(disk)
    }

    /// Every stored policy, by name.
    pub(super) fn load(&self) -> Result<Vec<StoredPolicy>, StoreError> {
        let transaction = self.database.begin_read().map_err(redb::Error::from)?;
        let table = transaction.open_table(POLICIES).map_err(redb::Error::from)?;
        let mut policies = Vec::new();
        for row in table.iter().map_err(redb::Error::from)? {
            let (name, bytes) = row.map_err(redb::Error::from)?;
            policies.push(from_record(name.value(), bytes.value())?);
        }
        Ok(policies)
    }

    /// Stores a policy under its name. When it returns, the policy is on disk.
    pub(super) fn put(&self, stored: &StoredPolicy) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.open_table(POLICIES)?.insert(stored.policy.name.as_str(), record(stored).as_slice())?;
            Ok(())
        })
    }

    /// Removes a policy. When it returns, the removal is on disk.
    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.open_table(POLICIES)?.remove(name)?;
            Ok(())
        })
    }

    fn check_schema(&self) -> Result<(), StoreError> {
        let mut found = SCHEMA;
        self.write(|transaction| {
            transaction.open_table(POLICIES)?;
            let mut meta = transaction.open_table(META)?;
            let stored = meta.get(SCHEMA_KEY)?.map(|schema| schema.value());
            match stored {
                Some(schema) => found = schema,
                None => drop(meta.insert(SCHEMA_KEY, SCHEMA)?),
            }
            Ok(())
        })?;
        if found == SCHEMA { Ok(()) } else { Err(StoreError::Schema { got: found, expected: SCHEMA }) }
    }

    /// Does `change` and commits it. When either fails, nothing has changed.
    fn write(&self, change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>) -> Result<(), StoreError> {
        let mut transaction = self.database.begin_write().map_err(redb::Error::from)?;
        transaction.set_durability(Durability::Immediate).map_err(redb::Error::from)?;
        change(&transaction)?;
        transaction.commit().map_err(redb::Error::from)?;
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn overwrite_schema(&self, schema: u64) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.open_table(META)?.insert(SCHEMA_KEY, schema)?;
            Ok(())
        })
    }
}
