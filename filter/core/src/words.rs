//! Short byte strings by words of eight bytes: where a comparison is a call that goes byte by byte, as in wasm, that is most of what a
//! request's headers cost.

/// Whether two byte strings are the same, in a time that does not depend on where they differ.
#[inline(always)]
pub(crate) fn same(one: &[u8], other: &[u8]) -> bool {
    let ((ours, _), (theirs, _)) = (one.as_chunks::<8>(), other.as_chunks::<8>());
    let differs = |(a, b): (&[u8; 8], &[u8; 8])| u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
    let difference = ours.iter().zip(theirs).map(differs).fold(tail(one) ^ tail(other), |all, one| all | one);
    one.len() == other.len() && difference == 0
}

/// Whether `bytes` begin with `prefix`.
#[inline(always)]
pub(crate) fn begins_with(bytes: &[u8], prefix: &[u8]) -> bool {
    bytes.get(..prefix.len()).is_some_and(|beginning| same(beginning, prefix))
}

/// The last eight bytes as a number, or all of fewer. Of bytes of another length it may be the same.
#[inline(always)]
pub(crate) fn tail(bytes: &[u8]) -> u64 {
    let short = || bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    bytes.last_chunk::<8>().map_or_else(short, |last| u64::from_le_bytes(*last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn bytes_that_differ_anywhere_are_not_the_same() {
        for len in 0..40_usize {
            let key: Vec<u8> = (0..len as u8).collect();
            assert!(same(&key, &key.clone()));
            for at in 0..len {
                let mut other = key.clone();
                other[at] ^= 0x40;
                assert!(!same(&key, &other) && !same(&key, &key[..at]), "{at} of {len}");
                assert!(begins_with(&key, &key[..at]) && !begins_with(&other, &key) && !begins_with(&key[..at], &key), "{at} of {len}");
            }
        }
        assert!(!same(b"aaaaaaaa", b"aaaaaaaaa"), "the last eight bytes alone do not tell");
    }
}
