//! One metrics page of an inference engine, read as it comes.
//!
//! The page comes over the network from a program that we do not control, so nothing in it is believed before it is looked at: lines
//! that are not about a figure we know are skipped unread, a figure that is no sensible number makes the whole page invalid, and
//! everything that is kept is bounded, whatever the length of the page. Format: Prometheus text exposition 0.0.4, of which OpenMetrics is
//! a superset here. Which engine wrote it follows from the names of its series: [`EngineKind`].

use serde::{Deserialize, Serialize};

use super::dialect::{DIALECT_COUNT, DIALECTS, Dialect, EngineKind};
use super::line::{MAX_LINE_BYTES, SampleError, parse};

mod durations;
mod figures;
#[cfg(test)]
mod tests;

pub use self::durations::Durations;
use self::figures::Figures;

/// Series of one name that are read: models, parallel engines and their ranks on one server.
pub const MAX_SERIES: usize = 256;
/// Longest page that is read, in bytes. vLLM's has 30 to 100 KB for each of its parallel engines.
pub const MAX_PAGE_BYTES: usize = 4 << 20;

/// What one page says. A figure that the engine does not export is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reading {
    /// Who wrote the page; `None` only in a reading that was made by hand.
    pub engine: Option<EngineKind>,
    /// Requests in the batch.
    pub running: Option<u64>,
    /// Requests in the engine's own queue.
    pub waiting: Option<u64>,
    /// Part of the KV cache in use, 0 to 1; over parallel engines weighted by size.
    pub kv_use: Option<f64>,
    /// The same of the fullest of the parallel engines.
    pub kv_fullest: Option<f64>,
    /// Tokens that the KV cache holds.
    pub kv_total_tokens: Option<u64>,
    /// Preemptions since the engine began.
    pub preemptions: Option<u64>,
    /// Tokens of output since the engine began; only where they are counted as they are made.
    pub output_tokens: Option<u64>,
    /// Time to first token of requests, since the engine began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft: Option<Durations>,
    /// Time between tokens: means over requests where the engine has them, else between any two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpot: Option<Durations>,
    /// Sum of the other counts that move while the engine works. Only that it differs from the one before says something.
    pub progress: f64,
}

/// Why a page cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PageError {
    /// A line about a known figure is not in the format.
    #[error("line {line}: {problem}")]
    Malformed {
        /// Line number, from 1.
        line: usize,
        /// What is wrong.
        problem: SampleError,
    },
    /// A known figure is negative, not a number, or absurd.
    #[error("{figure}: {got} is outside {expected}")]
    Unbelievable {
        /// The figure.
        figure: &'static str,
        /// Its value.
        got: f64,
        /// What would be believed.
        expected: &'static str,
    },
    /// The same series comes twice.
    #[error("line {line}: {figure} comes twice with the same labels")]
    Duplicate {
        /// The second line.
        line: usize,
        /// The figure.
        figure: &'static str,
    },
    /// There are more models, parallel engines or ranks than are read.
    #[error("{figure}: more than {MAX_SERIES} series")]
    TooManySeries {
        /// The figure.
        figure: &'static str,
    },
    /// It is longer than is read.
    #[error("the page is longer than {MAX_PAGE_BYTES} bytes")]
    TooLong,
    /// Nothing on the page is known.
    #[error("no figure of a known engine (vLLM, SGLang, TensorRT-LLM, Triton, TGI, llama.cpp)")]
    Unknown,
}

/// Reads a page that is there as a whole: [`PageReader`] in one step.
///
/// # Errors
/// [`PageError`] with the line or the figure. Never panics, whatever the bytes.
pub fn read(page: &[u8]) -> Result<Reading, PageError> {
    let mut reader = PageReader::default();
    reader.feed(page)?;
    reader.finish()
}

/// Reads a page piece by piece. It keeps at most one line, of `MAX_LINE_BYTES`, and the figures that it knows.
///
/// Figures of parallel engines (labels such as `engine`, `dp_rank`, `model`) are added; of tensor- and pipeline-parallel ranks, which say
/// the same thing several times, the lowest is taken.
#[derive(Debug, Default)]
pub struct PageReader {
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    /// The line goes on and on, and is about nothing that is known.
    is_skipping: bool,
    lines: usize,
    bytes: usize,
    /// One entry a dialect, in the order of [`DIALECTS`].
    figures: [Figures; DIALECT_COUNT],
}

// === impl PageReader ===

impl PageReader {
    /// Takes the next piece of the page.
    ///
    /// # Errors
    /// [`PageError`]: the page cannot be used, and the rest of it need not be fetched.
    pub fn feed(&mut self, mut piece: &[u8]) -> Result<(), PageError> {
        self.bytes = self.bytes.saturating_add(piece.len());
        if self.bytes > MAX_PAGE_BYTES {
            return Err(PageError::TooLong);
        }
        while let Some(end) = memchr::memchr(b'\n', piece) {
            let (line, rest) = (&piece[..end], &piece[end + 1..]);
            piece = rest;
            self.lines += 1;
            if std::mem::take(&mut self.is_skipping) {
                continue;
            }
            if self.partial.is_empty() {
                self.line(line)?;
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                self.line(&whole)?;
            }
        }
        self.keep(piece)
    }

    /// What the page said.
    ///
    /// # Errors
    /// [`PageError`]: its last line, or the page as a whole, cannot be used.
    pub fn finish(mut self) -> Result<Reading, PageError> {
        let last = std::mem::take(&mut self.partial);
        self.lines += 1;
        self.line(&last)?;
        let said = self.figures.into_iter().zip(&DIALECTS).find(|(figures, _)| figures.is_load());
        said.map(|(figures, dialect)| figures.reading(dialect.kind)).ok_or(PageError::Unknown)
    }

    /// Keeps the beginning of a line for the next piece.
    fn keep(&mut self, piece: &[u8]) -> Result<(), PageError> {
        if self.is_skipping || piece.is_empty() {
            return Ok(());
        }
        self.partial.extend_from_slice(piece);
        if self.partial.len() <= MAX_LINE_BYTES {
            return Ok(());
        }
        if Dialect::find(&self.partial).is_some() {
            return Err(PageError::Malformed { line: self.lines + 1, problem: SampleError::TooLong });
        }
        self.is_skipping = true;
        self.partial = Vec::new();
        Ok(())
    }

    fn line(&mut self, line: &[u8]) -> Result<(), PageError> {
        let Some((index, name, name_bytes)) = Dialect::find(line) else { return Ok(()) };
        let (Some(dialect), Some(figures)) = (DIALECTS.get(index), self.figures.get_mut(index)) else { return Ok(()) };
        let sample = parse(line, name_bytes).map_err(|problem| PageError::Malformed { line: self.lines, problem })?;
        match dialect.figure(name, &sample) {
            Some(figure) => figures.add(self.lines, dialect, name, figure, &sample),
            None => Ok(()),
        }
    }
}
