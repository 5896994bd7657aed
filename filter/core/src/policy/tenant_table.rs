//! Finds the tenant of a verified identity in a time that does not grow with the number of tenants.

use alloc::string::String;
use alloc::vec::Vec;

use super::TenantId;
use crate::hash::hash;

/// A place that nothing is in. No policy has so many identities.
const NOWHERE: Place = Place { hash: 0, position: u32::MAX };

/// Texts of several kinds, each with its tenant.
///
/// Found by open addressing with linear probing, at most half full. What is looked up has been verified and what it is compared with is an
/// operator's, so the hash needs no secret: no client can lengthen a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TenantTable {
    entries: Vec<Entry>,
    /// As many as a power of two.
    places: Vec<Place>,
}

/// Where an entry stands. Its hash is beside it, so that a run is walked without a look at the texts of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    hash: u32,
    /// In `entries`.
    position: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    kind: usize,
    text: String,
    tenant: TenantId,
}

impl TenantTable {
    /// Adds an identity, which can be found once [`TenantTable::index`] was called.
    pub(super) fn push(&mut self, kind: usize, text: &str, tenant: TenantId) {
        self.entries.push(Entry { kind, text: String::from(text), tenant });
    }

    /// Makes every identity one that can be found. The order in which they came leaves no trace.
    pub(super) fn index(&mut self) {
        self.entries.sort_unstable();
        let size = if self.entries.is_empty() { 0 } else { (self.entries.len() * 2).next_power_of_two() };
        self.places = alloc::vec![NOWHERE; size];
        for (position, entry) in self.entries.iter().enumerate() {
            let hash = hash(entry.kind as u64, entry.text.as_bytes());
            let mut at = hash as usize;
            loop {
                at &= size - 1;
                match self.places.get_mut(at) {
                    Some(place) if *place == NOWHERE => break *place = Place { hash, position: position as u32 },
                    _ => at += 1,
                }
            }
        }
    }

    /// Whether there is no identity.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The tenant of an identity.
    pub(crate) fn find(&self, kind: usize, text: &[u8]) -> Option<TenantId> {
        let mask = self.places.len().checked_sub(1)?;
        let hash = hash(kind as u64, text);
        let mut at = hash as usize & mask;
        loop {
            let place = *self.places.get(at)?;
            if place == NOWHERE {
                return None;
            }
            if place.hash == hash
                && let Some(entry) = self.entries.get(place.position as usize)
                && entry.kind == kind
                && entry.text.as_bytes() == text
            {
                return Some(entry.tenant);
            }
            at = (at + 1) & mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn every_identity_is_found_by_its_kind_and_no_other_text_is() {
        for count in [0, 1, 2, 3, 1000] {
            let mut table = TenantTable::default();
            for number in 0..count {
                table.push(number % 3, &format!("spiffe://a/{number}"), TenantId::new(number));
            }
            table.index();
            assert_eq!(table.is_empty(), count == 0);
            for number in 0..count {
                let text = format!("spiffe://a/{number}");
                assert_eq!(table.find(number % 3, text.as_bytes()), Some(TenantId::new(number)), "{text} of {count}");
                assert_eq!(table.find((number + 1) % 3, text.as_bytes()), None);
            }
            for stranger in [&b""[..], b"spiffe://a/", b"spiffe://a/1000", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff"] {
                assert_eq!(table.find(0, stranger), None);
            }
        }
    }
}
