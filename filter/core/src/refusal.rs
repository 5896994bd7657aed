//! What a refused client is told: status, headers, and a body in the format of the API that it called.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::time::Duration;

use crate::policy::{Policy, StaticReply};
use crate::reason::{Cause, Reason};
use crate::request::ApiFormat;
use crate::stream::Reply;

#[cfg(test)]
mod tests;

/// Tenths below which each is told from its neighbours by a float.
const EXACT_TENTHS: f64 = 1e15;
/// What stands in place of the reason when the policy hides the numbers.
const HIDDEN: &str = "overloaded";

/// The answer to a refused request: 503 when a breaker is open, else 429.
///
/// `retry-after` is in whole seconds, rounded up, at least 1 (RFC 9110 section 10.2.3); `retry-after-ms` is exact to the millisecond.
#[must_use]
pub fn refuse(policy: &Policy, cause: &Cause, retry_after: Duration, format: ApiFormat) -> Reply {
    let retry_after_ms = u64::try_from(retry_after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1);
    let reveals = policy.reveal_numbers();
    Reply {
        status: if cause.reason == Reason::BreakerOpen { 503 } else { 429 },
        headers: alloc::vec![
            ("content-type", String::from("application/json")),
            ("retry-after", format!("{}", retry_after_ms.div_ceil(1000))),
            ("retry-after-ms", format!("{retry_after_ms}")),
            ("x-headgate-reason", if reveals { revealed(policy, cause) } else { String::from(HIDDEN) }),
        ],
        body: body(cause, retry_after_ms, format, reveals).into_bytes(),
        details: details(cause.reason),
    }
}

/// The fixed answer of a policy in place of an open breaker's refusal.
#[must_use]
pub fn static_reply(policy: &Policy, reply: &StaticReply, cause: &Cause) -> Reply {
    let reason = if policy.reveal_numbers() { revealed(policy, cause) } else { String::from(HIDDEN) };
    Reply {
        status: reply.status,
        headers: alloc::vec![("content-type", reply.content_type.clone()), ("x-headgate-reason", reason)],
        body: Vec::from(reply.body.as_bytes()),
        details: "headgate_static_reply",
    }
}

/// `gpu_memory; value=81.2; threshold=75; level=gpu_memory; policy=demo@0123456789abcdef`.
fn revealed(policy: &Policy, cause: &Cause) -> String {
    let reason = cause.reason.as_str();
    let (value, threshold) = (Number(cause.value), Number(cause.threshold));
    let level = cause.level();
    format!("{reason}; value={value}; threshold={threshold}; level={level}; policy={}@{}", policy.name(), policy.version())
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

fn body(cause: &Cause, retry_after_ms: u64, format: ApiFormat, reveals: bool) -> String {
    let is_open = cause.reason == Reason::BreakerOpen;
    let code = Json(if reveals { cause.reason.as_str() } else { HIDDEN });
    let message = message(cause, retry_after_ms, reveals);
    let message = Json(&message);
    match format {
        ApiFormat::OpenAi => {
            let kind = if is_open { "overloaded" } else { "rate_limit_exceeded" };
            format!(r#"{{"error":{{"message":{message},"type":"{kind}","param":null,"code":{code}}}}}"#)
        }
        ApiFormat::Anthropic => {
            let kind = if is_open { "overloaded_error" } else { "rate_limit_error" };
            format!(r#"{{"type":"error","error":{{"type":"{kind}","message":{message}}}}}"#)
        }
        ApiFormat::Plain => format!(r#"{{"error":{message},"code":{code},"retry_after_ms":{retry_after_ms}}}"#),
    }
}

fn message(cause: &Cause, retry_after_ms: u64, reveals: bool) -> String {
    let seconds = retry_after_ms.div_ceil(1000);
    if !reveals {
        return format!("The service is overloaded. Retry after {seconds} s.");
    }
    let Cause { reason, value, threshold, term: _, source: _ } = cause;
    // A level that has tripped acts until its countdown is over and its classes have grown back, whatever its value is by then.
    let is_recovering = matches!(reason, Reason::Qps | Reason::GpuMemory | Reason::P99) && value < threshold;
    let refused = if is_recovering { "Refused while recovering" } else { "Refused" };
    let (signal, unit) = reason.signal_and_unit();
    let (value, threshold) = (Number(*value), Number(*threshold));
    format!("{refused}: {signal} is {value}{unit}, the limit is {threshold}{unit}. Retry after {seconds} s.")
}

/// A number for people: at most one decimal.
pub(crate) struct Number(pub(crate) f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = libm::round(self.0 * 10.0);
        if tenths.abs() < EXACT_TENTHS {
            // As a float would be written, which takes longer: every refusal has two of them twice.
            let (sign, tenths) = (if tenths < 0.0 { "-" } else { "" }, tenths.abs() as u64);
            write!(f, "{sign}{}", tenths / 10)?;
            if tenths.is_multiple_of(10) { Ok(()) } else { write!(f, ".{}", tenths % 10) }
        } else {
            write!(f, "{}", tenths / 10.0)
        }
    }
}

/// A JSON string, with its quotes.
struct Json<'a>(&'a str);

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        let mut rest = self.0;
        while let Some(at) = rest.find(|character: char| matches!(character, '"' | '\\' | '\0'..' ')) {
            let (plain, escaped) = rest.split_at(at);
            f.write_str(plain)?;
            let mut escaped = escaped.chars();
            match escaped.next() {
                Some('"') => f.write_str("\\\"")?,
                Some('\\') => f.write_str("\\\\")?,
                Some(character) => write!(f, "\\u{:04x}", u32::from(character))?,
                None => {}
            }
            rest = escaped.as_str();
        }
        f.write_str(rest)?;
        f.write_char('"')
    }
}
