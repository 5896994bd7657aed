//! Sub-leases: how the workers of a proxy share the proxy's permits and rates.
//!
//! One small record in shared data holds a slot for every worker VM. On its tick a worker reads the record, calls
//! [`LeaseRecord::update`] and writes it back by compare-and-swap; between ticks it decides alone within what it holds.
//!
//! Strict: the permits held never sum above the largest total in force. A worker takes only what nobody holds; what it holds shrinks
//! only by its own hand, or when its heartbeat has lapsed. A worker without a slot or without permits admits nothing that needs one.

use alloc::vec::Vec;
use core::time::Duration;

use thiserror::Error;

use crate::aperture::Extent;
use crate::record::{self, Reader};
use crate::time::Timestamp;

mod share;
#[cfg(test)]
mod tests;

/// Workers that can share a proxy's grant: one VM for each thread of Envoy, on hosts of up to 255 of them.
pub const SLOTS: usize = 256;
/// Time without a heartbeat after which a worker counts as dead and its slot returns.
pub const SLOT_TIMEOUT: Duration = Duration::from_secs(1);
/// The whole of the proxy's rates, in the unit of [`Slot`]'s shares.
const WHOLE_SHARE: u32 = 1 << 16;

const MAGIC: u32 = u32::from_le_bytes(*b"HGS1");

/// What a worker uses and could use.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Want {
    /// Permits in use now.
    pub permits_in_use: u32,
    /// Permits that it could use now, those in use included.
    pub permits_wanted: u32,
    /// Requests per second that it could use. Not finite or negative counts as zero.
    pub rate_wanted: f64,
}

/// What the proxy as a whole may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Permits; `None`: the policy does not bound them.
    pub permits_total: Option<u32>,
}

/// What one worker may use until its next tick.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Holding {
    /// Permits, those in use included; `None`: unbounded.
    pub permits: Option<u32>,
    /// Part of the proxy's rates, `0..=1`.
    pub rate_share: f64,
    /// Part of the proxy's aperture: as long as its part of the rates is of what all workers hold, and after those of the slots before.
    pub aperture: Extent,
    /// Live workers, this one included.
    pub workers: u32,
}

/// A worker's place in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotIndex(u8);

impl SlotIndex {
    /// The index, below [`SLOTS`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Why a worker holds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LeaseError {
    /// Every slot has a live owner. The worker runs without permits until one leaves.
    #[error("lease: all {SLOTS} slots are taken")]
    Full,
    /// The slot is another worker's or nobody's: this one was silent for longer than [`SLOT_TIMEOUT`]. It claims a slot anew.
    #[error("lease: the slot is lost")]
    Lost,
    /// 0 marks a free slot and cannot own one.
    #[error("lease: owner 0 is no identity")]
    NoOwner,
}

/// One worker's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Slot {
    /// Identity of the worker; 0: free.
    owner: u64,
    heartbeat: Timestamp,
    permits_have: u32,
    permits_in_use: u32,
    permits_want: u32,
    /// Part of the rates that it holds, in 1/65536.
    share_have: u32,
    /// Rate that it wants, in thousandths of a request per second.
    rate_want_milli: u64,
}

/// The record of one policy in one proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRecord {
    /// At most [`SLOTS`]; a worker keeps its index, so free slots lie in between.
    slots: Vec<Slot>,
    /// Until then nobody takes more than it has in use: workers whose holdings a damaged record lost are still to come back.
    settled_at: Timestamp,
}

impl Default for LeaseRecord {
    fn default() -> Self {
        Self::new()
    }
}

impl LeaseRecord {
    /// A record without workers, for a proxy in which none has held a permit yet.
    #[must_use]
    pub fn new() -> Self {
        Self { slots: Vec::new(), settled_at: Timestamp::ZERO }
    }

    /// A record in place of one that could not be read. For [`SLOT_TIMEOUT`] a worker gets no more than it has in use, since others
    /// may hold permits that the damaged record knew of.
    #[must_use]
    pub fn recovered(now: Timestamp) -> Self {
        // At the end of the timeout a worker still counts as alive; after it, not.
        Self { settled_at: now + SLOT_TIMEOUT + Duration::from_nanos(1), ..Self::new() }
    }

    /// Gives `owner` a slot; one that it has already stays its own. The permits come with the first [`update`](Self::update).
    ///
    /// # Errors
    /// [`LeaseError::Full`] when [`SLOTS`] live workers have claimed before; [`LeaseError::NoOwner`] for owner 0.
    pub fn claim(&mut self, now: Timestamp, owner: u64) -> Result<SlotIndex, LeaseError> {
        if owner == 0 {
            return Err(LeaseError::NoOwner);
        }
        self.expire(now);
        let mine = self.slots.iter().position(|slot| slot.owner == owner);
        let index = mine.or_else(|| self.slots.iter().position(|slot| slot.owner == 0)).unwrap_or(self.slots.len());
        if index >= SLOTS {
            return Err(LeaseError::Full);
        }
        match self.slots.get_mut(index) {
            Some(slot) if mine.is_some() => slot.heartbeat = now,
            Some(slot) => *slot = Slot { owner, heartbeat: now, ..Slot::default() },
            None => self.slots.push(Slot { owner, heartbeat: now, ..Slot::default() }),
        }
        Ok(SlotIndex(u8::try_from(index).map_err(|_| LeaseError::Full)?))
    }

    /// One tick of one worker: frees the slots of dead workers, notes what this one wants, gives back what it holds above its target
    /// and takes what it lacks from what nobody holds.
    ///
    /// Targets are max-min fair (water-filling) over the wants of all live workers; half of what nobody wants is spread evenly, so that
    /// an idle proxy can meet a burst anywhere, half stays free for workers to come. While there are as many permits as workers, each keeps at least one; a newcomer to a busy
    /// proxy gets its own as requests of the others end.
    ///
    /// # Errors
    /// [`LeaseError::Lost`] when `slot` is not `owner`'s any more.
    pub fn update(&mut self, now: Timestamp, slot: SlotIndex, owner: u64, want: Want, grant: Grant) -> Result<Holding, LeaseError> {
        self.expire(now);
        let mine = self.slots.get_mut(slot.index()).filter(|slot| slot.owner == owner && owner != 0).ok_or(LeaseError::Lost)?;
        mine.heartbeat = now;
        mine.permits_in_use = want.permits_in_use;
        mine.permits_want = want.permits_wanted.max(want.permits_in_use);
        mine.rate_want_milli = milli(want.rate_wanted);
        let permits = grant.permits_total.map(|total| self.settle_permits(now, slot, total));
        let share = self.settle_share(slot);
        let workers = u32::try_from(self.workers()).unwrap_or(u32::MAX);
        let rate_share = f64::from(share) / f64::from(WHOLE_SHARE);
        Ok(Holding { permits, rate_share, aperture: self.aperture(slot), workers })
    }

    /// A [`claim`](Self::claim) and an [`update`](Self::update): `owner`'s slot and what it holds; `None` when there is no place for it.
    pub fn refresh(&mut self, now: Timestamp, owner: u64, want: Want, grant: Grant) -> Option<(usize, Holding)> {
        let slot = self.claim(now, owner).ok()?;
        let holding = self.update(now, slot, owner, want, grant).ok()?;
        Some((slot.index(), holding))
    }

    /// See [`Holding::aperture`].
    fn aperture(&self, index: SlotIndex) -> Extent {
        let held = |slots: &[Slot]| f64::from(slots.iter().fold(0_u32, |sum, slot| sum.saturating_add(slot.share_have)));
        let until = |end: usize| held(self.slots.get(..end).unwrap_or(&self.slots));
        let all = held(&self.slots).max(1.0);
        Extent::new(until(index.index()) / all, until(index.index() + 1) / all)
    }

    /// Gives the slot back, for a worker that ends in an orderly way. Whose slot it is not changes nothing.
    pub fn release(&mut self, slot: SlotIndex, owner: u64) {
        if let Some(slot) = self.slots.get_mut(slot.index()).filter(|slot| slot.owner == owner) {
            *slot = Slot::default();
        }
    }

    /// Live workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.slots.iter().filter(|slot| slot.owner != 0).count()
    }

    /// Permits that are held, over all workers.
    #[must_use]
    pub fn permits_held(&self) -> u64 {
        self.slots.iter().map(|slot| u64::from(slot.permits_have)).sum()
    }

    fn settle_permits(&mut self, now: Timestamp, index: SlotIndex, total: u32) -> u32 {
        let target = share::permits(self.slots.as_slice(), index.index(), total);
        let held = self.permits_held();
        let settled = now >= self.settled_at;
        let Some(slot) = self.slots.get_mut(index.index()) else { return 0 };
        let target = if settled { target } else { target.min(slot.permits_in_use) };
        let free = u32::try_from(u64::from(total).saturating_sub(held)).unwrap_or(u32::MAX);
        slot.permits_have = settle(slot.permits_have, target.max(slot.permits_in_use.min(slot.permits_have)), free);
        slot.permits_have
    }

    fn settle_share(&mut self, index: SlotIndex) -> u32 {
        let target = share::of_rate(self.slots.as_slice(), index.index(), WHOLE_SHARE);
        let held: u32 = self.slots.iter().fold(0, |sum, slot| sum.saturating_add(slot.share_have));
        let Some(slot) = self.slots.get_mut(index.index()) else { return 0 };
        slot.share_have = settle(slot.share_have, target, WHOLE_SHARE.saturating_sub(held));
        slot.share_have
    }

    fn expire(&mut self, now: Timestamp) {
        for slot in self.slots.iter_mut() {
            // A heartbeat far in the future is no heartbeat: nobody would ever free it.
            if slot.owner != 0 && (now.since(slot.heartbeat) > SLOT_TIMEOUT || slot.heartbeat.since(now) > SLOT_TIMEOUT) {
                *slot = Slot::default();
            }
        }
    }

    /// The bytes for shared data: 24, and 40 for every slot up to the last that is taken.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let taken = self.slots.iter().rposition(|slot| slot.owner != 0).map_or(0, |last| last + 1);
        let mut bytes = Vec::with_capacity(8 + taken * Slot::LEN);
        bytes.extend_from_slice(&self.settled_at.as_nanos().to_le_bytes());
        for slot in self.slots.iter().take(taken) {
            slot.encode(&mut bytes);
        }
        record::seal(MAGIC, &bytes)
    }

    /// Reads the bytes; `None` when they are not a record: then use [`LeaseRecord::recovered`].
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(record::open(MAGIC, bytes)?);
        let mut record = Self { settled_at: Timestamp::from_nanos(reader.u64()?), ..Self::new() };
        record.slots.reserve((bytes.len() / Slot::LEN).min(SLOTS));
        while !reader.is_empty() {
            if record.slots.len() >= SLOTS {
                return None;
            }
            record.slots.push(Slot::decode(&mut reader)?);
        }
        Some(record)
    }
}

/// Shrinks at once, grows by no more than what is free.
fn settle(have: u32, target: u32, free: u32) -> u32 {
    if have >= target { target } else { have.saturating_add(free.min(target - have)) }
}

/// Thousandths of a rate, rounded down; 0 for what is no rate.
fn milli(rate: f64) -> u64 {
    // The cast saturates and maps NaN to 0; the bound keeps sums of all slots within 64 bits.
    ((rate * 1000.0) as u64).min(u64::from(u32::MAX) * 1000)
}

impl Slot {
    const LEN: usize = 40;

    fn encode(&self, bytes: &mut Vec<u8>) {
        let Self { owner, heartbeat, permits_have, permits_in_use, permits_want, share_have, rate_want_milli } = self;
        bytes.extend_from_slice(&owner.to_le_bytes());
        bytes.extend_from_slice(&heartbeat.as_nanos().to_le_bytes());
        for number in [permits_have, permits_in_use, permits_want, share_have] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&rate_want_milli.to_le_bytes());
    }

    fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            owner: reader.u64()?,
            heartbeat: Timestamp::from_nanos(reader.u64()?),
            permits_have: reader.u32()?,
            permits_in_use: reader.u32()?,
            permits_want: reader.u32()?,
            share_have: reader.u32()?,
            rate_want_milli: reader.u64()?,
        })
    }
}
