//! Histograms as load reports carry them.

use alloc::vec::Vec;
use core::cell::Cell;

use headgate_protos::{Buckets, HistogramWriter, Run, v1};
use thiserror::Error;

use super::{BUCKETS, Histogram};

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
        let mut lists = HistogramWriter::with_capacity(self.buckets());
        let mut previous = 0_u32;
        self.for_each_occupied(|index, count| {
            lists.push(index.saturating_sub(core::mem::replace(&mut previous, index)), count);
        });
        lists.finish(self.sum)
    }

    /// The wire form after `before`, an earlier one with samples in the same `buckets`.
    fn counts_to_wire(&self, buckets: usize, before: &v1::Histogram) -> v1::Histogram {
        let mut counts = HistogramWriter::of_counts(buckets);
        self.for_each_occupied(|_, count| counts.push_count(count));
        counts.finish_like(before, self.sum)
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// [`HistogramError`] when the lists differ in length, an index repeats or lies beyond [`BUCKETS`], a bucket is empty or the
    /// counts overflow. Indices ascend strictly, so a message of any size is refused after at most [`BUCKETS`] entries.
    pub fn from_wire(wire: &v1::Histogram) -> Result<Self, HistogramError> {
        let mut histogram = Self::new();
        read(wire, |index, count| histogram.add_at(index, count))?;
        histogram.sum = wire.sum();
        Ok(histogram)
    }
}

/// Samples that came between two states of a cumulative histogram: few, so a list of the buckets that grew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistogramDelta {
    /// Index and growth.
    buckets: Vec<(u32, u64)>,
    count: u64,
    sum: u64,
}

impl HistogramDelta {
    /// Samples that came between two wire forms of one cumulative histogram: those of `wire` since `older`.
    ///
    /// As [`Histogram::diff`] of what both are read as, and all of `wire` when there is no older one that can be read. What did not
    /// change costs a comparison of bytes.
    ///
    /// # Errors
    /// As [`Histogram::from_wire`], of `wire`.
    pub fn between(older: Option<&v1::Histogram>, wire: &v1::Histogram) -> Result<Self, HistogramError> {
        if older == Some(wire) {
            return Ok(Self::default());
        }
        if let Some(older) = older
            && let Ok(older_buckets) = Reader::new(older)
            && let Some(grown) = Self::grown(older_buckets, Reader::new(wire)?)?
        {
            return Ok(Self { sum: wire.sum().saturating_sub(older.sum()), ..grown });
        }
        let mut all = Self::of_sum(wire.sum());
        read(wire, |index, count| all.add(index, count))?;
        Ok(all)
    }

    /// No samples yet of those that will sum up to `sum`.
    pub(super) fn of_sum(sum: u64) -> Self {
        Self { sum, ..Self::default() }
    }

    /// Samples.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Their sum, each clamped to [`MAX_VALUE`](super::MAX_VALUE).
    #[must_use]
    pub const fn sum(&self) -> u64 {
        self.sum
    }

    /// Index and growth of every bucket that grew, ascending.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.buckets.iter().copied()
    }

    /// Mean of the samples; `None` without samples.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum as f64 / self.count as f64)
    }

    /// What every bucket of `newer` has more than `older`; `None` when `older` cannot be read.
    fn grown(mut older: Reader<'_>, mut newer: Reader<'_>) -> Result<Option<Self>, HistogramError> {
        let mut grown = Self::default();
        newer.skip_common(&mut older);
        let mut before = older.next();
        while let Some((index, count)) = newer.next()? {
            while before.is_ok_and(|bucket| bucket.is_some_and(|(at, _)| at < index)) {
                before = older.next();
            }
            let had = match before {
                Ok(bucket) => bucket.filter(|(at, _)| *at == index).map_or(0, |(_, count)| count),
                Err(_) => return newer.rest().map(|()| None),
            };
            if count > had {
                grown.add(index, count - had);
            }
            // Where the two are at the same bucket, those that follow are mostly alike.
            if before == Ok(Some((index, had))) {
                newer.skip_common(&mut older);
                before = older.next();
            }
        }
        Ok(before.and_then(|_| older.rest()).ok().map(|()| grown))
    }

    pub(super) fn add(&mut self, index: u32, count: u64) {
        self.buckets.push((index, count));
        self.count = self.count.saturating_add(count);
    }
}

impl From<&Histogram> for HistogramDelta {
    fn from(histogram: &Histogram) -> Self {
        let mut all = Self::of_sum(histogram.sum);
        histogram.for_each_occupied(|index, count| all.add(index, count));
        all
    }
}

/// Calls `each` with index and count of every bucket of a wire form, ascending, until something is wrong with it.
fn read(wire: &v1::Histogram, mut each: impl FnMut(u32, u64)) -> Result<(), HistogramError> {
    let mut reader = Reader::new(wire)?;
    while let Some((index, count)) = reader.next()? {
        each(index, count);
    }
    Ok(())
}

/// Reads a wire form bucket by bucket, and checks it.
struct Reader<'a> {
    buckets: Buckets<'a>,
    /// Buckets, and how many of them have been read.
    len: usize,
    read: usize,
    previous: Option<u32>,
    total: u64,
}

impl<'a> Reader<'a> {
    fn new(wire: &'a v1::Histogram) -> Result<Self, HistogramError> {
        let (indices, counts) = wire.lens();
        if indices != counts {
            return Err(HistogramError::Lengths { indices, counts });
        }
        Ok(Self { buckets: wire.buckets(), len: indices, read: 0, previous: None, total: 0 })
    }

    /// Index and count of the next bucket.
    #[inline]
    fn next(&mut self) -> Result<Option<(u32, u64)>, HistogramError> {
        let Some((delta, count)) = self.buckets.next() else { return self.end() };
        let index = next_index(self.previous, delta)?;
        if count == 0 {
            return Err(HistogramError::EmptyBucket { index });
        }
        self.total = self.total.checked_add(count).ok_or(HistogramError::Overflow)?;
        self.previous = Some(index);
        self.read += 1;
        Ok(Some((index, count)))
    }

    /// Skips buckets that both have alike, of two that are at the same index.
    fn skip_common(&mut self, other: &mut Reader<'_>) {
        loop {
            let (mut mine, mut theirs) = (self.buckets.clone(), other.buckets.clone());
            let Run { len, index_delta, count } = mine.skip_run(&mut theirs);
            let index = self.previous.unwrap_or(0).saturating_add(index_delta);
            let totals = self.total.checked_add(count).zip(other.total.checked_add(count));
            // What is wrong is found bucket by bucket.
            let Some((total, others_total)) = totals.filter(|_| len > 0 && index < BUCKETS) else { return };
            (self.previous, other.previous) = (Some(index), Some(index));
            (self.total, other.total) = (total, others_total);
            (self.buckets, other.buckets) = (mine, theirs);
            (self.read, other.read) = (self.read + len, other.read + len);
            if len < Run::MAX_LEN {
                return;
            }
        }
    }

    /// Reads to the end.
    fn rest(&mut self) -> Result<(), HistogramError> {
        while self.next()?.is_some() {}
        Ok(())
    }

    fn end(&self) -> Result<Option<(u32, u64)>, HistogramError> {
        if self.read < self.len { Err(HistogramError::NoNumber { position: self.read }) } else { Ok(None) }
    }
}

#[inline]
fn next_index(previous: Option<u32>, delta: u64) -> Result<u32, HistogramError> {
    let index = match previous {
        None => delta,
        Some(previous) if delta == 0 => return Err(HistogramError::NotAscending { got: previous }),
        Some(previous) => u64::from(previous).saturating_add(delta),
    };
    u32::try_from(index).ok().filter(|index| *index < BUCKETS).ok_or(HistogramError::IndexOutOfRange { got: index })
}

/// The wire form of a histogram that only grows, made anew when samples have come since it was asked for last.
#[derive(Default)]
pub(crate) struct Told(Cell<Option<LastTold>>);

struct LastTold {
    count: u64,
    buckets: usize,
    wire: v1::Histogram,
}

impl Told {
    /// The wire form of `samples`, always the same histogram; `None` of one without samples.
    pub(crate) fn of(&self, samples: &Histogram) -> Option<v1::Histogram> {
        let count = samples.count();
        let last = match self.0.take() {
            Some(last) if last.count == count => last,
            last => (count > 0).then(|| LastTold::after(last, samples))?,
        };
        let wire = last.wire.clone();
        self.0.set(Some(last));
        Some(wire)
    }
}

impl LastTold {
    /// Where no bucket has come to those that were told, they are the same: none ever empties.
    fn after(before: Option<Self>, samples: &Histogram) -> Self {
        let (count, buckets) = (samples.count(), samples.buckets());
        let same = before.filter(|before| before.buckets == buckets);
        let wire = same.map_or_else(|| samples.to_wire(), |before| samples.counts_to_wire(buckets, &before.wire));
        Self { count, buckets, wire }
    }
}

impl core::fmt::Debug for Told {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Told").finish_non_exhaustive()
    }
}
