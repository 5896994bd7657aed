//! What the leading VM publishes to the other VMs of its proxy through shared data.
//!
//! Policies and limits are two records, since limits change ten times a second and policies hardly ever. Each is sealed with a
//! checksum, because any plugin of the proxy can write to shared data.

use alloc::vec::Vec;

use headgate_protos::v1;
use prost::Message;

use super::MAX_RESOURCES;
use crate::record::{self, Reader};

const POLICIES: u32 = u32::from_le_bytes(*b"HGP1");
const LIMITS: u32 = u32::from_le_bytes(*b"HGM1");

/// The policies in force.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PolicySnapshot {
    /// Grows with every change; a VM that has seen it need not read on.
    pub revision: u64,
    /// The policies, at most [`MAX_RESOURCES`].
    pub policies: Vec<v1::Policy>,
}

/// The limits in force.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LimitsSnapshot {
    /// Grows with every change; a VM that has seen it need not read on.
    pub revision: u64,
    /// The limits, at most [`MAX_RESOURCES`].
    pub limits: Vec<v1::Limits>,
}

impl PolicySnapshot {
    /// The bytes for shared data; entries beyond [`MAX_RESOURCES`] are left out.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self { revision, policies } = self;
        encode(POLICIES, *revision, policies)
    }

    /// Reads the bytes; `None` when they are damaged or no such snapshot.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (revision, policies) = decode(POLICIES, bytes)?;
        Some(Self { revision, policies })
    }
}

impl LimitsSnapshot {
    /// The bytes for shared data; entries beyond [`MAX_RESOURCES`] are left out.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self { revision, limits } = self;
        encode(LIMITS, *revision, limits)
    }

    /// Reads the bytes; `None` when they are damaged or no such snapshot.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (revision, limits) = decode(LIMITS, bytes)?;
        Some(Self { revision, limits })
    }
}

fn encode<T: Message>(magic: u32, revision: u64, entries: &[T]) -> Vec<u8> {
    let mut content = Vec::new();
    content.extend_from_slice(&revision.to_le_bytes());
    for entry in entries.iter().take(MAX_RESOURCES) {
        let bytes = entry.encode_to_vec();
        // A message cannot exceed the 4 MiB that came over the wire; one that did would end the list for its reader.
        content.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        content.extend_from_slice(&bytes);
    }
    record::seal(magic, &content)
}

fn decode<T: Message + Default>(magic: u32, bytes: &[u8]) -> Option<(u64, Vec<T>)> {
    let mut reader = Reader::new(record::open(magic, bytes)?);
    let revision = reader.u64()?;
    let mut entries = Vec::new();
    while !reader.is_empty() {
        if entries.len() >= MAX_RESOURCES {
            return None;
        }
        let len = usize::try_from(reader.u32()?).ok()?;
        entries.push(T::decode(reader.bytes(len)?).ok()?);
    }
    Some((revision, entries))
}
