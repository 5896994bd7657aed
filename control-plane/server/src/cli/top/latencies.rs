//! Latencies by pool, class and model, and overload's terms against their thresholds.

use super::paint::{Tone, tone_of_use};
use super::sheet::{Cell, Column, Sheet};
use super::sheets::{Seen, left, millis, right};
use crate::status::{LatencyStream, OverloadStatus, PoolStatus, TermStatus};

/// What models without a place of their own are called, as in the metrics.
const OTHER: &str = "other";

pub(super) const LATENCY_COLUMNS: &[Column] = &[
    left("POOL", 1),
    left("CLASS", 0),
    left("MODEL", 0),
    right("LAST MIN", 5),
    right("TTFT P50", 2),
    right("TTFT P99", 0),
    right("PER TOKEN P50", 3),
    right("PER TOKEN P99", 0),
    right("TOTAL P50", 4),
    right("TOTAL P99", 0),
    right("QUEUE P99", 6),
    right("UPSTREAM P99", 7),
    left("TOTALS", 8),
    left("SOURCE", 9),
];

pub(super) fn latencies(seen: Seen<'_>) -> Sheet {
    let pools = seen.document.pools.iter();
    let rows = pools.flat_map(|pool| pool.latencies.streams.iter().map(move |stream| latency_row(pool, stream))).collect();
    Sheet { title: "Latencies", columns: LATENCY_COLUMNS, rows, empty: "no response has ended yet".to_owned() }
}

fn latency_row(pool: &PoolStatus, stream: &LatencyStream) -> Vec<Cell> {
    let of = |metric: &str| stream.metrics.get(metric);
    let p50 = |metric| Cell::maybe(of(metric).and_then(|figures| figures.p50_ms), millis);
    let p99 = |metric| Cell::maybe(of(metric).and_then(|figures| figures.p99_ms), millis);
    let complete = pool.latencies.complete;
    vec![
        Cell::text(&pool.pool).toned(Tone::Dim),
        Cell::text(if stream.is_engines() { "all" } else { &stream.class }),
        Cell::text(match () {
            () if stream.is_engines() => "all",
            () if stream.model.is_empty() => OTHER,
            () => &stream.model,
        }),
        Cell::count(of("total").map_or(0, |figures| figures.recent_count)),
        p50("ttft"),
        p99("ttft"),
        p50("tpot"),
        p99("tpot"),
        p50("total"),
        p99("total"),
        p99("queue"),
        p99("upstream"),
        Cell::text(if complete { "exact" } else { "incomplete" }).toned(if complete { Tone::Dim } else { Tone::Watch }),
        Cell::text(&stream.source).toned(Tone::Dim),
    ]
}

/// Rows of the levels' sheet: the terms of the pool's saturation, in the order of their names.
pub(super) fn term_rows(seen: Seen<'_>, pool: &PoolStatus) -> Vec<Vec<Cell>> {
    let rows = pool.overload.iter().flat_map(|overload| {
        let row = move |(name, measured): (&String, &TermStatus)| term_row(seen, pool, overload, name, measured);
        overload.measured.iter().map(row)
    });
    rows.collect()
}

fn term_row(seen: Seen<'_>, pool: &PoolStatus, overload: &OverloadStatus, name: &str, measured: &TermStatus) -> Vec<Cell> {
    let share = overload.terms.get(name).copied().unwrap_or(0.0);
    let state = match () {
        () if share >= 1.0 => "saturated",
        () if overload.binding == name => "binding",
        () => "ok",
    };
    let shown = |value: f64| in_unit(value, &measured.unit);
    vec![
        Cell::text(&pool.pool).toned(Tone::Dim),
        Cell::text(format!("term {name}")),
        Cell::state(state),
        Cell::bar(share, format!("{:.0} %", share * 100.0)).bar_toned(tone_of_use(share)),
        Cell::maybe(measured.value, shown),
        Cell::maybe(measured.threshold, shown),
        Cell::nothing(),
        Cell::maybe(measured.age_ms.map(|ms| ms.saturating_add(seen.since_ms) as f64), millis),
        Cell::text(&measured.source).toned(Tone::Dim),
        Cell::nothing(),
    ]
}

fn in_unit(value: f64, unit: &str) -> String {
    match unit {
        "ms" => millis(value),
        "%" => format!("{value:.1} %"),
        "1" => format!("{value:.2}"),
        unit => format!("{value:.0} {unit}"),
    }
}
