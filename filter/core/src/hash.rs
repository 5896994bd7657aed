//! A fast hash that chooses places in tables. Whatever is found there is compared in full.

use crate::words::tail;

/// Hashes eight bytes at a time, each mixed by the first half of SplitMix64's finalizer, from `seed`.
#[inline(always)]
pub(crate) fn hash(seed: u64, bytes: &[u8]) -> u32 {
    let (words, _) = bytes.as_chunks::<8>();
    let mix = |hash: u64, word: u64| {
        let mixed = (hash ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 32)).wrapping_mul(0x94d0_49bb_1331_11eb)
    };
    let whole = words.iter().fold(seed ^ bytes.len() as u64, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    (mix(whole, tail(bytes)) >> 32) as u32
}
