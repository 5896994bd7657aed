//! Latencies from Envoy's own access log, where no filter runs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use headgate_test_support::control_plane::ControlPlaneOptions;
use headgate_test_support::envoy::{AccessLog, Bootstrap, EnvoyOptions, HttpFilter, Upstream as To};
use headgate_test_support::inference_sim::InferenceSimProcess;
use headgate_test_support::{ControlPlaneProcess, EnvoyProcess, EnvoyVersion, http_client, wait_until};
use headgate_tests::connection::Connection;
use headgate_tests::documents;
use headgate_tests::mesh::PATIENCE;
use headgate_tests::upstream::Upstream;
use serde_json::{Value, json};

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

/// What one step of the engine takes, in milliseconds: the time between the tokens of a client alone.
const STEP_MS: f64 = 12.0;

/// Envoy's own filter that reads the number of tokens in the last event of a stream, as users have it. Envoy 1.36 has none.
fn counts_tokens(version: &EnvoyVersion) -> Result<Vec<Value>> {
    let filter = serde_json::from_str(include_str!("../../../envoy/token-count.json"))?;
    Ok(if version.to_string().starts_with("1.36.") { Vec::new() } else { vec![filter] })
}

pub(crate) async fn time_between_tokens_comes_where_envoy_reads_the_token_counts_of_streams(version: EnvoyVersion) -> Result<()> {
    let control = ControlPlaneProcess::start(ControlPlaneOptions::new(None)?).await?;
    control.apply(&documents::document("test", &documents::spec()))?;
    let engine = InferenceSimProcess::start(None, &["--decode-base-ms", &STEP_MS.to_string()]).await?;
    let mut bootstrap = Bootstrap::new(HttpFilter::None, To::Endpoint(engine.address())).with_control_plane(control.grpc());
    bootstrap.access_log = AccessLog::Grpc;
    bootstrap.inner_filters = counts_tokens(&version)?;
    let is_counted = !bootstrap.inner_filters.is_empty();
    let mut options = EnvoyOptions::new(bootstrap);
    options.version = version;
    let envoy = EnvoyProcess::start(options).await?;

    // A whole answer and a stream that does not say how long it was have no time between tokens; four streams have.
    const TOKENS: u32 = 24;
    let mut longest = Duration::ZERO;
    let ask = |stream: bool, usage: bool| {
        let mut body = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": TOKENS, "stream": stream});
        if usage {
            body["stream_options"] = json!({"include_usage": true});
        }
        let address = envoy.address();
        async move { http_client::post_json(address, "/v1/chat/completions", &[("x-class", "high"), ("x-model", "m")], &body).await }
    };
    for (stream, usage) in [(false, false), (true, false), (true, true), (true, true), (true, true), (true, true)] {
        let began = Instant::now();
        let response = ask(stream, usage).await?;
        ensure!(response.status == 200, "{}", response.text());
        longest = longest.max(began.elapsed());
    }
    let status = wait_until("latencies of every request", PATIENCE, || async {
        let status = control.status().await?;
        Ok((figures(&status, "high", "m", "total")["count"].as_u64() >= Some(6)).then_some(status))
    })
    .await?;
    let tpot = figures(&status, "high", "m", "tpot");
    if !is_counted {
        ensure!(tpot.is_null(), "Envoy's own entries have no tokens: {tpot}");
        return Ok(());
    }
    ensure!(tpot["count"] == 4, "{tpot}; every stream that said how many tokens it had, and no other");
    // The least that the engine takes, and what the slowest of all took in all.
    let most = longest.as_secs_f64() * 1010.0 / f64::from(TOKENS - 1);
    ensure!(tpot["p50_ms"].as_f64() >= Some(STEP_MS * 0.9) && tpot["p99_ms"].as_f64() <= Some(most), "{tpot}, at most {most}");
    Ok(())
}
