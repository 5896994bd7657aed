#![allow(clippy::unwrap_used)]

use super::*;
use crate::records::Records;

const GOOD: &str = "
apiVersion: headgate.dev/v1
kind: Pool
metadata: { name: llm }
spec: { endpoints: [{ address: 10.0.0.1, port: 8000 }] }
---
apiVersion: headgate.dev/v1
kind: Route
metadata: { name: chat }
spec: { rules: [{ backends: [{ pool: llm }] }] }
---
apiVersion: headgate.dev/v1
kind: Gateway
metadata: { name: public }
spec: { port: 10000 }
";

fn lines(text: &str) -> Vec<String> {
    match documents::read(text) {
        Err(violations) => violations.iter().map(ToString::to_string).collect(),
        Ok(checked) => GatewaySet::try_new(&checked).err().iter().flatten().map(ToString::to_string).collect(),
    }
}

fn document(kind: &str, spec: &str) -> String {
    format!("{{apiVersion: headgate.dev/v1, kind: {kind}, metadata: {{name: x}}, spec: {spec}}}")
}

#[test]
fn every_error_of_every_document_is_named_at_once() {
    let text = [
        document("Pool", "{endpoints: [{address: gpu-1, port: 0}, {address: 10.0.0.1, port: 70000, tier: 2, weight: 0}], maxRequests: 0}"),
        document("Route", "{hosts: ['Example.org'], rules: [{pathPrefix: v1, backends: [{pool: a, weight: 0}]}]}"),
        document(
            "Gateway",
            "{http3: true, tls: {certificateFile: a, clientCaFile: b}, allow: [10.0.0.0/33], jwt: [{name: a, issuer: i}], maxBodyBytes: 5}",
        ),
    ]
    .join("\n---\n");
    assert_eq!(
        lines(&text),
        [
            r#"Pool x: endpoints[0].address: "gpu-1" is not an IPv4 or IPv6 address"#,
            "Pool x: endpoints[0].port: is required",
            "Pool x: endpoints[1].port: 70000 is outside 1..=65535",
            "Pool x: endpoints[1].weight: 0 is outside 1..=1000",
            "Pool x: endpoints: tier 2 without tier 1 is not allowed: tiers begin with 0 and have no gaps",
            "Pool x: maxRequests: 0 is outside 1..=1000000",
            r#"Route x: hosts[0]: "Example.org" is not a host name of at most 253 lower-case characters without port"#,
            r#"Route x: rules[0].pathPrefix: "v1" is not a path that starts with '/'"#,
            "Route x: rules[0].backends: every weight 0 is not allowed: somebody has to get the requests",
            "Gateway x: port: is required",
            "Gateway x: tls.keyFile: is required",
            "Gateway x: tls.clientCaFile: b is not allowed: not every Envoy from 1.36 on asks for client certificates over QUIC; leave `http3` out",
            "Gateway x: maxBodyBytes: 5 is outside 1024..=67108864",
            r#"Gateway x: allow[0]: "10.0.0.0/33" is not a network such as 10.0.0.0/8 or 2001:db8::/32"#,
            "Gateway x: jwt[0]: 0 fields are given instead of exactly one of jwks, jwksFile and jwksUri",
        ]
    );
}

#[test]
fn keys_that_envoy_would_refuse_are_refused_before() {
    let jwks = |keys: &str| lines(&document("Gateway", &format!("{{port: 1, jwt: [{{name: a, issuer: i, jwks: '{keys}'}}]}}")));
    for none in
        ["{}", r#"{"keys": []}"#, r#"{"keys": [{"kty": "RSA", "n": "&", "e": "AQAB"}]}"#, r#"{"keys": [{"kty": "EC", "crv": "P-256"}]}"#]
    {
        assert!(jwks(none)[0].contains("jwt[0].jwks"), "{none}");
    }
    assert_eq!(jwks(r#"{"keys": [{"kty": "new"}, {"kty": "oct", "k": "c2VjcmV0"}]}"#), [""; 0]);
}

#[test]
fn options_of_balancing_that_mean_nothing_together_are_refused() {
    let balancing = |text: &str| {
        let endpoints = "endpoints: [{address: 10.0.0.1, port: 1}]";
        lines(&document("Pool", &format!("{{{endpoints}, balancing: {text}}}")))
    };
    assert_eq!(balancing("{algorithm: consistent_hash}"), ["Pool x: balancing.hashHeader: is required"]);
    assert!(balancing("{hashHeader: x-user}")[0].contains("only consistent_hash chooses by a header"));
    for weights in ["telemetry", "saturation"] {
        let problems = balancing(&format!("{{algorithm: round_robin, weights: {weights}}}"));
        assert!(problems[0].contains(weights) && problems[0].contains("weights of endpoints do not count"), "{problems:?}");
    }
    assert!(balancing("{algorithm: consistent_hash, hashHeader: x-user, slowStartMs: 1}")[0].contains("has no slow start"));
    assert_eq!(balancing("{algorithm: consistent_hash, hashHeader: x-user}"), [""; 0]);
    for algorithm in
        ["round_robin", "weighted, weights: telemetry", "least_request", "latency_aware", "consistent_hash, hashHeader: x-user"]
    {
        assert_eq!(balancing(&format!("{{algorithm: {algorithm}, followPicks: true}}")), [""; 0], "picks go with every algorithm");
    }
    assert!(balancing("{followPicks: always}")[0].contains("balancing.followPicks"), "{:?}", balancing("{followPicks: always}"));
}

#[test]
fn resources_that_do_not_fit_together_are_refused() {
    assert_eq!(lines(GOOD), [""; 0]);
    let text = GOOD.replace("{ pool: llm }", "{ pool: other }") + "---\n" + &document("Gateway", "{port: 10000, nodeCluster: edge}");
    assert_eq!(
        lines(&text),
        [
            r#"Route chat: rules[0].backends[0].pool: there is no Pool "other""#,
            r#"Gateway x: port: 10000 is where Gateway "public" listens for the same proxies"#,
        ]
    );
}

#[test]
fn resources_are_stored_together_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let hub = GatewayHub::open(Records::open(folder.path()).unwrap()).unwrap();
    let good = documents::read(GOOD).unwrap();
    assert!(matches!(hub.apply(&good[1..], "ann"), Err(GatewayError::Refused(_))), "the route's pool is not there");
    assert_eq!(hub.current().borrow().resources.len(), 0);
    assert_eq!(hub.check(&good).unwrap(), 3);
    assert_eq!(hub.apply(&good, "ann").unwrap(), 3);
    assert_eq!(hub.apply(&good, "ann").unwrap(), 0, "the same again changes nothing");
    assert!(matches!(hub.delete("Pool", "llm", "ann"), Err(GatewayError::Refused(_))), "the route needs it");
    assert!(matches!(hub.delete("Pool", "none", "ann"), Err(GatewayError::NotFound { .. })));
    hub.delete("Route", "chat", "ann").unwrap();
    hub.delete("Pool", "llm", "ann").unwrap();
    drop(hub);
    let again = GatewayHub::open(Records::open(folder.path()).unwrap()).unwrap();
    let names: Vec<String> = again.current().borrow().resources.iter().map(|resource| resource.name.clone()).collect();
    assert_eq!(names, ["public"], "what was acknowledged is there after a restart");
}

#[test]
fn documents_that_are_none_or_given_twice_are_refused() {
    assert_eq!(lines("# nothing\n---\n"), ["documents: there is none"]);
    let twice = format!("{}\n---\n{}", document("Gateway", "{port: 1}"), document("Gateway", "{port: 2}"));
    assert_eq!(lines(&twice), ["Gateway x: is given twice"]);
}
