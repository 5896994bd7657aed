//! A generation as server-sent events: one `data:` line per chunk, the last one `[DONE]`.

use std::convert::Infallible;
use std::fmt::Write;

use bytes::Bytes;
use futures::stream::{Stream, unfold};

use crate::engine::FinishReason;
use crate::openai::Usage;
use crate::serving::Generation;

/// The words that the model says, in a circle, one per token.
const WORDS: [&str; 16] =
    ["the", "gate", "opens", "when", "there", "is", "room", "and", "closes", "before", "memory", "runs", "out", "so", "nothing", "breaks"];

/// Which of OpenAI's chunk formats is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChunkKind {
    Chat,
    Text,
}

/// What stays the same over one stream.
pub(crate) struct ChunkFormat {
    pub(crate) kind: ChunkKind,
    /// `{"id":…,"object":…,"created":…,"model":…`, without a closing brace.
    pub(crate) head: String,
    pub(crate) usage: Usage,
    pub(crate) prompt_tokens: u32,
    /// Tokens per chunk after the first (vLLM `--stream-interval`).
    pub(crate) interval: u32,
}

/// The text of tokens `from..from + count` of any answer.
pub(crate) fn text(from: u32, count: u32) -> String {
    let mut text = String::with_capacity(count as usize * 7);
    for index in from..from.saturating_add(count) {
        if index > 0 {
            text.push(' ');
        }
        text.push_str(WORDS[index as usize % WORDS.len()]);
    }
    text
}

/// The events of one generation. Dropping the stream aborts the generation.
pub(crate) fn stream(generation: Generation, format: ChunkFormat) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    let state = StreamState { generation, format, sent: 0 };
    unfold(Some(state), |state| async {
        let mut state = state?;
        let (events, finish) = state.next().await;
        Some((Ok(events), finish.is_none().then_some(state)))
    })
}

struct StreamState {
    generation: Generation,
    format: ChunkFormat,
    sent: u32,
}

impl StreamState {
    /// The first token leaves alone, so that the client's time to first token is the engine's.
    async fn next(&mut self) -> (Bytes, Option<FinishReason>) {
        let at_least = if self.sent == 0 { 1 } else { self.format.interval };
        let progress = self.generation.next(at_least).await;
        let mut events = String::with_capacity(512);
        self.format.chunk(&mut events, self.sent, progress.tokens, progress.finish);
        self.sent += progress.tokens;
        if progress.finish.is_some() {
            self.format.end(&mut events, self.sent);
        }
        (Bytes::from(events), progress.finish)
    }
}

// Writing to a `String` cannot fail, so results of `write!` are dropped here. Words need no JSON escapes.
impl ChunkFormat {
    fn chunk(&self, out: &mut String, from: u32, tokens: u32, finish: Option<FinishReason>) {
        let _ = write!(out, "data: {},\"choices\":[{{\"index\":0,", self.head);
        let words = text(from, tokens);
        let _ = match self.kind {
            ChunkKind::Chat if from == 0 => write!(out, r#""delta":{{"role":"assistant","content":"{words}"}}"#),
            ChunkKind::Chat => write!(out, r#""delta":{{"content":"{words}"}}"#),
            ChunkKind::Text => write!(out, r#""text":"{words}""#),
        };
        let _ = match finish {
            Some(reason) => write!(out, r#","logprobs":null,"finish_reason":"{}"}}]"#, reason.as_str()),
            None => write!(out, r#","logprobs":null,"finish_reason":null}}]"#),
        };
        out.push_str(match self.usage {
            Usage::Included => ",\"usage\":null}\n\n",
            Usage::Omitted => "}\n\n",
        });
    }

    fn end(&self, out: &mut String, completion_tokens: u32) {
        if self.usage == Usage::Included {
            let (prompt, total) = (self.prompt_tokens, self.prompt_tokens + completion_tokens);
            let _ = write!(
                out,
                "data: {},\"choices\":[],\"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":{completion_tokens},\
                 \"total_tokens\":{total}}}}}\n\n",
                self.head
            );
        }
        out.push_str("data: [DONE]\n\n");
    }
}
