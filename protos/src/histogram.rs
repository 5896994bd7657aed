//! `Histogram` with encoded lists.

use alloc::vec::Vec;
use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{DecodeContext, WireType, decode_varint, encode_varint, encoded_len_varint, skip_field, uint64};
use prost::{DecodeError, Message};

/// Numbers of the lists, and their length-delimited keys, each a byte.
const INDEX_DELTAS: u32 = 1;
const COUNTS: u32 = 2;
const SUM: u32 = 3;
const KEY_LEN: usize = 1;
/// Room that a list begins with, in bytes: latencies of a minute or two fill about a hundred buckets.
const LIST_LEN: usize = 128;

/// `headgate.v1.Histogram` whose lists stay as they are on the wire.
///
/// A load report has dozens of histograms, ten times a second, and most are as they were in the report before: encoded they are copied,
/// shared and compared as bytes, and only those that differ are read. Wire-compatible with the generated message, whose lists would be
/// taken apart number by number each time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Histogram {
    /// Indices of the occupied buckets, ascending, each as the difference from the one before: packed varints.
    index_deltas: Bytes,
    /// Counts of those buckets: packed varints.
    counts: Bytes,
    /// Sum of the samples.
    sum: u64,
}

/// Writes a histogram bucket by bucket.
#[derive(Debug)]
pub struct HistogramWriter {
    index_deltas: Vec<u8>,
    counts: Vec<u8>,
}

impl Histogram {
    /// Of buckets, each as the difference of its index from the one before and its count. The lists may differ in length, as those of a
    /// faulty sender may.
    pub fn new(index_deltas: impl IntoIterator<Item = u32>, counts: impl IntoIterator<Item = u64>, sum: u64) -> Self {
        Self { index_deltas: packed(index_deltas.into_iter().map(u64::from)), counts: packed(counts), sum }
    }

    /// Sum of the samples.
    #[must_use]
    pub const fn sum(&self) -> u64 {
        self.sum
    }

    /// Lengths of the two lists.
    #[must_use]
    pub fn lens(&self) -> (usize, usize) {
        (len(&self.index_deltas), len(&self.counts))
    }

    /// The buckets in their order: difference of the index from the one before, and count. Ends with the shorter list, or before a number
    /// that is none.
    #[must_use]
    pub fn buckets(&self) -> Buckets<'_> {
        Buckets { index_deltas: &self.index_deltas, counts: &self.counts }
    }
}

impl HistogramWriter {
    /// Lists with room for `buckets` buckets of which each takes a byte in each list.
    #[must_use]
    pub fn with_capacity(buckets: usize) -> Self {
        let list = || Vec::with_capacity(buckets.max(LIST_LEN));
        Self { index_deltas: list(), counts: list() }
    }

    /// A list of counts alone, for [`finish_like`](Self::finish_like).
    #[must_use]
    pub fn of_counts(buckets: usize) -> Self {
        Self { index_deltas: Vec::new(), counts: Vec::with_capacity(buckets.max(LIST_LEN)) }
    }

    /// Appends a bucket: the difference of its index from the one before, and its count.
    #[inline]
    pub fn push(&mut self, index_delta: u32, count: u64) {
        put(&mut self.index_deltas, u64::from(index_delta));
        put(&mut self.counts, count);
    }

    /// Appends the count of a bucket.
    #[inline]
    pub fn push_count(&mut self, count: u64) {
        put(&mut self.counts, count);
    }

    /// The histogram of the same buckets as `before` with these counts.
    #[must_use]
    pub fn finish_like(self, before: &Histogram, sum: u64) -> Histogram {
        Histogram { index_deltas: before.index_deltas.clone(), counts: self.counts.into(), sum }
    }

    /// The histogram of the buckets, whose samples sum up to `sum`.
    #[must_use]
    pub fn finish(self, sum: u64) -> Histogram {
        Histogram { index_deltas: self.index_deltas.into(), counts: self.counts.into(), sum }
    }
}

impl Message for Histogram {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        for (field, list) in [(INDEX_DELTAS, &self.index_deltas), (COUNTS, &self.counts)] {
            if !list.is_empty() {
                prost::encoding::bytes::encode(field, list, buf);
            }
        }
        if self.sum != 0 {
            uint64::encode(SUM, &self.sum, buf);
        }
    }

    fn merge_field(&mut self, tag: u32, wire_type: WireType, buf: &mut impl Buf, ctx: DecodeContext) -> Result<(), DecodeError> {
        match tag {
            INDEX_DELTAS => append(&mut self.index_deltas, wire_type, buf),
            COUNTS => append(&mut self.counts, wire_type, buf),
            SUM => uint64::merge(wire_type, &mut self.sum, buf, ctx),
            _ => skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        let of_list = |list: &Bytes| if list.is_empty() { 0 } else { KEY_LEN + encoded_len_varint(list.len() as u64) + list.len() };
        let of_sum = if self.sum == 0 { 0 } else { KEY_LEN + encoded_len_varint(self.sum) };
        of_list(&self.index_deltas) + of_list(&self.counts) + of_sum
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Buckets of a histogram: see [`Histogram::buckets`].
#[derive(Clone, Debug)]
pub struct Buckets<'a> {
    index_deltas: &'a [u8],
    counts: &'a [u8],
}

/// Buckets that two histograms have alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// How many they are, at most [`Run::MAX_LEN`].
    pub len: usize,
    /// Sum of the differences of their indices.
    pub index_delta: u32,
    /// Sum of their counts.
    pub count: u64,
}

impl Run {
    /// Most buckets of a run: as many as a processor's word has bytes.
    pub const MAX_LEN: usize = 8;
}

impl Buckets<'_> {
    /// Skips the next buckets of both, up to the first that is not the same, is empty or repeats an index, or has a number of more than one
    /// byte: two states of a histogram a moment apart differ in a few buckets, and a processor compares the others eight at a time.
    #[inline]
    pub fn skip_run(&mut self, other: &mut Buckets<'_>) -> Run {
        let [deltas, counts] = self.next_bytes();
        let [others_deltas, others_counts] = other.next_bytes();
        let differences = (deltas ^ others_deltas) | (counts ^ others_counts);
        let ends = marked(differences) | unmarked(deltas) | unmarked(counts) | ((deltas | counts) & MARKS);
        let len = ends.trailing_zeros() as usize / 8;
        let skipped = u64::MAX.checked_shr(64 - 8 * len as u32).unwrap_or(0);
        self.skip(len);
        other.skip(len);
        Run { len, index_delta: sum_of_bytes(deltas & skipped) as u32, count: sum_of_bytes(counts & skipped) }
    }

    /// The next bytes of both lists, the first the lowest; 0 beyond their ends.
    #[inline]
    fn next_bytes(&self) -> [u64; 2] {
        [self.index_deltas, self.counts].map(|list| match list.first_chunk() {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None => list.iter().rev().fold(0, |bytes, byte| bytes << 8 | u64::from(*byte)),
        })
    }

    #[inline]
    fn skip(&mut self, len: usize) {
        self.index_deltas = self.index_deltas.get(len..).unwrap_or_default();
        self.counts = self.counts.get(len..).unwrap_or_default();
    }
}

/// The highest bit of each byte: of a number's, that another follows.
const MARKS: u64 = 0x8080_8080_8080_8080;

/// The mark of every byte that is not 0.
const fn marked(bytes: u64) -> u64 {
    // Seven bits of a byte and 127 reach its eighth bit, and no further.
    (((bytes & !MARKS) + !MARKS) | bytes) & MARKS
}

/// The mark of every byte that is 0.
const fn unmarked(bytes: u64) -> u64 {
    marked(bytes) ^ MARKS
}

/// Sum of bytes below 128: first of pairs, each in 16 bits, then of all four by a multiplication.
const fn sum_of_bytes(bytes: u64) -> u64 {
    const EVEN: u64 = 0x00ff_00ff_00ff_00ff;
    let pairs = (bytes & EVEN) + ((bytes >> 8) & EVEN);
    pairs.wrapping_mul(0x0001_0001_0001_0001) >> 48
}

impl Iterator for Buckets<'_> {
    type Item = (u64, u64);

    #[inline]
    fn next(&mut self) -> Option<(u64, u64)> {
        Some((next_number(&mut self.index_deltas)?, next_number(&mut self.counts)?))
    }
}

/// The next number of a packed list; `None` at its end, and before one that is none.
#[inline]
fn next_number(list: &mut &[u8]) -> Option<u64> {
    let (first, rest) = list.split_first()?;
    // Most are differences and counts of a few samples, and almost all others are below 16,384.
    if *first < 0x80 {
        *list = rest;
        return Some(u64::from(*first));
    }
    match rest.split_first() {
        Some((second, rest)) if *second < 0x80 => {
            *list = rest;
            Some(u64::from(*first & 0x7f) | u64::from(*second) << 7)
        }
        _ => next_long(list),
    }
}

// Apart, so that a loop over the others stays short.
#[inline(never)]
fn next_long(list: &mut &[u8]) -> Option<u64> {
    decode_varint(list).ok()
}

fn packed(numbers: impl IntoIterator<Item = u64>) -> Bytes {
    let numbers = numbers.into_iter();
    let mut list = Vec::with_capacity(numbers.size_hint().0.max(LIST_LEN));
    numbers.for_each(|number| put(&mut list, number));
    list.into()
}

/// Appends a number to a packed list. Most have one byte, and almost all others two.
#[inline]
fn put(list: &mut Vec<u8>, number: u64) {
    match number {
        0..0x80 => list.push(number as u8),
        0x80..0x4000 => list.extend_from_slice(&[number as u8 | 0x80, (number >> 7) as u8]),
        _ => encode_varint(number, list),
    }
}

/// Numbers of a packed list, of which each has one byte without the mark that another follows.
fn len(list: &[u8]) -> usize {
    // Counted in bytes, as many at a time as a byte can count, since a processor compares and adds many bytes at once.
    let ends = |bytes: &[u8]| bytes.iter().map(|byte| u8::from(*byte < 0x80)).sum::<u8>();
    list.chunks(usize::from(u8::MAX)).map(|bytes| usize::from(ends(bytes))).sum()
}

/// Appends what comes of a repeated field, packed or not. What is kept is a copy: the buffer of a whole report must not live as long as
/// one of its lists.
fn append(list: &mut Bytes, wire_type: WireType, buf: &mut impl Buf) -> Result<(), DecodeError> {
    let mut numbers = Vec::new();
    if wire_type == WireType::LengthDelimited {
        let announced = decode_varint(buf)?;
        let there = usize::try_from(announced).ok().filter(|announced| *announced <= buf.remaining());
        numbers.reserve_exact(list.len() + there.unwrap_or_default());
        numbers.extend_from_slice(list);
        numbers.put(buf.take(there.unwrap_or_default()));
        // What is not there, or has no end, is refused as a number of no bytes is.
        if there.is_none() || numbers.last().is_some_and(|byte| *byte >= 0x80) {
            return decode_varint(&mut [].as_slice()).map(drop);
        }
    } else {
        prost::encoding::check_wire_type(WireType::Varint, wire_type)?;
        numbers.extend_from_slice(list);
        encode_varint(decode_varint(buf)?, &mut numbers);
    }
    *list = numbers.into();
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use alloc::vec;

    use super::*;

    /// As prost would generate it.
    #[derive(Clone, PartialEq, Message)]
    struct Plain {
        #[prost(uint32, repeated, tag = "1")]
        index_deltas: Vec<u32>,
        #[prost(uint64, repeated, tag = "2")]
        counts: Vec<u64>,
        #[prost(uint64, tag = "3")]
        sum: u64,
    }

    fn plain() -> Plain {
        Plain { index_deltas: vec![0, 3, 130, 70_000], counts: vec![1, 127, 128, u64::MAX], sum: 1 << 40 }
    }

    #[test]
    fn it_is_on_the_wire_what_the_generated_message_is() {
        for plain in [plain(), Plain::default(), Plain { sum: 0, ..plain() }] {
            let ours = Histogram::new(plain.index_deltas.iter().copied(), plain.counts.iter().copied(), plain.sum);
            let bytes = plain.encode_to_vec();
            assert_eq!(ours.encode_to_vec(), bytes);
            assert_eq!(Histogram::decode(bytes.as_slice()), Ok(ours.clone()));
            let deltas = plain.index_deltas.iter().copied().map(u64::from);
            assert!(ours.buckets().eq(deltas.zip(plain.counts.iter().copied())));
            assert_eq!((ours.lens(), ours.sum()), ((plain.index_deltas.len(), plain.counts.len()), plain.sum));
        }
    }

    #[test]
    fn runs_are_skipped_that_are_alike_short_and_good() {
        let (deltas, counts) = ([127, 1, 2, 3, 4, 5, 6, 127, 9], [127, 127, 127, 1, 127, 127, 127, 127, 9]);
        let skipped = |first: &Histogram, second: &Histogram| {
            let (mut mine, mut theirs) = (first.buckets(), second.buckets());
            let run = mine.skip_run(&mut theirs);
            let before: Vec<(u64, u64)> = first.buckets().take(run.len).collect();
            assert_eq!((run.index_delta, run.count), (before.iter().map(|it| it.0 as u32).sum(), before.iter().map(|it| it.1).sum()));
            assert!(mine.eq(first.buckets().skip(run.len)) && theirs.eq(second.buckets().skip(run.len)));
            run.len
        };
        for len in 0..=deltas.len() {
            let of_len = |deltas: &[u32], counts: &[u64]| Histogram::new(deltas[..len].to_vec(), counts[..len].to_vec(), 0);
            let first = of_len(&deltas, &counts);
            assert_eq!(skipped(&first, &first), len.min(Run::MAX_LEN));
            for at in 0..len.min(Run::MAX_LEN) {
                let (mut other_deltas, mut other_counts) = (deltas, counts);
                for bad in [0, 8, 128, 300] {
                    (other_deltas[at], other_counts[at]) = (bad, u64::from(bad));
                    let (by_delta, by_count) = (of_len(&other_deltas, &counts), of_len(&deltas, &other_counts));
                    assert_eq!((skipped(&first, &by_delta), skipped(&by_count, &first)), (at, at), "{bad}");
                    let alike = if bad == 8 { len.min(Run::MAX_LEN) } else { at };
                    assert_eq!((skipped(&by_delta, &by_delta), skipped(&by_count, &by_count)), (alike, alike), "{bad} in both");
                }
            }
        }
        let uneven = Histogram::new([1; 5], [1; 9], 0);
        assert_eq!(skipped(&uneven, &uneven), 5);
    }

    #[test]
    fn lists_in_pieces_and_numbers_one_by_one_are_taken_together() {
        let mut bytes = plain().encode_to_vec();
        // Field 1 once more, packed and single; an unknown field; field 2 single.
        bytes.extend([0x0a, 2, 5, 6, 0x08, 0x80, 1, 0x28, 9, 0x10, 7]);
        let (ours, generated) = (Histogram::decode(bytes.as_slice()).unwrap(), Plain::decode(bytes.as_slice()).unwrap());
        assert_eq!(ours.lens(), (generated.index_deltas.len(), generated.counts.len()));
        assert_eq!(ours, Histogram::new(generated.index_deltas, generated.counts, generated.sum));
    }

    #[test]
    fn what_is_cut_off_or_of_another_type_is_refused() {
        let bytes = plain().encode_to_vec();
        for end in 1..bytes.len() {
            let (ours, generated) = (Histogram::decode(&bytes[..end]), Plain::decode(&bytes[..end]));
            assert_eq!(ours.is_ok(), generated.is_ok(), "the first {end} bytes");
        }
        for bytes in [&[0x0a, 1, 0x80][..], &[0x0d, 0, 0, 0, 0], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]] {
            assert!(Histogram::decode(bytes).is_err() && Plain::decode(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_number_that_is_none_ends_the_list() {
        // A varint of eleven bytes.
        let mut list = vec![0x0a, 13, 4];
        list.extend([0xff; 10]);
        list.extend([1, 5]);
        list.extend([0x12, 3, 1, 1, 1]);
        let ours = Histogram::decode(list.as_slice()).unwrap();
        assert_eq!(ours.buckets().collect::<Vec<_>>(), [(4, 1)]);
        assert_eq!(ours.lens(), (3, 3));
    }
}
