//! Sealed records for shared data, which any plugin of the proxy may write to: a magic number, a length and a checksum in front of
//! the content.

use alloc::vec::Vec;

/// Bytes in front of the content: magic, length, checksum.
const HEADER_LEN: usize = 16;

/// Puts the header in front of `content`.
pub(crate) fn seal(magic: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN.saturating_add(content.len()));
    bytes.extend_from_slice(&magic.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&checksum(magic, content).to_le_bytes());
    bytes.extend_from_slice(content);
    bytes
}

/// The content of a sealed record; `None` when magic, length or checksum are wrong.
pub(crate) fn open(magic: u32, bytes: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader::new(bytes);
    let (found, len, sum) = (reader.u32()?, reader.u32()?, reader.u64()?);
    let content = reader.rest;
    (found == magic && usize::try_from(len) == Ok(content.len()) && sum == checksum(magic, content)).then_some(content)
}

/// Where FNV-1a begins.
pub(crate) const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a over 64 bits, from `start` on. It finds damage and tells texts apart; it stops no malice.
///
/// Source: Fowler, Noll, Vo, <http://www.isthe.com/chongo/tech/comp/fnv/>.
pub(crate) fn fnv1a(text: &[u8], start: u64) -> u64 {
    text.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn checksum(magic: u32, content: &[u8]) -> u64 {
    fnv1a(content, fnv1a(&magic.to_le_bytes(), FNV_OFFSET))
}

/// Reads little-endian numbers from the front of a slice.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_sealed_record_opens_and_a_damaged_one_does_not(content in prop::collection::vec(any::<u8>(), 0..64), at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
            let sealed = seal(7, &content);
            prop_assert_eq!(open(7, &sealed), Some(content.as_slice()));
            prop_assert_eq!(open(8, &sealed), None);
            let mut damaged = sealed;
            *at.get_mut(&mut damaged) ^= flip;
            prop_assert_eq!(open(7, &damaged), None);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = open(7, &bytes);
        }
    }
}
