//! One metrics page of an inference engine, read.
//!
//! The page comes over the network from a program that we do not control, so nothing in it is believed before it is looked at: lines
//! that are not about a figure we know are skipped unread, a figure that is no sensible number makes the whole page invalid, and
//! everything that is kept is bounded. Format: Prometheus text exposition 0.0.4, of which OpenMetrics is a superset here.
//!
//! | figure | vLLM | SGLang |
//! |---|---|---|
//! | running | `vllm:num_requests_running` | `sglang:num_running_reqs` |
//! | waiting | `vllm:num_requests_waiting` | `sglang:num_queue_reqs` |
//! | KV use | `vllm:kv_cache_usage_perc`, before 0.9 `vllm:gpu_cache_usage_perc` | `sglang:token_usage` |
//! | KV size | `vllm:cache_config_info`: `block_size` × `num_gpu_blocks` | `sglang:cache_config_info`: `page_size` × `num_pages`, else `sglang:max_total_num_tokens` |
//! | preemptions | `vllm:num_preemptions_total`, older `vllm:num_preemptions` | none |

use std::collections::{BTreeMap, BTreeSet};

use super::line::{Sample, SampleError, parse};

#[cfg(test)]
mod tests;

/// Series of one figure that are read: engines of one server that run in parallel (data parallelism).
pub const MAX_SERIES: usize = 64;
/// Largest count that is believed: up to here a float tells neighbours apart.
const MAX_COUNT: f64 = 9_007_199_254_740_992.0;
/// Largest use of the KV cache that is believed; rounding may lift a full cache a little above one.
const MAX_USE: f64 = 1.01;

/// What one page says. A figure that the engine does not export is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
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
    /// There are more parallel engines than are read.
    #[error("{figure}: more than {MAX_SERIES} series")]
    TooManySeries {
        /// The figure.
        figure: &'static str,
    },
    /// Nothing on the page is known.
    #[error("no figure of a known engine (vLLM, SGLang)")]
    Unknown,
}

/// A figure of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Figure {
    Running,
    Waiting,
    KvUse,
    KvUseOld,
    CacheConfig,
    KvTokens,
    Preemptions,
    PreemptionsOld,
}

/// Names that are read.
const FIGURES: [(&str, Figure); 12] = [
    ("vllm:num_requests_running", Figure::Running),
    ("vllm:num_requests_waiting", Figure::Waiting),
    ("vllm:kv_cache_usage_perc", Figure::KvUse),
    ("vllm:gpu_cache_usage_perc", Figure::KvUseOld),
    ("vllm:cache_config_info", Figure::CacheConfig),
    ("vllm:num_preemptions_total", Figure::Preemptions),
    ("vllm:num_preemptions", Figure::PreemptionsOld),
    ("sglang:num_running_reqs", Figure::Running),
    ("sglang:num_queue_reqs", Figure::Waiting),
    ("sglang:token_usage", Figure::KvUse),
    ("sglang:cache_config_info", Figure::CacheConfig),
    ("sglang:max_total_num_tokens", Figure::KvTokens),
];

/// Reads a page.
///
/// Figures of parallel engines (label `engine` or `dp_rank`) are added; of tensor- and pipeline-parallel ranks, which say the same
/// thing several times, rank 0 is taken.
///
/// # Errors
/// [`PageError`] with the line or the figure. Never panics, whatever the bytes.
pub fn read(page: &[u8]) -> Result<Reading, PageError> {
    let mut figures = Figures::default();
    for (index, line) in page.split(|byte| *byte == b'\n').enumerate() {
        let Some((name, figure)) = known(line) else { continue };
        let sample = parse(line, name.len()).map_err(|problem| PageError::Malformed { line: index + 1, problem })?;
        if is_first_rank(&sample) {
            figures.add(index + 1, name, figure, sample)?;
        }
    }
    figures.reading()
}

/// The known figure that a line is about; comments, blank lines and everything else are none.
fn known(line: &[u8]) -> Option<(&'static str, Figure)> {
    FIGURES.iter().copied().find(|(name, _)| {
        let rest = line.strip_prefix(name.as_bytes());
        rest.is_some_and(|rest| matches!(rest.first(), Some(b'{' | b' ' | b'\t')))
    })
}

fn is_first_rank(sample: &Sample<'_>) -> bool {
    ["tp_rank", "pp_rank"].iter().all(|rank| sample.label(rank).is_none_or(|value| value == "0"))
}

/// What was found so far. Keys are parallel engines.
#[derive(Default)]
struct Figures {
    values: BTreeMap<Figure, BTreeMap<String, f64>>,
    seen: BTreeSet<(&'static str, String)>,
    kv_tokens: BTreeMap<String, u64>,
}

// === impl Figures ===

impl Figures {
    fn add(&mut self, line: usize, name: &'static str, figure: Figure, sample: Sample<'_>) -> Result<(), PageError> {
        if self.seen.iter().filter(|(other, _)| *other == name).count() >= MAX_SERIES {
            return Err(PageError::TooManySeries { figure: name });
        }
        if !self.seen.insert((name, sample.identity())) {
            return Err(PageError::Duplicate { line, figure: name });
        }
        let engine = sample.label("engine").or_else(|| sample.label("dp_rank")).unwrap_or("").to_owned();
        if figure == Figure::CacheConfig {
            // A server that does not know its size yet says `None`; the size is then unknown, not wrong.
            if let Some(tokens) = cache_tokens(&sample) {
                self.kv_tokens.insert(engine, tokens);
            }
            return Ok(());
        }
        let value = believable(name, figure, sample.value)?;
        // Several models on one server have series of their own; their counts add up, of their caches the fullest counts.
        let slot = self.values.entry(figure).or_default().entry(engine).or_insert(0.0);
        *slot = if matches!(figure, Figure::KvUse | Figure::KvUseOld) { slot.max(value) } else { *slot + value };
        Ok(())
    }

    fn reading(mut self) -> Result<Reading, PageError> {
        if self.seen.is_empty() {
            return Err(PageError::Unknown);
        }
        if self.kv_tokens.is_empty() {
            let tokens = self.values.remove(&Figure::KvTokens).unwrap_or_default();
            self.kv_tokens = tokens.into_iter().filter(|(_, tokens)| *tokens >= 1.0).map(|(engine, n)| (engine, n as u64)).collect();
        }
        let use_of = self.values.get(&Figure::KvUse).or_else(|| self.values.get(&Figure::KvUseOld));
        let count = |figure| self.values.get(&figure).map(|series| series.values().sum::<f64>() as u64);
        Ok(Reading {
            running: count(Figure::Running),
            waiting: count(Figure::Waiting),
            kv_use: use_of.map(|series| weighted(series, &self.kv_tokens)),
            kv_fullest: use_of.and_then(|series| series.values().copied().max_by(f64::total_cmp)),
            kv_total_tokens: total(use_of, &self.kv_tokens),
            preemptions: count(Figure::Preemptions).or_else(|| count(Figure::PreemptionsOld)),
        })
    }
}

/// Mean use, each engine weighted by its size; equally when any size is unknown.
fn weighted(series: &BTreeMap<String, f64>, sizes: &BTreeMap<String, u64>) -> f64 {
    let is_known = series.keys().all(|engine| sizes.contains_key(engine));
    let weight = |engine: &String| if is_known { sizes.get(engine).map_or(1.0, |size| *size as f64) } else { 1.0 };
    let sum: f64 = series.keys().map(weight).sum();
    series.iter().map(|(engine, part)| part * weight(engine)).sum::<f64>() / sum.max(1.0)
}

/// Size over all parallel engines. One size for several engines, as servers that describe their configuration once have it, is
/// that of each.
fn total(series: Option<&BTreeMap<String, f64>>, sizes: &BTreeMap<String, u64>) -> Option<u64> {
    let engines = series.map_or(0, BTreeMap::len) as u64;
    match sizes.len() {
        0 => None,
        1 => sizes.values().next().map(|size| size.saturating_mul(engines.max(1))),
        _ => Some(sizes.values().fold(0, |sum, size| sum.saturating_add(*size))),
    }
}

fn cache_tokens(sample: &Sample<'_>) -> Option<u64> {
    let number = |names: [&str; 2]| names.iter().find_map(|name| sample.label(name)).and_then(|text| text.parse::<u32>().ok());
    let tokens = u64::from(number(["block_size", "page_size"])?) * u64::from(number(["num_gpu_blocks", "num_pages"])?);
    (tokens > 0).then_some(tokens)
}

fn believable(name: &'static str, figure: Figure, value: f64) -> Result<f64, PageError> {
    let (most, expected) = match figure {
        Figure::KvUse | Figure::KvUseOld => (MAX_USE, "0..=1"),
        _ => (MAX_COUNT, "0..=2^53"),
    };
    // NaN is in no range.
    if (0.0..=most).contains(&value) {
        return Ok(if most == MAX_USE { value.min(1.0) } else { value });
    }
    Err(PageError::Unbelievable { figure: name, got: value, expected })
}
