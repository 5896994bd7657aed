use core::time::Duration;
use std::string::String;

use proptest::prelude::*;

use super::*;
use crate::policy::fixture;
use crate::reason::Source;

fn cause(reason: Reason, value: f64, threshold: f64) -> Cause {
    Cause { reason, value, threshold, term: None, source: Source::ControlPlane }
}

fn body_of(reason: Reason, format: ApiFormat) -> String {
    let policy = fixture::policy(|_| {});
    let reply = refuse(&policy, &cause(reason, 81.234, 75.0), Duration::from_micros(1_200_400), format);
    String::from_utf8(reply.body).unwrap()
}

#[test]
fn an_openai_client_gets_its_own_error_format() {
    assert_eq!(
        body_of(Reason::GpuMemory, ApiFormat::OpenAi),
        r#"{"error":{"message":"Refused: GPU memory in use is 81.2 %, the limit is 75 %. Retry after 2 s.","type":"rate_limit_exceeded","param":null,"code":"gpu_memory"}}"#
    );
}

#[test]
fn an_anthropic_client_gets_its_own_error_format() {
    assert_eq!(
        body_of(Reason::Concurrency, ApiFormat::Anthropic),
        r#"{"type":"error","error":{"type":"rate_limit_error","message":"Refused: number of requests in flight is 81.2, the limit is 75. Retry after 2 s."}}"#
    );
    assert!(body_of(Reason::BreakerOpen, ApiFormat::Anthropic).contains(r#""type":"overloaded_error""#));
}

#[test]
fn any_other_client_gets_plain_json() {
    assert_eq!(
        body_of(Reason::Qps, ApiFormat::Plain),
        r#"{"error":"Refused: request rate is 81.2 per second, the limit is 75 per second. Retry after 2 s.","code":"qps","retry_after_ms":1201}"#
    );
}

#[test]
fn headers_carry_reason_numbers_policy_and_both_times() {
    let policy = fixture::policy(|_| {});
    let reply = refuse(&policy, &cause(Reason::GpuMemory, 81.2, 75.0), Duration::from_millis(1001), ApiFormat::OpenAi);
    assert_eq!(reply.status, 429);
    assert_eq!(reply.details, "headgate_gpu_memory");
    let reason = format!("gpu_memory; value=81.2; threshold=75; level=gpu_memory; policy=demo@{}", policy.version());
    let expected =
        [("content-type", "application/json"), ("retry-after", "2"), ("retry-after-ms", "1001"), ("x-headgate-reason", reason.as_str())];
    assert_eq!(reply.headers.iter().map(|(name, value)| (*name, value.as_str())).collect::<Vec<_>>(), expected);
}

#[test]
fn an_open_breaker_is_503_and_no_wait_is_zero() {
    let policy = fixture::policy(|_| {});
    let reply = refuse(&policy, &cause(Reason::BreakerOpen, 5.0, 5.0), Duration::ZERO, ApiFormat::OpenAi);
    assert_eq!(reply.status, 503);
    assert_eq!((reply.headers[1].1.as_str(), reply.headers[2].1.as_str()), ("1", "1"));
}

#[test]
fn hidden_numbers_stand_neither_in_headers_nor_in_the_body() {
    let policy = fixture::policy(|spec| spec.refusal = Some(headgate_protos::v1::Refusal { reveal_numbers: Some(false) }));
    for format in [ApiFormat::OpenAi, ApiFormat::Anthropic, ApiFormat::Plain] {
        let reply = refuse(&policy, &cause(Reason::GpuMemory, 81.2, 75.0), Duration::from_secs(3), format);
        let text = format!("{:?} {}", reply.headers, String::from_utf8(reply.body).unwrap());
        for secret in ["81", "75", "gpu", "memory", "demo"] {
            assert!(!text.contains(secret), "{secret} is in {text}");
        }
        assert!(text.contains("overloaded"));
    }
}

#[test]
fn a_refusal_below_the_threshold_says_that_the_level_recovers() {
    let policy = fixture::policy(|_| {});
    let reply = refuse(&policy, &cause(Reason::GpuMemory, 60.0, 75.0), Duration::from_secs(1), ApiFormat::Plain);
    let body = String::from_utf8(reply.body).unwrap();
    assert!(body.contains("Refused while recovering: GPU memory in use is 60 %, the limit is 75 %."), "{body}");
}

#[test]
fn nothing_in_a_body_needs_to_be_escaped() {
    for (reason, value) in Reason::ALL.iter().flat_map(|reason| [1.0, f64::NAN, f64::NEG_INFINITY].map(|value| (*reason, value))) {
        let cause = cause(reason, value, f64::MAX);
        let mut message = String::new();
        push_message(&mut message, &cause, u64::MAX, true);
        let is_special = |character: char| matches!(character, '"' | '\\' | '\0'..' ');
        assert!(!message.contains(is_special) && !reason.as_str().contains(is_special), "{message}");
    }
}

#[test]
fn numbers_have_one_decimal_at_most() {
    for (number, text) in [(81.25, "81.3"), (75.0, "75"), (-0.04, "0"), (1e9, "1000000000")] {
        assert_eq!(format!("{}", Number(number)), text);
    }
}

proptest! {
    #[test]
    fn a_number_is_written_as_its_rounded_float_is(number in prop_oneof![-1e4..1e4, -1e18..1e18, proptest::num::f64::ANY]) {
        let rounded = libm::round(number * 10.0) / 10.0;
        // Adding zero turns -0 into 0.
        prop_assert_eq!(format!("{}", Number(number)), format!("{}", rounded + 0.0));
    }
}
