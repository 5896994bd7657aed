//! What each engine calls its figures: one table, from which the pages of all of them are read.
//!
//! | figure | vLLM | SGLang | TensorRT-LLM | Triton | TGI | llama.cpp |
//! |---|---|---|---|---|---|---|
//! | running | `num_requests_running` | `num_running_reqs` | `num_requests_running` | `request_metrics{scheduled}` | `batch_current_size` | `requests_processing` |
//! | waiting | `num_requests_waiting` | `num_queue_reqs` | `num_requests_waiting` | `request_metrics{waiting}`, else `nv_inference_pending_request_count` | `queue_size` | `requests_deferred` |
//! | KV use | `kv_cache_usage_perc`, before 0.9 `gpu_cache_usage_perc` | `token_usage` | `kv_cache_utilization` | `kv_cache_block_metrics{fraction}`, else `used` ÷ `max` | none | `kv_cache_usage_ratio` in builds that have it |
//! | KV size | `cache_config_info` | `page_size` × `num_pages`, before 0.5.11 `cache_config_info`, else `max_total_num_tokens` | `kv_cache_tokens_per_block` × `kv_cache_max_blocks` | `tokens_per` × `max` | none | none |
//! | preemptions | `num_preemptions(_total)` | `num_retracted_requests_total` | none | none | none | none |
//! | time to first token | `time_to_first_token_seconds` | the same | the same | `inference_first_response_histogram_ms` | none | none |
//! | time between tokens | `request_time_per_output_token_seconds`, else `inter_token_latency_seconds`, before 0.11 `time_per_output_token_seconds` | `inter_token_latency_seconds`, before 0.5 `time_per_output_token_seconds` | `time_per_output_token_seconds` | none | `request_mean_time_per_token_duration`, the prompt's time included | none |
//! | output tokens | `generation_tokens_total` | `realtime_tokens_total{mode="decode"}` | none | none | none | none |
//!
//! Sources: `vllm/v1/metrics/loggers.py`, `sglang/srt/observability/metrics_collector.py`, `tensorrt_llm/metrics/collector.py`, Triton's
//! metrics documentation with its TensorRT-LLM backend's, TGI's and llama.cpp's reference of metrics. Counters of output tokens that move
//! only when a request ends (SGLang's, TensorRT-LLM's and TGI's `generation_tokens`) say no rate and are not read as one.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

use super::line::Sample;

/// An engine by the format of its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// vLLM, also behind Triton's vLLM backend, whose page has both formats.
    Vllm,
    /// SGLang.
    Sglang,
    /// TensorRT-LLM's own server (`trtllm-serve`, page `/prometheus/metrics`).
    TensorRtLlm,
    /// Triton, with the TensorRT-LLM backend or any other.
    Triton,
    /// Text Generation Inference.
    Tgi,
    /// llama.cpp's `llama-server`.
    LlamaCpp,
}

/// What a series says. Of several ways to say one thing the first in this order counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Figure {
    /// Requests in the batch.
    Running,
    /// Requests in the engine's queue.
    Waiting,
    /// The same, where the engine has no better word for it.
    WaitingElse,
    /// Part of the KV cache in use.
    KvUse,
    /// The same under an old name.
    KvUseOld,
    /// Blocks of the KV cache in use.
    KvBlocksUsed,
    /// Blocks of the KV cache.
    KvBlocks,
    /// Tokens of a block.
    KvBlockTokens,
    /// Tokens of the KV cache as labels: the names of those for a block's tokens and for the blocks.
    KvLabels(&'static str, &'static str),
    /// Tokens of the KV cache.
    KvTokens,
    /// Requests that lost their place in the batch, since the engine began.
    Preemptions,
    /// The same under an old name.
    PreemptionsOld,
    /// Tokens of output since the engine began, counted as they are made.
    OutputTokens,
    /// A bucket of a histogram of durations, whose edges are in units of so many microseconds.
    Bucket(Timing, u32),
    /// Any other count that moves while the engine works.
    Progress,
}

/// A duration of which an engine keeps a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timing {
    /// Time to first token.
    Ttft,
    /// Time between tokens, mean over a request.
    TpotOfRequest,
    /// Time between any two tokens.
    BetweenTokens,
    /// The same under an old name.
    BetweenTokensOld,
}

const SECOND: u32 = 1_000_000;
const MILLISECOND: u32 = 1000;

/// A series that is read.
#[derive(Debug)]
pub(super) struct Series {
    /// Its name without the engine's prefix.
    pub(super) name: &'static str,
    /// A label and the value that it must have.
    pub(super) only: Option<(&'static str, &'static str)>,
    pub(super) figure: Figure,
}

/// How an engine writes its page.
#[derive(Debug)]
pub(super) struct Dialect {
    pub(super) kind: EngineKind,
    /// What the names of its series begin with, new and old.
    pub(super) prefixes: &'static [&'static str],
    pub(super) series: &'static [Series],
    /// Labels that tell engines of one server apart that work in parallel: their figures add up.
    pub(super) parts: &'static [&'static str],
    /// Labels that tell ranks of one engine apart, which all say the same: the lowest is read.
    pub(super) ranks: &'static [&'static str],
    /// A label that splits a figure further beside its total, whose label is empty.
    pub(super) split: Option<&'static str>,
}

/// Dialects that are known.
pub(super) const DIALECT_COUNT: usize = 6;

/// In the order in which a page with several is taken: an engine's own names before those of the server around it.
pub(super) static DIALECTS: [Dialect; DIALECT_COUNT] = [VLLM, SGLANG, TENSORRT_LLM, TRITON, TGI, LLAMA_CPP];

const VLLM: Dialect = Dialect {
    kind: EngineKind::Vllm,
    prefixes: &["vllm:"],
    series: &[
        of("num_requests_running", Figure::Running),
        of("num_requests_waiting", Figure::Waiting),
        of("kv_cache_usage_perc", Figure::KvUse),
        of("gpu_cache_usage_perc", Figure::KvUseOld),
        of("cache_config_info", Figure::KvLabels("block_size", "num_gpu_blocks")),
        of("num_preemptions_total", Figure::Preemptions),
        of("num_preemptions", Figure::PreemptionsOld),
        of("generation_tokens_total", Figure::OutputTokens),
        of("prompt_tokens_total", Figure::Progress),
        of("time_to_first_token_seconds_bucket", Figure::Bucket(Timing::Ttft, SECOND)),
        of("request_time_per_output_token_seconds_bucket", Figure::Bucket(Timing::TpotOfRequest, SECOND)),
        of("inter_token_latency_seconds_bucket", Figure::Bucket(Timing::BetweenTokens, SECOND)),
        of("time_per_output_token_seconds_bucket", Figure::Bucket(Timing::BetweenTokensOld, SECOND)),
    ],
    // Triton's vLLM backend labels its models instead of engines.
    parts: &["engine", "model", "version"],
    ranks: &[],
    split: None,
};

const SGLANG: Dialect = Dialect {
    kind: EngineKind::Sglang,
    // Exporters that cannot keep a colon, Ray's for one, write the second.
    prefixes: &["sglang:", "sglang_"],
    series: &[
        of("num_running_reqs", Figure::Running),
        of("num_queue_reqs", Figure::Waiting),
        of("token_usage", Figure::KvUse),
        of("page_size", Figure::KvBlockTokens),
        of("num_pages", Figure::KvBlocks),
        of("cache_config_info", Figure::KvLabels("page_size", "num_pages")),
        of("max_total_num_tokens", Figure::KvTokens),
        of("num_retracted_requests_total", Figure::Preemptions),
        only("realtime_tokens_total", ("mode", "decode"), Figure::OutputTokens),
        of("num_used_tokens", Figure::Progress),
        of("time_to_first_token_seconds_bucket", Figure::Bucket(Timing::Ttft, SECOND)),
        of("inter_token_latency_seconds_bucket", Figure::Bucket(Timing::BetweenTokens, SECOND)),
        of("time_per_output_token_seconds_bucket", Figure::Bucket(Timing::BetweenTokensOld, SECOND)),
    ],
    parts: &["dp_rank"],
    ranks: &["pp_rank", "tp_rank", "moe_ep_rank"],
    split: Some("priority"),
};

const TENSORRT_LLM: Dialect = Dialect {
    kind: EngineKind::TensorRtLlm,
    prefixes: &["trtllm_"],
    series: &[
        of("num_requests_running", Figure::Running),
        of("num_requests_waiting", Figure::Waiting),
        of("kv_cache_utilization", Figure::KvUse),
        of("kv_cache_max_blocks", Figure::KvBlocks),
        of("kv_cache_tokens_per_block", Figure::KvBlockTokens),
        of("generation_tokens_total", Figure::Progress),
        of("time_to_first_token_seconds_bucket", Figure::Bucket(Timing::Ttft, SECOND)),
        of("time_per_output_token_seconds_bucket", Figure::Bucket(Timing::TpotOfRequest, SECOND)),
    ],
    parts: &[],
    ranks: &[],
    split: None,
};

const TRITON: Dialect = Dialect {
    kind: EngineKind::Triton,
    prefixes: &["nv_"],
    series: &[
        only("trt_llm_request_metrics", ("request_type", "scheduled"), Figure::Running),
        only("trt_llm_request_metrics", ("request_type", "waiting"), Figure::Waiting),
        of("inference_pending_request_count", Figure::WaitingElse),
        only("trt_llm_kv_cache_block_metrics", ("kv_cache_block_type", "fraction"), Figure::KvUse),
        only("trt_llm_kv_cache_block_metrics", ("kv_cache_block_type", "used"), Figure::KvBlocksUsed),
        only("trt_llm_kv_cache_block_metrics", ("kv_cache_block_type", "max"), Figure::KvBlocks),
        only("trt_llm_kv_cache_block_metrics", ("kv_cache_block_type", "tokens_per"), Figure::KvBlockTokens),
        of("inference_count", Figure::Progress),
        of("inference_first_response_histogram_ms_bucket", Figure::Bucket(Timing::Ttft, MILLISECOND)),
    ],
    parts: &["model", "version"],
    ranks: &[],
    split: None,
};

const TGI: Dialect = Dialect {
    kind: EngineKind::Tgi,
    prefixes: &["tgi_"],
    series: &[
        of("batch_current_size", Figure::Running),
        of("queue_size", Figure::Waiting),
        of("batch_current_max_tokens", Figure::Progress),
        of("request_generated_tokens_sum", Figure::Progress),
        of("request_mean_time_per_token_duration_bucket", Figure::Bucket(Timing::TpotOfRequest, SECOND)),
    ],
    parts: &[],
    ranks: &[],
    split: None,
};

const LLAMA_CPP: Dialect = Dialect {
    kind: EngineKind::LlamaCpp,
    prefixes: &["llamacpp:"],
    series: &[
        of("requests_processing", Figure::Running),
        of("requests_deferred", Figure::Waiting),
        of("kv_cache_usage_ratio", Figure::KvUse),
        of("kv_cache_tokens", Figure::Progress),
        of("n_decode_total", Figure::Progress),
        of("tokens_predicted_total", Figure::Progress),
    ],
    parts: &[],
    ranks: &[],
    split: None,
};

const fn of(name: &'static str, figure: Figure) -> Series {
    Series { name, only: None, figure }
}

const fn only(name: &'static str, label: (&'static str, &'static str), figure: Figure) -> Series {
    Series { name, only: Some(label), figure }
}

// === impl Timing ===

impl Timing {
    /// The ways to tell the time between tokens: the mean over a request first, which is what filters tell.
    pub(super) const BETWEEN_TOKENS: [Self; 3] = [Self::TpotOfRequest, Self::BetweenTokens, Self::BetweenTokensOld];
}

// === impl EngineKind ===

impl EngineKind {
    /// Stable text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::TensorRtLlm => "tensorrt_llm",
            Self::Triton => "triton",
            Self::Tgi => "tgi",
            Self::LlamaCpp => "llama_cpp",
        }
    }

    /// The engine that runs as a process of this name: a path, or the title that the engine gives itself (`VLLM::EngineCore`,
    /// `sglang::scheduler`).
    pub fn of_process(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let programs = [
            ("vllm", Self::Vllm),
            ("sglang", Self::Sglang),
            ("trtllm", Self::TensorRtLlm),
            ("tritonserver", Self::Triton),
            ("text-generation", Self::Tgi),
            ("llama-server", Self::LlamaCpp),
        ];
        programs.into_iter().find(|(program, _)| name.contains(program)).map(|(_, engine)| engine)
    }

    /// Whether the engine takes the memory of its KV cache when it starts, whatever it is asked to do later: NVML's memory then says
    /// nothing of its load. Triton does with the TensorRT-LLM backend, which its page shows by a KV cache; llama.cpp allocates its
    /// context at the start as well.
    pub const fn preallocates(self) -> Option<bool> {
        match self {
            Self::Vllm | Self::Sglang | Self::TensorRtLlm | Self::Tgi | Self::LlamaCpp => Some(true),
            Self::Triton => None,
        }
    }
}

// === impl Dialect ===

impl Dialect {
    /// The series that a line is about, by number, and the bytes of its whole name; none for comments, blank lines and everything else.
    pub(super) fn find(line: &[u8]) -> Option<(usize, &'static str, usize)> {
        if line.first().is_none_or(|byte| matches!(byte, b'#' | b'\r')) {
            return None;
        }
        DIALECTS.iter().enumerate().find_map(|(index, dialect)| {
            let prefix = dialect.prefixes.iter().find(|prefix| line.starts_with(prefix.as_bytes()))?;
            let rest = &line[prefix.len()..];
            // No name that is read is longer; a line without any end of a name is none.
            let end = rest.iter().take(64).position(|byte| matches!(byte, b'{' | b' ' | b'\t'))?;
            let series = dialect.series.iter().find(|series| series.name.as_bytes() == &rest[..end])?;
            Some((index, series.name, prefix.len() + end))
        })
    }

    /// The figure that `sample` of the series `name` gives; none when it is a rank's or a class's part of another.
    pub(super) fn figure(&self, name: &str, sample: &Sample<'_>) -> Option<Figure> {
        if self.split.and_then(|label| sample.label(label)).is_some_and(|value| !value.is_empty()) {
            return None;
        }
        let is_meant =
            |series: &&Series| series.name == name && series.only.is_none_or(|(label, value)| sample.label(label) == Some(value));
        self.series.iter().find(is_meant).map(|series| series.figure)
    }

    /// What tells the sample's engine from those that run in parallel to it.
    pub(super) fn part(&self, sample: &Sample<'_>) -> String {
        let values: Vec<&str> = self.parts.iter().map(|label| sample.label(label).unwrap_or("")).collect();
        values.join("/")
    }

    /// The same as a number, for what comes often.
    pub(super) fn part_number(&self, sample: &Sample<'_>) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.parts.iter().for_each(|label| sample.label(label).hash(&mut hasher));
        hasher.finish()
    }

    /// Whether the sample is that of the first process of its engine, or of an engine of one.
    pub(super) fn is_first_rank(&self, sample: &Sample<'_>) -> bool {
        self.ranks.iter().all(|label| sample.label(label).is_none_or(|rank| rank == "0"))
    }

    /// Rank of the sample's process in its engine.
    pub(super) fn rank(&self, sample: &Sample<'_>) -> Rank {
        let rank = |label: &&str| sample.label(label).and_then(|text| text.parse().ok()).unwrap_or(0);
        self.ranks.iter().map(rank).collect()
    }
}

/// Rank of a process in its engine: one number for each label.
pub(super) type Rank = Vec<u32>;
