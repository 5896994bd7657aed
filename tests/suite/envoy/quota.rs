//! A quota over a proxy with two workers.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use headgate_test_support::EnvoyVersion;
use headgate_tests::connection::Connection;
use headgate_tests::documents::{key_header, spec};
use headgate_tests::mesh::{Mesh, MeshOptions};
use serde_json::json;

/// Requests per second, by the quota.
const RATE: f64 = 200.0;
const CLIENTS: usize = 8;
/// Pause of each client: together they ask for about five times the rate.
const PAUSE: Duration = Duration::from_millis(5);
const LENGTH: Duration = Duration::from_secs(8);
/// Time in which the first lease comes and the workers divide it.
const SETTLING: Duration = Duration::from_secs(2);

/// Asks until the end; when each request passed, and how many were refused.
async fn ask(mut connection: Connection, began: Instant) -> Result<(Vec<Duration>, usize)> {
    let (mut passed, mut refused) = (Vec::new(), 0);
    while began.elapsed() < LENGTH {
        let response = connection.get("/v1/models", &[key_header("high")]).await?;
        match response.status.as_u16() {
            200 => passed.push(began.elapsed()),
            429 => {
                let reason = response.headers.get("x-headgate-reason").context("a refusal without a reason")?;
                ensure!(reason.to_str()?.starts_with("quota;"), "refused for {reason:?}");
                refused += 1;
            }
            other => anyhow::bail!("a request is answered {other}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok((passed, refused))
}

pub(crate) async fn two_workers_use_a_quota_and_never_pass_it(version: EnvoyVersion) -> Result<()> {
    let mut spec = spec();
    spec["quotas"] = json!([{"name": "all", "unit": "requests", "amount": RATE}]);
    let mesh = Mesh::start(MeshOptions::new(version, spec)?).await?;
    let began = Instant::now();
    let clients = mesh.connections(CLIENTS).await?.into_iter().map(|connection| ask(connection, began));
    let answered = futures::future::try_join_all(clients).await?;
    let refused: usize = answered.iter().map(|(_, refused)| refused).sum();
    let mut passed: Vec<Duration> = answered.into_iter().flat_map(|(passed, _)| passed).collect();
    passed.sort_unstable();
    let first = passed.first().context("nothing passed")?;
    let settled = passed.iter().filter(|at| **at >= SETTLING).count() as f64;
    let used = settled / (RATE * (LENGTH - SETTLING).as_secs_f64());
    println!("{} passed, {refused} were refused; the first after {first:?}; {used:.3} of the quota used after 2 s", passed.len());
    // What was saved in a second, and what the machine was late with.
    ensure!(passed.len() as f64 <= RATE * (LENGTH.as_secs_f64() + 1.0), "{} passed", passed.len());
    ensure!((0.9..=1.1).contains(&used), "{used} of the quota was used");
    ensure!(refused > passed.len(), "five times the quota is asked for, and only {refused} were refused");
    let status = mesh.control.status().await?;
    let quota = &status["pools"][0]["quotas"][0];
    ensure!(quota["committed"].as_f64().is_some_and(|committed| committed <= RATE), "{quota}");
    Ok(())
}
