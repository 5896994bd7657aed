//! The engines behind the pools. The label `engine` is the address of the page that the policy gives, `address` the network address: a
//! name may stand for several.

use std::fmt;

use super::{Labels, Out};
use crate::status::{EngineStatus, PoolStatus};

/// Writes the families of `headgate_engine_*`.
pub(super) fn encode(pools: &[PoolStatus], out: &mut Out<'_>) -> fmt::Result {
    out.gauges("headgate_engine_up", "Whether an engine's last reading is good and fresh", rows(pools, |engine| Some(up(engine))))?;
    let age = rows(pools, |engine| engine.age_ms.map(|ms| ms as f64 / 1000.0));
    out.gauges("headgate_engine_age_seconds", "Age of an engine's last good reading", age)?;
    out.gauges("headgate_engine_running_requests", "Requests in an engine's batch", rows(pools, |engine| engine.running.map(float)))?;
    out.gauges("headgate_engine_waiting_requests", "Requests in an engine's own queue", rows(pools, |engine| engine.waiting.map(float)))?;
    let used = rows(pools, |engine| engine.kv_used_percent.map(|percent| percent / 100.0));
    out.gauges("headgate_engine_kv_used_ratio", "Use of an engine's KV cache", used)?;
    out.gauges(
        "headgate_engine_kv_tokens",
        "Tokens that an engine's KV cache holds",
        rows(pools, |engine| engine.kv_total_tokens.map(float)),
    )?;
    let took = rows(pools, |engine| Some(engine.took_ms / 1000.0));
    out.gauges("headgate_engine_scrape_seconds", "Duration of the last attempt to read an engine", took)?;
    out.counters(
        "headgate_engine_preemptions",
        "Preemptions since the control plane began",
        rows(pools, |engine| Some(engine.preemptions)),
    )?;
    out.counters("headgate_engine_restarts", "Times that an engine's counters began anew", rows(pools, |engine| Some(engine.restarts)))?;
    out.counters("headgate_engine_scrapes", "Attempts to read an engine", rows(pools, |engine| Some(engine.readings)))?;
    out.counters("headgate_engine_scrape_failures", "Failed attempts to read an engine", rows(pools, |engine| Some(engine.failures)))
}

fn rows<T>(pools: &[PoolStatus], value: impl Fn(&EngineStatus) -> Option<T>) -> impl Iterator<Item = (Labels, T)> {
    let engines = pools.iter().flat_map(|pool| pool.engines.iter().map(move |engine| (pool, engine)));
    engines.filter_map(move |(pool, engine)| {
        value(engine)
            .map(|value| (vec![("pool", pool.pool.clone()), ("engine", engine.url.clone()), ("address", engine.address.clone())], value))
    })
}

fn up(engine: &EngineStatus) -> f64 {
    f64::from(u8::from(engine.state == "ok"))
}

fn float(count: u64) -> f64 {
    count as f64
}
