//! What a refused client is told: status, headers, and a body in the format of the API that it called.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::policy::{Policy, StaticReply};
use crate::reason::{Cause, Reason};
use crate::request::ApiFormat;
use crate::stream::Reply;

#[cfg(test)]
mod tests;

/// Tenths below which each is told from its neighbours by a float.
const EXACT_TENTHS: f64 = 1e15;
/// Room for a text, in bytes: the body of a refusal has a few more than a hundred.
const TEXT_LEN: usize = 192;
/// What stands in place of the reason when the policy hides the numbers.
const HIDDEN: &str = "overloaded";

/// The answer to a refused request: 503 when a breaker is open, else 429.
///
/// `retry-after` is in whole seconds, rounded up, at least 1 (RFC 9110 section 10.2.3); `retry-after-ms` is exact to the millisecond.
#[must_use]
pub fn refuse(policy: &Policy, cause: &Cause, retry_after: Duration, format: ApiFormat) -> Reply {
    let retry_after_ms = u64::try_from(retry_after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1);
    Reply {
        status: if cause.reason == Reason::BreakerOpen { 503 } else { 429 },
        headers: alloc::vec![
            ("content-type", String::from("application/json")),
            ("retry-after", decimal(retry_after_ms.div_ceil(1000))),
            ("retry-after-ms", decimal(retry_after_ms)),
            ("x-headgate-reason", reason(policy, cause)),
        ],
        body: body(cause, retry_after_ms, format, policy.reveal_numbers()).into_bytes(),
        details: details(cause.reason),
    }
}

/// The fixed answer of a policy in place of an open breaker's refusal.
#[must_use]
pub fn static_reply(policy: &Policy, reply: &StaticReply, cause: &Cause) -> Reply {
    Reply {
        status: reply.status,
        headers: alloc::vec![("content-type", reply.content_type.clone()), ("x-headgate-reason", reason(policy, cause))],
        body: Vec::from(reply.body.as_bytes()),
        details: "headgate_static_reply",
    }
}

/// `gpu_memory; value=81.2; threshold=75; level=gpu_memory; policy=demo@0123456789abcdef`.
fn reason(policy: &Policy, cause: &Cause) -> String {
    if !policy.reveal_numbers() {
        return String::from(HIDDEN);
    }
    let mut text = String::with_capacity(TEXT_LEN);
    push(&mut text, &[cause.reason.as_str(), "; value="]);
    push_number(&mut text, cause.value);
    push(&mut text, &["; threshold="]);
    push_number(&mut text, cause.threshold);
    push(&mut text, &["; level=", cause.level(), "; policy=", policy.name(), "@", policy.version()]);
    text
}

const fn details(reason: Reason) -> &'static str {
    match reason {
        Reason::Qps => "headgate_qps",
        Reason::GpuMemory => "headgate_gpu_memory",
        Reason::P99 => "headgate_p99",
        Reason::Overload => "headgate_overload",
        Reason::Concurrency => "headgate_concurrency",
        Reason::BreakerOpen => "headgate_breaker_open",
        Reason::CutOff => "headgate_cut_off",
        Reason::Budget => "headgate_budget",
        Reason::QueueFull => "headgate_queue_full",
        Reason::Deadline => "headgate_deadline",
        Reason::Expired => "headgate_expired",
        Reason::RetryBudget => "headgate_retry_budget",
        Reason::Ladder => "headgate_ladder",
        Reason::Quota => "headgate_quota",
    }
}

/// The message and the words around it are ours and have numbers, in which nothing needs to be escaped.
fn body(cause: &Cause, retry_after_ms: u64, format: ApiFormat, reveals: bool) -> String {
    let is_open = cause.reason == Reason::BreakerOpen;
    let code = if reveals { cause.reason.as_str() } else { HIDDEN };
    let mut text = String::with_capacity(TEXT_LEN);
    match format {
        ApiFormat::OpenAi => {
            let kind = if is_open { "overloaded" } else { "rate_limit_exceeded" };
            push(&mut text, &[r#"{"error":{"message":""#]);
            push_message(&mut text, cause, retry_after_ms, reveals);
            push(&mut text, &[r#"","type":""#, kind, r#"","param":null,"code":""#, code, r#""}}"#]);
        }
        ApiFormat::Anthropic => {
            let kind = if is_open { "overloaded_error" } else { "rate_limit_error" };
            push(&mut text, &[r#"{"type":"error","error":{"type":""#, kind, r#"","message":""#]);
            push_message(&mut text, cause, retry_after_ms, reveals);
            push(&mut text, &[r#""}}"#]);
        }
        ApiFormat::Plain => {
            push(&mut text, &[r#"{"error":""#]);
            push_message(&mut text, cause, retry_after_ms, reveals);
            push(&mut text, &[r#"","code":""#, code, r#"","retry_after_ms":"#]);
            push_decimal(&mut text, retry_after_ms);
            push(&mut text, &["}"]);
        }
    }
    text
}

fn push_message(text: &mut String, cause: &Cause, retry_after_ms: u64, reveals: bool) {
    if reveals {
        // A level that has tripped acts until its countdown is over and its classes have grown back, whatever its value is by then.
        let is_level = matches!(cause.reason, Reason::Qps | Reason::GpuMemory | Reason::P99);
        let refused = if is_level && cause.value < cause.threshold { "Refused while recovering: " } else { "Refused: " };
        let (signal, unit) = cause.reason.signal_and_unit();
        push(text, &[refused, signal, " is "]);
        push_number(text, cause.value);
        push(text, &[unit, ", the limit is "]);
        push_number(text, cause.threshold);
        push(text, &[unit]);
    } else {
        push(text, &["The service is overloaded"]);
    }
    push(text, &[". Retry after "]);
    push_decimal(text, retry_after_ms.div_ceil(1000));
    push(text, &[" s."]);
}

/// A number for people: at most one decimal.
pub(crate) struct Number(pub(crate) f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        push_number(&mut text, self.0);
        f.write_str(&text)
    }
}

fn push(text: &mut String, parts: &[&str]) {
    parts.iter().for_each(|part| text.push_str(part));
}

/// See [`Number`].
fn push_number(text: &mut String, number: f64) {
    let tenths = libm::round(number * 10.0);
    if tenths.abs() >= EXACT_TENTHS || tenths.is_nan() {
        return text.push_str(&format!("{}", tenths / 10.0));
    }
    // As a float would be written, which takes longer: every refusal has two of them twice.
    if tenths < 0.0 {
        text.push('-');
    }
    let tenths = tenths.abs() as u64;
    push_decimal(text, tenths / 10);
    if !tenths.is_multiple_of(10) {
        text.push('.');
        push_decimal(text, tenths % 10);
    }
}

fn decimal(number: u64) -> String {
    let mut text = String::new();
    push_decimal(&mut text, number);
    text
}

/// Digits, without the formatter, which takes several times as long.
fn push_decimal(text: &mut String, number: u64) {
    if number >= 10 {
        push_decimal(text, number / 10);
    }
    text.push(char::from(b'0' + (number % 10) as u8));
}
