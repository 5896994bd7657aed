//! Engines of a scenario: presets, with any figure of them replaced.

use serde::Deserialize;

use super::check::Check;
use crate::engine::{EngineConfig, LlmConfig, PlainConfig};

/// Engines that are alike.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawEngines {
    #[serde(default = "one")]
    count: u64,
    preset: RawPreset,
    #[serde(default)]
    kv_blocks: Option<u64>,
    #[serde(default)]
    max_sequences: Option<u64>,
    #[serde(default)]
    step_tokens: Option<u64>,
    #[serde(default)]
    max_queue: Option<u64>,
    #[serde(default)]
    base_ms: Option<f64>,
    #[serde(default)]
    per_sequence_us: Option<f64>,
    #[serde(default)]
    per_prefill_token_us: Option<f64>,
    #[serde(default)]
    per_kv_token_ns: Option<f64>,
    #[serde(default)]
    concurrency: Option<u64>,
    #[serde(default)]
    service_ms: Option<f64>,
    #[serde(default)]
    service_sigma: Option<f64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum RawPreset {
    #[serde(rename = "h100-32b")]
    H100With32b,
    #[serde(rename = "h100-8b")]
    H100With8b,
    #[serde(rename = "h100x4-70b")]
    FourH100With70b,
    #[serde(rename = "plain")]
    Plain,
}

fn one() -> u64 {
    1
}

/// The engines one by one.
pub(super) fn engines(check: &mut Check, raw: &[RawEngines]) -> Vec<EngineConfig> {
    let mut engines = Vec::new();
    for (at, raw) in raw.iter().enumerate() {
        let field = format!("engines[{at}]");
        let count = check.count(&format!("{field}.count"), raw.count, 1, 1000);
        let config = match raw.preset {
            RawPreset::H100With32b => llm(check, &field, raw, LlmConfig::default()),
            RawPreset::H100With8b => llm(check, &field, raw, LlmConfig::H100_8B),
            RawPreset::FourH100With70b => llm(check, &field, raw, LlmConfig::H100_X4_70B),
            RawPreset::Plain => plain(check, &field, raw),
        };
        engines.extend((0..count).map(|_| config.clone()));
    }
    check.count("engines (count)", engines.len() as u64, 1, 1000);
    engines
}

fn llm(check: &mut Check, field: &str, raw: &RawEngines, preset: LlmConfig) -> EngineConfig {
    let mut count = |name: &str, value: Option<u64>, preset: u32, min: u64, max: u64| {
        value.map_or(preset, |value| check.count(&format!("{field}.{name}"), value, min, max) as u32)
    };
    let counts = (
        count("kvBlocks", raw.kv_blocks, preset.kv_blocks, 16, 100_000_000),
        count("maxSequences", raw.max_sequences, preset.max_sequences, 1, 100_000),
        count("stepTokens", raw.step_tokens, preset.step_tokens, 1, 1_000_000),
        count("maxQueue", raw.max_queue, preset.max_queue, 0, u64::from(u32::MAX)),
    );
    let mut cost = |name: &str, value: Option<f64>, preset: f64, unit: f64, max: f64| {
        value.map_or(preset, |value| check.number(&format!("{field}.{name}"), value, 0.0, max) * unit)
    };
    let config = LlmConfig {
        kv_blocks: counts.0,
        max_sequences: counts.1,
        step_tokens: counts.2,
        max_queue: counts.3,
        base_s: cost("baseMs", raw.base_ms, preset.base_s, 1e-3, 10_000.0),
        per_sequence_s: cost("perSequenceUs", raw.per_sequence_us, preset.per_sequence_s, 1e-6, 1e6),
        per_prefill_token_s: cost("perPrefillTokenUs", raw.per_prefill_token_us, preset.per_prefill_token_s, 1e-6, 1e6),
        per_kv_token_s: cost("perKvTokenNs", raw.per_kv_token_ns, preset.per_kv_token_s, 1e-9, 1e9),
    };
    foreign(
        check,
        field,
        &[
            ("concurrency", raw.concurrency.is_some()),
            ("serviceMs", raw.service_ms.is_some()),
            ("serviceSigma", raw.service_sigma.is_some()),
        ],
    );
    EngineConfig::Llm(config)
}

fn plain(check: &mut Check, field: &str, raw: &RawEngines) -> EngineConfig {
    let mut config = PlainConfig::default();
    if let Some(concurrency) = raw.concurrency {
        config.concurrency = check.count(&format!("{field}.concurrency"), concurrency, 1, 100_000) as u32;
    }
    if let Some(max_queue) = raw.max_queue {
        config.max_queue = check.count(&format!("{field}.maxQueue"), max_queue, 0, u64::from(u32::MAX)) as u32;
    }
    if let Some(service_ms) = raw.service_ms {
        config.service = check.millis(&format!("{field}.serviceMs"), service_ms, 0.01, 3_600_000.0);
    }
    if let Some(sigma) = raw.service_sigma {
        config.sigma = check.number(&format!("{field}.serviceSigma"), sigma, 0.0, 3.0);
    }
    foreign(
        check,
        field,
        &[
            ("kvBlocks", raw.kv_blocks.is_some()),
            ("maxSequences", raw.max_sequences.is_some()),
            ("stepTokens", raw.step_tokens.is_some()),
            ("baseMs", raw.base_ms.is_some()),
            ("perSequenceUs", raw.per_sequence_us.is_some()),
            ("perPrefillTokenUs", raw.per_prefill_token_us.is_some()),
            ("perKvTokenNs", raw.per_kv_token_ns.is_some()),
        ],
    );
    EngineConfig::Plain(config)
}

/// A figure of the other kind of engine would change nothing: it is an error, not a silence.
fn foreign(check: &mut Check, field: &str, figures: &[(&str, bool)]) {
    for (name, _) in figures.iter().filter(|(_, is_given)| *is_given) {
        check.wrong(&format!("{field}.{name}"), "an engine of this preset has no such figure");
    }
}
