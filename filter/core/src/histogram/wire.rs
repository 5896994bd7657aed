//! Histograms as load reports carry them.

use core::cell::Cell;

use headgate_protos::v1;
use thiserror::Error;

use super::{BUCKETS, Histogram, PAGE_LEN};

/// Why a histogram from the wire was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HistogramError {
    /// The lists of indices and counts differ in length.
    #[error("histogram: {indices} indices with {counts} counts")]
    Lengths {
        /// Indices.
        indices: usize,
        /// Counts.
        counts: usize,
    },
    /// An index beyond the last bucket.
    #[error("histogram: index {got} is outside 0..={max}", max = BUCKETS - 1)]
    IndexOutOfRange {
        /// The index.
        got: u64,
    },
    /// An index that does not exceed the one before it.
    #[error("histogram: index {got} is repeated")]
    NotAscending {
        /// The index.
        got: u32,
    },
    /// A bucket without samples, which has no place on the wire.
    #[error("histogram: bucket {index} is empty")]
    EmptyBucket {
        /// The bucket.
        index: u32,
    },
    /// More samples than 64 bits can count.
    #[error("histogram: the counts overflow")]
    Overflow,
    /// A number of more than 64 bits.
    #[error("histogram: number {position} of a list has more than 64 bits")]
    NoNumber {
        /// Its position, from 0.
        position: usize,
    },
}

impl Histogram {
    /// The form that goes over the wire: occupied buckets only, indices as differences.
    pub fn to_wire(&self) -> v1::Histogram {
        let mut previous = 0_u32;
        let deltas = self.occupied().map(|(page, slot, _)| {
            let index = (page * PAGE_LEN + slot) as u32;
            index.saturating_sub(core::mem::replace(&mut previous, index))
        });
        v1::Histogram::new(deltas, self.occupied().map(|(_, _, count)| count), self.sum)
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// [`HistogramError`] when the lists differ in length, an index repeats or lies beyond [`BUCKETS`], a bucket is empty or the
    /// counts overflow. Indices ascend strictly, so a message of any size is refused after at most [`BUCKETS`] entries.
    pub fn from_wire(wire: &v1::Histogram) -> Result<Self, HistogramError> {
        let mut histogram = Self::new();
        read(wire, |index, count| histogram.add(index / PAGE_LEN, index % PAGE_LEN, count))?;
        histogram.sum = wire.sum();
        Ok(histogram)
    }

    /// Samples that came between two wire forms of one cumulative histogram: those of `wire` since `older`.
    ///
    /// As [`diff`](Self::diff) of what both are read as, and all of `wire` when there is no older one that can be read. What did not
    /// change costs a comparison of bytes, and memory is taken for buckets that grew only.
    ///
    /// # Errors
    /// As [`from_wire`](Self::from_wire), of `wire`.
    pub fn between(older: Option<&v1::Histogram>, wire: &v1::Histogram) -> Result<Self, HistogramError> {
        let Some(older) = older else { return Self::from_wire(wire) };
        let mut newer = Self::new();
        if older == wire {
            return Ok(newer);
        }
        let mut before = Cursor::new(older);
        read(wire, |index, count| {
            let grown = count.saturating_sub(before.count_at(index));
            if grown > 0 {
                newer.add(index / PAGE_LEN, index % PAGE_LEN, grown);
            }
        })?;
        if read(older, |_, _| {}).is_err() {
            return Self::from_wire(wire);
        }
        newer.sum = wire.sum().saturating_sub(older.sum());
        Ok(newer)
    }
}

/// Calls `each` with index and count of every bucket of a wire form, ascending, until something is wrong with it.
fn read(wire: &v1::Histogram, mut each: impl FnMut(usize, u64)) -> Result<(), HistogramError> {
    let (indices, counts) = wire.lens();
    if indices != counts {
        return Err(HistogramError::Lengths { indices, counts });
    }
    let (mut total, mut position) = (0_u64, 0);
    let mut previous: Option<u32> = None;
    for (delta, count) in wire.buckets() {
        let index = next_index(previous, delta)?;
        if count == 0 {
            return Err(HistogramError::EmptyBucket { index });
        }
        total = total.checked_add(count).ok_or(HistogramError::Overflow)?;
        each(index as usize, count);
        previous = Some(index);
        position += 1;
    }
    if position < indices { Err(HistogramError::NoNumber { position }) } else { Ok(()) }
}

fn next_index(previous: Option<u32>, delta: u64) -> Result<u32, HistogramError> {
    let index = match previous {
        None => delta,
        Some(previous) if delta == 0 => return Err(HistogramError::NotAscending { got: previous }),
        Some(previous) => u64::from(previous).saturating_add(delta),
    };
    u32::try_from(index).ok().filter(|index| *index < BUCKETS).ok_or(HistogramError::IndexOutOfRange { got: index })
}

/// Counts of a wire form for indices that ascend.
struct Cursor<B> {
    buckets: B,
    index: u64,
    count: u64,
}

impl Cursor<()> {
    fn new(wire: &v1::Histogram) -> Cursor<impl Iterator<Item = (u64, u64)>> {
        Cursor { buckets: wire.buckets(), index: 0, count: 0 }
    }
}

impl<B: Iterator<Item = (u64, u64)>> Cursor<B> {
    fn count_at(&mut self, index: usize) -> u64 {
        // Before the first bucket no count is above 0.
        while self.index < index as u64 || self.count == 0 {
            let Some((delta, count)) = self.buckets.next() else { return 0 };
            (self.index, self.count) = (self.index.saturating_add(delta), count);
        }
        if self.index == index as u64 { self.count } else { 0 }
    }
}

/// The wire form of a histogram that only grows, made anew when samples have come since it was asked for last.
#[derive(Default)]
pub(crate) struct Told(Cell<Option<(u64, v1::Histogram)>>);

impl Told {
    /// The wire form of `samples`, always the same histogram; `None` of one without samples.
    pub(crate) fn of(&self, samples: &Histogram) -> Option<v1::Histogram> {
        let newest = samples.count();
        let told = self.0.take().filter(|(count, _)| *count == newest);
        let (_, wire) = told.or_else(|| (newest > 0).then(|| (newest, samples.to_wire())))?;
        self.0.set(Some((newest, wire.clone())));
        Some(wire)
    }
}

impl core::fmt::Debug for Told {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Told").finish_non_exhaustive()
    }
}
