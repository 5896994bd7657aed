//! API keys that were seen lately, so that the steady state hashes none with SHA-256.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::hash::hash;
use crate::policy::TenantId;
use crate::words::same;

/// Sets of known keys; each holds [`WAYS`].
const KNOWN_SETS: usize = 128;
/// Sets of keys that belong to nobody. Few, since a client can invent any number of them.
const STRANGER_SETS: usize = 16;
const WAYS: usize = 2;
/// Longest key that is remembered, in bytes.
const MAX_REMEMBERED_BYTES: usize = 512;

#[derive(Debug, Clone, Default)]
struct Entry {
    key: Box<[u8]>,
    tenant: Option<TenantId>,
}

type Set = [Option<Entry>; WAYS];

/// A bounded memory of key → tenant: 256 known keys and 32 that belong to nobody, each of at most 512 bytes.
///
/// Both tables are set-associative with the newest entry first, so one table cannot push entries out of the other: a flood of
/// invented keys costs a hash each and displaces no tenant.
#[derive(Debug, Clone)]
pub struct KeyCache {
    seed: u64,
    known: Vec<Set>,
    strangers: Vec<Set>,
}

impl KeyCache {
    /// An empty cache. The seed decides which keys share a set, so that nobody outside can choose keys that do.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, known: Vec::new(), strangers: Vec::new() }
    }

    /// Forgets every key; needed when the tenants change.
    pub fn clear(&mut self) {
        self.known.clear();
        self.strangers.clear();
    }

    /// The tenant of `key`, `Some(None)` for nobody's key, `None` when it is not remembered.
    #[must_use]
    #[inline]
    pub fn get(&self, key: &[u8]) -> Option<Option<TenantId>> {
        let hash = hash(self.seed, key) as usize;
        for set in [self.known.get(hash % KNOWN_SETS), self.strangers.get(hash % STRANGER_SETS)] {
            for entry in set.into_iter().flatten().flatten() {
                if same(&entry.key, key) {
                    return Some(entry.tenant);
                }
            }
        }
        None
    }

    /// Remembers whose `key` is.
    pub fn insert(&mut self, key: &[u8], tenant: Option<TenantId>) {
        if key.len() > MAX_REMEMBERED_BYTES {
            return;
        }
        let hash = hash(self.seed, key);
        let (sets, count) = match tenant {
            Some(_) => (&mut self.known, KNOWN_SETS),
            None => (&mut self.strangers, STRANGER_SETS),
        };
        sets.resize_with(count, Set::default);
        if let Some(set) = sets.get_mut(hash as usize % count) {
            set.rotate_right(1);
            if let Some(newest) = set.first_mut() {
                *newest = Some(Entry { key: key.into(), tenant });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn a_flood_of_invented_keys_displaces_no_tenant_and_does_not_grow() {
        let mut cache = KeyCache::new(3);
        cache.insert(b"acme-key", Some(TenantId::new(4)));
        for number in 0..100_000 {
            let key = format!("invented-{number}");
            assert_eq!(cache.get(key.as_bytes()), None);
            cache.insert(key.as_bytes(), None);
        }
        assert_eq!(cache.get(b"acme-key"), Some(Some(TenantId::new(4))));
        assert_eq!(cache.strangers.iter().flatten().flatten().count(), STRANGER_SETS * WAYS);
        assert_eq!(cache.get(b"invented-99999"), Some(None), "the newest stranger is remembered");
    }

    #[test]
    fn a_huge_key_is_not_kept() {
        let mut cache = KeyCache::new(3);
        cache.insert(&[b'k'; 513], None);
        assert_eq!(cache.get(&[b'k'; 513]), None);
    }

    #[test]
    fn keys_of_a_former_policy_are_forgotten() {
        let mut cache = KeyCache::new(3);
        cache.insert(b"acme-key", Some(TenantId::new(4)));
        cache.clear();
        assert_eq!(cache.get(b"acme-key"), None);
    }
}
