//! Policies: whatever document or message comes, it is a policy or a list of errors; and a policy stays one when it is written out and
//! read again.

use headgate::document::CheckedPolicy;
use headgate_core::policy::Policy;
use headgate_protos::{document, v1};
use prost::Message;

use crate::input::fingerprint;

pub(super) const WORDS: &[&str] = &[
    "classes:",
    "overload:",
    "queue:",
    "ladder:",
    "engines:",
    "levels:",
    "breaker:",
    "concurrency:",
    "routes:",
    "tenants:",
    "whenTripped: refuse",
    "floorPercent: 90",
    "kind: delay",
    "engageAt: 1.5",
    "metricsUrl: http://a/m",
    "4294967296",
    "-1",
    ".nan",
    "1e400",
    "null",
    "&a",
    "*a",
    "- ",
    "\n  ",
];

const EXAMPLES: [&str; 2] = [
    include_str!("../../../../examples/first-light/policy.yaml"),
    "apiVersion: headgate.dev/v1\nkind: AdmissionPolicy\nmetadata: {name: full}\nspec:\n  pool: llm\n  routes: [{pathPrefix: /v1/, host: a.b}]\n  \
     classes:\n  - {name: high, whenTripped: reserved_lane, reservedPercent: 20, floorPercent: 30, maxQueueMs: 500}\n  \
     - {name: low, whenTripped: refuse, maxRetryAfterMs: 20000}\n  classification:\n    defaultClass: low\n    tenants:\n    \
     - {name: t, class: low, mayClaim: [high], identities: [{spiffeId: \"spiffe://a/b\"}, {jwtClaim: {claim: sub, value: x}}]}\n    \
     caps: [{class: low, pathPrefix: /batch, minContentLength: 1000}]\n  concurrency: {maxInFlight: 64}\n  \
     breaker: {errorRates: [{percent: 50, windowMs: 30000}], scopes: [endpoint], fallback: {otherPool: small}}\n  \
     overload:\n    ttftSloMs: 1500\n    fusion: weighted\n    queue: {maxDepthFactor: 2, maxRequests: 100, maxBytes: 65536}\n    \
     retries: {percent: 5, minRps: 2}\n    ladder: [{kind: delay, engageAt: 1.2, delayMs: 500}, {kind: switch_model, engageAt: 2, pool: small}]\n  \
     engines: [{metricsUrl: \"http://127.0.0.1:8000/metrics\"}]\n",
];

pub(super) fn document_seeds() -> Vec<Vec<u8>> {
    EXAMPLES.map(|text| text.as_bytes().to_vec()).to_vec()
}

pub(super) fn wire_seeds() -> Vec<Vec<u8>> {
    EXAMPLES.iter().map(|text| CheckedPolicy::from_document(text).expect("the seeds are valid").wire().encode_to_vec()).collect()
}

pub(super) fn document(input: &[u8]) -> u64 {
    let Ok(text) = std::str::from_utf8(input) else { return 0 };
    match CheckedPolicy::from_document(text) {
        Ok(checked) => {
            let shown = document::render(checked.wire()).to_string();
            let again = CheckedPolicy::from_document(&shown);
            assert_eq!(again.as_ref().map(CheckedPolicy::wire), Ok(checked.wire()), "what is shown can be applied");
            shape(checked.wire())
        }
        Err(violations) => {
            assert!(violations.iter().next().is_some(), "a refusal says why");
            fingerprint(violations.iter().take(2).map(|violation| without_digits(&format!("{violation}"))))
        }
    }
}

pub(super) fn wire(input: &[u8]) -> u64 {
    let Ok(wire) = v1::Policy::decode(input) else { return 0 };
    match Policy::try_from_wire(&wire) {
        Ok(policy) => {
            let again = v1::Policy::decode(wire.encode_to_vec().as_slice()).expect("what was encoded can be decoded");
            assert!(Policy::try_from_wire(&again).is_ok(), "a policy stays valid on its way");
            assert!((1..=8).contains(&policy.classes().len()));
            shape(&wire)
        }
        Err(errors) => fingerprint(errors.iter().take(2).map(|error| without_digits(&format!("{} {}", error.field, error.problem)))),
    }
}

/// What is there, without what it says.
fn shape(wire: &v1::Policy) -> u64 {
    let Some(spec) = &wire.spec else { return 1 };
    let overload = spec.overload.as_ref();
    let counts = [
        spec.classes.len(),
        spec.routes.len().min(3),
        spec.engines.len().min(3),
        usize::from(spec.concurrency.is_some()),
        usize::from(spec.breaker.is_some()),
        usize::from(overload.is_some()),
        overload.map_or(0, |overload| overload.ladder.len()),
        usize::from(overload.is_some_and(|overload| overload.queue.is_some())),
        spec.classification.as_ref().map_or(0, |it| it.tenants.len().min(3) + 4 * it.caps.len().min(3)),
    ];
    fingerprint(counts.map(|count| count.to_le_bytes()))
}

fn without_digits(text: &str) -> String {
    text.chars().filter(|char| !char.is_ascii_digit()).take(80).collect()
}
