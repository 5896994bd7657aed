//! ORCA load reports in a response header, as vLLM sends them when the request asks for them, and as gRPC servers encode them.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::engine::Engine;

/// Request header that asks for a report.
pub const FORMAT_HEADER: HeaderName = HeaderName::from_static("endpoint-load-metrics-format");
/// Response header that carries it as text or JSON.
pub const REPORT_HEADER: HeaderName = HeaderName::from_static("endpoint-load-metrics");
/// Response header that carries it in binary.
pub const BINARY_HEADER: HeaderName = HeaderName::from_static("endpoint-load-metrics-bin");

/// How the report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `TEXT named_metrics.a=1,named_metrics.b=2`
    Text,
    /// `JSON {"named_metrics":{"a":1,"b":2}}`
    Json,
    /// Base64 of an encoded `xds.data.orca.v3.OrcaLoadReport`, in a header of its own.
    Binary,
}

impl Format {
    /// The format that a request asks for; `None` when it asks for none or for one that nobody knows.
    pub fn requested(headers: &HeaderMap) -> Option<Format> {
        let value = headers.get(FORMAT_HEADER)?.as_bytes().trim_ascii();
        if value.eq_ignore_ascii_case(b"text") {
            Some(Format::Text)
        } else if value.eq_ignore_ascii_case(b"json") {
            Some(Format::Json)
        } else if value.eq_ignore_ascii_case(b"bin") {
            Some(Format::Binary)
        } else {
            None
        }
    }
}

/// The report on `engine` and the header it belongs into: KV cache usage `0..=1` and the sequences waiting and running.
///
/// It leaves with the response headers, so for a long stream it is as old as the stream.
pub fn report(format: Format, engine: &Engine) -> (HeaderName, HeaderValue) {
    let (kv, waiting, running) = (engine.kv_usage(), engine.waiting(), engine.running());
    let text = match format {
        Format::Text => format!(
            "TEXT named_metrics.kv_cache_usage_perc={kv:.4},named_metrics.num_requests_waiting={waiting},\
             named_metrics.num_requests_running={running}"
        ),
        Format::Json => format!(
            r#"JSON {{"named_metrics":{{"kv_cache_usage_perc":{kv:.4},"num_requests_waiting":{waiting},"num_requests_running":{running}}}}}"#
        ),
        Format::Binary => {
            let metrics = [("kv_cache_usage_perc", kv), ("num_requests_waiting", waiting as f64), ("num_requests_running", running as f64)];
            STANDARD.encode(metrics.iter().flat_map(|(name, value)| named_metric(name, *value)).collect::<Vec<u8>>())
        }
    };
    let header = if format == Format::Binary { BINARY_HEADER } else { REPORT_HEADER };
    (header, HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("")))
}

/// One entry of `OrcaLoadReport.named_metrics`, field 8: a message of a string and a double. Names are shorter than 100 bytes, so every
/// length is one byte.
fn named_metric(name: &str, value: f64) -> Vec<u8> {
    let mut entry = vec![1 << 3 | 2, name.len() as u8];
    entry.extend_from_slice(name.as_bytes());
    entry.push(2 << 3 | 1);
    entry.extend_from_slice(&value.to_le_bytes());
    let mut field = vec![8 << 3 | 2, entry.len() as u8];
    field.append(&mut entry);
    field
}
