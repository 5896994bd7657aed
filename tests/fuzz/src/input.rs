//! Bytes read as a script: numbers, choices and frames. Past its end everything is zero and empty, so any bytes are a script.

/// What is left of the script.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// The whole script.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether it is at its end.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// The next two bytes, little-endian.
    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// A number that is often small and sometimes as large as can be: one byte of exponent, two of value.
    pub fn number(&mut self) -> u64 {
        let shift = u32::from(self.byte() % 64);
        u64::from(self.short()).checked_shl(shift).unwrap_or(u64::MAX)
    }

    /// One of `0..count`.
    pub fn choice(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count.max(1)
    }

    /// A frame: two bytes of length, then as many bytes as there are of them.
    pub fn frame(&mut self) -> &'a [u8] {
        let length = usize::from(self.short()).min(self.0.len());
        let (frame, rest) = self.0.split_at(length);
        self.0 = rest;
        frame
    }
}

/// Appends a frame as [`Input::frame`] reads it; what is longer than it can be is cut.
pub fn push_frame(script: &mut Vec<u8>, frame: &[u8]) {
    let length = u16::try_from(frame.len()).unwrap_or(u16::MAX);
    script.extend_from_slice(&length.to_le_bytes());
    script.extend_from_slice(&frame[..usize::from(length)]);
}

/// Hash of anything that shows what happened (FNV-1a).
pub fn fingerprint(parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> u64 {
    let eat = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    parts.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, part| part.as_ref().iter().fold(hash, eat))
}
