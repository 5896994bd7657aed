//! Latencies from Envoy's own access log, where no filter runs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use headgate_test_support::control_plane::ControlPlaneOptions;
use headgate_test_support::envoy::{AccessLog, Bootstrap, EnvoyOptions, HttpFilter, Upstream as To};
use headgate_test_support::{ControlPlaneProcess, EnvoyProcess, EnvoyVersion, wait_until};
use headgate_tests::connection::Connection;
use headgate_tests::documents;
use headgate_tests::mesh::PATIENCE;
use headgate_tests::upstream::Upstream;
use serde_json::Value;

/// How long the upstream takes, in milliseconds.
const DELAY_MS: f64 = 40.0;

/// The figures of one metric of a class and model; null when there are none.
fn figures<'a>(status: &'a Value, class: &str, model: &str, metric: &str) -> &'a Value {
    let streams = status["pools"][0]["latencies"]["streams"].as_array().map_or(&[][..], Vec::as_slice);
    let stream = streams.iter().find(|stream| stream["class"] == class && stream["model"] == model);
    stream.map_or(&Value::Null, |stream| &stream["metrics"][metric])
}

pub(crate) async fn latencies_come_by_access_log_where_no_filter_runs(version: EnvoyVersion) -> Result<()> {
    let control = ControlPlaneProcess::start(ControlPlaneOptions::new(None)?).await?;
    control.apply(&documents::document("test", &documents::spec()))?;
    let upstream = Upstream::start().await?;
    let mut bootstrap = Bootstrap::new(HttpFilter::None, To::Endpoint(upstream.address())).with_control_plane(control.grpc());
    bootstrap.access_log = AccessLog::Grpc;
    let mut options = EnvoyOptions::new(bootstrap);
    options.version = version;
    let envoy = EnvoyProcess::start(options).await?;

    let mut longest = Duration::ZERO;
    let delay = DELAY_MS.to_string();
    let mut connection = Connection::open(envoy.address()).await?;
    // One connection is one worker and one stream of entries: the errors are there before what follows them.
    for (class, model, status, count) in [("high", "large", "503", 3), ("high", "large", "200", 12), ("low", "small", "200", 5)] {
        for _ in 0..count {
            let began = Instant::now();
            let headers = [("x-class", class), ("x-model", model), ("x-delay-ms", &*delay), ("x-status", status)];
            connection.get("/v1/models", &headers).await?;
            longest = longest.max(began.elapsed());
        }
    }
    let status = wait_until("latencies of every request", PATIENCE, || async {
        let status = control.status().await?;
        let count = |class, model| figures(&status, class, model, "total")["count"].as_u64();
        let is_there = count("high", "large") >= Some(12) && count("low", "small") >= Some(5);
        Ok(is_there.then_some(status))
    })
    .await?;
    for (class, model, count) in [("high", "large", 12), ("low", "small", 5)] {
        for metric in ["ttft", "total", "upstream"] {
            let seen = figures(&status, class, model, metric);
            ensure!(seen["count"] == count, "{class} {metric}: {seen}; errors say nothing");
            let (p50, p99) = (seen["p50_ms"].as_f64(), seen["p99_ms"].as_f64());
            ensure!(p50 >= Some(DELAY_MS * 0.99), "{class} {metric}: {seen}");
            ensure!(p99 <= Some(longest.as_secs_f64() * 1010.0), "{class} {metric}: {seen}, the slowest took {longest:?}");
        }
    }
    let metrics = control.get("/metrics").await?.text();
    ensure!(metrics.contains("headgate_access_log_entries_total{outcome=\"booked\"} 17"), "{metrics}");
    ensure!(metrics.contains("headgate_access_log_entries_total{outcome=\"no_response\"} 3"), "{metrics}");
    Ok(())
}
