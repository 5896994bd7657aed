//! Finds the tenant of a verified identity in a time that does not grow with the number of tenants.

use alloc::string::String;
use alloc::vec::Vec;

use super::TenantId;
use crate::hash::hash;
use crate::words::same;

/// A place that nothing is in.
const NOWHERE: Place = Place { hash: 0, start: u32::MAX, len: 0, tenant: TenantId(0), kind: 0 };

/// Texts of several kinds, of which there are a few, each with its tenant.
///
/// Found by open addressing with linear probing, at most half full. What is looked up has been verified and what it is compared with is an
/// operator's, so the hash needs no secret: no client can lengthen a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TenantTable {
    /// Identities that cannot be found yet.
    pushed: Vec<(u16, String, TenantId)>,
    /// All texts, one behind the other: a thousand of them in strings of their own would be a thousand more places to fetch from memory.
    texts: Vec<u8>,
    /// As many as a power of two.
    places: Vec<Place>,
}

/// An identity. Its hash is beside it, so that a run is walked without a look at the texts of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    hash: u32,
    /// Where its text is among all.
    start: u32,
    len: u32,
    tenant: TenantId,
    kind: u16,
}

impl TenantTable {
    /// Adds an identity, which can be found once [`TenantTable::index`] was called.
    pub(super) fn push(&mut self, kind: usize, text: &str, tenant: TenantId) {
        self.pushed.push((kind as u16, String::from(text), tenant));
    }

    /// Makes every identity one that can be found. The order in which they came leaves no trace.
    pub(super) fn index(&mut self) {
        let mut identities = core::mem::take(&mut self.pushed);
        identities.sort_unstable();
        let size = if identities.is_empty() { 0 } else { (identities.len() * 2).next_power_of_two() };
        self.texts = Vec::with_capacity(identities.iter().map(|(_, text, _)| text.len()).sum());
        self.places = alloc::vec![NOWHERE; size];
        for (kind, text, tenant) in identities {
            let hash = hash(u64::from(kind), text.as_bytes());
            let place = Place { hash, start: self.texts.len() as u32, len: text.len() as u32, tenant, kind };
            self.texts.extend_from_slice(text.as_bytes());
            let mut at = hash as usize;
            loop {
                at &= size - 1;
                match self.places.get_mut(at) {
                    Some(free) if *free == NOWHERE => break *free = place,
                    _ => at += 1,
                }
            }
        }
    }

    /// Whether there is no identity that can be found.
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The tenant of an identity.
    pub(crate) fn find(&self, kind: usize, text: &[u8]) -> Option<TenantId> {
        let mask = self.places.len().checked_sub(1)?;
        let hash = hash(kind as u64, text);
        let mut at = hash as usize & mask;
        loop {
            let place = self.places.get(at)?;
            if place.start == NOWHERE.start {
                return None;
            }
            if place.hash == hash && usize::from(place.kind) == kind && self.text(place).is_some_and(|known| same(known, text)) {
                return Some(place.tenant);
            }
            at = (at + 1) & mask;
        }
    }

    fn text(&self, place: &Place) -> Option<&[u8]> {
        let start = place.start as usize;
        self.texts.get(start..start.checked_add(place.len as usize)?)
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
