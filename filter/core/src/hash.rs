//! A fast hash that chooses places in tables. Whatever is found there is compared in full.

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

/// The last eight bytes as a number, or all of fewer. Of bytes of another length it may be the same.
#[inline(always)]
pub(crate) fn tail(bytes: &[u8]) -> u64 {
    let short = || bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    bytes.last_chunk::<8>().map_or_else(short, |last| u64::from_le_bytes(*last))
}
