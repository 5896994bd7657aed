//! A policy that is tried on a part of the requests: when it is worse, its part is all that was hurt.

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use headgate_test_support::{EnvoyVersion, wait_until};
use headgate_tests::connection::Connection;
use headgate_tests::documents::{document, key_header, spec};
use headgate_tests::mesh::{Mesh, MeshOptions, PATIENCE};
use serde_json::{Value, json};

/// Requests between two looks at the control plane.
const BATCH: usize = 25;
/// Requests by which parts are told apart.
const MANY: usize = 400;
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

/// Asks until none of `requests` in a row is refused.
async fn ask_until_none_is_refused(connection: &mut Connection, requests: usize, what: &str) -> Result<()> {
    let began = Instant::now();
    while ask(connection, requests).await? > 0 {
        ensure!(began.elapsed() < PATIENCE, "{what}");
    }
    Ok(())
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
    // What is acknowledged is acknowledged by one worker; the others follow at their next tick. By chance a candidate of 30 % would leave 200 in
    // a row alone once in 10^31 times.
    ask_until_none_is_refused(&mut connection, 200, "a candidate that is gone refuses on").await?;
    println!("aborted after {asked} requests, {refused} of them refused; none of 200 after it; {halted}");
    Ok(())
}

/// What each proxy has of policies, as soon as it is only one.
async fn one_policy(mesh: &Mesh) -> Result<Value> {
    wait_until("one policy alone", PATIENCE, || async {
        let policies = mesh.control.status().await?["proxies"][0]["policies"].clone();
        Ok((policies.as_array().map_or(0, Vec::len) == 1).then(|| policies[0].clone()))
    })
    .await
}

pub(crate) async fn a_candidate_that_is_as_good_is_promoted_and_governs_every_request(version: EnvoyVersion) -> Result<()> {
    let mesh = Mesh::start(MeshOptions::new(version, spec())?).await?;
    // The policy in force refuses at 75 %, the candidate only at 90: what is at 60 % now is served by both.
    mesh.gpu.set_memory_used(60.0)?;
    let before = one_policy(&mesh).await?;
    let mut candidate = spec();
    candidate["candidate"] = json!({"of": "test", "requestsPercent": 30, "rollout": {"minSamples": 50, "holdMs": 1000}});
    candidate["levels"]["gpuMemory"]["tripPercent"] = json!(90);
    mesh.control.apply(&document("test-next", &candidate))?;
    let mut connection = Connection::open(mesh.envoy.address()).await?;
    let (mut asked, mut refused) = (0, 0);
    while rollout(&mesh).await?["phase"] != "complete" {
        refused += ask(&mut connection, BATCH).await?;
        asked += BATCH;
        ensure!(asked < MOST, "the candidate is not found good: {:#}", rollout(&mesh).await?);
    }
    // At 80 % the policy refuses its part, and the candidate serves its own.
    mesh.gpu.set_memory_used(80.0)?;
    mesh.wait_for_refusal("refusal by the policy").await?;
    let of_both = ask(&mut connection, MANY).await?;
    // 70 % of 400, and five standard deviations of 9.
    ensure!((234..=326).contains(&of_both), "{of_both} of {MANY} are refused where one of the two refuses");
    let promoted = mesh.control.command(&["policy", "promote", "test-next"])?;
    ensure!(promoted.status.success(), "{}", String::from_utf8_lossy(&promoted.stderr));
    let after = one_policy(&mesh).await?;
    ensure!(after["name"] == "test" && after["version"] != before["version"], "{before} became {after}");
    ensure!(refused == 0, "{refused} of {asked} were refused at 60 %");
    // The level is tripped until it has recovered under its new threshold, and then lets more and more through: a few that are all served
    // say nothing yet.
    ask_until_none_is_refused(&mut connection, MANY, "what was promoted refuses on at 80 %").await?;
    mesh.gpu.set_memory_used(95.0)?;
    mesh.wait_for_refusal("refusal by what was promoted").await?;
    ensure!(mesh.control.status().await?["rollouts"].as_array().is_none_or(Vec::is_empty), "the rollout is over");
    println!("found good after {asked} requests; {of_both} of {MANY} refused beside the old policy, none after it");
    Ok(())
}
