//! Decisions from bytes: how a structured target reads its input.
//!
//! Every reading has an answer, and the end of the input answers everything with the smallest value, so that any bytes are a story and a
//! shorter input is a simpler one.

use std::time::Duration;

/// Numbers at which things break.
const NUMBERS: [u64; 24] = [
    0,
    1,
    2,
    3,
    7,
    8,
    63,
    64,
    99,
    100,
    127,
    128,
    255,
    256,
    1000,
    65_535,
    65_536,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 53,
    i64::MAX as u64,
    u64::MAX - 1,
    u64::MAX,
];

/// Numbers with a point at which things break.
const FLOATS: [f64; 20] = [
    0.0,
    -0.0,
    1.0,
    0.5,
    0.1,
    -1.0,
    100.0,
    1000.0,
    1e-9,
    1e9,
    1e18,
    1e300,
    -1e300,
    f64::MIN_POSITIVE,
    f64::EPSILON,
    f64::MAX,
    f64::MIN,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::NAN,
];

/// Reads decisions from the front of an input.
#[derive(Clone, Debug)]
pub(crate) struct Source<'a> {
    rest: &'a [u8],
}

impl<'a> Source<'a> {
    /// Reads from `bytes`.
    #[must_use]
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether everything has been read.
    #[must_use]
    pub(crate) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// One byte.
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *first
    }

    /// A number below `bound`, which is at least 1.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        if bound <= 256 {
            return usize::from(self.byte()) % bound;
        }
        usize::from(u16::from_le_bytes([self.byte(), self.byte()])) % bound
    }

    /// Whether something with `in_256` chances of 256 is so; at the end of the input it is not.
    pub(crate) fn is_so(&mut self, in_256: u16) -> bool {
        !self.is_empty() && u16::from(self.byte()) < in_256
    }

    /// One of several.
    ///
    /// # Panics
    /// When there is none.
    pub(crate) fn pick<'b, T>(&mut self, of: &'b [T]) -> &'b T {
        &of[self.below(of.len())]
    }

    /// A number: a small one, one at which things break, or any.
    pub(crate) fn number(&mut self) -> u64 {
        match self.byte() {
            small @ 0..96 => u64::from(small),
            kind @ 96..208 => NUMBERS[usize::from(kind) % NUMBERS.len()],
            208..232 => u64::from(u16::from_le_bytes([self.byte(), self.byte()])),
            _ => u64::from_le_bytes(std::array::from_fn(|_| self.byte())),
        }
    }

    /// The same, cut to 32 bits.
    pub(crate) fn number32(&mut self) -> u32 {
        self.number() as u32
    }

    /// A number with a point; may be none at all, or infinite.
    pub(crate) fn float(&mut self) -> f64 {
        match self.byte() {
            small @ 0..64 => f64::from(small),
            part @ 64..128 => f64::from(part - 64) / 64.0,
            kind @ 128..224 => FLOATS[usize::from(kind) % FLOATS.len()],
            _ => f64::from_bits(u64::from_le_bytes(std::array::from_fn(|_| self.byte()))),
        }
    }

    /// A span of time up to some minutes, mostly short.
    pub(crate) fn span(&mut self) -> Duration {
        match self.byte() {
            millis @ 0..200 => Duration::from_millis(u64::from(millis)),
            long @ 200..250 => Duration::from_millis(u64::from(long - 199) * 500),
            _ => Duration::from_secs(u64::from(self.byte()) * 4),
        }
    }

    /// Some bytes, at most `most`.
    pub(crate) fn bytes(&mut self, most: usize) -> &'a [u8] {
        let len = self.below(most + 1).min(self.rest.len());
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        taken
    }

    /// All that is left.
    pub(crate) fn all(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// A short text: one of `known`, or any.
    pub(crate) fn text(&mut self, known: &[&str]) -> String {
        match self.byte() {
            any @ 240.. => String::from_utf8_lossy(self.bytes(usize::from(any - 239) * 8)).into_owned(),
            _ if known.is_empty() => String::new(),
            index => known[usize::from(index) % known.len()].to_owned(),
        }
    }
}
