//! How many tokens the pieces of a response hold.
//!
//! An engine may send several tokens in one piece of the stream. Counting pieces alone, its responses look shorter and slower than they
//! are. Engines say at the end of a response how many tokens it had (`usage`), but which piece is the last nobody knows when it comes, and
//! to look at a piece is a call of the host. So some responses are looked at piece by piece, and of the others the pieces are multiplied by
//! what those have taught.

use super::scan;

/// Bytes at the end of a piece that are looked at: `usage` is the last thing that engines write.
pub const TAIL_BYTES: usize = 512;
/// Responses that are looked at before anything is left out.
const FIRST: u32 = 16;
/// Of the others one in so many is looked at.
const EVERY: u32 = 8;
/// Of the others, where none has ever said anything.
const EVERY_SILENT: u32 = 64;
/// Pieces over which the ratios are taken: then the older ones count half.
const MEMORY_PIECES: u64 = 1 << 14;
/// Most tokens that a response or prompt is believed to have.
const MAX_TOKENS: f64 = 16_777_216.0;
/// Tokens of one piece that are believed.
const PER_PIECE: core::ops::RangeInclusive<f64> = 0.25..=256.0;

/// What a response says of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    /// Tokens of the prompt.
    pub(crate) prompt: Option<u32>,
    /// Tokens of the output.
    pub(crate) output: Option<u32>,
    /// Whether a piece ended as events do (`\n\n`), which JSON does not.
    pub(crate) is_events: bool,
}

/// What was counted of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) pieces: u32,
    pub(crate) bytes: u64,
    /// Whether the pieces are events, token by token or several at a time.
    pub(crate) is_streamed: bool,
}

/// What the responses of a pool have taught.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Yields {
    begun: u32,
    has_spoken: bool,
    events: Ratio,
    bytes: Ratio,
}

/// `tokens / of`, over the last of them.
#[derive(Debug, Clone, Copy, Default)]
struct Ratio {
    tokens: u64,
    of: u64,
}

// === impl Usage ===

impl Usage {
    /// Takes the end of a piece in; what it does not say stays as it was.
    ///
    /// OpenAI's names are `prompt_tokens` and `completion_tokens`, Anthropic's `input_tokens` and `output_tokens`; Anthropic's first event
    /// says 1 token of output, its last the truth, so a later piece counts.
    pub(crate) fn note(&mut self, tail: &[u8]) {
        self.is_events |= tail.ends_with(b"\n\n");
        let count = |names: [&str; 2]| {
            let said = names.into_iter().find_map(|name| scan::last_number(tail, name));
            said.filter(|count| (0.0..=MAX_TOKENS).contains(count)).map(|count| count as u32)
        };
        self.output = count(["completion_tokens", "output_tokens"]).or(self.output);
        self.prompt = count(["prompt_tokens", "input_tokens"]).or(self.prompt);
    }
}

// === impl Yields ===

impl Yields {
    /// Whether the response that begins now is looked at.
    pub(crate) fn looks_at_next(&mut self) -> bool {
        let every = if self.has_spoken { EVERY } else { EVERY_SILENT };
        let looks = self.begun < FIRST || self.begun.is_multiple_of(every);
        self.begun = self.begun.checked_add(1).unwrap_or(FIRST);
        looks
    }

    /// Learns from a whole response that said how many tokens it had.
    pub(crate) fn learn(&mut self, counted: Counted, tokens: u32) {
        self.has_spoken = true;
        if counted.is_streamed {
            self.events.add(tokens, u64::from(counted.pieces), MEMORY_PIECES);
        } else {
            self.bytes.add(tokens, counted.bytes, MEMORY_PIECES * TAIL_BYTES as u64);
        }
    }

    /// Tokens in one piece of a stream; 1 as long as nobody has said so.
    pub(crate) fn per_piece(&self) -> f64 {
        self.events.value().map_or(1.0, |ratio| ratio.clamp(*PER_PIECE.start(), *PER_PIECE.end()))
    }

    /// Tokens of an output that did not say how many: by its pieces if it was streamed, else by its bytes, `presumed` of which make a token
    /// as long as nobody has said so.
    pub(crate) fn tokens(&self, counted: Counted, presumed: f64) -> u32 {
        // The casts saturate.
        if counted.is_streamed {
            libm::round(f64::from(counted.pieces) * self.per_piece()) as u32
        } else {
            let tokens = counted.bytes as f64 * self.bytes.value().unwrap_or(1.0 / presumed);
            (tokens as u32).max(counted.pieces)
        }
    }
}

// === impl Ratio ===

impl Ratio {
    fn add(&mut self, tokens: u32, of: u64, memory: u64) {
        self.tokens = self.tokens.saturating_add(u64::from(tokens));
        self.of = self.of.saturating_add(of);
        while self.of > memory {
            (self.tokens, self.of) = (self.tokens / 2, self.of / 2);
        }
    }

    fn value(&self) -> Option<f64> {
        (self.of > 0 && self.tokens > 0).then(|| self.tokens as f64 / self.of as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(pieces: &[&[u8]]) -> Usage {
        let mut usage = Usage::default();
        pieces.iter().for_each(|piece| usage.note(piece));
        usage
    }

    #[test]
    fn openai_says_it_in_a_chunk_before_the_last_or_in_the_whole_answer() {
        let chunk = b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":16,\"total_tokens\":25}}\n\n";
        let first = b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\n";
        let expected = Usage { prompt: Some(9), output: Some(16), is_events: true };
        assert_eq!(of(&[first, chunk, b"data: [DONE]\n\n"]), expected);
        let whole = br#"{"choices":[],"usage":{"prompt_tokens":9,"total_tokens":25,"completion_tokens":16,"prompt_tokens_details":null}}"#;
        assert_eq!(of(&[whole]), Usage { is_events: false, ..expected });
    }

    #[test]
    fn anthropic_says_the_output_at_the_end_and_the_prompt_at_the_beginning() {
        let start = b"event: message_start\ndata: {\"message\":{\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\n\n";
        let delta = b"event: message_delta\ndata: {\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":15}}\n\n";
        let stop = b"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
        assert_eq!(of(&[start, delta, stop]), Usage { prompt: Some(25), output: Some(15), is_events: true });
    }

    #[test]
    fn pieces_of_other_responses_count_for_what_those_that_spoke_have_taught() {
        let mut yields = Yields::default();
        let counted = |pieces| Counted { pieces, bytes: 300 * u64::from(pieces), is_streamed: true };
        assert_eq!(yields.tokens(counted(10), 4.0), 10, "a token a piece before anything is known");
        (0..20).for_each(|_| yields.learn(counted(11), 40));
        assert_eq!(yields.tokens(counted(22), 4.0), 80);
        let whole = Counted { pieces: 1, bytes: 1000, is_streamed: false };
        assert_eq!(yields.tokens(whole, 4.0), 250);
        yields.learn(whole, 100);
        assert_eq!(yields.tokens(Counted { bytes: 2000, ..whole }, 4.0), 200);
    }

    #[test]
    fn an_engine_that_changes_is_followed() {
        let mut yields = Yields::default();
        let counted = Counted { pieces: 100, bytes: 30_000, is_streamed: true };
        (0..10_000).for_each(|_| yields.learn(counted, 100));
        (0..1000).for_each(|_| yields.learn(counted, 400));
        assert!((3.9..=4.0).contains(&yields.per_piece()), "{}", yields.per_piece());
    }

    #[test]
    fn the_first_responses_are_looked_at_then_some_and_hardly_any_where_none_speaks() {
        let looked = |yields: &mut Yields| (0..640).filter(|_| yields.looks_at_next()).count();
        let mut silent = Yields::default();
        assert_eq!(looked(&mut silent), 16 + 9);
        let mut speaking = Yields { has_spoken: true, ..Yields::default() };
        assert_eq!(looked(&mut speaking), 16 + 78);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_without_a_panic(tail in prop::collection::vec(any::<u8>(), 0..600), tokens in any::<u32>(), pieces in any::<u32>(), bytes in any::<u64>(), is_streamed in any::<bool>()) {
            let mut usage = Usage::default();
            usage.note(&tail);
            let mut yields = Yields::default();
            let counted = Counted { pieces, bytes, is_streamed };
            yields.learn(counted, tokens);
            yields.learn(counted, usage.output.unwrap_or(0));
            prop_assert!(PER_PIECE.contains(&yields.per_piece()));
            let _ = yields.tokens(counted, 4.0);
        }
    }
}
