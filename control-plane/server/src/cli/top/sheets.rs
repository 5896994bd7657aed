//! What is shown of pools, classes, levels, GPUs, engines and proxies.

use super::latencies;
use super::paint::{Theme, Tone, tone_of_state, tone_of_use};
use super::sheet::{Cell, Column, Sheet, Side};
use super::trend::{Rates, Trends};
use crate::status::{ClassStatus, EngineStatus, GpuStatus, LevelView, PoolStatus, ProxyStatus, StatusDocument};

/// Silence after which a proxy is marked, in milliseconds: twenty reports.
const SILENT_AFTER_MS: u64 = 2000;

/// What the sheets are made of: the last status, how long ago it came, what came before it, and the glyphs.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) document: &'a StatusDocument,
    /// Time since it came, in milliseconds: countdowns go on and values grow older between two looks.
    pub(super) since_ms: u64,
    pub(super) trends: &'a Trends,
    pub(super) theme: Theme,
}

pub(super) const fn left(title: &'static str, rank: u8) -> Column {
    Column { title, side: Side::Left, rank }
}

pub(super) const fn right(title: &'static str, rank: u8) -> Column {
    Column { title, side: Side::Right, rank }
}

pub(super) const POOL_COLUMNS: &[Column] = &[
    left("POOL", 0),
    left("STATE", 0),
    left("SATURATION", 2),
    right("OFFERED/S", 0),
    right("ADMITTED/S", 1),
    right("REFUSED/S", 0),
    right("IN FLIGHT", 3),
    right("QUEUED", 4),
    right("DRAIN/S", 5),
    right("PROXIES", 6),
    left("POLICY", 7),
];

pub(super) const CLASS_COLUMNS: &[Column] = &[
    left("POOL", 1),
    left("CLASS", 0),
    left("ACTION", 0),
    left("LATELY", 5),
    right("OFFERED/S", 0),
    right("ADMITTED/S", 2),
    right("REFUSED/S", 0),
    right("IN FLIGHT", 4),
    right("TTFT P50", 6),
    right("TTFT P99", 3),
    left("REFUSED SO FAR", 7),
];

pub(super) const LEVEL_COLUMNS: &[Column] = &[
    left("POOL", 1),
    left("LEVEL", 0),
    left("STATE", 0),
    left("OF THRESHOLD", 3),
    right("VALUE", 0),
    right("THRESHOLD", 0),
    right("RECOVERS IN", 2),
    right("AGE", 4),
    left("SOURCE", 5),
    left("LAST TRIP", 6),
];

pub(super) const GPU_COLUMNS: &[Column] = &[
    right("GPU", 0),
    left("NODE", 2),
    left("STATE", 1),
    left("NAME", 3),
    left("MEMORY", 0),
    right("USED", 2),
    left("ACTIVE", 1),
    right("TEMP", 4),
    left("POWER", 5),
    right("SM CLOCK", 6),
    left("WHY", 4),
    left("UUID", 8),
];

pub(super) const ENGINE_COLUMNS: &[Column] = &[
    left("POOL", 2),
    left("ENGINE", 0),
    left("STATE", 0),
    right("RUNNING", 1),
    right("WAITING", 1),
    left("KV CACHE", 0),
    right("KV TOKENS", 5),
    right("PREEMPTIONS", 6),
    right("AGE", 4),
    left("PROBLEM", 3),
];

pub(super) const PROXY_COLUMNS: &[Column] = &[
    left("PROXY", 0),
    left("STATE", 0),
    right("WORKERS", 3),
    right("LAST REPORT", 1),
    left("POLICIES", 4),
    left("FILTER", 5),
    left("REFUSED POLICIES", 2),
];

pub(super) fn pools(seen: Seen<'_>) -> Sheet {
    let rows = seen.document.pools.iter().map(|pool| pool_row(seen, pool)).collect();
    let empty = "no policy is applied; `headgate policy apply -f FILE` applies one".to_owned();
    Sheet { title: "Pools", columns: POOL_COLUMNS, rows, empty }
}

pub(super) fn classes(seen: Seen<'_>) -> Sheet {
    let pools = seen.document.pools.iter();
    let rows = pools.flat_map(|pool| pool.classes.iter().map(move |class| class_row(seen, pool, class))).collect();
    Sheet { title: "Classes", columns: CLASS_COLUMNS, rows, empty: "no class".to_owned() }
}

pub(super) fn levels(seen: Seen<'_>) -> Sheet {
    let pools = seen.document.pools.iter();
    let of_pool = |pool: &PoolStatus| {
        let levels = pool.levels.iter().map(|level| level_row(seen, pool, level));
        levels.chain(latencies::term_rows(seen, pool)).collect::<Vec<_>>()
    };
    let rows = pools.flat_map(of_pool).collect();
    Sheet { title: "Levels", columns: LEVEL_COLUMNS, rows, empty: "no level".to_owned() }
}

pub(super) fn gpus(seen: Seen<'_>) -> Sheet {
    let rows = seen.document.gpus.iter().map(gpu_row).collect();
    Sheet { title: "GPUs", columns: GPU_COLUMNS, rows, empty: seen.document.gpu_source.clone() }
}

pub(super) fn engines(seen: Seen<'_>) -> Sheet {
    let pools = seen.document.pools.iter();
    let rows = pools.flat_map(|pool| pool.engines.iter().map(move |engine| engine_row(seen, pool, engine))).collect();
    Sheet { title: "Engines", columns: ENGINE_COLUMNS, rows, empty: "no policy names an engine".to_owned() }
}

pub(super) fn proxies(seen: Seen<'_>) -> Sheet {
    let rows = seen.document.proxies.iter().map(|proxy| proxy_row(seen, proxy)).collect();
    Sheet { title: "Proxies", columns: PROXY_COLUMNS, rows, empty: "no proxy is connected".to_owned() }
}

fn pool_row(seen: Seen<'_>, pool: &PoolStatus) -> Vec<Cell> {
    let rates = pool.classes.iter().filter_map(|class| seen.trends.rates(&pool.pool, &class.class)).reduce(|a, b| Rates {
        offered_rps: a.offered_rps + b.offered_rps,
        admitted_rps: a.admitted_rps + b.admitted_rps,
        refused_rps: a.refused_rps + b.refused_rps,
    });
    let saturation = |overload: &crate::status::OverloadStatus| {
        let binding = if overload.binding.is_empty() { String::new() } else { format!(" {}", overload.binding) };
        Cell::bar(overload.saturation, format!("{:.2}{binding}", overload.saturation))
    };
    let in_flight = pool.classes.iter().fold(0, |sum: u64, class| sum.saturating_add(class.in_flight));
    let queue = pool.overload.as_ref().and_then(|overload| overload.queue);
    vec![
        Cell::text(&pool.pool).toned(Tone::Title),
        Cell::state(pool_state(pool)),
        pool.overload.as_ref().map_or_else(Cell::nothing, saturation),
        Cell::maybe(rates.map(|rates| rates.offered_rps), rate),
        Cell::maybe(rates.map(|rates| rates.admitted_rps), rate),
        refused_rate(rates),
        Cell::count(in_flight),
        queue.map_or_else(Cell::nothing, |queue| Cell::count(queue.requests)),
        Cell::maybe((pool.drain_rps > 0.0).then_some(pool.drain_rps), rate),
        Cell::count(pool.proxies as u64),
        Cell::text(format!("{}@{}", pool.policy, pool.version)).toned(Tone::Dim),
    ]
}

/// The gravest of what holds the pool: under overload control its saturation, otherwise its levels.
fn pool_state(pool: &PoolStatus) -> String {
    if let Some(overload) = &pool.overload {
        let sheds = overload.cut_off.shed.iter().any(|class| class.part > 0.0);
        return if sheds { "shedding" } else { "ok" }.to_owned();
    }
    let has = |word: &&str| pool.levels.iter().any(|level| level.state == **word);
    let gravest = ["tripped", "recovering", "stale", "learning"].into_iter().find(has);
    gravest.unwrap_or("ok").to_owned()
}

fn class_row(seen: Seen<'_>, pool: &PoolStatus, class: &ClassStatus) -> Vec<Cell> {
    let rates = seen.trends.rates(&pool.pool, &class.class);
    let shed = pool.overload.as_ref().and_then(|overload| overload.cut_off.shed.iter().find(|shed| shed.class == class.class));
    let action = match (class.action.as_str(), shed) {
        (_, Some(shed)) if shed.part > 0.0 => format!("shed {:.0} %", (shed.part * 100.0).max(1.0)),
        ("throttle", _) => format!("throttle to {}/s ({})", rate(class.rate_rps), class.because),
        (action, _) if class.because.is_empty() => action.to_owned(),
        (action, _) => format!("{action} ({})", class.because),
    };
    let tone = if action.starts_with("shed") { Tone::Watch } else { tone_of_state(&class.action) };
    let refused: Vec<String> = class.refused.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    vec![
        Cell::text(&pool.pool).toned(Tone::Dim),
        Cell::text(&class.class),
        Cell::text(action).toned(tone),
        Cell::text(seen.theme.spark(seen.trends.history(&pool.pool, &class.class))).toned(Tone::Info),
        Cell::maybe(rates.map(|rates| rates.offered_rps), rate),
        Cell::maybe(rates.map(|rates| rates.admitted_rps), rate),
        refused_rate(rates),
        Cell::count(class.in_flight),
        Cell::maybe(class.ttft_p50_ms, millis),
        Cell::maybe(class.ttft_p99_ms, millis),
        if refused.is_empty() { Cell::nothing() } else { Cell::text(refused.join(", ")).toned(Tone::Dim) },
    ]
}

fn refused_rate(rates: Option<Rates>) -> Cell {
    let cell = Cell::maybe(rates.map(|rates| rates.refused_rps), rate);
    if rates.is_some_and(|rates| rates.refused_rps > 0.0) { cell.toned(Tone::Watch) } else { cell }
}

fn level_row(seen: Seen<'_>, pool: &PoolStatus, level: &LevelView) -> Vec<Cell> {
    let share = (level.threshold > 0.0).then(|| level.value / level.threshold);
    let bar = |share: f64| {
        let tone = if level.state == "tripped" { Tone::Bad } else { tone_of_use(share) };
        Cell::bar(share, format!("{:.0} %", share * 100.0)).bar_toned(tone)
    };
    let remaining = level.recovery_remaining_ms.map(|ms| u64::from(ms).saturating_sub(seen.since_ms) as f64);
    let is_watched = level.state != "disabled";
    let trip = |trip: &crate::status::TripView| {
        let (value, threshold) = (of_level(&level.kind, trip.value), of_level(&level.kind, trip.threshold));
        format!("{} ago, {value} > {threshold}", millis(trip.ago_ms.saturating_add(seen.since_ms) as f64))
    };
    vec![
        Cell::text(&pool.pool).toned(Tone::Dim),
        Cell::text(&level.kind),
        Cell::state(&level.state),
        share.filter(|_| is_watched).map_or_else(Cell::nothing, bar),
        Cell::maybe(is_watched.then_some(level.value), |value| of_level(&level.kind, value)),
        Cell::maybe((level.threshold > 0.0).then_some(level.threshold), |value| of_level(&level.kind, value)),
        Cell::maybe(remaining, |ms| format!("{:.1} s", ms / 1000.0)).toned(if remaining.is_some() { Tone::Watch } else { Tone::Dim }),
        Cell::maybe(is_watched.then(|| u64::from(level.age_ms).saturating_add(seen.since_ms) as f64), millis),
        Cell::text(&level.source).toned(Tone::Dim),
        level.last_trip.as_ref().map_or_else(Cell::nothing, |last| Cell::number(last.at_unix_ms as f64, trip(last)).toned(Tone::Dim)),
    ]
}

fn gpu_row(gpu: &GpuStatus) -> Vec<Cell> {
    let (activity, detail) = (&gpu.activity, &gpu.detail);
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let active = |percent: u32| Cell::bar(f64::from(percent) / 100.0, format!("{percent} %")).bar_toned(Tone::Info);
    let state = if matches!(gpu.verdict.as_str(), "derated" | "ejected") { &gpu.verdict } else { &gpu.state };
    let held = activity.throttle_reasons.iter().flat_map(|reasons| reasons.names());
    let mut why: Vec<&str> = held.collect();
    if !gpu.verdict_reason.is_empty() {
        why.insert(0, &gpu.verdict_reason);
    }
    vec![
        Cell::number(f64::from(gpu.index), gpu.index.to_string()),
        if gpu.node.is_empty() { Cell::nothing() } else { Cell::text(&gpu.node) },
        Cell::state(state),
        Cell::text(&gpu.name),
        Cell::bar(gpu.memory_used_percent / 100.0, format!("{:.1} %", gpu.memory_used_percent)),
        Cell::number(gpu.memory_used_bytes as f64, format!("{:.1}/{:.1} GiB", gib(gpu.memory_used_bytes), gib(gpu.memory_total_bytes))),
        activity.kernel_active_percent.map_or_else(Cell::nothing, active),
        temperature(gpu),
        power(gpu),
        Cell::maybe(activity.sm_clock_mhz.map(f64::from), |mhz| format!("{mhz:.0} MHz")),
        if why.is_empty() { Cell::nothing() } else { Cell::text(why.join(", ")).toned(Tone::Watch) },
        Cell::text(&detail.uuid).toned(Tone::Dim),
    ]
}

/// Yellow from 10 degrees below the slowdown on, red at it.
fn temperature(gpu: &GpuStatus) -> Cell {
    let cell = Cell::maybe(gpu.activity.temperature_celsius.map(f64::from), |celsius| format!("{celsius:.0} C"));
    match (gpu.activity.temperature_celsius, gpu.detail.temperature_slowdown_celsius) {
        (Some(now), Some(limit)) if now >= limit => cell.toned(Tone::Bad),
        (Some(now), Some(limit)) if now.saturating_add(10) >= limit => cell.toned(Tone::Watch),
        _ => cell,
    }
}

fn power(gpu: &GpuStatus) -> Cell {
    let watts = |milliwatts: u32| f64::from(milliwatts) / 1000.0;
    match (gpu.activity.power_milliwatts, gpu.detail.power_limit_milliwatts) {
        (Some(drawn), Some(limit)) if limit > 0 => {
            Cell::bar(watts(drawn) / watts(limit), format!("{:.0}/{:.0} W", watts(drawn), watts(limit))).bar_toned(Tone::Info)
        }
        (drawn, _) => Cell::maybe(drawn.map(watts), |watts| format!("{watts:.0} W")),
    }
}

fn engine_row(seen: Seen<'_>, pool: &PoolStatus, engine: &EngineStatus) -> Vec<Cell> {
    let count = |value: Option<u64>| value.map_or_else(Cell::nothing, Cell::count);
    let kv = |percent: f64| Cell::bar(percent / 100.0, format!("{percent:.0} %"));
    let waiting = if engine.waiting.unwrap_or(0) > 0 { Tone::Watch } else { Tone::Dim };
    vec![
        Cell::text(&pool.pool).toned(Tone::Dim),
        Cell::text(&engine.url),
        Cell::state(&engine.state),
        count(engine.running),
        count(engine.waiting).toned(waiting),
        engine.kv_used_percent.map_or_else(Cell::nothing, kv),
        count(engine.kv_total_tokens),
        Cell::count(engine.preemptions),
        Cell::maybe(engine.age_ms.map(|ms| ms.saturating_add(seen.since_ms) as f64), millis),
        if engine.problem.is_empty() { Cell::nothing() } else { Cell::text(&engine.problem).toned(Tone::Bad) },
    ]
}

fn proxy_row(seen: Seen<'_>, proxy: &ProxyStatus) -> Vec<Cell> {
    let silence_ms = proxy.last_report_age_ms.saturating_add(seen.since_ms);
    let state = match () {
        () if !proxy.rejected.is_empty() => "refusing",
        () if proxy.last_report_age_ms > SILENT_AFTER_MS => "silent",
        () => "ok",
    };
    let policies: Vec<String> = proxy.policies.iter().map(|policy| format!("{}@{}", policy.name, policy.version)).collect();
    let rejected: Vec<String> = proxy.rejected.iter().map(|policy| format!("{}: {}", policy.name, policy.error)).collect();
    vec![
        Cell::text(&proxy.node_id),
        Cell::state(state),
        Cell::count(proxy.workers as u64),
        Cell::number(silence_ms as f64, millis(silence_ms as f64)),
        Cell::text(policies.join(", ")).toned(Tone::Dim),
        Cell::text(&proxy.filter_version).toned(Tone::Dim),
        if rejected.is_empty() { Cell::nothing() } else { Cell::text(rejected.join("; ")).toned(Tone::Bad) },
    ]
}

/// A value in the unit of its level.
fn of_level(kind: &str, value: f64) -> String {
    match kind {
        "qps" => format!("{value:.1}/s"),
        "gpu_memory" => format!("{value:.1} %"),
        "p99" => millis(value),
        _ => format!("{value:.1}"),
    }
}

fn rate(rps: f64) -> String {
    if rps >= 100.0 { format!("{rps:.0}") } else { format!("{rps:.1}") }
}

/// Milliseconds as short as they can be read: `0.4 ms`, `87 ms`, `4.2 s`, `3 min`.
pub(super) fn millis(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms if ms < 60_000.0 => format!("{:.1} s", ms / 1000.0),
        ms => format!("{:.0} min", ms / 60_000.0),
    }
}
