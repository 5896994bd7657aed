//! What is counted of one response's body, and what it says of itself.

use super::{Counted, Usage, Yields};

/// Longest mean piece of a response that is streamed token by token: an event with its JSON is a third of that.
const MAX_EVENT_BYTES: u64 = 768;

/// The pieces of a body and their bytes, and what those pieces said that were looked at.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pieces: u32,
    bytes: u64,
    usage: Usage,
}

impl Tally {
    pub(crate) fn count_pieces(&mut self, pieces: u32, bytes: u64) {
        self.pieces = self.pieces.saturating_add(pieces);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Takes the end of a piece of the body.
    pub(crate) fn note_tail(&mut self, tail: &[u8]) {
        self.usage.note(tail);
    }

    /// What the body said of its tokens.
    pub(crate) const fn usage(&self) -> Usage {
        self.usage
    }

    pub(crate) fn counted(&self, yields: &Yields) -> Counted {
        Counted { pieces: self.pieces, bytes: self.bytes, is_streamed: self.is_streamed(yields) }
    }

    /// Tokens of the output: what the response said, else what its pieces and bytes suggest, `bytes_per_token` of which are presumed to make
    /// one.
    pub(crate) fn output_tokens(&self, yields: &Yields, bytes_per_token: f64) -> u32 {
        self.usage.output.unwrap_or_else(|| yields.tokens(self.counted(yields), bytes_per_token))
    }

    /// Whether the body came in events, each with a token or some.
    fn is_streamed(&self, yields: &Yields) -> bool {
        let largest = MAX_EVENT_BYTES as f64 * yields.per_piece().max(1.0);
        self.pieces > 1 && (self.usage.is_events || self.bytes as f64 <= f64::from(self.pieces) * largest)
    }
}
