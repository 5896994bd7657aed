//! Policies for tests: three tenants known by their API keys, and levels that react within a test's patience.

use serde_json::{Value, json};

/// API keys of the tenants, and the class that each has.
pub const KEYS: [(&str, &str); 3] = [("test-key-gold", "high"), ("test-key-silver", "medium"), ("test-key-bronze", "low")];

/// SHA-256 of those keys.
const HASHES: [&str; 3] = [
    "538167a6d9cd980e48f922c8c5102ef4770c7ed5fa4eefce6c6d41c083f82196",
    "836932f46a4f37e569d93a2332e814cbae36e9335173deda087464bf438faefa",
    "0cd5ce12ddcad05c10cb7dd2b4256738baf574427fd597603be29b35dd28eb67",
];

/// Headers by which a client of `class` shows who it is.
pub fn key_header(class: &str) -> (&'static str, &'static str) {
    let key = KEYS.iter().find(|(_, of)| *of == class).map_or("", |(key, _)| key);
    ("x-api-key", key)
}

/// The spec of a policy that governs `/v1/`: high is reserved, medium throttled, low refused at 75 % GPU memory; recovered after 100 ms.
pub fn spec() -> Value {
    let tenants: Vec<Value> = KEYS
        .iter()
        .zip(HASHES)
        .map(|((_, class), hash)| json!({"name": format!("tenant-{class}"), "class": class, "identities": [{"apiKeySha256": hash}]}))
        .collect();
    json!({
        "pool": "llm",
        "routes": [{"pathPrefix": "/v1/"}],
        "classes": [
            {"name": "high", "whenTripped": "reserved_lane"},
            {"name": "medium", "whenTripped": "gradient_throttle"},
            {"name": "low", "whenTripped": "refuse", "maxRetryAfterMs": 10000},
        ],
        "classification": {"defaultClass": "low", "tenants": tenants},
        "levels": {
            "qps": {"enabled": false},
            "gpuMemory": {"sampleMs": 20, "tripPercent": 75},
            "p99": {"enabled": false},
            "hysteresis": {"recoverPercent": 90, "recoveryMs": 100},
        },
        "throttle": {"intervalMs": 50, "recoverPercent": 50, "floorPercent": 10},
    })
}

/// [`spec`] with `maxInFlight`, and nothing that trips.
pub fn bounded_spec(max_in_flight: u32) -> Value {
    let mut spec = spec();
    spec["levels"]["gpuMemory"] = json!({"enabled": false});
    spec["concurrency"] = json!({"maxInFlight": max_in_flight});
    spec
}

/// The document that `headgate policy apply` takes; JSON is YAML.
pub fn document(name: &str, spec: &Value) -> String {
    json!({"apiVersion": "headgate.dev/v1", "kind": "AdmissionPolicy", "metadata": {"name": name}, "spec": spec}).to_string()
}

/// A plugin configuration with an inline policy and no control plane.
pub fn inline(name: &str, spec: &Value) -> Value {
    json!({"policies": [{"name": name, "spec": spec}]})
}
