#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use alloc::vec;

use super::*;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use crate::v1::{
    AdmissionQueue, BreakerScope, Candidate, CircuitBreaker, ClassCap, Classification, Concurrency, Enforcement, Engine, ErrorRate,
    Fallback, Fusion, GpuMemoryLevel, GpuMemorySource, GradientThrottle, Hysteresis, Identity, JwtClaim, Levels, Overload, P99Level,
    PriorityClass, QpsLevel, Quota, QuotaFloor, QuotaMode, QuotaPeriod, QuotaUnit, Refusal, RetryBudget, Rollout, RouteMatch, Rung,
    RungKind, StaticReply, Tenant, WhenTripped,
};

fn document(spec: Value) -> Value {
    json!({ "apiVersion": API_VERSION, "kind": KIND, "metadata": { "name": "demo" }, "spec": spec })
}

fn lines(value: Value) -> Vec<String> {
    read(value).errors.iter().map(ToString::to_string).collect()
}

#[test]
fn a_document_becomes_the_message() {
    let policy = parse(document(json!({
        "pool": "llm",
        "classes": [{ "name": "high", "whenTripped": "reserved_lane", "reservedPercent": 40 }, { "name": "low", "whenTripped": "refuse" }],
        "levels": { "gpuMemory": { "tripPercent": 80.5, "source": "nvml" }, "qps": { "enabled": false } },
        "breaker": { "scopes": ["endpoint", "dependency"] },
    })))
    .unwrap();
    assert_eq!(policy.name, "demo");
    assert_eq!(policy.version, "");
    let spec = policy.spec.unwrap();
    assert_eq!((spec.pool.as_str(), spec.classes.len()), ("llm", 2));
    assert_eq!(spec.classes[0].when_tripped(), WhenTripped::ReservedLane);
    assert_eq!(spec.classes[0].reserved_percent, Some(40));
    let levels = spec.levels.unwrap();
    assert_eq!(levels.gpu_memory.as_ref().unwrap().trip_percent, Some(80.5));
    assert_eq!(levels.gpu_memory.unwrap().source(), GpuMemorySource::Nvml);
    assert_eq!(levels.qps.unwrap().enabled, Some(false));
    assert_eq!(spec.breaker.unwrap().scopes, [BreakerScope::Endpoint as i32, BreakerScope::Dependency as i32]);
}

#[test]
fn every_error_is_reported_at_once_with_field_value_and_what_is_allowed() {
    let errors = lines(json!({
        "apiVersion": "v2",
        "metadata": { "name": 7, "labels": {} },
        "status": {},
        "spec": {
            "pool": ["llm"],
            "classes": [{ "name": "low", "whenTripped": "sometimes" }, 5, { "name": "x", "whenTripped": "refuse", "maxRetryAfterMs": -5 }],
            "levels": { "gpuMemory": { "tripPercent": "80", "enable": true }, "qps": { "enabled": "no", "sampleMs": 1.5 } },
            "breaker": { "scopes": ["endpoint", "host", "dependency", 4] },
            "concurrency": null,
            "throttle": [500],
        },
    }));
    let expected = [
        r#"apiVersion: "v2" is not headgate.dev/v1"#,
        "kind: is required",
        "metadata.name: 7 is not a text",
        "metadata.labels: is no field here; the fields are name",
        "status: is no field here; the fields are apiVersion, kind, metadata, spec",
        r#"breaker.scopes[1]: "host" is not one of endpoint, dependency"#,
        "breaker.scopes[3]: 4 is not a text",
        r#"classes[0].whenTripped: "sometimes" is not one of reserved_lane, gradient_throttle, refuse"#,
        "classes[1]: 5 is not an object",
        "classes[2].maxRetryAfterMs: -5 is not a whole number in 0..=4294967295",
        "concurrency: has no value; leave the field out to get its default",
        "levels.gpuMemory.enable: is no field here; the fields are enabled, source, sampleMs, tripPercent, devices",
        r#"levels.gpuMemory.tripPercent: "80" is not a number"#,
        r#"levels.qps.enabled: "no" is not true or false"#,
        "levels.qps.sampleMs: 1.5 is not a whole number in 0..=4294967295",
        "pool: a list is not a text",
        "throttle: a list is not an object",
    ];
    assert_eq!(errors, expected);
}

#[test]
fn what_could_be_read_is_kept_and_list_elements_keep_their_places() {
    let reading = read(document(json!({
        "pool": "llm",
        "classes": ["bad", { "name": "low", "whenTripped": "refuse" }],
        "classification": { "tenants": [{ "name": "acme", "class": "low", "mayClaim": [1, "low"], "identities": [{ "spiffeId": 3 }, { "spiffeId": "s" }] }] },
    })));
    assert_eq!(
        reading.errors.iter().map(|error| error.field.as_str()).collect::<Vec<_>>(),
        ["classes[0]", "classification.tenants[0].identities[0].spiffeId", "classification.tenants[0].mayClaim[0]",]
    );
    let spec = reading.policy.spec.unwrap();
    assert_eq!((spec.pool.as_str(), spec.classes.len(), spec.classes[1].name.as_str()), ("llm", 2, "low"));
    let tenant = &spec.classification.unwrap().tenants[0];
    assert_eq!(tenant.may_claim, ["", "low"]);
    assert_eq!(tenant.identities[1].spiffe_id, "s");
}

#[test]
fn an_error_covers_the_fields_that_it_kept_from_being_read() {
    let errors = read(document(json!({ "pool": 1, "classes": [3] }))).errors;
    for (field, covered) in
        [("pool", true), ("pools", false), ("classes[0]", true), ("classes[0].name", true), ("classes", false), ("classes[1]", false)]
    {
        assert_eq!(errors.covers(field), covered, "{field}");
    }
    let errors = read(json!({ "apiVersion": API_VERSION, "kind": KIND, "metadata": { "name": "x" }, "spec": 3 })).errors;
    assert!(errors.covers("pool") && !errors.covers("metadata.name"));
}

#[test]
fn what_is_no_document_is_refused() {
    for (value, expected) in [
        (json!("text"), vec![r#"document: "text" is not an object"#]),
        (json!({}), vec!["apiVersion: is required", "kind: is required", "metadata.name: is required", "spec: is required"]),
        (
            json!({ "apiVersion": API_VERSION, "kind": "Policy", "metadata": [], "spec": [] }),
            vec![r#"kind: "Policy" is not AdmissionPolicy"#, "metadata: a list is not an object", "spec: a list is not an object"],
        ),
    ] {
        assert_eq!(lines(value), expected);
    }
    assert_eq!(parse_spec("x", json!([1])).unwrap_err().to_string(), "spec: a list is not an object");
}

#[test]
fn the_number_of_errors_is_bounded() {
    let fields: Map<String, Value> = (0..1000).map(|n| (format!("f{n}"), json!(1))).collect();
    let errors = lines(document(Value::Object(fields)));
    assert_eq!(errors.len(), MAX_ERRORS + 1);
    assert_eq!(errors[MAX_ERRORS], "document: has more than 64 errors; correct these first");
    let nulls = vec![Value::Null; 1000];
    assert!(lines(document(json!({ "classes": nulls }))).len() <= MAX_ERRORS + 1);
}

#[test]
fn a_long_value_or_key_is_cut_in_its_error() {
    let long = "x".repeat(10_000);
    let mut value = document(json!({ "breaker": long, "levels": { long.clone(): 1 } }));
    value[&long] = json!(1);
    let errors = lines(value);
    assert_eq!(errors.len(), 3);
    assert!(errors.iter().all(|error| error.len() < 250 && error.contains('…')), "{errors:?}");
}

fn quota() -> Quota {
    Quota {
        name: "tokens".into(),
        tenants: vec!["acme".into()],
        unit: QuotaUnit::WorkTokens.into(),
        amount: 0.5,
        per: QuotaPeriod::Minute.into(),
        mode: QuotaMode::Fast.into(),
        floors: vec![QuotaFloor { class: "high".into(), percent: 5 }],
        reserve_percent: Some(0.0),
        safe_percent: Some(2.5),
        burst_ms: Some(100),
    }
}

/// Every field of a document set to something that is not its default; a new field fails to compile here.
fn full() -> Policy {
    let identity = |spiffe_id: &str| Identity { spiffe_id: spiffe_id.into(), ..Identity::default() };
    let claim = JwtClaim { payload: "p".into(), claim: "sub".into(), value: "v".into() };
    let spec = PolicySpec {
        pool: "llm".into(),
        routes: vec![RouteMatch { path_prefix: "/v1".into(), host: "h".into() }],
        classes: vec![PriorityClass {
            name: "high".into(),
            when_tripped: WhenTripped::GradientThrottle.into(),
            reserved_percent: Some(0),
            max_retry_after_ms: Some(1000),
            floor_percent: Some(5),
            max_queue_ms: Some(0),
        }],
        classification: Some(Classification {
            default_class: "high".into(),
            priority_header: "x-p".into(),
            model_header: "x-m".into(),
            tenants: vec![Tenant {
                name: "acme".into(),
                identities: vec![
                    identity("spiffe://a"),
                    Identity { api_key_sha256: "00".into(), jwt_claim: Some(claim), spiffe_id: String::new() },
                ],
                class: "high".into(),
                may_claim: vec!["high".into()],
            }],
            caps: vec![ClassCap { class: "high".into(), path_prefix: "/".into(), model: "m".into(), min_content_length: Some(u64::MAX) }],
        }),
        levels: Some(Levels {
            qps: Some(QpsLevel {
                enabled: Some(false),
                sample_ms: Some(1),
                baseline_window_ms: Some(2),
                sigmas: Some(0.0),
                trip_factor: Some(1.25),
                min_samples: Some(3),
                floor_rps: Some(1e9),
            }),
            gpu_memory: Some(GpuMemoryLevel {
                enabled: Some(true),
                source: GpuMemorySource::Auto.into(),
                sample_ms: Some(20),
                trip_percent: Some(99.9),
                devices: vec!["GPU-1".into()],
            }),
            p99: Some(P99Level {
                enabled: Some(true),
                window_ms: Some(1),
                limit_ms: Some(2),
                mean_factor: Some(1.8),
                periods: Some(3),
                floor_ms: Some(0),
                min_samples: Some(4),
            }),
            hysteresis: Some(Hysteresis { recover_percent: Some(90.0), recovery_ms: Some(5000) }),
        }),
        throttle: Some(GradientThrottle {
            interval_ms: Some(500),
            shrink_percent: Some(20),
            recover_percent: Some(10),
            floor_percent: Some(0),
            burst_ms: Some(1000),
        }),
        concurrency: Some(Concurrency { max_in_flight: 16 }),
        breaker: Some(CircuitBreaker {
            consecutive_failures: Some(5),
            successes_to_close: Some(3),
            open_ms: Some(30_000),
            error_rates: vec![ErrorRate { percent: 50, window_ms: 30_000, min_requests: Some(20) }],
            half_open_probes: Some(5),
            ramp_ms: Some(0),
            scopes: vec![BreakerScope::Dependency.into()],
            fallback: Some(Fallback {
                cache_only: true,
                direct: true,
                other_pool: "other".into(),
                static_reply: Some(StaticReply { status: Some(503), body: "b".into(), content_type: "text/plain".into() }),
            }),
        }),
        refusal: Some(Refusal { reveal_numbers: Some(false) }),
        overload: Some(overload()),
        engines: vec![Engine { metrics_url: "http://127.0.0.1:8000/metrics".into() }],
        enforcement: Enforcement::Shadow.into(),
        candidate: Some(candidate()),
        orca: true,
        quotas: vec![quota()],
    };
    Policy { name: "demo".into(), spec: Some(spec), version: String::new() }
}

fn candidate() -> Candidate {
    let rollout = Rollout {
        steps: vec![25, 50],
        hold_ms: Some(60_000),
        min_samples: Some(100),
        confidence_percent: Some(99.5),
        attainment_margin: Some(0.5),
        error_margin: Some(2.0),
        late_margin: Some(0.0),
        auto_promote: true,
    };
    let (requests_percent, proxies_percent) = (Some(10), Some(20));
    Candidate { of: "demo".into(), requests_percent, proxies_percent, rollout: Some(rollout), halted: "worse".into() }
}

fn overload() -> Overload {
    Overload {
        ttft_slo_ms: Some(2000),
        tpot_slo_ms: Some(100),
        kv_target_percent: Some(90),
        output_weight: Some(2.5),
        bytes_per_token: Some(4.0),
        output_tokens: Some(256),
        fusion: Fusion::Weighted.into(),
        queue: Some(AdmissionQueue { max_depth_factor: Some(5.0), max_requests: Some(100), max_bytes: Some(1 << 40) }),
        retries: Some(RetryBudget { percent: Some(10), min_rps: Some(1.0) }),
        ladder: vec![Rung {
            kind: RungKind::SwitchModel.into(),
            engage_at: 1.5,
            release_at: Some(1.0),
            hold_ms: Some(2000),
            classes: vec!["high".into()],
            delay_ms: Some(100),
            pool: "small".into(),
            max_tokens: Some(64),
        }],
        fair_tenants: Some(false),
        picks_endpoint: Some(true),
        usage: Some(false),
    }
}

#[test]
fn a_rendered_policy_reads_back_as_itself() {
    let policy = full();
    assert_eq!(parse(render(&policy)), Ok(policy));
}

#[test]
fn defaults_are_left_out_of_a_rendered_policy() {
    let policy = Policy { name: "x".into(), spec: Some(PolicySpec { pool: "p".into(), ..PolicySpec::default() }), version: "v".into() };
    assert_eq!(render(&policy), json!({ "apiVersion": API_VERSION, "kind": KIND, "metadata": { "name": "x" }, "spec": { "pool": "p" } }));
}
