//! Connections to the control plane that are replaced at their age, under traffic.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use headgate_test_support::envoy::{HttpFilter, WasmFilter};
use headgate_test_support::{EnvoyVersion, wait_until};
use headgate_tests::documents::spec;
use headgate_tests::mesh::{Mesh, MeshOptions, PATIENCE};

use crate::control_loss::Traffic;

/// Connections that are replaced while somebody looks. The filter has one and Envoy another, each for 0.75 to 1.25 s.
const REPLACED: u64 = 6;
/// Age up to which limits are in force unchanged: the default of `--limits-ttl-ms`.
const LIMITS_TTL: Duration = Duration::from_secs(3);

pub(crate) async fn a_proxy_changes_its_connections_without_a_gap(version: EnvoyVersion) -> Result<()> {
    let mut options = MeshOptions::new(version, spec())?;
    options.filter = HttpFilter::Ecds(WasmFilter::headgate_controlled()?);
    options.control.args = ["--connection-age-s", "1"].map(str::to_owned).to_vec();
    let mesh = Mesh::start(options).await?;
    let before = replaced(&mesh).await?;
    let lines_before = mesh.envoy.access_log().len();
    let traffic = Traffic::start(mesh.connections(4).await?);
    let first_epoch = epoch(&mesh).await?;
    let mut oldest = Duration::ZERO;
    while replaced(&mesh).await? < before + REPLACED {
        let status = mesh.control.status().await?;
        ensure!(status["proxies"].as_array().is_some_and(|proxies| proxies.len() == 1), "the proxy is out of sight: {status}");
        oldest = oldest.max(Duration::from_millis(mesh.envoy.stat("headgate_limits_age_ms.policy.test").await?));
        traffic.more(50).await?;
    }
    ensure!(oldest < LIMITS_TTL, "limits were {oldest:?} old");
    // What is pushed comes by the newest connection.
    wait_until("newer limits", PATIENCE, || async { Ok((epoch(&mesh).await? > first_epoch).then_some(())) }).await?;
    let asked = traffic.finish().await?;
    let lines = mesh.envoy.access_log();
    let ungoverned = lines.iter().skip(lines_before).filter(|line| !line.contains("policy=test@")).count();
    ensure!(ungoverned == 0, "{ungoverned} of {asked} requests were under no policy");
    println!("{asked} requests while {} connections were replaced; limits were {oldest:?} old at most", replaced(&mesh).await? - before);
    mesh.gpu.set_memory_used(90.0)?;
    mesh.wait_for_refusal("refusal").await
}

/// Connections that have ended by age so far.
async fn replaced(mesh: &Mesh) -> Result<u64> {
    let text = mesh.control.get("/metrics").await?.text();
    let value = text.lines().find_map(|line| line.strip_prefix("headgate_grpc_ended_connections_total{cause=\"age\"} "));
    value.context("no metric of ended connections")?.parse().context("no number")
}

/// Epoch of the limits that the proxy has in force.
async fn epoch(mesh: &Mesh) -> Result<u64> {
    mesh.envoy.stat("headgate_limits_epoch.policy.test").await
}
