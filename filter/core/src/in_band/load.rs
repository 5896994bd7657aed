//! An engine's load as it stands in a response header: the ORCA report in its three encodings.
//!
//! Source: xDS `data/orca/v3/orca_load_report.proto`, Envoy `source/common/orca/orca_parser.cc` (encodings), vLLM
//! `entrypoints/serve/utils/orca_metrics.py` and Triton `src/orca_http.cc` (names).

use alloc::string::String;
use alloc::vec::Vec;

use prost::Message;

use super::scan;

/// Request header that asks an engine for its load.
pub const FORMAT_HEADER: &str = "endpoint-load-metrics-format";
/// Longest value that is read, in bytes.
const MAX_VALUE_BYTES: usize = 4096;
/// Largest count that is believed: up to here a float tells neighbours apart.
const MAX_COUNT: f64 = 9_007_199_254_740_992.0;
/// Largest use of the KV cache that is believed; rounding may lift a full cache a little above one.
const MAX_USE: f64 = 1.01;
/// Where engines put figures that ORCA has no field for.
const NAMED: &[u8] = b"named_metrics.";

/// A header in which an engine tells its load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadHeader {
    /// `TEXT named_metrics.a=1,…`, `JSON {"named_metrics":{"a":1,…}}` or `BIN …`; without a word in front it is told by its first byte.
    Text,
    /// Base64 of the encoded message.
    Binary,
}

/// When a header is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadSeen {
    /// With the first byte of the body.
    AtFirstByte,
    /// When the request is over.
    AtEnd,
}

/// What an engine says of its load. A figure that it does not tell is absent.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct EngineLoad {
    /// Part of the KV cache in use, 0 to 1.
    pub kv_use: Option<f64>,
    /// Requests in its own queue.
    pub waiting: Option<u64>,
    /// Requests in its batch.
    pub running: Option<u64>,
    /// Tokens that the KV cache holds.
    pub kv_total_tokens: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Figure {
    KvUse,
    Waiting,
    Running,
    KvTotalTokens,
}

/// What vLLM and Triton call the figures.
const NAMES: [(&str, Figure); 6] = [
    ("kv_cache_usage_perc", Figure::KvUse),
    ("gpu_cache_usage_perc", Figure::KvUse),
    ("kv_cache_utilization", Figure::KvUse),
    ("num_requests_waiting", Figure::Waiting),
    ("num_requests_running", Figure::Running),
    ("max_token_capacity", Figure::KvTotalTokens),
];

/// The part of `xds.data.orca.v3.OrcaLoadReport` that engines use. A map is on the wire a list of entries.
#[derive(Clone, PartialEq, Message)]
struct OrcaLoadReport {
    #[prost(message, repeated, tag = "8")]
    named_metrics: Vec<NamedMetric>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedMetric {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(double, tag = "2")]
    value: f64,
}

// === impl LoadHeader ===

impl LoadHeader {
    /// Both, the usual one first.
    pub const ALL: [Self; 2] = [Self::Text, Self::Binary];

    /// Name of the response header.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "endpoint-load-metrics",
            Self::Binary => "endpoint-load-metrics-bin",
        }
    }

    /// The property in which Envoy's `header_to_metadata` filter keeps it, under the namespace `headgate`; its parts are separated by NUL.
    #[must_use]
    pub const fn metadata(self) -> &'static str {
        match self {
            Self::Text => "metadata\0filter_metadata\0headgate\0endpoint-load-metrics",
            Self::Binary => "metadata\0filter_metadata\0headgate\0endpoint-load-metrics-bin",
        }
    }
}

// === impl EngineLoad ===

impl EngineLoad {
    /// Reads the value of a header; `None` when it is too long, in no known form, tells none of the figures, or tells one that cannot be.
    #[must_use]
    pub fn read(header: LoadHeader, value: &[u8]) -> Option<Self> {
        let value = value.trim_ascii();
        if value.len() > MAX_VALUE_BYTES {
            return None;
        }
        let load = match (header, form(value)) {
            (LoadHeader::Binary, _) => Self::of_binary(value),
            (LoadHeader::Text, (Form::Binary, value)) => Self::of_binary(value),
            (LoadHeader::Text, (Form::Json, value)) => Self::of_json(value),
            (LoadHeader::Text, (Form::Text, value)) => Self::of_text(value),
        };
        load.filter(|load| *load != Self::default())
    }

    fn of_text(value: &[u8]) -> Option<Self> {
        let mut load = Self::default();
        for pair in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            let name = pair.split(|byte| *byte == b'=').next()?;
            let Some((_, figure)) = named(name.strip_prefix(NAMED).unwrap_or(name)) else { continue };
            let value = pair.get(name.len() + 1..)?;
            load.set(figure, scan::number(value.trim_ascii())?)?;
        }
        Some(load)
    }

    fn of_json(value: &[u8]) -> Option<Self> {
        let mut load = Self::default();
        for (name, figure) in NAMES {
            if let Some(value) = scan::last_number(value, name) {
                load.set(figure, value)?;
            }
        }
        Some(load)
    }

    fn of_binary(value: &[u8]) -> Option<Self> {
        let OrcaLoadReport { named_metrics } = OrcaLoadReport::decode(base64(value)?.as_slice()).ok()?;
        let mut load = Self::default();
        for NamedMetric { key, value } in &named_metrics {
            if let Some((_, figure)) = named(key.as_bytes()) {
                load.set(figure, *value)?;
            }
        }
        Some(load)
    }

    /// Takes a figure; `None` when it cannot be. Of several names for one figure the last counts.
    fn set(&mut self, figure: Figure, value: f64) -> Option<()> {
        let most = if figure == Figure::KvUse { MAX_USE } else { MAX_COUNT };
        // NaN is in no range.
        if !(0.0..=most).contains(&value) {
            return None;
        }
        match figure {
            Figure::KvUse => self.kv_use = Some(value.min(1.0)),
            Figure::Waiting => self.waiting = Some(value as u64),
            Figure::Running => self.running = Some(value as u64),
            // 0 is what a server says that does not know its size.
            Figure::KvTotalTokens => self.kv_total_tokens = Some(value as u64).filter(|tokens| *tokens > 0),
        }
        Some(())
    }
}

fn named(name: &[u8]) -> Option<(&'static str, Figure)> {
    NAMES.into_iter().find(|(known, _)| known.as_bytes() == name)
}

enum Form {
    Text,
    Json,
    Binary,
}

/// The form of a value, and the value without the word that says it.
fn form(value: &[u8]) -> (Form, &[u8]) {
    let word = |word: &[u8]| {
        let (first, rest) = value.split_at_checked(word.len())?;
        first.eq_ignore_ascii_case(word).then_some(rest)
    };
    if let Some(rest) = word(b"TEXT ") {
        (Form::Text, rest)
    } else if let Some(rest) = word(b"JSON ") {
        (Form::Json, rest)
    } else if let Some(rest) = word(b"BIN ") {
        (Form::Binary, rest)
    } else if value.first() == Some(&b'{') {
        (Form::Json, value)
    } else {
        (Form::Text, value)
    }
}

/// Decodes base64 (RFC 4648 section 4), with or without padding; `None` for any other byte.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
    let mut bytes = Vec::with_capacity(end / 4 * 3 + 2);
    for group in text.get(..end)?.chunks(4) {
        let mut bits = 0_u32;
        for byte in group {
            let six = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(six);
        }
        let whole = (group.len() * 6 / 8).min(3);
        let shifted = bits << (24 - group.len().min(4) * 6);
        bytes.extend(shifted.to_be_bytes().into_iter().skip(1).take(whole));
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::borrow::ToOwned;
    use alloc::format;
    use proptest::prelude::*;

    fn text(value: &str) -> Option<EngineLoad> {
        EngineLoad::read(LoadHeader::Text, value.as_bytes())
    }

    const VLLM: EngineLoad = EngineLoad { kv_use: Some(0.25), waiting: Some(3), running: None, kv_total_tokens: None };

    /// `named_metrics: {kv_cache_usage_perc: 0.25, num_requests_waiting: 3}`, as protoc encodes it.
    const BINARY: &str = "Qh4KE2t2X2NhY2hlX3VzYWdlX3BlcmMRAAAAAAAA0D9CHwoUbnVtX3JlcXVlc3RzX3dhaXRpbmcRAAAAAAAACEA=";

    #[test]
    fn all_three_encodings_say_the_same() {
        assert_eq!(text("TEXT named_metrics.kv_cache_usage_perc=0.25,named_metrics.num_requests_waiting=3"), Some(VLLM));
        assert_eq!(text(r#"JSON {"named_metrics": {"kv_cache_usage_perc": 0.25, "num_requests_waiting": 3.0}}"#), Some(VLLM));
        assert_eq!(EngineLoad::read(LoadHeader::Binary, BINARY.as_bytes()), Some(VLLM));
        assert_eq!(EngineLoad::read(LoadHeader::Binary, BINARY.trim_end_matches('=').as_bytes()), Some(VLLM), "gRPC leaves padding out");
        assert_eq!(text(&format!("BIN {BINARY}")), Some(VLLM));
    }

    #[test]
    fn the_word_in_front_may_be_missing_and_other_fields_are_passed_over() {
        assert_eq!(text("named_metrics.kv_cache_usage_perc=0.25, named_metrics.num_requests_waiting=3"), Some(VLLM));
        assert_eq!(text(r#"{"named_metrics":{"kv_cache_usage_perc":0.25,"num_requests_waiting":3}}"#), Some(VLLM));
        let other = "TEXT cpu_utilization=0.3, mem_utilization=0.8, rps_fractional=10.0, eps=x, named_metrics.kv_cache_usage_perc=0.25,\
                     named_metrics.num_requests_waiting=3";
        assert_eq!(text(other), Some(VLLM));
    }

    #[test]
    fn tritons_names_are_known() {
        let load = text("TEXT named_metrics.kv_cache_utilization=0.5, named_metrics.max_token_capacity=1024");
        assert_eq!(load, Some(EngineLoad { kv_use: Some(0.5), kv_total_tokens: Some(1024), ..EngineLoad::default() }));
    }

    #[test]
    fn a_report_with_a_figure_that_cannot_be_is_none_as_a_whole() {
        for value in ["NaN", "-0.1", "1.5", "inf", "1e999", "", "0.5x"] {
            assert_eq!(
                text(&format!("TEXT named_metrics.num_requests_waiting=3,named_metrics.kv_cache_usage_perc={value}")),
                None,
                "{value}"
            );
        }
        assert_eq!(text(r#"JSON {"kv_cache_usage_perc": 7}"#), None);
        for value in ["", "TEXT", "TEXT cpu_utilization=0.3", "JSON {}", "BIN ?", "BIN AA", "nonsense", "kv_cache_usage_perc"] {
            assert_eq!(text(value), None, "{value}");
        }
        assert_eq!(text(&format!("TEXT {}kv_cache_usage_perc=0.5", " ".repeat(MAX_VALUE_BYTES))), None, "too long");
        assert_eq!(text("kv_cache_usage_perc=1.005").and_then(|load| load.kv_use), Some(1.0), "rounding");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic_and_what_is_read_can_be(bytes in prop::collection::vec(any::<u8>(), 0..200), which in 0..4_usize) {
            let prefixes: [&[u8]; 4] = [b"TEXT named_metrics.kv_cache_usage_perc=", b"JSON {\"kv_cache_usage_perc\":", b"BIN ", b""];
            let mut value = prefixes[which].to_owned();
            value.extend_from_slice(&bytes);
            for header in LoadHeader::ALL {
                if let Some(load) = EngineLoad::read(header, &value) {
                    prop_assert!(load.kv_use.is_none_or(|part| (0.0..=1.0).contains(&part)));
                    prop_assert!(load != EngineLoad::default());
                }
            }
        }

        #[test]
        fn base64_is_what_it_should_be(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            let mut text = Vec::new();
            for group in bytes.chunks(3) {
                let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
                let digits = [18, 12, 6, 0].map(|shift| ALPHABET[(bits >> shift & 63) as usize]);
                text.extend_from_slice(&digits[..group.len() + 1]);
            }
            prop_assert_eq!(base64(&text), Some(bytes));
        }
    }
}
