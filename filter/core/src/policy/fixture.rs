//! A policy that tests start from.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use std::format;

use headgate_protos::v1;
use sha2::{Digest, Sha256};

use super::Policy;

/// Key of the tenant `acme`.
pub(crate) const ACME_KEY: &[u8] = b"sk-acme-0001";

/// SHA-256 in hexadecimal.
pub(crate) fn sha256_hex(text: &[u8]) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn class(name: &str, when_tripped: v1::WhenTripped, reserved_percent: Option<u32>) -> v1::PriorityClass {
    v1::PriorityClass { name: name.to_string(), when_tripped: when_tripped.into(), reserved_percent, ..Default::default() }
}

fn tenant(name: &str, class: &str, may_claim: &[&str], identities: &[v1::Identity]) -> v1::Tenant {
    v1::Tenant {
        name: name.to_string(),
        identities: identities.to_vec(),
        class: class.to_string(),
        may_claim: may_claim.iter().map(ToString::to_string).collect(),
    }
}

/// Three classes `high`, `medium`, `low`; tenants `acme` (key; medium, may claim high), `vip` (certificate; high) and `user` (JWT; low).
pub(crate) fn wire() -> v1::Policy {
    let key = v1::Identity { api_key_sha256: sha256_hex(ACME_KEY), ..Default::default() };
    let certificate = v1::Identity { spiffe_id: "spiffe://cluster.local/ns/a/sa/vip".into(), ..Default::default() };
    let claim = v1::JwtClaim { payload: String::new(), claim: "sub".into(), value: "user-7".into() };
    let jwt = v1::Identity { jwt_claim: Some(claim), ..Default::default() };
    v1::Policy {
        name: "demo".into(),
        version: String::new(),
        spec: Some(v1::PolicySpec {
            pool: "llm".into(),
            classes: vec![
                class("high", v1::WhenTripped::ReservedLane, Some(20)),
                class("medium", v1::WhenTripped::GradientThrottle, None),
                class("low", v1::WhenTripped::Refuse, None),
            ],
            classification: Some(v1::Classification {
                tenants: vec![
                    tenant("acme", "medium", &["high"], &[key]),
                    tenant("vip", "high", &[], &[certificate]),
                    tenant("user", "low", &[], &[jwt]),
                ],
                ..Default::default()
            }),
            ..Default::default()
        }),
    }
}

/// [`wire`] after a change of its spec, validated.
pub(crate) fn policy(change: impl FnOnce(&mut v1::PolicySpec)) -> Arc<Policy> {
    let mut wire = wire();
    change(wire.spec.as_mut().expect("the fixture has a spec"));
    Arc::new(Policy::try_from_wire(&wire).expect("the fixture is valid"))
}
