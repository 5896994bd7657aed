//! Short byte strings by words of eight bytes: where a comparison is a call that goes byte by byte, as in wasm, that is most of what a
//! request's headers cost.

/// Whether two byte strings are the same, in a time that depends on their lengths alone.
#[inline]
pub(crate) fn same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let ((ours, _), (theirs, _)) = (one.as_chunks::<8>(), other.as_chunks::<8>());
    let differs = |(a, b): (&[u8; 8], &[u8; 8])| u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
    let difference = ours.iter().zip(theirs).map(differs).fold(tail(one) ^ tail(other), |all, one| all | one);
    difference == 0
}

/// Whether `bytes` begin with `prefix`.
#[inline]
pub(crate) fn begins_with(bytes: &[u8], prefix: &[u8]) -> bool {
    bytes.get(..prefix.len()).is_some_and(|beginning| same(beginning, prefix))
}

/// The last eight bytes as a number, or all of fewer. Of bytes of another length it may be the same.
#[inline(always)]
pub(crate) fn tail(bytes: &[u8]) -> u64 {
    // No combinators: compiled for size they would be calls.
    if let Some(last) = bytes.last_chunk::<8>() {
        return u64::from_le_bytes(*last);
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        return u64::from(u32::from_le_bytes(*first)) << 32 | u64::from(u32::from_le_bytes(*last));
    }
    bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
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
