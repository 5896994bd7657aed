//! ORCA load reports in a response header, as vLLM sends them when the request asks for them.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::engine::Engine;

/// Request header that asks for a report.
pub const FORMAT_HEADER: HeaderName = HeaderName::from_static("endpoint-load-metrics-format");
/// Response header that carries it.
pub const REPORT_HEADER: HeaderName = HeaderName::from_static("endpoint-load-metrics");

/// How the report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `TEXT named_metrics.a=1,named_metrics.b=2`
    Text,
    /// `JSON {"named_metrics":{"a":1,"b":2}}`
    Json,
}

impl Format {
    /// The format that a request asks for; `None` when it asks for none or for one that nobody knows.
    pub fn requested(headers: &HeaderMap) -> Option<Format> {
        let value = headers.get(FORMAT_HEADER)?.as_bytes().trim_ascii();
        if value.eq_ignore_ascii_case(b"text") {
            Some(Format::Text)
        } else if value.eq_ignore_ascii_case(b"json") {
            Some(Format::Json)
        } else {
            None
        }
    }
}

/// The report on `engine`: KV cache usage `0..=1` and the sequences waiting and running.
///
/// It leaves with the response headers, so for a long stream it is as old as the stream.
pub fn report(format: Format, engine: &Engine) -> HeaderValue {
    let (kv, waiting, running) = (engine.kv_usage(), engine.waiting(), engine.running());
    let text = match format {
        Format::Text => format!(
            "TEXT named_metrics.kv_cache_usage_perc={kv:.4},named_metrics.num_requests_waiting={waiting},\
             named_metrics.num_requests_running={running}"
        ),
        Format::Json => format!(
            r#"JSON {{"named_metrics":{{"kv_cache_usage_perc":{kv:.4},"num_requests_waiting":{waiting},"num_requests_running":{running}}}}}"#
        ),
    };
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}
