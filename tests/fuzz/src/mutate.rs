//! Changes to an input: bits, bytes, numbers that hurt, words of the target's language, pieces of itself and of others.

use headgate_core::rng::Rng;

/// Longest input.
pub const MAX_BYTES: usize = 16 << 10;
/// Bytes that sit at the edges of what fields can hold.
const EDGES: [&[u8]; 9] = [
    &[0],
    &[0xff],
    &[0x7f],
    &[0x80],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    // Doubles of protobuf: NaN, infinity, the smallest number.
    &[0, 0, 0, 0, 0, 0, 0xf8, 0x7f],
    &[0, 0, 0, 0, 0, 0, 0xf0, 0x7f],
    &[1, 0, 0, 0, 0, 0, 0, 0],
];

/// `input` after one to eight changes. `other` is another input of the corpus, `words` the target's language.
pub fn mutate(rng: &mut Rng, input: &[u8], other: &[u8], words: &[&str]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=below(rng, 8) {
        change(rng, &mut bytes, other, words);
    }
    bytes.truncate(MAX_BYTES);
    bytes
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8], words: &[&str]) {
    let at = below(rng, bytes.len() + 1);
    let span = 1 + below(rng, 16);
    match below(rng, 10) {
        0 if at < bytes.len() => bytes[at] ^= 1 << below(rng, 8),
        1 if at < bytes.len() => bytes[at] = rng.next_u64() as u8,
        2 if at < bytes.len() => bytes[at] = bytes[at].wrapping_add([1, 255, 16][below(rng, 3)]),
        3 => drop(bytes.drain(at..(at + span).min(bytes.len()))),
        4 => insert(bytes, at, EDGES[below(rng, EDGES.len())]),
        5 => overwrite(bytes, at, EDGES[below(rng, EDGES.len())]),
        6 if !words.is_empty() => insert(bytes, at, words[below(rng, words.len())].as_bytes()),
        7 => {
            let piece = piece(rng, &bytes.clone());
            insert(bytes, at, &piece);
        }
        8 => {
            let piece = piece(rng, other);
            insert(bytes, at, &piece);
        }
        _ => {
            let piece = piece(rng, other);
            overwrite(bytes, at, &piece);
        }
    }
}

fn piece(rng: &mut Rng, of: &[u8]) -> Vec<u8> {
    let from = below(rng, of.len() + 1);
    let length = below(rng, (of.len() - from).min(512) + 1);
    of[from..from + length].to_vec()
}

fn insert(bytes: &mut Vec<u8>, at: usize, piece: &[u8]) {
    if bytes.len() + piece.len() <= MAX_BYTES {
        bytes.splice(at..at, piece.iter().copied());
    }
}

fn overwrite(bytes: &mut [u8], at: usize, piece: &[u8]) {
    for (byte, new) in bytes.iter_mut().skip(at).zip(piece) {
        *byte = *new;
    }
}

/// A number in `0..bound`; 0 when there is none.
pub fn below(rng: &mut Rng, bound: usize) -> usize {
    (rng.next_u64() % bound.max(1) as u64) as usize
}
