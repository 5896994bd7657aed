//! What is printed and written.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::measure::{Measured, Plan};

/// All fleets.
#[derive(Serialize)]
pub(crate) struct Report {
    /// One for each size.
    pub(crate) runs: Vec<FanoutRun>,
}

/// One fleet.
#[derive(Serialize)]
pub(crate) struct FanoutRun {
    proxies: usize,
    stuck: usize,
    pushes: u32,
    push_p50_ms: f64,
    push_p99_ms: f64,
    bytes_per_proxy_per_push: f64,
    cpu_s_per_push: f64,
    rss_per_stream_kib: f64,
    connect_storm_s: f64,
    vs_floor: Ratios,
}

/// Headgate's figures over the floor's.
#[derive(Serialize)]
struct Ratios {
    push_p50: f64,
    push_p99: f64,
    cpu: f64,
    rss: f64,
    connect_storm: f64,
}

impl FanoutRun {
    /// From what both servers did.
    pub(crate) fn new(plan: &Plan, headgate: &Measured, floor: &Measured) -> Self {
        let ratio = |of: fn(&Measured) -> f64| of(headgate) / of(floor);
        Self {
            proxies: plan.proxies,
            stuck: plan.stuck,
            pushes: plan.pushes,
            push_p50_ms: percentile_ms(headgate, 0.5),
            push_p99_ms: percentile_ms(headgate, 0.99),
            bytes_per_proxy_per_push: headgate.bytes_per_push,
            cpu_s_per_push: headgate.cpu_per_push.as_secs_f64(),
            rss_per_stream_kib: headgate.bytes_per_stream / 1024.0,
            connect_storm_s: headgate.connect_storm.as_secs_f64(),
            vs_floor: Ratios {
                push_p50: ratio(|measured| percentile_ms(measured, 0.5)),
                push_p99: ratio(|measured| percentile_ms(measured, 0.99)),
                cpu: ratio(|measured| measured.cpu_per_push.as_secs_f64()),
                rss: ratio(|measured| measured.bytes_per_stream),
                connect_storm: ratio(|measured| measured.connect_storm.as_secs_f64()),
            },
        }
    }
}

impl Report {
    /// As a person reads it; the ratio to the floor is behind each figure.
    pub(crate) fn table(&self) -> String {
        let mut text =
            String::from("proxies    push p50           p99         CPU a push     RSS a stream    connect storm   (times the floor)\n");
        for run in &self.runs {
            let floor = &run.vs_floor;
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{:>7} {:>7.1} ms {:>4.2}x {:>7.1} ms {:>4.2}x {:>6.3} s {:>5.2}x {:>5.1} KiB {:>4.2}x {:>6.2} s {:>5.2}x",
                run.proxies,
                run.push_p50_ms,
                floor.push_p50,
                run.push_p99_ms,
                floor.push_p99,
                run.cpu_s_per_push,
                floor.cpu,
                run.rss_per_stream_kib,
                floor.rss,
                run.connect_storm_s,
                floor.connect_storm,
            );
        }
        text
    }
}

/// A percentile of ascending latencies; 0 when there is none.
fn percentile_ms(measured: &Measured, part: f64) -> f64 {
    let rank = (measured.latencies.len() as f64 * part) as usize;
    let found = measured.latencies.get(rank.min(measured.latencies.len().saturating_sub(1)));
    found.copied().unwrap_or(Duration::ZERO).as_secs_f64() * 1e3
}
