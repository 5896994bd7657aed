//! Messages made from an input's decisions: mostly sensible, sometimes not.

use headgate_protos::v1;

use crate::Source;

/// Names of classes.
pub(super) const CLASSES: [&str; 4] = ["high", "medium", "low", "batch"];
/// Names of pools.
pub(super) const POOLS: [&str; 3] = ["llm", "other", "third"];
/// API keys of the tenants `t0`, `t1`, `t2`.
pub(super) const KEYS: [&str; 3] = ["test-key-gold", "test-key-silver", "test-key-bronze"];
/// SHA-256 of those.
const HASHES: [&str; 3] = [
    "538167a6d9cd980e48f922c8c5102ef4770c7ed5fa4eefce6c6d41c083f82196",
    "836932f46a4f37e569d93a2332e814cbae36e9335173deda087464bf438faefa",
    "0cd5ce12ddcad05c10cb7dd2b4256738baf574427fd597603be29b35dd28eb67",
];

/// A number in a range, 1 time in 32 any number.
fn within(source: &mut Source<'_>, from: u32, to: u32) -> u32 {
    if source.is_so(8) {
        return source.number32();
    }
    from + source.below((to - from + 1) as usize) as u32
}

/// The same, if it is given at all.
fn maybe(source: &mut Source<'_>, from: u32, to: u32) -> Option<u32> {
    source.is_so(100).then(|| within(source, from, to))
}

/// A number with a point in a range, 1 time in 32 any.
fn maybe_float(source: &mut Source<'_>, from: f64, to: f64) -> Option<f64> {
    source.is_so(100).then(|| if source.is_so(8) { source.float() } else { from + (to - from) * f64::from(source.byte()) / 255.0 })
}

fn number_of(source: &mut Source<'_>, known: i32) -> i32 {
    if source.is_so(4) { source.number32() as i32 } else { source.below(known as usize + 1) as i32 }
}

/// A policy of the pool `pool`, valid more often than not.
pub(super) fn policy(source: &mut Source<'_>, name: &str, pool: &str) -> v1::Policy {
    let count = 1 + source.below(CLASSES.len());
    let classes: Vec<v1::PriorityClass> = CLASSES.iter().take(count).map(|name| class(source, name)).collect();
    let spec = v1::PolicySpec {
        pool: if source.is_so(4) { source.text(&POOLS) } else { pool.to_owned() },
        routes: if source.is_so(200) { Vec::new() } else { vec![route(source)] },
        classification: Some(classification(source, count)),
        levels: source.is_so(90).then(|| levels(source)),
        throttle: source.is_so(40).then(|| v1::GradientThrottle {
            interval_ms: maybe(source, 100, 60_000),
            shrink_percent: maybe(source, 1, 50),
            recover_percent: maybe(source, 1, 100),
            floor_percent: maybe(source, 1, 50),
            burst_ms: maybe(source, 10, 10_000),
        }),
        concurrency: source.is_so(100).then(|| v1::Concurrency { max_in_flight: within(source, 1, 60) }),
        breaker: source.is_so(80).then(|| breaker(source)),
        refusal: source.is_so(40).then(|| v1::Refusal { reveal_numbers: Some(source.is_so(128)) }),
        overload: source.is_so(170).then(|| overload(source, count)),
        engines: if source.is_so(8) {
            vec![v1::Engine { metrics_url: source.text(&["http://127.0.0.1:8000/metrics"]) }]
        } else {
            Vec::new()
        },
        enforcement: v1::Enforcement::Enforce.into(),
        candidate: None,
        orca: source.is_so(64),
        quotas: Vec::new(),
        classes,
    };
    v1::Policy { name: if source.is_so(4) { source.text(&["demo"]) } else { name.to_owned() }, version: String::new(), spec: Some(spec) }
}

fn route(source: &mut Source<'_>) -> v1::RouteMatch {
    v1::RouteMatch { path_prefix: source.text(&["/", "/v1/", "/v1/messages"]), host: source.text(&["", "api.example.com"]) }
}

fn class(source: &mut Source<'_>, name: &str) -> v1::PriorityClass {
    let when_tripped = 1 + source.below(3) as i32;
    v1::PriorityClass {
        name: if source.is_so(4) { source.text(&CLASSES) } else { name.to_owned() },
        when_tripped: if source.is_so(4) { 99 } else { when_tripped },
        reserved_percent: if when_tripped == 1 { maybe(source, 1, 30) } else { None },
        max_retry_after_ms: maybe(source, 1000, 60_000),
        floor_percent: maybe(source, 0, 20),
        max_queue_ms: maybe(source, 0, 2000),
    }
}

fn classification(source: &mut Source<'_>, classes: usize) -> v1::Classification {
    let tenants = source.below(4);
    let mut class = |wild: u16| if source.is_so(wild) { source.text(&CLASSES) } else { CLASSES[source.below(classes)].to_owned() };
    let tenants = HASHES.iter().take(tenants).enumerate();
    let tenants = tenants
        .map(|(index, hash)| v1::Tenant {
            name: format!("t{index}"),
            identities: vec![v1::Identity { api_key_sha256: (*hash).to_owned(), ..Default::default() }],
            class: class(4),
            may_claim: Vec::new(),
        })
        .collect();
    let default_class = class(4);
    let caps = if source.is_so(20) {
        vec![v1::ClassCap { class: CLASSES[classes - 1].to_owned(), path_prefix: "/v1/batch".to_owned(), ..Default::default() }]
    } else {
        Vec::new()
    };
    v1::Classification { default_class, tenants, caps, ..Default::default() }
}

fn levels(source: &mut Source<'_>) -> v1::Levels {
    v1::Levels {
        qps: Some(v1::QpsLevel {
            enabled: Some(source.is_so(128)),
            sample_ms: maybe(source, 100, 1000),
            baseline_window_ms: maybe(source, 1000, 60_000),
            sigmas: maybe_float(source, 1.0, 10.0),
            trip_factor: maybe_float(source, 1.0, 10.0),
            min_samples: maybe(source, 2, 60),
            floor_rps: maybe_float(source, 0.0, 100.0),
        }),
        gpu_memory: Some(v1::GpuMemoryLevel {
            enabled: Some(source.is_so(128)),
            trip_percent: maybe_float(source, 1.0, 100.0),
            ..Default::default()
        }),
        p99: Some(v1::P99Level {
            enabled: Some(source.is_so(128)),
            limit_ms: maybe(source, 10, 60_000),
            min_samples: maybe(source, 1, 100),
            ..Default::default()
        }),
        hysteresis: Some(v1::Hysteresis { recover_percent: maybe_float(source, 1.0, 100.0), recovery_ms: maybe(source, 100, 10_000) }),
    }
}

fn breaker(source: &mut Source<'_>) -> v1::CircuitBreaker {
    let fallback = match source.below(8) {
        0 => Some(v1::Fallback { cache_only: true, ..Default::default() }),
        1 => Some(v1::Fallback { direct: true, ..Default::default() }),
        2 => Some(v1::Fallback { other_pool: "other".to_owned(), ..Default::default() }),
        3 => Some(v1::Fallback {
            static_reply: Some(v1::StaticReply {
                status: maybe(source, 200, 599),
                body: source.text(&["{}"]),
                content_type: source.text(&["", "text/plain"]),
            }),
            ..Default::default()
        }),
        _ => None,
    };
    v1::CircuitBreaker {
        consecutive_failures: maybe(source, 1, 10),
        successes_to_close: maybe(source, 1, 5),
        open_ms: maybe(source, 100, 2000),
        error_rates: if source.is_so(60) {
            vec![v1::ErrorRate {
                percent: within(source, 1, 100),
                window_ms: within(source, 1000, 60_000),
                min_requests: maybe(source, 1, 20),
            }]
        } else {
            Vec::new()
        },
        half_open_probes: maybe(source, 1, 5),
        ramp_ms: maybe(source, 0, 2000),
        scopes: (1..=2).filter(|_| source.is_so(80)).collect(),
        fallback,
    }
}

fn overload(source: &mut Source<'_>, classes: usize) -> v1::Overload {
    let ladder = if source.is_so(80) { source.below(4) } else { 0 };
    v1::Overload {
        ttft_slo_ms: maybe(source, 10, 5000),
        tpot_slo_ms: maybe(source, 1, 500),
        kv_target_percent: maybe(source, 10, 99),
        output_weight: maybe_float(source, 0.1, 10.0),
        bytes_per_token: maybe_float(source, 0.5, 8.0),
        output_tokens: maybe(source, 1, 4000),
        fusion: number_of(source, 2),
        queue: source.is_so(200).then(|| v1::AdmissionQueue {
            max_depth_factor: maybe_float(source, 0.1, 5.0),
            max_requests: maybe(source, 1, 40),
            max_bytes: source.is_so(60).then(|| 4096 + source.number() % (1 << 30)),
        }),
        retries: source.is_so(80).then(|| v1::RetryBudget { percent: maybe(source, 0, 100), min_rps: maybe_float(source, 0.0, 10.0) }),
        ladder: (0..ladder).map(|place| rung(source, classes, 0.6 + 0.1 * place as f64)).collect(),
        fair_tenants: source.is_so(100).then(|| source.is_so(128)),
        picks_endpoint: source.is_so(100).then(|| source.is_so(128)),
        usage: source.is_so(100).then(|| source.is_so(128)),
    }
}

fn rung(source: &mut Source<'_>, classes: usize, engage_at: f64) -> v1::Rung {
    let kind = 1 + source.below(5) as i32;
    let is = |wanted: v1::RungKind| kind == i32::from(wanted);
    v1::Rung {
        kind: if source.is_so(4) { 77 } else { kind },
        engage_at: if source.is_so(8) { source.float() } else { engage_at },
        release_at: maybe_float(source, 0.1, engage_at),
        hold_ms: maybe(source, 0, 2000),
        classes: vec![CLASSES[source.below(classes)].to_owned()],
        delay_ms: if is(v1::RungKind::Delay) { Some(within(source, 10, 1000)) } else { None },
        pool: if is(v1::RungKind::SwitchModel) { "other".to_owned() } else { String::new() },
        max_tokens: if is(v1::RungKind::CapMaxTokens) { Some(within(source, 1, 1000)) } else { None },
    }
}

/// Limits of `pool`, as a control plane that has lost its mind might send them.
pub(super) fn limits(source: &mut Source<'_>, pool: &str, epoch: u64) -> v1::Limits {
    let classes = (0..source.below(4))
        .map(|_| v1::ClassLimit {
            class: source.text(&CLASSES),
            action: number_of(source, 3),
            rate_rps: source.float(),
            burst: source.float(),
            drain_rps: source.float(),
            safe_rps: source.float(),
            because: number_of(source, 3),
        })
        .collect();
    v1::Limits {
        pool: pool.to_owned(),
        epoch,
        policy_version: String::new(),
        ttl_ms: if source.is_so(30) { source.number32() } else { 100 * u32::from(source.byte()) },
        decay_ms: if source.is_so(30) { source.number32() } else { 10 * u32::from(source.byte()) },
        levels: Vec::new(),
        classes,
        drain_rps: source.float(),
        overload: source.is_so(180).then(|| overload_limits(source)),
        quotas: Vec::new(),
    }
}

fn overload_limits(source: &mut Source<'_>) -> v1::OverloadLimits {
    v1::OverloadLimits {
        budgets: source.is_so(200).then(|| work(source)),
        cut_level: if source.is_so(128) { 1024 } else { source.number32() },
        cut_fraction: source.float(),
        saturation: source.float(),
        binding: number_of(source, 7),
        sample_epoch: source.number(),
        drain_work_per_s: if source.is_so(100) { source.float() } else { 1000.0 },
        expected_ttft_ms: if source.is_so(60) { source.float() } else { 1.0 },
        safe_budgets: source.is_so(128).then(|| work(source)),
        rungs: (0..source.below(3)).map(|_| u32::from(source.byte()) % 9).collect(),
        retry_ratio: source.float(),
        prompt_factor: source.float(),
        output_tokens: source.float(),
        floor_work_per_s: (0..source.below(4)).map(|_| source.float()).collect(),
        engines: (0..source.below(4)).map(|_| format!("10.0.0.{}:8000", source.below(4))).collect(),
        engine_bounds: (0..source.below(5)).map(|_| bound(source)).collect(),
        served_slot_deltas: slots(source),
        served_work: (0..source.below(4)).map(|_| source.number()).collect(),
    }
}

/// Where an engine ends, mostly near an aperture.
fn bound(source: &mut Source<'_>) -> f64 {
    if source.is_so(200) { f64::from(source.byte()) / 128.0 - 0.5 } else { source.float() }
}

/// Some work.
pub(super) fn work(source: &mut Source<'_>) -> v1::Work {
    v1::Work { prefill_tokens: source.number(), kv_tokens: source.number(), streams: source.number() }
}

/// A histogram, mostly well-formed.
pub(super) fn histogram(source: &mut Source<'_>) -> v1::Histogram {
    let count = source.below(6);
    let deltas: Vec<u32> = (0..count).map(|_| if source.is_so(8) { source.number32() } else { 1 + u32::from(source.byte()) }).collect();
    let counts: Vec<u64> = (0..count).map(|_| if source.is_so(8) { source.number() } else { 1 + u64::from(source.byte()) }).collect();
    v1::Histogram::new(deltas, counts, source.number())
}

/// A report of one pool's work.
pub(super) fn overload_report(source: &mut Source<'_>) -> v1::OverloadReport {
    let levels = source.below(4);
    v1::OverloadReport {
        in_flight: Some(work(source)),
        admitted: Some(work(source)),
        finished: Some(work(source)),
        offered_level_deltas: (0..levels).map(|_| if source.is_so(8) { source.number32() } else { 1 + u32::from(source.byte()) }).collect(),
        offered_work: (0..levels).map(|_| 1 + source.number() / 2).collect(),
        queue: source.is_so(128).then(|| v1::QueueReport {
            requests: source.number32(),
            bytes: source.number(),
            work: source.number(),
            oldest_ms: source.number32(),
            released: source.number(),
            expired: source.number(),
            abandoned: source.number(),
            overflowed: source.number(),
            wait_us: source.is_so(128).then(|| histogram(source)),
        }),
        service_ttft_us: source.is_so(128).then(|| histogram(source)),
        tpot_us: source.is_so(128).then(|| histogram(source)),
        ttft_fit: source.is_so(128).then(|| v1::FitSums {
            count: source.number(),
            x: source.float(),
            y: source.float(),
            xx: source.float(),
            xy: source.float(),
        }),
        output_tokens: source.number(),
        responses: source.number(),
        retries: source.number(),
        good_work: source.number(),
        engine_refusals: source.number(),
        limits_epoch: source.number(),
        served_second: u64::from(source.byte()),
        served_slot_deltas: slots(source),
        served_work: (0..source.below(4)).map(|_| source.number()).collect(),
    }
}

/// Differences of slots of tenants, a few of which may lie beyond the last.
fn slots(source: &mut Source<'_>) -> Vec<u32> {
    (0..source.below(4)).map(|_| if source.is_so(16) { source.number32() } else { u32::from(source.byte()) * 8 }).collect()
}

/// A report of one worker; its counters follow nothing.
pub(super) fn worker_report(source: &mut Source<'_>, at_ns: u64) -> v1::WorkerReport {
    let pools = (0..1 + source.below(2)).map(|_| pool_report(source)).collect();
    v1::WorkerReport {
        slot: source.below(3) as u32,
        vm_epoch: source.below(3) as u64,
        at_ns: if source.is_so(16) { source.number() } else { at_ns },
        pools,
        counters: source.is_so(128).then(|| v1::WorkerCounters {
            unmatched: source.number(),
            host_errors: source.number(),
            unreadable: source.number(),
            denied_claims: source.number(),
            untracked: source.number(),
        }),
    }
}

fn pool_report(source: &mut Source<'_>) -> v1::PoolReport {
    let classes = (0..source.below(3)).map(|_| class_report(source)).collect();
    v1::PoolReport {
        policy: source.text(&["demo", "second"]),
        pool: source.text(&POOLS),
        policy_version: String::new(),
        classes,
        breaker: number_of(source, 4),
        open_breakers: Vec::new(),
        permits: source.number32(),
        overload: source.is_so(150).then(|| overload_report(source)),
        latency: source.is_so(80).then(|| latency_report(source)),
        is_shadow: false,
        endpoint_loads: (0..source.below(3)).map(|_| endpoint_load(source)).collect(),
        quotas: Vec::new(),
    }
}

fn endpoint_load(source: &mut Source<'_>) -> v1::EndpointLoad {
    v1::EndpointLoad {
        endpoint: source.text(&["10.0.0.1:80", "[::1]:80"]),
        epoch: source.number(),
        unreadable: source.number(),
        made_after_ns: source.number(),
        kv_cache_use: source.is_so(128).then(|| source.float()),
        waiting: source.is_so(128).then(|| source.number()),
        running: source.is_so(128).then(|| source.number()),
        kv_total_tokens: source.is_so(128).then(|| source.number()),
    }
}

fn latency_report(source: &mut Source<'_>) -> v1::LatencyReport {
    let stream = |source: &mut Source<'_>| v1::LatencyStream {
        class: source.text(&CLASSES),
        model: source.text(&["", "large", "small"]),
        series: u64::from(source.number32() % 3),
        place: u64::from(source.number32() % 4),
        total_us: source.is_so(128).then(|| histogram(source)),
        ..v1::LatencyStream::default()
    };
    v1::LatencyReport { streams: (0..source.below(4)).map(|_| stream(source)).collect() }
}

fn class_report(source: &mut Source<'_>) -> v1::ClassReport {
    v1::ClassReport {
        class: source.text(&CLASSES),
        offered: source.number(),
        admitted: source.number(),
        completed: source.number(),
        failed: source.number(),
        cancelled: source.number(),
        refused: (0..source.below(3))
            .map(|_| v1::ReasonCount { reason: source.text(&["gpu_memory", "concurrency", "queue_full"]), count: source.number() })
            .collect(),
        in_flight: source.number32(),
        waiting: source.number32(),
        ttft_us: source.is_so(128).then(|| histogram(source)),
        only_here: 0,
        only_there: 0,
    }
}
