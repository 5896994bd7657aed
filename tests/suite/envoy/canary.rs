//! A policy that is tried on a part of the requests: when it is worse, its part is all that was hurt.

use anyhow::{Result, bail, ensure};
use headgate_test_support::{EnvoyVersion, wait_until};
use headgate_tests::connection::Connection;
use headgate_tests::documents::{document, key_header, spec};
use headgate_tests::mesh::{Mesh, MeshOptions, PATIENCE};
use serde_json::{Value, json};

/// Requests between two looks at the control plane.
const BATCH: usize = 25;
/// Requests after which the candidate must have been aborted: 50 of a 30 % canary are 167, and reports take a tenth of a second.
const MOST: usize = 20_000;

/// Asks so often; returns how many were refused.
async fn ask(connection: &mut Connection, requests: usize) -> Result<usize> {
    let mut refused = 0;
    for _ in 0..requests {
        match connection.get("/v1/models", &[key_header("low")]).await?.status.as_u16() {
            200 => {}
            429 => refused += 1,
            other => bail!("the answer is {other}"),
        }
    }
    Ok(refused)
}

async fn rollout(mesh: &Mesh) -> Result<Value> {
    Ok(mesh.control.status().await?["rollouts"][0].clone())
}

pub(crate) async fn a_candidate_that_refuses_more_is_aborted_and_only_its_part_was_refused(version: EnvoyVersion) -> Result<()> {
    let mesh = Mesh::start(MeshOptions::new(version, spec())?).await?;
    // The candidate refuses at 50 %, the policy in force at 75 %.
    mesh.gpu.set_memory_used(60.0)?;
    let mut candidate = spec();
    candidate["candidate"] = json!({"of": "test", "requestsPercent": 30, "rollout": {"minSamples": 50}});
    candidate["levels"]["gpuMemory"]["tripPercent"] = json!(50);
    mesh.control.apply(&document("test-next", &candidate))?;
    let mut connection = Connection::open(mesh.envoy.address()).await?;
    mesh.wait_for_refusal("refusal by the candidate").await?;
    let (mut asked, mut refused) = (0, 0);
    while rollout(&mesh).await?["phase"] != "aborted" {
        refused += ask(&mut connection, BATCH).await?;
        asked += BATCH;
        ensure!(asked < MOST, "{refused} of {asked} were refused, and the candidate goes on: {:#}", rollout(&mesh).await?);
    }
    // Its part is 30 %; five standard deviations of that many requests are allowed.
    let most = 0.3 + 5.0 * (0.3 * 0.7 / asked as f64).sqrt();
    ensure!(refused as f64 <= most * asked as f64, "{refused} of {asked} were refused");
    let halted = rollout(&mesh).await?["halted"].as_str().unwrap_or_default().to_owned();
    ensure!(halted.starts_with("class low: "), "{halted}");
    wait_until("the policy alone", PATIENCE, || async {
        let policies = mesh.control.status().await?["proxies"][0]["policies"].as_array().map_or(0, Vec::len);
        Ok((policies == 1).then_some(()))
    })
    .await?;
    let after = ask(&mut connection, 200).await?;
    ensure!(after == 0, "{after} of 200 were refused after the candidate had gone");
    println!("aborted after {asked} requests, {refused} of them refused; none of 200 after it; {halted}");
    Ok(())
}
