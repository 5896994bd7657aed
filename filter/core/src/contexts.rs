//! State by context id, for what a host calls back about many times: found in a few instructions, kept in memory that is used again.

use alloc::vec::Vec;

#[cfg(test)]
mod tests;

/// Places of a new index.
const FIRST_PLACES: usize = 64;
/// A place of the index that nothing is in. No table has so many slots.
const NOWHERE: u32 = u32::MAX;

/// Where the state of one context is.
#[derive(Debug, Clone, Copy)]
struct Place {
    context: u32,
    slot: u32,
}

const EMPTY: Place = Place { context: 0, slot: NOWHERE };

/// States of type `T` by context id.
///
/// Slots are given out last in, first out, so that a proxy with few requests at a time stays in the same few cache lines, and a state is
/// made and changed in its slot, never moved. The index is open addressing with linear probing, at most half full; deletion moves the
/// rest of the run up.
///
/// Source of the deletion: Knuth, The Art of Computer Programming, volume 3, section 6.4, algorithm R.
#[derive(Debug)]
pub struct Contexts<T> {
    slots: Vec<T>,
    free: Vec<u32>,
    index: Vec<Place>,
    len: usize,
}

impl<T: Default> Contexts<T> {
    /// No states; allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), index: Vec::new(), len: 0 }
    }

    /// Contexts that have a state.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether no context has a state.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A free slot, to be filled and then given to a context with [`Contexts::keep`]; the same one until then. What the context before
    /// left in it is still there. `None` never happens: there is always a free slot or one is made.
    pub fn vacant(&mut self) -> Option<&mut T> {
        if self.free.is_empty() {
            self.free.push(u32::try_from(self.slots.len()).ok()?);
            self.slots.push(T::default());
        }
        let slot = *self.free.last()?;
        self.slots.get_mut(slot as usize)
    }

    /// Gives the slot of [`Contexts::vacant`] to `context`. A state that it already had is lost.
    pub fn keep(&mut self, context: u32) {
        if self.len.saturating_mul(2) >= self.index.len() {
            self.grow();
        }
        let Some(slot) = self.free.pop() else { return };
        let Some(place) = self.place_of(context).and_then(|at| self.index.get_mut(at)) else { return };
        let former = core::mem::replace(place, Place { context, slot }).slot;
        if former == NOWHERE {
            self.len += 1;
        } else {
            self.free.push(former);
        }
    }

    /// The state of `context`.
    pub fn get_mut(&mut self, context: u32) -> Option<&mut T> {
        let place = self.place_of(context).and_then(|at| self.index.get(at))?;
        // The slot of an empty place is beyond every table.
        self.slots.get_mut(place.slot as usize)
    }

    /// Frees the slot of `context`. What is in it stays there for the caller to read and clear.
    pub fn remove(&mut self, context: u32) -> Option<&mut T> {
        let at = self.place_of(context)?;
        let place = *self.index.get(at)?;
        if place.slot == NOWHERE {
            return None;
        }
        self.close_gap(at);
        self.len = self.len.saturating_sub(1);
        self.free.push(place.slot);
        self.slots.get_mut(place.slot as usize)
    }

    /// Where `context` is, or where it would be put; `None` while there is no index.
    fn place_of(&self, context: u32) -> Option<usize> {
        let mask = self.index.len().checked_sub(1)?;
        let mut at = home(context, mask);
        loop {
            let place = self.index.get(at)?;
            if place.slot == NOWHERE || place.context == context {
                return Some(at);
            }
            at = (at + 1) & mask;
        }
    }

    /// Empties the place `gap`, and moves up what would no longer be found behind it.
    fn close_gap(&mut self, mut gap: usize) {
        let Some(mask) = self.index.len().checked_sub(1) else { return };
        let mut at = gap;
        loop {
            at = (at + 1) & mask;
            let Some(place) = self.index.get(at).copied().filter(|place| place.slot != NOWHERE) else { break };
            // Of two places in a run the one farther from this one's home is behind the other.
            let home = home(place.context, mask);
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(gap) & mask {
                self.set(gap, place);
                gap = at;
            }
        }
        self.set(gap, EMPTY);
    }

    fn set(&mut self, at: usize, place: Place) {
        if let Some(there) = self.index.get_mut(at) {
            *there = place;
        }
    }

    #[cold]
    fn grow(&mut self) {
        let places = (self.index.len() * 2).max(FIRST_PLACES);
        let former = core::mem::replace(&mut self.index, alloc::vec![EMPTY; places]);
        for place in former.into_iter().filter(|place| place.slot != NOWHERE) {
            if let Some(at) = self.place_of(place.context) {
                self.set(at, place);
            }
        }
    }
}

impl<T: Default> Default for Contexts<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// The place from which on `context` is looked for: the upper bits of its product with 2^32 / φ, which spreads ids that count up (Knuth,
/// section 6.4). `mask` is 2^n − 1, n from 1 to 32.
fn home(context: u32, mask: usize) -> usize {
    (context.wrapping_mul(0x9e37_79b1) >> (mask as u32).leading_zeros()) as usize
}
