use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use std::format;

use headgate_protos::v1;
use proptest::prelude::*;

use super::fixture::{ACME_KEY, sha256_hex, wire};
use super::*;

fn errors_of(change: impl FnOnce(&mut v1::Policy)) -> Vec<String> {
    let mut wire = wire();
    change(&mut wire);
    match Policy::try_from_wire(&wire) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

fn overload(policy: &mut v1::Policy) -> &mut v1::Overload {
    spec(policy).overload.get_or_insert_default()
}

fn spec(wire: &mut v1::Policy) -> &mut v1::PolicySpec {
    wire.spec.as_mut().unwrap()
}

fn levels(wire: &mut v1::Policy) -> &mut v1::Levels {
    spec(wire).levels.get_or_insert_default()
}

fn rules(wire: &mut v1::Policy) -> &mut v1::Classification {
    spec(wire).classification.as_mut().unwrap()
}

fn breaker(wire: &mut v1::Policy) -> &mut v1::CircuitBreaker {
    spec(wire).breaker.get_or_insert_default()
}

fn identity(wire: &mut v1::Policy) -> &mut v1::Identity {
    &mut rules(wire).tenants[0].identities[0]
}

type Break = fn(&mut v1::Policy);

/// Each way to break a policy, and all that must be said about it.
const BROKEN: &[(Break, &[&str])] = &[
    (|p| p.name.clear(), &["metadata.name: is required"]),
    (
        |p| p.name = "Demo_1".into(),
        &["metadata.name: \"Demo_1\" is not 1 to 63 characters of a-z, 0-9 and '-' that begin and end with a letter or digit"],
    ),
    (|p| p.spec = None, &["spec: is required"]),
    (|p| spec(p).pool.clear(), &["pool: is required"]),
    (|p| spec(p).enforcement = 7, &["enforcement: \"7\" is not one of enforce, shadow"]),
    (
        |p| spec(p).candidate = Some(v1::Candidate { of: "demo".into(), ..Default::default() }),
        &[
            "candidate.of: demo is not allowed: a policy is no candidate for itself",
            "candidate: 0 fields are given instead of exactly one of requestsPercent, proxiesPercent",
        ],
    ),
    (
        |p| {
            spec(p).enforcement = v1::Enforcement::Shadow.into();
            spec(p).candidate = Some(v1::Candidate { of: "other".into(), requests_percent: Some(10), ..Default::default() });
        },
        &["candidate: a percentage is not allowed: with enforcement shadow it watches every request"],
    ),
    (
        |p| {
            let rollout = v1::Rollout {
                steps: vec![20, 20, 0],
                hold_ms: Some(1),
                min_samples: Some(1),
                confidence_percent: Some(100.0),
                ..Default::default()
            };
            spec(p).candidate =
                Some(v1::Candidate { of: "other".into(), proxies_percent: Some(101), rollout: Some(rollout), ..Default::default() });
        },
        &[
            "candidate.proxiesPercent: 101 is outside 1..=99",
            "candidate.rollout.steps[1]: 20 is not allowed: each percentage is above the one before",
            "candidate.rollout.steps[2]: 0 is outside 1..=99",
            "candidate.rollout.steps[2]: 0 is not allowed: each percentage is above the one before",
            "candidate.rollout.holdMs: 1 is outside 1000..=604800000",
            "candidate.rollout.minSamples: 1 is outside 30..=100000000",
            "candidate.rollout.confidencePercent: 100 is outside 80..=99.9999",
        ],
    ),
    (
        |p| {
            let floor = |class: &str, percent| v1::QuotaFloor { class: class.into(), percent };
            let floors = vec![floor("high", 60), floor("high", 50), floor("best", 0)];
            let first = v1::Quota {
                name: "a b".into(),
                tenants: vec!["acme".into(), "acme".into(), "none".into()],
                unit: v1::QuotaUnit::WorkTokens.into(),
                amount: -1.0,
                per: 7,
                mode: 8,
                floors,
                reserve_percent: Some(21.0),
                safe_percent: Some(-1.0),
                burst_ms: Some(99),
            };
            spec(p).quotas = vec![first, v1::Quota { unit: 9, ..Default::default() }, v1::Quota { name: "x".into(), ..Default::default() }];
        },
        &[
            "quotas[0].name: \"a b\" is not 1 to 63 characters of a-z, 0-9, '_', '.' and '-'",
            "quotas[0].tenants[1]: \"acme\" is already used by quotas[0].tenants[0]",
            "quotas[0].tenants[2]: \"none\" is not one of acme, vip, user",
            "quotas[0].unit: work_tokens is not allowed: work tokens need `overload`, which says what an output token counts",
            "quotas[0].amount: -1 is outside 0.001..=1000000000000000",
            "quotas[0].per: \"7\" is not one of second, minute",
            "quotas[0].mode: \"8\" is not one of strict, fast",
            "quotas[0].floors[1].class: \"high\" is already used by quotas[0].floors[0].class",
            "quotas[0].floors[2].class: \"best\" is not one of high, medium, low",
            "quotas[0].floors[2].percent: is required",
            "quotas[0].floors: percent 110 in sum is not allowed: the floors of a quota add up to at most 100",
            "quotas[0].reservePercent: 21 is outside 0..=20",
            "quotas[0].safePercent: -1 is outside 0..=50",
            "quotas[0].burstMs: 99 is outside 100..=60000",
            "quotas[1].name: is required",
            "quotas[1].unit: \"9\" is not one of requests, tokens, work_tokens",
            "quotas[1].amount: is required",
            "quotas[2].unit: is required",
            "quotas[2].amount: is required",
        ],
    ),
    (|p| spec(p).pool = "a b".into(), &["pool: \"a b\" is not 1 to 63 characters of a-z, 0-9 and '-'"]),
    (
        |p| spec(p).routes = vec![v1::RouteMatch { path_prefix: "v1".into(), host: "a.example:80".into() }],
        &[
            "routes[0].pathPrefix: \"v1\" is not a path that starts with '/'",
            "routes[0].host: \"a.example:80\" is not a host name of at most 253 characters without port",
        ],
    ),
    (
        |p| spec(p).routes = (0..33).map(|number| v1::RouteMatch { path_prefix: format!("/{number}"), host: String::new() }).collect(),
        &["routes: 33 entries are outside 0..=32"],
    ),
    (
        |p| {
            spec(p).routes = vec![
                v1::RouteMatch { path_prefix: "/".into(), host: "A.b".into() },
                v1::RouteMatch { path_prefix: String::new(), host: "a.B".into() },
            ]
        },
        &["routes[1]: \"a.b/\" is already used by routes[0]"],
    ),
    (|p| spec(p).classes[0].when_tripped = 0, &["classes[0].whenTripped: is required"]),
    (|p| spec(p).classes[0].when_tripped = 9, &["classes[0].whenTripped: \"9\" is not one of reserved_lane, gradient_throttle, refuse"]),
    (|p| spec(p).classes[0].reserved_percent = Some(91), &["classes[0].reservedPercent: 91 is outside 0..=90"]),
    (
        |p| spec(p).classes[1].reserved_percent = Some(5),
        &["classes[1].reservedPercent: 5 is not allowed: only a class with whenTripped reserved_lane has a part of its own"],
    ),
    (
        |p| {
            spec(p).classes[0].reserved_percent = Some(60);
            spec(p).classes[1].when_tripped = v1::WhenTripped::ReservedLane.into();
            spec(p).classes[1].reserved_percent = Some(40);
        },
        &["classes: reservedPercent 100 in sum is not allowed: the reserved percentages of all classes add up to at most 90"],
    ),
    (|p| spec(p).classes[2].max_retry_after_ms = Some(999), &["classes[2].maxRetryAfterMs: 999 is outside 1000..=600000"]),
    (
        |p| spec(p).classes[1].floor_percent = Some(20),
        &["classes[1].floorPercent: 20 is not allowed: a floor needs `overload`, which measures the pool's capacity"],
    ),
    (
        |p| spec(p).classes[1].max_queue_ms = Some(20),
        &["classes[1].maxQueueMs: 20 is not allowed: there is no queue without `overload.queue`"],
    ),
    (
        |p| {
            overload(p).ttft_slo_ms = Some(9);
            overload(p).tpot_slo_ms = Some(0);
            overload(p).kv_target_percent = Some(100);
            overload(p).output_weight = Some(0.0);
            overload(p).bytes_per_token = Some(f64::NAN);
            overload(p).output_tokens = Some(0);
            overload(p).fusion = 3;
            spec(p).classes[0].floor_percent = Some(60);
            spec(p).classes[1].floor_percent = Some(60);
        },
        &[
            "classes: floorPercent 120 in sum is not allowed: the floors of all classes add up to at most 90",
            "overload.ttftSloMs: 9 is outside 10..=600000",
            "overload.tpotSloMs: 0 is outside 1..=10000",
            "overload.kvTargetPercent: 100 is outside 10..=99",
            "overload.outputWeight: 0 is outside 0.1..=100",
            "overload.bytesPerToken: NaN is outside 0.5..=64",
            "overload.outputTokens: 0 is outside 1..=1000000",
            "overload.fusion: \"3\" is not one of max, weighted",
        ],
    ),
    (
        |p| {
            let queue = v1::AdmissionQueue { max_depth_factor: Some(6.0), max_requests: Some(0), max_bytes: Some(1) };
            overload(p).queue = Some(queue);
            overload(p).retries = Some(v1::RetryBudget { percent: Some(101), min_rps: Some(-1.0) });
        },
        &[
            "overload.queue.maxBytes: 1 is outside 4096..=4294967296",
            "overload.queue.maxDepthFactor: 6 is outside 0.1..=5",
            "overload.queue.maxRequests: 0 is outside 1..=100000",
            "overload.retries.percent: 101 is outside 0..=100",
            "overload.retries.minRps: -1 is outside 0..=1000000",
        ],
    ),
    (
        |p| {
            let rung = |kind: v1::RungKind| v1::Rung { kind: kind.into(), engage_at: 1.0, ..Default::default() };
            overload(p).ladder = vec![
                v1::Rung { release_at: Some(1.0), ..rung(v1::RungKind::Delay) },
                v1::Rung { engage_at: 0.0, ..rung(v1::RungKind::Unspecified) },
                rung(v1::RungKind::SwitchModel),
                v1::Rung { pool: "other".into(), classes: vec!["best".into()], ..rung(v1::RungKind::CacheFirst) },
            ];
        },
        &[
            "overload.ladder[0].releaseAt: 1 is not allowed: a rung releases below the saturation at which it engages",
            "overload.ladder[1].engageAt: 0 is outside 0.1..=10",
            "overload.ladder[1].kind: is required",
            "overload.ladder[2].pool: is required",
            "overload.ladder[3].classes[0]: \"best\" is not one of high, medium, low",
            "overload.ladder[3].pool: other is not allowed: only switch_model sends requests to another pool",
        ],
    ),
    (
        |p| {
            let engine = |url: &str| v1::Engine { metrics_url: url.into() };
            spec(p).engines = vec![engine(""), engine("ftp://a"), engine("http://a/metrics"), engine("http://a/metrics")];
        },
        &[
            "engines[0].metricsUrl: is required",
            "engines[1].metricsUrl: \"ftp://a\" is not an address that begins with http://",
            "engines[3].metricsUrl: \"http://a/metrics\" is already used by engines[2].metricsUrl",
        ],
    ),
    (
        |p| spec(p).classes[2].name = "High".into(),
        &[
            "classes[2].name: \"High\" is not 1 to 32 characters of a-z, 0-9, '_' and '-'",
            "classification.tenants[2].class: \"low\" is not one of high, medium, High",
        ],
    ),
    (|p| rules(p).default_class = "gold".into(), &["classification.defaultClass: \"gold\" is not one of high, medium, low"]),
    (
        |p| rules(p).priority_header = "X-Priority".into(),
        &["classification.priorityHeader: \"X-Priority\" is not a header name of 1 to 64 characters of a-z, 0-9, '_' and '-'"],
    ),
    (
        |p| rules(p).model_header = "x-headgate-model".into(),
        &["classification.modelHeader: x-headgate-model is not allowed: x-headgate- headers of clients are removed"],
    ),
    (|p| rules(p).tenants[0].class = "gold".into(), &["classification.tenants[0].class: \"gold\" is not one of high, medium, low"]),
    (
        |p| rules(p).tenants[0].may_claim = vec!["high".into(), "best".into()],
        &["classification.tenants[0].mayClaim[1]: \"best\" is not one of high, medium, low"],
    ),
    (
        |p| rules(p).tenants[1].name = "acme".into(),
        &["classification.tenants[1].name: \"acme\" is already used by classification.tenants[0].name"],
    ),
    (|p| rules(p).tenants[0].identities.clear(), &["classification.tenants[0].identities: 0 entries are outside 1..=16"]),
    (
        |p| identity(p).spiffe_id = "spiffe://a/b".into(),
        &["classification.tenants[0].identities[0]: 2 fields are given instead of exactly one of apiKeySha256, jwtClaim, spiffeId"],
    ),
    (
        |p| *identity(p) = v1::Identity::default(),
        &["classification.tenants[0].identities[0]: 0 fields are given instead of exactly one of apiKeySha256, jwtClaim, spiffeId"],
    ),
    (
        |p| identity(p).api_key_sha256 = "sk-secret".into(),
        // What was written may be the key itself: it must not be repeated.
        &["classification.tenants[0].identities[0].apiKeySha256: \"a text of 9 bytes\" is not 64 hexadecimal digits"],
    ),
    (
        |p| rules(p).tenants[1].identities[0].spiffe_id = "https://a".into(),
        &["classification.tenants[1].identities[0].spiffeId: \"https://a\" is not a URI of at most 512 bytes that starts with spiffe://"],
    ),
    (
        |p| rules(p).tenants[2].identities[0].jwt_claim = Some(v1::JwtClaim::default()),
        &[
            "classification.tenants[2].identities[0].jwtClaim.claim: is required",
            "classification.tenants[2].identities[0].jwtClaim.value: is required",
        ],
    ),
    (
        |p| rules(p).caps = vec![v1::ClassCap { class: "low".into(), ..Default::default() }],
        &["classification.caps[0]: none of pathPrefix, model, minContentLength is given"],
    ),
    (
        |p| {
            levels(p).qps =
                Some(v1::QpsLevel { sigmas: Some(f64::NAN), trip_factor: Some(f64::INFINITY), floor_rps: Some(-0.5), ..Default::default() })
        },
        &[
            "levels.qps.sigmas: NaN is outside 0..=10",
            "levels.qps.tripFactor: inf is outside 1..=100",
            "levels.qps.floorRps: -0.5 is outside 0..=1000000000",
        ],
    ),
    (
        |p| {
            levels(p).gpu_memory =
                Some(v1::GpuMemoryLevel { trip_percent: Some(140.0), source: 7, sample_ms: Some(5000), ..Default::default() })
        },
        &[
            "levels.gpuMemory.source: \"7\" is not one of auto, nvml, kv_cache",
            "levels.gpuMemory.sampleMs: 5000 is outside 20..=2000",
            "levels.gpuMemory.tripPercent: 140 is outside 1..=100",
        ],
    ),
    (
        |p| levels(p).gpu_memory = Some(v1::GpuMemoryLevel { devices: vec!["GPU-1".into(), "GPU-1".into()], ..Default::default() }),
        &["levels.gpuMemory.devices[1]: \"GPU-1\" is already used by levels.gpuMemory.devices[0]"],
    ),
    (
        |p| levels(p).p99 = Some(v1::P99Level { limit_ms: Some(400), floor_ms: Some(500), ..Default::default() }),
        &["levels.p99.floorMs: 500 is outside 0..=400"],
    ),
    (
        |p| levels(p).hysteresis = Some(v1::Hysteresis { recover_percent: Some(100.0), recovery_ms: Some(0) }),
        &["levels.hysteresis.recoverPercent: 100 is outside 1..=99", "levels.hysteresis.recoveryMs: 0 is outside 100..=3600000"],
    ),
    (
        |p| spec(p).throttle = Some(v1::GradientThrottle { shrink_percent: Some(0), burst_ms: Some(5), ..Default::default() }),
        &["throttle.shrinkPercent: 0 is outside 1..=90", "throttle.burstMs: 5 is outside 10..=60000"],
    ),
    (|p| spec(p).concurrency = Some(v1::Concurrency { max_in_flight: 0 }), &["concurrency.maxInFlight: 0 is outside 1..=1000000"]),
    (
        |p| breaker(p).error_rates = vec![v1::ErrorRate { percent: 0, window_ms: 10, min_requests: Some(0) }],
        &[
            "breaker.errorRates[0].percent: 0 is outside 1..=100",
            "breaker.errorRates[0].windowMs: 10 is outside 1000..=3600000",
            "breaker.errorRates[0].minRequests: 0 is outside 1..=1000000",
        ],
    ),
    (
        |p| breaker(p).scopes = vec![1, 1, 5],
        &[
            "breaker.scopes[1]: \"endpoint\" is already used by breaker.scopes[0]",
            "breaker.scopes[2]: \"5\" is not one of endpoint, dependency",
        ],
    ),
    (
        |p| breaker(p).fallback = Some(v1::Fallback::default()),
        &["breaker.fallback: 0 fields are given instead of exactly one of cacheOnly, direct, otherPool, staticReply"],
    ),
    (
        |p| breaker(p).fallback = Some(v1::Fallback { direct: true, ..Default::default() }),
        &["breaker.fallback.direct: true is not allowed: only a breaker with the scope dependency has a dependency to go without"],
    ),
    (
        |p| breaker(p).fallback = Some(v1::Fallback { other_pool: "llm".into(), ..Default::default() }),
        &["breaker.fallback.otherPool: llm is not allowed: it is the pool of this policy"],
    ),
    (
        |p| {
            let reply = v1::StaticReply { status: Some(99), body: "x".repeat(16_385), content_type: "a\nb".into() };
            breaker(p).fallback = Some(v1::Fallback { static_reply: Some(reply), ..Default::default() });
        },
        &[
            "breaker.fallback.staticReply.status: 99 is outside 200..=599",
            "breaker.fallback.staticReply.body: 16385 bytes are more than 16384",
            "breaker.fallback.staticReply.contentType: \"a\\nb\" is not a content type of at most 128 visible ASCII characters",
        ],
    ),
];

#[test]
fn every_broken_policy_names_field_value_and_range() {
    for (break_it, expected) in BROKEN {
        assert_eq!(errors_of(break_it), *expected);
    }
}

#[test]
fn all_errors_come_at_once_in_field_order() {
    let errors = errors_of(|wire| {
        wire.name = "-".into();
        spec(wire).pool = String::new();
        rules(wire).tenants[0].class = "gold".into();
        levels(wire).gpu_memory = Some(v1::GpuMemoryLevel { trip_percent: Some(0.0), ..Default::default() });
        spec(wire).throttle = Some(v1::GradientThrottle { interval_ms: Some(1), ..Default::default() });
        breaker(wire).half_open_probes = Some(0);
    });
    let fields: Vec<&str> = errors.iter().filter_map(|error| error.split(':').next()).collect();
    let expected = [
        "metadata.name",
        "pool",
        "classification.tenants[0].class",
        "levels.gpuMemory.tripPercent",
        "throttle.intervalMs",
        "breaker.halfOpenProbes",
    ];
    assert_eq!(fields, expected);
}

#[test]
fn no_class_at_all_is_refused() {
    let errors = errors_of(|wire| {
        spec(wire).classes.clear();
        rules(wire).tenants.clear();
    });
    assert_eq!(errors, ["classes: 0 entries are outside 1..=8"]);
}

#[test]
fn one_identity_cannot_be_two_tenants() {
    let errors = errors_of(|wire| rules(wire).tenants[1].identities[0] = rules(wire).tenants[0].identities[0].clone());
    let hash = sha256_hex(ACME_KEY);
    let field = |tenant| format!("classification.tenants[{tenant}].identities[0].apiKeySha256");
    assert_eq!(errors, [format!("{}: \"{hash}\" is already used by {}", field(1), field(0))]);
}

#[test]
fn more_than_eight_different_claims_are_refused() {
    let errors = errors_of(|wire| {
        rules(wire).tenants[2].identities = (0..9)
            .map(|number| {
                let claim = v1::JwtClaim { payload: String::new(), claim: format!("claim-{number}"), value: "x".into() };
                v1::Identity { jwt_claim: Some(claim), ..Default::default() }
            })
            .collect();
    });
    assert_eq!(errors.len(), 1);
    assert!(errors[0].starts_with("classification.tenants[2].identities[8].jwtClaim: claim-8 is not allowed:"), "{errors:?}");
}

#[test]
fn what_a_policy_leaves_out_has_the_documented_default() {
    let wire = v1::Policy {
        name: "least".into(),
        spec: Some(v1::PolicySpec {
            pool: "llm".into(),
            classes: vec![v1::PriorityClass { name: "only".into(), when_tripped: v1::WhenTripped::Refuse.into(), ..Default::default() }],
            breaker: Some(v1::CircuitBreaker::default()),
            ..Default::default()
        }),
        version: String::new(),
    };
    let policy = Policy::try_from_wire(&wire).unwrap();
    assert_eq!(*policy.levels(), Levels::default());
    assert_eq!(*policy.throttle(), ThrottleConfig::default());
    assert_eq!(policy.breaker(), Some(&BreakerConfig::default()));
    assert_eq!(policy.concurrency(), None);
    assert_eq!(policy.routes(), [Route { path_prefix: "/".into(), host: None }]);
    assert_eq!(policy.classification().default_class, ClassId::new(0));
    assert_eq!(policy.classification().priority_header, "x-priority");
    assert!(policy.reveal_numbers());
    assert_eq!(policy.version(), content_version(&wire));
}

#[test]
fn an_empty_part_means_the_same_as_an_absent_one() {
    let empty = {
        let mut wire = wire();
        *levels(&mut wire) = v1::Levels {
            qps: Some(v1::QpsLevel::default()),
            gpu_memory: Some(v1::GpuMemoryLevel::default()),
            p99: Some(v1::P99Level::default()),
            hysteresis: Some(v1::Hysteresis::default()),
        };
        spec(&mut wire).throttle = Some(v1::GradientThrottle::default());
        Policy::try_from_wire(&wire).unwrap()
    };
    assert_eq!(*empty.levels(), Levels::default());
    assert_eq!(*empty.throttle(), ThrottleConfig::default());
}

#[test]
fn the_version_follows_the_content_and_nothing_else() {
    let one = content_version(&wire());
    let mut versioned = wire();
    versioned.version = "other".into();
    assert_eq!(one, content_version(&versioned));
    assert_eq!(one.len(), 16);
    let mut changed = wire();
    spec(&mut changed).pool = "llm-2".into();
    assert_ne!(one, content_version(&changed));
}

proptest! {
    #[test]
    fn any_number_in_any_field_gives_a_policy_in_range_or_an_error(
        numbers in prop::array::uniform12(prop::option::of(any::<u32>())), reals in prop::array::uniform4(prop::option::of(any::<f64>())),
    ) {
        let mut wire = wire();
        *levels(&mut wire) = v1::Levels {
            qps: Some(v1::QpsLevel {
                enabled: None, sample_ms: numbers[0], baseline_window_ms: numbers[1], sigmas: reals[0], trip_factor: reals[1],
                min_samples: numbers[2], floor_rps: None,
            }),
            gpu_memory: Some(v1::GpuMemoryLevel { sample_ms: numbers[3], trip_percent: reals[2], ..Default::default() }),
            p99: Some(v1::P99Level {
                enabled: None, window_ms: numbers[4], limit_ms: numbers[5], mean_factor: reals[3], periods: numbers[6],
                floor_ms: numbers[7], min_samples: numbers[8],
            }),
            hysteresis: Some(v1::Hysteresis { recover_percent: None, recovery_ms: numbers[9] }),
        };
        spec(&mut wire).classes[0].reserved_percent = numbers[10];
        spec(&mut wire).concurrency = numbers[11].map(|max_in_flight| v1::Concurrency { max_in_flight });
        if let Ok(policy) = Policy::try_from_wire(&wire) {
            let Levels { qps, gpu_memory, p99, hysteresis } = policy.levels();
            prop_assert!((0.0..=10.0).contains(&qps.sigmas) && (1.0..=100.0).contains(&qps.trip_factor));
            prop_assert!((1.0..=100.0).contains(&gpu_memory.trip_percent) && (20..=2000).contains(&gpu_memory.sample.as_millis()));
            prop_assert!(p99.floor <= p99.limit && (1.0..=100.0).contains(&p99.mean_factor));
            prop_assert!((100..=3_600_000).contains(&hysteresis.recovery.as_millis()));
            prop_assert!(policy.concurrency().is_none_or(|bound| (1..=1_000_000).contains(&bound.max_in_flight)));
        }
    }
}
