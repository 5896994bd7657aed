//! A configuration of the filter that an Envoy refuses for want of something on its machine, and that is mended there.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use headgate_test_support::envoy::{HttpFilter, WasmFilter};
use headgate_test_support::{EnvoyVersion, wait_until};
use headgate_tests::documents::spec;
use headgate_tests::mesh::{Mesh, MeshOptions, PATIENCE};

use crate::control_loss::Traffic;

const REFUSED: &str = "extension_config_discovery.http_filter.headgate.config_fail";
const TAKEN: &str = "extension_config_discovery.http_filter.headgate.config_reload";

/// Times that Envoy has refused, at most, so long after it was first told: each pause is twice the one before.
fn most_refusals(since: Instant) -> u64 {
    2 + u64::from((since.elapsed().as_secs() + 1).ilog2())
}

pub(crate) async fn a_filter_that_was_refused_is_taken_once_its_module_is_there(version: EnvoyVersion) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let module = folder.path().join("headgate.wasm");
    let mut options = MeshOptions::new(version, spec())?;
    options.filter = HttpFilter::Ecds(WasmFilter::headgate_controlled()?);
    let built = std::mem::replace(&mut options.control.filter, module.clone());
    let began = Instant::now();
    let mesh = Mesh::start(options).await?;
    let traffic = Traffic::start(mesh.connections(2).await?);
    // The same bytes would be accepted without a look at them: that it is refused again shows that they are others.
    wait_until("third refusal", PATIENCE, || async { Ok((mesh.envoy.stat(REFUSED).await? >= 3).then_some(())) }).await?;
    let refused = mesh.envoy.stat(REFUSED).await?;
    ensure!(refused <= most_refusals(began), "refused {refused} times within {:?}", began.elapsed());
    let seen = refusals(&mesh).await?;
    ensure!(seen == "1.0", "{seen} refusals are seen");
    // The bootstrap's own configuration may count as one.
    let taken = mesh.envoy.stat(TAKEN).await?;

    // Whole at once, as whoever mends it would have it. Envoy counts what it has put in force, not what it has accepted.
    let partial = folder.path().join("partial");
    fs::copy(built, &partial)?;
    fs::rename(partial, &module)?;
    wait_until("acceptance", PATIENCE, || async { Ok((mesh.envoy.stat(TAKEN).await? > taken).then_some(())) }).await?;
    wait_until("end of the refusal", PATIENCE, || async { Ok((refusals(&mesh).await? == "0.0").then_some(())) }).await?;
    traffic.more(200).await?;
    traffic.finish().await?;
    mesh.gpu.set_memory_used(90.0)?;
    mesh.wait_for_refusal("refusal by the filter").await
}

/// What the control plane shows of refusals.
async fn refusals(mesh: &Mesh) -> Result<String> {
    let text = mesh.control.get("/metrics").await?.text();
    let line = text.lines().find(|line| line.starts_with("headgate_gateway_refusals")).context("no metric of refusals")?;
    Ok(line.rsplit(' ').next().unwrap_or_default().to_owned())
}
