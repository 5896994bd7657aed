//! From a full GPU to a refusal, and back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use headgate_test_support::envoy::{Bootstrap, EnvoyOptions, HttpFilter, Upstream as To, WasmFilter};
use headgate_test_support::http_client::Response;
use headgate_test_support::{EnvoyProcess, EnvoyVersion, wait_until};
use headgate_tests::connection::Connection;
use headgate_tests::documents::{bounded_spec, inline, key_header, spec};
use headgate_tests::mesh::{Mesh, MeshOptions, PATIENCE};
use headgate_tests::upstream::Upstream;

/// Holds a request long enough at the upstream for others to meet it there.
const HELD: (&str, &str) = ("x-delay-ms", "1000");

pub(crate) async fn inline_policy_refuses_above_its_bound_and_no_filter_refuses_nothing(version: EnvoyVersion) -> Result<()> {
    let upstream = Upstream::start().await?;
    for (filter, expected) in
        [(HttpFilter::None, (4, 0)), (HttpFilter::Wasm(WasmFilter::headgate(inline("test", &bounded_spec(2)))?), (2, 2))]
    {
        let mut options = EnvoyOptions::new(Bootstrap::new(filter, To::Endpoint(upstream.address())));
        (options.version, options.workers) = (version.clone(), 1);
        let envoy = EnvoyProcess::start(options).await?;
        // Permits come with the first ticks.
        wait_until("first admission", PATIENCE, || async {
            let response = Connection::open(envoy.address()).await?.get("/v1/models", &[key_header("low")]).await?;
            Ok((response.status == 200).then_some(()))
        })
        .await?;
        let requests =
            (0..4).map(|_| async { Connection::open(envoy.address()).await?.get("/v1/models", &[key_header("low"), HELD]).await });
        let responses: Vec<Response> = futures::future::try_join_all(requests).await?;
        let admitted = responses.iter().filter(|response| response.status == 200).count();
        let refused: Vec<&Response> = responses.iter().filter(|response| response.status == 429).collect();
        ensure!((admitted, refused.len()) == expected, "admitted {admitted}, refused {}, expected {expected:?}", refused.len());
        for response in refused {
            let reason = response.header("x-headgate-reason").unwrap_or_default();
            ensure!(reason.starts_with("concurrency; value=2; threshold=2"), "{reason}");
        }
    }
    Ok(())
}

pub(crate) async fn full_gpu_refuses_low_with_its_reason_and_spares_high(version: EnvoyVersion) -> Result<()> {
    let mesh = Mesh::start(MeshOptions::new(version, spec())?).await?;
    let mut connections = mesh.connections(4).await?;
    for connection in &mut connections {
        for class in ["high", "medium", "low"] {
            let response = connection.get("/v1/models", &[key_header(class)]).await?;
            ensure!(response.status == 200, "{class} before the trip: {}", response.status);
        }
    }
    wait_until("time to first token of every class", PATIENCE, || async {
        let status = mesh.control.status().await?;
        let classes = status["pools"][0]["classes"].as_array().cloned().unwrap_or_default();
        Ok((classes.len() == 3 && classes.iter().all(|class| class["ttft_p99_ms"].as_f64() > Some(0.0))).then_some(()))
    })
    .await?;
    mesh.gpu.set_memory_used(90.0)?;
    for connection in &mut connections {
        let refused = first_status(connection, "low", 429).await?;
        check_refusal(&refused)?;
        let high = connection.get("/v1/models", &[key_header("high")]).await?;
        ensure!(high.status == 200, "high while tripped: {}", high.status);
        // Neither a claim nor an unknown key lifts anybody.
        let claimed = connection.get("/v1/models", &[("x-priority", "high"), ("x-api-key", "nobody")]).await?;
        ensure!(claimed.status == 429, "an unknown client that claims high: {}", claimed.status);
    }
    let line = mesh.envoy.access_log_line(|line| line.contains(" 429 ")).await?;
    for part in ["decision=refuse", "class=low", "reason=gpu_memory", "value=90", "threshold=75", "policy=test@"] {
        ensure!(line.contains(part), "the access log lacks {part}: {line}");
    }
    mesh.gpu.set_memory_used(10.0)?;
    for connection in &mut connections {
        first_status(connection, "low", 200).await?;
        first_status(connection, "medium", 200).await?;
    }
    Ok(())
}

fn check_refusal(response: &Response) -> Result<()> {
    let reason = response.header("x-headgate-reason").unwrap_or_default();
    ensure!(reason.starts_with("gpu_memory; value=90; threshold=75; level=gpu_memory; policy=test@"), "reason: {reason}");
    let seconds: u64 = response.header("retry-after").unwrap_or_default().parse()?;
    let millis: u64 = response.header("retry-after-ms").unwrap_or_default().parse()?;
    ensure!((1..=10).contains(&seconds) && millis <= seconds * 1000 && millis > 0, "retry-after {seconds} s, {millis} ms");
    let body = response.json()?;
    ensure!(body["error"]["code"] == "gpu_memory" && body["error"]["type"] == "rate_limit_exceeded", "body: {body}");
    Ok(())
}

/// Asks on `connection` until the answer has `status`.
async fn first_status(connection: &mut Connection, class: &str, status: u16) -> Result<Response> {
    let began = Instant::now();
    loop {
        let response = connection.get("/v1/models", &[key_header(class)]).await?;
        if response.status == status {
            return Ok(response);
        }
        ensure!(began.elapsed() < PATIENCE, "{class} is answered {}, never {status}", response.status);
        // The pace of a client, so that the proxy is not saturated.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Reacting this late, a burst has already filled the engine's queue.
const REACTION_LIMIT: Duration = Duration::from_millis(250);
const TRIALS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_worker_refuses_within_250_ms_of_the_gpu_crossing_its_threshold() -> Result<()> {
    let mesh = Mesh::start(MeshOptions::new(EnvoyVersion::pinned_default(), spec())?).await?;
    let mut connections = mesh.connections(4).await?;
    let mut reactions = Vec::with_capacity(TRIALS);
    for _ in 0..TRIALS {
        for connection in &mut connections {
            first_status(connection, "low", 200).await?;
        }
        mesh.gpu.set_memory_used(90.0)?;
        let crossed = Instant::now();
        // All connections ask at once: the slowest worker counts.
        futures::future::try_join_all(connections.iter_mut().map(|connection| first_status(connection, "low", 429))).await?;
        reactions.push(crossed.elapsed());
        mesh.gpu.set_memory_used(10.0)?;
    }
    reactions.sort();
    let (median, worst) = (reactions[TRIALS / 2], reactions[TRIALS - 1]);
    println!("from NVML to the first refusal on every worker: median {median:?}, worst of {TRIALS} {worst:?}");
    ensure!(worst <= REACTION_LIMIT, "the worst of {TRIALS} trials took {worst:?}: {reactions:?}");
    Ok(())
}
