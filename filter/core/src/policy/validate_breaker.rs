//! Checks of the circuit breaker and its fallback.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use headgate_protos::v1;

use super::check::{Checker, Form, join};
use super::config::{BreakerConfig, ErrorRateConfig, Fallback, StaticReply};
use super::error::Problem;
use super::validate::POOL;

const AT: &str = "breaker";
const MAX_ERROR_RATES: usize = 4;
const MAX_BODY_BYTES: usize = 16_384;
const CONTENT_TYPE: Form = Form {
    max_bytes: 128,
    allows: |byte| byte.is_ascii_graphic() || byte == b' ',
    ends_allow: |byte| byte.is_ascii_graphic(),
    expected: "a content type of at most 128 visible ASCII characters",
};

#[derive(Clone, Copy, Default)]
struct Scopes {
    endpoint: bool,
    dependency: bool,
}

pub(super) fn breaker(check: &mut Checker, wire: &v1::CircuitBreaker, pool: &str) -> BreakerConfig {
    let v1::CircuitBreaker { consecutive_failures, successes_to_close, open_ms, error_rates, half_open_probes, ramp_ms, scopes, fallback } =
        wire;
    let defaults = BreakerConfig::default();
    let consecutive_failures = check.whole(AT, "consecutiveFailures", *consecutive_failures, defaults.consecutive_failures, 1..=10_000);
    let successes_to_close = check.whole(AT, "successesToClose", *successes_to_close, defaults.successes_to_close, 1..=1000);
    let open = check.millis(AT, "openMs", *open_ms, defaults.open, 100..=3_600_000);
    let error_rates = self::error_rates(check, error_rates);
    let half_open_probes = check.whole(AT, "halfOpenProbes", *half_open_probes, defaults.half_open_probes, 1..=1000);
    let ramp = check.millis(AT, "rampMs", *ramp_ms, defaults.ramp, 0..=3_600_000);
    let scopes = self::scopes(check, scopes);
    let fallback = fallback.as_ref().and_then(|wire| self::fallback(check, wire, pool, scopes));
    BreakerConfig {
        consecutive_failures,
        successes_to_close,
        open,
        error_rates,
        half_open_probes,
        ramp,
        per_endpoint: scopes.endpoint,
        per_dependency: scopes.dependency,
        fallback,
    }
}

fn error_rates(check: &mut Checker, wire: &[v1::ErrorRate]) -> Vec<ErrorRateConfig> {
    let checked = check.count(AT, "errorRates", wire.len(), 0..=MAX_ERROR_RATES);
    if wire.is_empty() {
        return ErrorRateConfig::defaults();
    }
    let mut rates = Vec::with_capacity(checked);
    for (index, v1::ErrorRate { percent, window_ms, min_requests }) in wire.iter().take(checked).enumerate() {
        let at = format!("{AT}.errorRates[{index}]");
        rates.push(ErrorRateConfig {
            percent: check.whole(&at, "percent", Some(*percent), 1, 1..=100),
            window: check.millis(&at, "windowMs", Some(*window_ms), Duration::from_secs(1), 1000..=3_600_000),
            min_requests: check.whole(&at, "minRequests", *min_requests, ErrorRateConfig::DEFAULT_MIN_REQUESTS, 1..=1_000_000),
        });
    }
    rates
}

fn scopes(check: &mut Checker, wire: &[i32]) -> Scopes {
    let mut scopes = Scopes::default();
    let mut seen = BTreeMap::new();
    for (index, number) in wire.iter().enumerate() {
        let field = format!("{AT}.scopes[{index}]");
        let name = match v1::BreakerScope::try_from(*number) {
            Ok(v1::BreakerScope::Endpoint) => {
                scopes.endpoint = true;
                "endpoint"
            }
            Ok(v1::BreakerScope::Dependency) => {
                scopes.dependency = true;
                "dependency"
            }
            Ok(v1::BreakerScope::Unspecified) | Err(_) => {
                check.unknown(field, &format!("{number}"), ["endpoint", "dependency"]);
                continue;
            }
        };
        check.unique(field, name, &mut seen);
    }
    scopes
}

fn fallback(check: &mut Checker, wire: &v1::Fallback, pool: &str, scopes: Scopes) -> Option<Fallback> {
    let v1::Fallback { cache_only, direct, other_pool, static_reply } = wire;
    let at = format!("{AT}.fallback");
    let given = usize::from(*cache_only) + usize::from(*direct) + usize::from(!other_pool.is_empty()) + usize::from(static_reply.is_some());
    if given != 1 {
        check.report(at.clone(), Problem::NotExactlyOne { got: given, of: "cacheOnly, direct, otherPool, staticReply" });
    }
    let mut fallback = None;
    if *cache_only {
        fallback = Some(Fallback::CacheOnly);
    }
    if *direct {
        if !scopes.dependency {
            let rule = "only a breaker with the scope dependency has a dependency to go without";
            check.report(join(&at, "direct"), Problem::Conflict { got: String::from("true"), rule });
        }
        fallback = Some(Fallback::Direct);
    }
    if !other_pool.is_empty() {
        check.text(&at, "otherPool", other_pool, &POOL);
        if other_pool == pool {
            check.report(join(&at, "otherPool"), Problem::Conflict { got: other_pool.clone(), rule: "it is the pool of this policy" });
        }
        fallback = Some(Fallback::OtherPool(other_pool.clone()));
    }
    if let Some(wire) = static_reply {
        fallback = Some(Fallback::StaticReply(self::static_reply(check, &join(&at, "staticReply"), wire)));
    }
    fallback
}

fn static_reply(check: &mut Checker, at: &str, wire: &v1::StaticReply) -> StaticReply {
    let v1::StaticReply { status, body, content_type } = wire;
    let defaults = StaticReply::default();
    let status = check.whole(at, "status", *status, u32::from(defaults.status), 200..=599);
    check.length(at, "body", body, MAX_BODY_BYTES);
    check.optional_text(at, "contentType", content_type, &CONTENT_TYPE);
    StaticReply {
        status: u16::try_from(status).unwrap_or(defaults.status),
        body: body.clone(),
        content_type: if content_type.is_empty() { defaults.content_type } else { content_type.clone() },
    }
}
