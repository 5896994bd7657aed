//! Log-linear histogram: 128 linear sub-buckets for every power of two, exact below 128.
//!
//! Merging is addition of counts, so histograms of many workers, proxies and time slices combine exactly and in any order. The
//! relative error of a quantile is at most 1/256 (the middle of a bucket whose width is at most 1/128 of its lower edge).
//! Memory is allocated in pages of 128 counts, one page for each power of two that was ever seen: at most 19 KiB, and as much again once
//! all have a bucket with more than four billion samples.

use alloc::boxed::Box;
use alloc::vec::Vec;

#[cfg(test)]
mod tests;
mod wire;

pub(crate) use self::wire::Told;
pub use self::wire::{HistogramDelta, HistogramError};

/// Buckets on a page, and sub-buckets of a power of two.
const PAGE_LEN: usize = 128;
/// Pages: one for the exact values, one for each power of two from 2^7 to 2^41.
const PAGES: usize = 36;
/// Buckets of a histogram; wire indices are below it.
pub const BUCKETS: u32 = (PAGE_LEN * PAGES) as u32;
/// Largest value that is told apart; larger ones count as this one. In microseconds: 51 days.
pub const MAX_VALUE: u64 = (1 << 42) - 1;

/// Counts of one page, and which of them are above 0: what is read, merged and sent are those few alone.
///
/// Dozens of histograms live in each worker, and what they cost is the fetching of their memory: so a count has 32 bits, and 32 more only
/// where one on the page needs them.
#[derive(Clone)]
struct Page {
    low: [u32; PAGE_LEN],
    high: Option<Box<[u32; PAGE_LEN]>>,
    occupied: u128,
}

/// A page's place in a histogram, and its samples: of two states of a histogram that only grows a page is the same where they are as many,
/// and need not be looked at.
#[derive(Clone, Default)]
struct Place {
    page: Option<Box<Page>>,
    count: u64,
}

/// A distribution of integers in `0..=MAX_VALUE`.
///
/// Counts and the sum saturate instead of wrapping around.
#[derive(Clone)]
pub struct Histogram {
    /// Empty before the first sample, then [`PAGES`]: most histograms that are handed around are parts of a whole whose samples are
    /// elsewhere, and cost next to nothing so.
    pages: Vec<Place>,
    count: u64,
    sum: u64,
}

/// Bucket of a value: `v` below 128, else `128·(e − 6) + (v >> (e − 7)) − 128` with `e = floor(log2 v)`.
#[inline]
fn bucket_of(value: u64) -> (usize, usize) {
    let value = value.min(MAX_VALUE);
    if value < PAGE_LEN as u64 {
        return (0, value as usize);
    }
    let exponent = value.ilog2() as usize;
    let shift = exponent.saturating_sub(7);
    (shift + 1, ((value >> shift) as usize) & (PAGE_LEN - 1))
}

/// Middle of a bucket, rounded down.
fn middle_of(page: usize, slot: usize) -> u64 {
    match page.checked_sub(1) {
        None => slot as u64,
        Some(shift) => (((PAGE_LEN + slot) as u64) << shift) + ((1_u64 << shift) >> 1),
    }
}

impl Histogram {
    /// An empty histogram; allocates nothing.
    #[must_use]
    pub fn new() -> Self {
        Self { pages: Vec::new(), count: 0, sum: 0 }
    }

    /// Counts one sample.
    #[inline]
    pub fn record(&mut self, value: u64) {
        let (page, slot) = bucket_of(value);
        self.add(page, slot, 1);
        self.sum = self.sum.saturating_add(value.min(MAX_VALUE));
    }

    /// Counts `count` samples of one value. Apart from [`Self::record`], which every request pays for.
    pub fn record_many(&mut self, value: u64, count: u64) {
        if count > 0 {
            let (page, slot) = bucket_of(value);
            self.add(page, slot, count);
            self.sum = self.sum.saturating_add(value.min(MAX_VALUE).saturating_mul(count));
        }
    }

    /// Adds all samples of `other`. Exact, associative and commutative.
    pub fn merge(&mut self, other: &Self) {
        for (index, page) in other.occupied_pages() {
            if let Some(ours) = self.place(index) {
                page.for_each_occupied(|slot, count| ours.add(slot, count));
            }
        }
        self.count = self.count.saturating_add(other.count);
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// Samples that came since `older`, an earlier state of this cumulative histogram.
    ///
    /// A bucket that shrank (a worker went away) counts as unchanged, never as negative.
    #[must_use]
    pub fn diff(&self, older: &Self) -> Self {
        let mut grown = Self::new();
        for (page, slot, count) in self.occupied() {
            let had = older.pages.get(page).map_or(0, |place| place.at(slot));
            if count > had {
                grown.add(page, slot, count - had);
            }
        }
        grown.sum = self.sum.saturating_sub(older.sum);
        grown
    }

    /// Brings this, an earlier state of the cumulative `newer`, up to it; the samples that came.
    pub fn follow(&mut self, newer: &Self) -> HistogramDelta {
        let mut grown = HistogramDelta::of_sum(newer.sum.saturating_sub(self.sum));
        for (index, place) in newer.pages.iter().enumerate() {
            let Some(ours) = self.place(index).filter(|ours| ours.count != place.count) else { continue };
            let Some(page) = place.occupied() else { continue };
            page.for_each_occupied(|slot, count| {
                let came = count.saturating_sub(ours.at(slot));
                if came > 0 {
                    ours.add(slot, came);
                    grown.add((index * PAGE_LEN + slot) as u32, came);
                }
            });
        }
        self.count = self.count.saturating_add(grown.count());
        self.sum = newer.sum;
        grown
    }

    /// Adds the samples of `delta`. Exact, in any order.
    pub fn add_delta(&mut self, delta: &HistogramDelta) {
        for (index, count) in delta.buckets() {
            self.add_at(index, count);
        }
        self.sum = self.sum.saturating_add(delta.sum());
    }

    /// Forgets every sample and keeps the memory.
    pub fn clear(&mut self) {
        for place in self.pages.iter_mut().filter(|place| place.count > 0) {
            place.clear();
        }
        self.count = 0;
        self.sum = 0;
    }

    /// Value below which a share `q` of the samples lies: the middle of the bucket of the sample with rank `ceil(q·n)`.
    ///
    /// `q` is clamped to `0..=1`, NaN counts as 0. `None` without samples. Relative error at most 1/128, none below 128.
    pub fn quantile(&self, q: f64) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        // The cast saturates and maps NaN to 0.
        let rank = (libm::ceil(q * self.count as f64) as u64).clamp(1, self.count);
        let mut seen = 0_u64;
        let mut last = 0;
        for (page, slot, count) in self.occupied() {
            seen = seen.saturating_add(count);
            last = middle_of(page, slot);
            if seen >= rank {
                break;
            }
        }
        Some(last)
    }

    /// Number of samples.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Sum of the samples, each clamped to [`MAX_VALUE`].
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Samples of at most `value`, as finely as buckets tell them apart: all of its bucket count.
    #[must_use]
    pub fn count_at_most(&self, value: u64) -> u64 {
        let last = bucket_of(value);
        let counts = self.occupied().take_while(|(page, slot, _)| (*page, *slot) <= last).map(|(_, _, count)| count);
        counts.fold(0, u64::saturating_add)
    }

    /// Mean of the samples; exact up to the rounding of `f64`. `None` without samples.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum as f64 / self.count as f64)
    }

    #[cold]
    fn open(&mut self) {
        self.pages.resize_with(PAGES, Place::default);
    }

    #[inline]
    fn add(&mut self, page: usize, slot: usize, count: u64) {
        let Some(place) = self.place(page) else { return };
        place.add(slot, count);
        self.count = self.count.saturating_add(count);
    }

    #[inline]
    fn place(&mut self, page: usize) -> Option<&mut Place> {
        if self.pages.is_empty() {
            self.open();
        }
        self.pages.get_mut(page)
    }

    /// Adds samples, at least one, to the bucket of a wire index.
    fn add_at(&mut self, index: u32, count: u64) {
        self.add(index as usize / PAGE_LEN, index as usize % PAGE_LEN, count);
    }

    /// Buckets with samples.
    fn buckets(&self) -> usize {
        self.occupied_pages().fold(0, |sum, (_, page)| sum + page.occupied.count_ones() as usize)
    }

    /// Calls `each` with wire index and count of every bucket with samples, ascending.
    fn for_each_occupied(&self, mut each: impl FnMut(u32, u64)) {
        for (index, page) in self.occupied_pages() {
            page.for_each_occupied(|slot, count| each((index * PAGE_LEN + slot) as u32, count));
        }
    }

    /// Page, slot and count of every bucket with samples, ascending.
    fn occupied(&self) -> impl Iterator<Item = (usize, usize, u64)> + '_ {
        self.occupied_pages().flat_map(|(index, page)| page.occupied().map(move |(slot, count)| (index, slot, count)))
    }

    /// Index and page of every page with samples, ascending.
    fn occupied_pages(&self) -> impl Iterator<Item = (usize, &Page)> {
        self.pages.iter().enumerate().filter_map(|(index, place)| Some((index, place.occupied()?)))
    }
}

impl Place {
    /// Adds samples, at least one, to a bucket.
    fn add(&mut self, slot: usize, count: u64) {
        self.page.get_or_insert_with(Page::empty).add(slot, count);
        self.count = self.count.saturating_add(count);
    }

    fn at(&self, slot: usize) -> u64 {
        self.page.as_ref().map_or(0, |page| page.at(slot))
    }

    /// The page, if it has samples.
    fn occupied(&self) -> Option<&Page> {
        if self.count > 0 { self.page.as_deref() } else { None }
    }

    /// Forgets every sample and keeps the memory.
    fn clear(&mut self) {
        if let Some(page) = &mut self.page {
            **page = Page::EMPTY;
        }
        self.count = 0;
    }
}

impl Page {
    const EMPTY: Self = Self { low: [0; PAGE_LEN], high: None, occupied: 0 };

    #[cold]
    fn empty() -> Box<Self> {
        Box::new(Self::EMPTY)
    }

    /// Adds samples, at least one, to a bucket.
    fn add(&mut self, slot: usize, count: u64) {
        let Some(low) = self.low.get_mut(slot) else { return };
        let is_first = *low == 0;
        match u32::try_from(count).ok().and_then(|count| low.checked_add(count)) {
            Some(sum) => *low = sum,
            None => self.add_many(slot, count),
        }
        if is_first {
            self.occupy(slot);
        }
    }

    /// Adds so many samples that the lower half of their bucket's count does not hold them.
    #[cold]
    fn add_many(&mut self, slot: usize, count: u64) {
        let sum = self.at(slot).saturating_add(count);
        let high = self.high.get_or_insert_with(|| Box::new([0; PAGE_LEN]));
        if let (Some(low), Some(high)) = (self.low.get_mut(slot), high.get_mut(slot)) {
            (*low, *high) = (sum as u32, (sum >> 32) as u32);
        }
    }

    #[cold]
    fn occupy(&mut self, slot: usize) {
        self.occupied |= 1 << slot;
    }

    fn at(&self, slot: usize) -> u64 {
        self.low.get(slot).map_or(0, |low| self.whole(slot, *low))
    }

    /// The count of a bucket whose lower half is `low`.
    fn whole(&self, slot: usize, low: u32) -> u64 {
        let high = self.high.as_ref().and_then(|high| high.get(slot)).copied();
        u64::from(high.unwrap_or(0)) << 32 | u64::from(low)
    }

    /// Slot and count of every bucket with samples, ascending.
    fn occupied(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        let mut left = self.occupied;
        core::iter::from_fn(move || {
            let slot = left.trailing_zeros() as usize;
            // Clears the lowest bit; of none there is none.
            left &= left.checked_sub(1)?;
            Some((slot, self.at(slot)))
        })
    }

    /// Calls `each` with slot and count of every bucket with samples, ascending: for loops over all of them, in which a processor's word at
    /// a time is several times faster.
    #[inline]
    fn for_each_occupied(&self, mut each: impl FnMut(usize, u64)) {
        let (front, back) = self.low.split_at(PAGE_LEN / 2);
        for (counts, first, mut left) in [(front, 0, self.occupied as u64), (back, PAGE_LEN / 2, (self.occupied >> 64) as u64)] {
            while left != 0 {
                let slot = left.trailing_zeros() as usize;
                left &= left - 1;
                if let Some(low) = counts.get(slot) {
                    each(first + slot, self.whole(first + slot, *low));
                }
            }
        }
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for Histogram {
    fn eq(&self, other: &Self) -> bool {
        self.sum == other.sum && self.count == other.count && self.occupied().eq(other.occupied())
    }
}

impl Eq for Histogram {}

impl core::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { count, sum, pages: _ } = self;
        f.debug_struct("Histogram").field("count", count).field("sum", sum).field("p99", &self.quantile(0.99)).finish_non_exhaustive()
    }
}
