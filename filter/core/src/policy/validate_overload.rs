//! Checks of overload control: objectives, queue, retries, ladder and engines.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use headgate_protos::v1;

use super::ClassId;
use super::check::{Checker, Form, join};
use super::config::Class;
use super::error::Problem;
use super::overload::{Fusion, OverloadConfig, QueueConfig, RetryConfig, RungConfig, RungKind};
use super::validate::POOL;
use super::validate_classes::class_of;
use crate::permits::MAX_CLASSES;

const AT: &str = "overload";
const MAX_RUNGS: usize = 8;
const MAX_ENGINES: usize = 256;
const MAX_QUEUE_BYTES: f64 = 4_294_967_296.0;
/// Where a rung releases unless the policy says so, as a part of where it engages.
const DEFAULT_RELEASE: f64 = 0.8;
const RUNG_KINDS: [&str; 5] = ["cap_max_tokens", "drop_features", "delay", "switch_model", "cache_first"];

const METRICS_URL: Form = Form {
    max_bytes: 512,
    allows: |byte| byte.is_ascii_graphic(),
    ends_allow: |byte| byte.is_ascii_graphic(),
    expected: "an address of at most 512 visible characters",
};

pub(super) fn overload(check: &mut Checker, wire: &v1::Overload, classes: &[Class], own_pool: &str) -> OverloadConfig {
    let v1::Overload {
        ttft_slo_ms,
        tpot_slo_ms,
        kv_target_percent,
        output_weight,
        bytes_per_token,
        output_tokens,
        fusion,
        queue,
        retries,
        ladder,
        fair_tenants,
        picks_endpoint,
        usage,
    } = wire;
    let defaults = OverloadConfig::default();
    OverloadConfig {
        ttft_slo: check.millis(AT, "ttftSloMs", *ttft_slo_ms, defaults.ttft_slo, 10..=600_000),
        tpot_slo: check.millis(AT, "tpotSloMs", *tpot_slo_ms, defaults.tpot_slo, 1..=10_000),
        kv_target_percent: check.whole(AT, "kvTargetPercent", *kv_target_percent, defaults.kv_target_percent, 10..=99),
        output_weight: check.number(AT, "outputWeight", *output_weight, defaults.output_weight, 0.1..=100.0),
        bytes_per_token: check.number(AT, "bytesPerToken", *bytes_per_token, defaults.bytes_per_token, 0.5..=64.0),
        output_tokens: check.whole(AT, "outputTokens", *output_tokens, defaults.output_tokens, 1..=1_000_000),
        fusion: self::fusion(check, *fusion),
        queue: queue.as_ref().map(|wire| self::queue(check, *wire)),
        retries: retries.as_ref().map_or(defaults.retries, |wire| self::retries(check, *wire)),
        ladder: self::ladder(check, ladder, classes, own_pool),
        fair_tenants: fair_tenants.unwrap_or(defaults.fair_tenants),
        picks_endpoint: picks_endpoint.unwrap_or(defaults.picks_endpoint),
        reads_usage: usage.unwrap_or(defaults.reads_usage),
    }
}

/// Addresses of the engines' metrics pages. Whoever picks has to know from what: by them, or by the engines' responses (`orca`).
pub(super) fn engines(check: &mut Checker, wire: &[v1::Engine], overload: Option<&OverloadConfig>, orca: bool) -> Vec<String> {
    if overload.is_some_and(|config| config.picks_endpoint) && wire.is_empty() && !orca {
        let rule = "nothing says what the endpoints are: give `engines`, or `orca`";
        check.report(join(AT, "picksEndpoint"), Problem::Conflict { got: String::from("true"), rule });
    }
    let checked = check.count("", "engines", wire.len(), 0..=MAX_ENGINES);
    let mut seen = BTreeMap::new();
    for (index, v1::Engine { metrics_url }) in wire.iter().take(checked).enumerate() {
        let at = format!("engines[{index}]");
        check.text(&at, "metricsUrl", metrics_url, &METRICS_URL);
        if metrics_url.is_empty() {
            continue;
        }
        if !metrics_url.starts_with("http://") {
            let got = super::check::quoted(metrics_url);
            check.report(join(&at, "metricsUrl"), Problem::Malformed { got, expected: "an address that begins with http://" });
        }
        check.unique(join(&at, "metricsUrl"), metrics_url, &mut seen);
    }
    wire.iter().take(checked).map(|engine| engine.metrics_url.clone()).collect()
}

fn fusion(check: &mut Checker, wire: i32) -> Fusion {
    match v1::Fusion::try_from(wire) {
        Ok(v1::Fusion::Unspecified | v1::Fusion::Max) => Fusion::Max,
        Ok(v1::Fusion::Weighted) => Fusion::Weighted,
        Err(_) => {
            check.unknown(join(AT, "fusion"), &format!("{wire}"), ["max", "weighted"]);
            Fusion::Max
        }
    }
}

fn queue(check: &mut Checker, wire: v1::AdmissionQueue) -> QueueConfig {
    let v1::AdmissionQueue { max_depth_factor, max_requests, max_bytes } = wire;
    let defaults = QueueConfig::default();
    let at = "overload.queue";
    let bytes = check.number(at, "maxBytes", max_bytes.map(|bytes| bytes as f64), defaults.max_bytes as f64, 4096.0..=MAX_QUEUE_BYTES);
    QueueConfig {
        max_depth_factor: check.number(at, "maxDepthFactor", max_depth_factor, defaults.max_depth_factor, 0.1..=5.0),
        max_requests: check.whole(at, "maxRequests", max_requests, defaults.max_requests, 1..=100_000),
        max_bytes: bytes as u64,
    }
}

fn retries(check: &mut Checker, wire: v1::RetryBudget) -> RetryConfig {
    let v1::RetryBudget { percent, min_rps } = wire;
    let defaults = RetryConfig::default();
    RetryConfig {
        percent: check.whole("overload.retries", "percent", percent, defaults.percent, 0..=100),
        min_rps: check.number("overload.retries", "minRps", min_rps, defaults.min_rps, 0.0..=1e6),
    }
}

fn ladder(check: &mut Checker, wire: &[v1::Rung], classes: &[Class], own_pool: &str) -> Vec<RungConfig> {
    let checked = check.count(AT, "ladder", wire.len(), 0..=MAX_RUNGS);
    let rungs = wire.iter().take(checked).enumerate();
    rungs.filter_map(|(index, rung)| self::rung(check, &format!("{AT}.ladder[{index}]"), rung, classes, own_pool)).collect()
}

fn rung(check: &mut Checker, at: &str, wire: &v1::Rung, classes: &[Class], own_pool: &str) -> Option<RungConfig> {
    let v1::Rung { kind, engage_at, release_at, hold_ms, classes: named, delay_ms, pool, max_tokens } = wire;
    let engage = check.number(at, "engageAt", Some(*engage_at), 1.0, 0.1..=10.0);
    let release = check.number(at, "releaseAt", *release_at, engage * DEFAULT_RELEASE, 0.0..=10.0);
    if release >= engage {
        let rule = "a rung releases below the saturation at which it engages";
        check.report(join(at, "releaseAt"), Problem::Conflict { got: format!("{release}"), rule });
    }
    let hold = check.millis(at, "holdMs", *hold_ms, core::time::Duration::from_secs(2), 0..=3_600_000);
    let delay = check.millis(at, "delayMs", *delay_ms, core::time::Duration::from_secs(10), 100..=60_000);
    let max_tokens = check.whole(at, "maxTokens", *max_tokens, 1024, 1..=1_000_000);
    let rung_classes = self::rung_classes(check, at, named, classes);
    let kind = match v1::RungKind::try_from(*kind) {
        Ok(v1::RungKind::Unspecified) => {
            check.report(join(at, "kind"), Problem::Missing);
            return None;
        }
        Ok(v1::RungKind::CapMaxTokens) => RungKind::CapMaxTokens(max_tokens),
        Ok(v1::RungKind::DropFeatures) => RungKind::DropFeatures,
        Ok(v1::RungKind::Delay) => RungKind::Delay(delay),
        Ok(v1::RungKind::SwitchModel) => RungKind::SwitchModel(pool.clone()),
        Ok(v1::RungKind::CacheFirst) => RungKind::CacheFirst,
        Err(_) => {
            check.unknown(join(at, "kind"), &format!("{kind}"), RUNG_KINDS);
            return None;
        }
    };
    other_pool(check, at, &kind, pool, own_pool);
    Some(RungConfig { kind, engage_at: engage, release_at: release, hold, classes: rung_classes })
}

fn other_pool(check: &mut Checker, at: &str, kind: &RungKind, pool: &str, own_pool: &str) {
    if let RungKind::SwitchModel(_) = kind {
        check.text(at, "pool", pool, &POOL);
        if !pool.is_empty() && pool == own_pool {
            let rule = "a smaller model is another pool";
            check.report(join(at, "pool"), Problem::Conflict { got: String::from(pool), rule });
        }
    } else if !pool.is_empty() {
        let rule = "only switch_model sends requests to another pool";
        check.report(join(at, "pool"), Problem::Conflict { got: super::check::quoted(pool), rule });
    }
}

/// The classes that a rung names; all but the first when it names none.
fn rung_classes(check: &mut Checker, at: &str, named: &[String], classes: &[Class]) -> Vec<ClassId> {
    let checked = check.count(at, "classes", named.len(), 0..=MAX_CLASSES);
    if named.is_empty() {
        return (1..classes.len().max(2)).map(ClassId::new).collect();
    }
    let mut seen = BTreeMap::new();
    let mut found = Vec::with_capacity(checked);
    for (index, name) in named.iter().take(checked).enumerate() {
        let field = format!("{at}.classes[{index}]");
        if let Some(class) = class_of(check, field.clone(), name, classes) {
            check.unique(field, name, &mut seen);
            found.push(class);
        }
    }
    found
}
