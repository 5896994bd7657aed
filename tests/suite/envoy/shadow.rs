//! A policy that only watches: nobody is refused, and everybody can see who would have been.

use anyhow::{Result, ensure};
use headgate_test_support::{EnvoyVersion, wait_until};
use headgate_tests::connection::Connection;
use headgate_tests::documents::{document, key_header, spec};
use headgate_tests::mesh::{Mesh, MeshOptions, PATIENCE};
use serde_json::{Value, json};

/// [`spec`] after a change.
fn spec_with(change: impl FnOnce(&mut Value)) -> Value {
    let mut spec = spec();
    change(&mut spec);
    spec
}

fn watching() -> Value {
    spec_with(|spec| spec["enforcement"] = json!("shadow"))
}

/// Refusals of the class `low` that the control plane knows of in the books `pool`.
async fn refused(mesh: &Mesh, pool: &str) -> Result<u64> {
    let status = mesh.control.status().await?;
    let pools = status["pools"].as_array().cloned().unwrap_or_default();
    let classes =
        pools.iter().filter(|entry| entry["pool"] == pool).flat_map(|entry| entry["classes"].as_array().cloned().unwrap_or_default());
    let low = classes.filter(|class| class["class"] == "low").map(|class| class["refused"]["gpu_memory"].as_u64().unwrap_or(0));
    Ok(low.sum())
}

/// Asks until a line of the access log is `wanted`; nothing is refused meanwhile, and no header tells of it.
async fn ask_until_logged(mesh: &Mesh, wanted: &[&str]) -> Result<String> {
    wait_until("line of the access log", PATIENCE, || async {
        let response = Connection::open(mesh.envoy.address()).await?.get("/v1/models", &[key_header("low")]).await?;
        ensure!(response.status == 200, "a policy that watches refuses: {}", response.status);
        ensure!(response.header("x-headgate-reason").is_none(), "a policy that watches shows itself");
        Ok(mesh.envoy.access_log().into_iter().find(|line| wanted.iter().all(|part| line.contains(part))))
    })
    .await
}

pub(crate) async fn a_policy_that_watches_refuses_nobody_and_says_whom_it_would_have_refused(version: EnvoyVersion) -> Result<()> {
    let mesh = Mesh::start(MeshOptions::new(version, watching())?).await?;
    mesh.gpu.set_memory_used(90.0)?;
    let line = ask_until_logged(&mesh, &["would=refuse class=low"]).await?;
    for part in ["reason=gpu_memory", "value=90", "threshold=75", "level=gpu_memory", "source=control_plane", "policy=test@"] {
        ensure!(line.contains(part), "the access log lacks {part}: {line}");
    }
    ensure!(!line.contains("decision="), "nothing was decided: {line}");
    wait_until("refusals in the books", PATIENCE, || async { Ok((refused(&mesh, "llm").await? > 0).then_some(())) }).await?;
    wait_until("counter of the proxy", PATIENCE, || async {
        let shadow = mesh.envoy.stat("headgate_shadow_refusals.policy.test.class.low.reason.gpu_memory").await?;
        ensure!(mesh.envoy.stat("headgate_refusals.policy.test").await? == 0, "a refusal is counted that was none");
        Ok((shadow > 0).then_some(()))
    })
    .await?;
    // The same policy, acting, is what the test is about.
    mesh.control.apply(&document("test", &spec()))?;
    mesh.wait_for_refusal("refusal").await
}

pub(crate) async fn a_candidate_that_watches_is_compared_and_changes_nothing(version: EnvoyVersion) -> Result<()> {
    let mesh = Mesh::start(MeshOptions::new(version, spec())?).await?;
    // It would refuse at 50 %, the policy in force at 75 %.
    mesh.gpu.set_memory_used(60.0)?;
    let candidate = spec_with(|spec| {
        spec["enforcement"] = json!("shadow");
        spec["candidate"] = json!({"of": "test"});
        spec["levels"]["gpuMemory"]["tripPercent"] = json!(50);
    });
    mesh.control.apply(&document("test-next", &candidate))?;
    let line = ask_until_logged(&mesh, &["decision=admit", " | would=refuse"]).await?;
    ensure!(line.contains("threshold=50") && line.contains("policy=test-next@") && line.contains("policy=test@"), "{line}");
    wait_until("comparison", PATIENCE, || async {
        ensure!(refused(&mesh, "llm").await? == 0, "the policy in force refuses");
        let compared = mesh.envoy.stat("headgate_shadow_disagreements.policy.test-next.class.low.served_by.policy").await?;
        Ok((refused(&mesh, "llm~candidate").await? > 0 && compared > 0).then_some(()))
    })
    .await
}
