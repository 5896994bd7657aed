//! Generates `src/gen` anew and fails when it differs from what is checked in.
//!
//! `HEADGATE_BLESS=1 cargo test -p headgate-protos --test bootstrap` writes the new code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod document_table;

use std::path::{Path, PathBuf};
use std::{env, fs};

use prost_build::Config;

// Documents are written by serde and read by the table: derived readers of so many messages would be a fifth of the filter's code.
const SERDE: &str = r#"#[cfg_attr(feature = "document", derive(serde::Serialize))]
#[cfg_attr(feature = "document", serde(rename_all = "camelCase"))]"#;

/// Messages that are part of a document.
const DOCUMENT_MESSAGES: &[&str] = &[
    "PolicySpec",
    "RouteMatch",
    "PriorityClass",
    "Classification",
    "Tenant",
    "Identity",
    "JwtClaim",
    "ClassCap",
    "Levels",
    "QpsLevel",
    "GpuMemoryLevel",
    "P99Level",
    "Hysteresis",
    "GradientThrottle",
    "Concurrency",
    "CircuitBreaker",
    "ErrorRate",
    "Fallback",
    "StaticReply",
    "Refusal",
    "Overload",
    "AdmissionQueue",
    "RetryBudget",
    "Rung",
    "Engine",
    "PoolSpec",
    "PoolEndpoint",
    "PoolBalancing",
    "PoolHealthCheck",
    "PoolOutliers",
    "PoolRetries",
    "PoolTls",
    "RouteSpec",
    "RouteRule",
    "RouteBackend",
    "GatewaySpec",
    "GatewayTls",
    "GatewayJwt",
    "GatewayOauth2",
    "GatewaySignatures",
    "SignatureKey",
    "Candidate",
    "Rollout",
    "Quota",
    "QuotaFloor",
];

/// Enum fields of those messages: message, field, enum, the adapter for how the field holds it.
const DOCUMENT_ENUMS: &[(&str, &str, &str, &str)] = &[
    ("PolicySpec", "enforcement", "Enforcement", "EnumName"),
    ("PriorityClass", "when_tripped", "WhenTripped", "EnumName"),
    ("GpuMemoryLevel", "source", "GpuMemorySource", "EnumName"),
    ("Overload", "fusion", "Fusion", "EnumName"),
    ("Rung", "kind", "RungKind", "EnumName"),
    ("CircuitBreaker", "scopes", "BreakerScope", "EnumNames"),
    ("PoolBalancing", "algorithm", "BalancingAlgorithm", "EnumName"),
    ("PoolBalancing", "weights", "WeightSource", "EnumName"),
    ("PoolSpec", "protocol", "PoolProtocol", "EnumName"),
    ("Quota", "unit", "QuotaUnit", "EnumName"),
    ("Quota", "per", "QuotaPeriod", "EnumName"),
    ("Quota", "mode", "QuotaMode", "EnumName"),
];

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("gen");
    let _ = fs::remove_dir_all(&out);
    fs::create_dir_all(&out).unwrap();
    generate(root, &out);
    let checked_in = root.join("src/gen");
    if env::var_os("HEADGATE_BLESS").is_some() {
        fs::create_dir_all(&checked_in).unwrap();
        for (name, bytes) in files(&out) {
            fs::write(checked_in.join(name), bytes).unwrap();
        }
    }
    let (new, old) = (files(&out), files(&checked_in));
    assert_eq!(names(&new), names(&old), "src/gen has other files than the protos generate; bless with HEADGATE_BLESS=1");
    for ((name, new), (_, old)) in new.iter().zip(&old) {
        assert!(new == old, "src/gen/{name} is stale; bless with HEADGATE_BLESS=1");
    }
}

fn generate(root: &Path, out: &Path) {
    let mut protos: Vec<PathBuf> = ["headgate/v1", "discovery"]
        .iter()
        .flat_map(|folder| fs::read_dir(root.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    protos.sort();
    let descriptors = protox::compile(&protos, [root]).unwrap();
    let mut config = Config::new();
    config.bytes(["."]);
    config.btree_map(["."]);
    config.enable_type_names();
    config.extern_path(".google.protobuf.Any", "crate::Any");
    config.extern_path(".headgate.v1.Histogram", "crate::Histogram");
    for message in DOCUMENT_MESSAGES {
        config.message_attribute(format!("headgate.v1.{message}"), SERDE);
        config.field_attribute(
            format!(".headgate.v1.{message}"),
            r#"#[cfg_attr(feature = "document", serde(skip_serializing_if = "crate::document::is_default"))]"#,
        );
    }
    for (message, field, kind, arity) in DOCUMENT_ENUMS {
        config.field_attribute(
            format!("headgate.v1.{message}.{field}"),
            format!(r#"#[cfg_attr(feature = "document", serde(with = "crate::document::{arity}::<crate::v1::{kind}>"))]"#),
        );
    }
    fs::write(out.join("descriptor.bin"), prost::Message::encode_to_vec(&descriptors)).unwrap();
    fs::write(out.join("document.rs"), document_table::render(&descriptors, DOCUMENT_MESSAGES)).unwrap();
    tonic_prost_build::configure()
        .build_transport(false)
        .out_dir(out)
        .server_mod_attribute(".", r#"#[cfg(feature = "grpc")]"#)
        .client_mod_attribute(".", r#"#[cfg(feature = "grpc")]"#)
        .compile_fds_with_config(descriptors, config)
        .unwrap();
    generate_etcd(root, out);
}

/// A client of etcd; not described by reflection, for we do not serve it.
fn generate_etcd(root: &Path, out: &Path) {
    let descriptors = protox::compile([root.join("etcd/etcd.proto")], [root]).unwrap();
    let mut config = Config::new();
    config.bytes(["."]);
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .out_dir(out)
        .compile_fds_with_config(descriptors, config)
        .unwrap();
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

fn names(files: &[(String, Vec<u8>)]) -> Vec<&str> {
    files.iter().map(|(name, _)| name.as_str()).collect()
}
