//! Documents of the gateway: pools, routes and gateways, as [`GatewayResource`].

use alloc::string::String;

use serde_json::{Value, json};

use super::read::read_spec;
use super::table::{GATEWAY_SPEC, POOL_SPEC, ROUTE_SPEC};
use super::{API_VERSION, DocumentErrors, open};
use crate::v1::GatewayResource;
use crate::v1::gateway_resource::Spec;

/// The kinds of documents there are.
pub const KINDS: [&str; 3] = ["Pool", "Route", "Gateway"];

/// What could be read of a document.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayReading {
    /// The resource; what could not be read is left out of it.
    pub resource: GatewayResource,
    /// What could not be read.
    pub errors: DocumentErrors,
}

/// Reads a document as far as it can be read.
pub fn read(value: Value) -> GatewayReading {
    let mut errors = DocumentErrors::default();
    let envelope = open(value, &KINDS, &mut errors).unwrap_or_default();
    let spec = envelope.spec.as_ref().and_then(|spec| match envelope.kind? {
        "Pool" => Some(Spec::Pool(read_spec(spec, &POOL_SPEC, &mut errors))),
        "Route" => Some(Spec::Route(read_spec(spec, &ROUTE_SPEC, &mut errors))),
        _ => Some(Spec::Gateway(read_spec(spec, &GATEWAY_SPEC, &mut errors))),
    });
    GatewayReading { resource: GatewayResource { name: envelope.name, spec, version: String::new() }, errors }
}

/// The kind of a resource; empty without a specification.
pub fn kind_of(resource: &GatewayResource) -> &'static str {
    match resource.spec {
        Some(Spec::Pool(_)) => "Pool",
        Some(Spec::Route(_)) => "Route",
        Some(Spec::Gateway(_)) => "Gateway",
        None => "",
    }
}

/// The document that says what `resource` says.
pub fn render(resource: &GatewayResource) -> Value {
    let spec = match &resource.spec {
        Some(Spec::Pool(spec)) => serde_json::to_value(spec),
        Some(Spec::Route(spec)) => serde_json::to_value(spec),
        Some(Spec::Gateway(spec)) => serde_json::to_value(spec),
        None => Ok(json!({})),
    };
    json!({
        "apiVersion": API_VERSION,
        "kind": kind_of(resource),
        "metadata": { "name": resource.name },
        // Structures of texts, numbers, lists and objects with text keys always have a form.
        "spec": spec.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use alloc::string::ToString;
    use alloc::vec::Vec;

    use super::*;

    fn document(kind: &str, spec: &Value) -> Value {
        json!({ "apiVersion": API_VERSION, "kind": kind, "metadata": { "name": "llm" }, "spec": spec })
    }

    #[test]
    fn what_is_read_is_written_as_it_was() {
        let pool = json!({
            "endpoints": [{ "address": "10.0.0.1", "port": 8000, "weight": 50, "tier": 1, "gpus": ["GPU-1"] }],
            "balancing": { "algorithm": "consistent_hash", "hashHeader": "x-user", "weights": "telemetry" },
            "protocol": "http2",
        });
        let route = json!({ "rules": [{ "models": ["llama*"], "backends": [{ "pool": "llm", "weight": 0 }], "timeoutMs": 0 }] });
        let gateway = json!({ "port": 443, "tls": { "certificateFile": "a", "keyFile": "b" }, "http3": true, "admission": false });
        for (kind, spec) in [("Pool", pool), ("Route", route), ("Gateway", gateway)] {
            let document = document(kind, &spec);
            let reading = read(document.clone());
            assert!(reading.errors.is_empty(), "{}", reading.errors);
            assert_eq!(kind_of(&reading.resource), kind);
            assert_eq!(render(&reading.resource), document);
        }
    }

    #[test]
    fn a_document_of_another_kind_and_with_unknown_fields_is_refused() {
        let lines = |value: Value| read(value).errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(lines(document("Policy", &json!({}))), [r#"kind: "Policy" is not Pool or Route or Gateway"#]);
        let errors = lines(document("Pool", &json!({ "endpoints": [{ "address": "10.0.0.1", "prot": 1 }], "protocol": "http4" })));
        assert_eq!(
            errors,
            [
                "endpoints[0].prot: is no field here; the fields are address, port, weight, tier, zone, gpus, node",
                r#"protocol: "http4" is not one of http1, http2"#,
            ]
        );
    }
}
