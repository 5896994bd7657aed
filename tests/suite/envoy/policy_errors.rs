//! Broken policies at the command line: every error in one answer, and nothing changes.

use anyhow::{Result, ensure};
use headgate_test_support::ControlPlaneProcess;
use headgate_test_support::control_plane::ControlPlaneOptions;
use headgate_tests::documents::{document, spec};
use serde_json::{Value, json};

/// Where a policy is broken, with what, and what the answer must name.
fn broken() -> Vec<(&'static str, Value, &'static [&'static str])> {
    vec![
        ("/pool", json!("Not A Pool"), &["pool", "Not A Pool"]),
        ("/pool", json!(""), &["pool"]),
        ("/classes", json!([]), &["classes", "1..=8"]),
        ("/classes/0/name", json!("medium"), &["classes[1].name", "medium"]),
        ("/classes/0/name", json!("HIGH!"), &["classes[0].name", "HIGH!"]),
        ("/classes/0/whenTripped", json!("panic"), &["classes[0].whenTripped", "panic", "reserved_lane"]),
        ("/classes/2/reservedPercent", json!(10), &["classes[2].reservedPercent", "reserved_lane"]),
        ("/classes/0/reservedPercent", json!(95), &["classes[0].reservedPercent", "95", "0..=90"]),
        ("/classes/2/maxRetryAfterMs", json!(10), &["classes[2].maxRetryAfterMs", "10", "1000..=600000"]),
        ("/classification/defaultClass", json!("vip"), &["classification.defaultClass", "vip", "high, medium, low"]),
        ("/classification/priorityHeader", json!("X Priority"), &["classification.priorityHeader"]),
        ("/classification/tenants/0/class", json!("vip"), &["classification.tenants[0].class", "vip"]),
        ("/classification/tenants/0/identities", json!([]), &["classification.tenants[0].identities"]),
        (
            "/classification/tenants/0/identities/0/apiKeySha256",
            json!("abc"),
            &["classification.tenants[0].identities[0].apiKeySha256", "3 bytes"],
        ),
        ("/levels/gpuMemory/tripPercent", json!(140), &["levels.gpuMemory.tripPercent", "140", "1..=100"]),
        ("/levels/gpuMemory/sampleMs", json!(5), &["levels.gpuMemory.sampleMs", "5", "20..=2000"]),
        ("/levels/gpuMemory/tripPercent", json!("many"), &["levels.gpuMemory.tripPercent", "many"]),
        ("/levels/gpuMemory/tripPrecent", json!(70), &["levels.gpuMemory.tripPrecent", "is no field here"]),
        ("/levels/hysteresis/recoverPercent", json!(100), &["levels.hysteresis.recoverPercent", "100", "1..=99"]),
        ("/levels/p99", json!({"limitMs": 100, "floorMs": 200}), &["levels.p99.floorMs", "200", "100"]),
        ("/levels/qps", json!({"tripFactor": 0.5}), &["levels.qps.tripFactor", "0.5", "1..=100"]),
        ("/throttle/shrinkPercent", json!(99), &["throttle.shrinkPercent", "99", "1..=90"]),
        ("/concurrency", json!({"maxInFlight": 0}), &["concurrency.maxInFlight", "0", "1..=1000000"]),
        ("/breaker", json!({"fallback": {"direct": true}}), &["breaker.fallback.direct", "dependency"]),
        (
            "/breaker",
            json!({"errorRates": [{"percent": 0, "windowMs": 10}]}),
            &["breaker.errorRates[0].percent", "breaker.errorRates[0].windowMs"],
        ),
        ("/routes/0/pathPrefix", json!("v1"), &["routes[0].pathPrefix", "v1", "/"]),
    ]
}

/// `spec` with `value` at the JSON pointer `at`, whose last part may be new.
fn with(mut spec: Value, at: &str, value: Value) -> Value {
    let (parent, key) = at.rsplit_once('/').expect("a pointer has a slash");
    let parent = spec.pointer_mut(parent).expect("the parent is there");
    match key.parse::<usize>() {
        Ok(index) => parent[index] = value,
        Err(_) => parent[key] = value,
    }
    spec
}

#[tokio::test]
async fn broken_policies_are_refused_with_every_error_and_change_nothing() -> Result<()> {
    let control = ControlPlaneProcess::start(ControlPlaneOptions::new(None)?).await?;
    control.apply(&document("test", &spec()))?;
    let stored = control.command(&["policy", "get", "test", "--json"])?.stdout;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("broken.yaml");
    let apply = |spec: &Value| -> Result<(Option<i32>, String)> {
        std::fs::write(&file, document("test", spec))?;
        let output = control.command(&["policy", "apply", "-f", &file.to_string_lossy()])?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    ensure!(broken().len() >= 20, "twenty kinds");
    for (at, value, expected) in broken() {
        let (code, answer) = apply(&with(spec(), at, value.clone()))?;
        ensure!(code == Some(1), "{at} = {value}: exit code {code:?}: {answer}");
        for part in expected {
            ensure!(answer.contains(part), "{at} = {value}: the answer lacks `{part}`: {answer}");
        }
    }
    // Errors of the document (a type, an unknown field) and of its meaning come together.
    let mut many = spec();
    for (at, value) in [
        ("/levels/gpuMemory/tripPercent", json!("many")),
        ("/levels/gpuMemory/tripPrecent", json!(70)),
        ("/throttle/shrinkPercent", json!(99)),
        ("/classification/defaultClass", json!("vip")),
    ] {
        many = with(many, at, value);
    }
    let (code, answer) = apply(&many)?;
    ensure!(code == Some(1), "exit code {code:?}");
    for part in ["levels.gpuMemory.tripPercent", "levels.gpuMemory.tripPrecent", "throttle.shrinkPercent", "classification.defaultClass"] {
        ensure!(answer.contains(part), "the answer lacks `{part}`: {answer}");
    }
    let now = control.command(&["policy", "get", "test", "--json"])?.stdout;
    ensure!(now == stored, "a refused policy changed something:\n{}\n{}", String::from_utf8_lossy(&stored), String::from_utf8_lossy(&now));
    Ok(())
}
