//! Generates `POLICY.md` and `GATEWAY.md`, the references of the documents, from the comments of `policy.proto` and `gateway.proto`, and
//! fails when one is stale.
//!
//! `HEADGATE_BLESS=1 cargo test -p headgate-protos --test reference` writes them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto};

const POLICY_HEAD: &str = "# Policy reference

Generated from the comments of `protos/headgate/v1/policy.proto`; do not edit. A policy is a YAML or JSON document:

```yaml
apiVersion: headgate.dev/v1
kind: AdmissionPolicy
metadata:
  name: chat
spec:
  pool: llm
  classes:
  - {name: high, whenTripped: reserved_lane}
  - {name: medium, whenTripped: gradient_throttle}
  - {name: low, whenTripped: refuse}
```

`headgate policy validate -f FILE` names every error at once: field, value and what is allowed. Unknown fields are errors.
";

const GATEWAY_HEAD: &str = "# Gateway reference

Generated from the comments of `protos/headgate/v1/gateway.proto`; do not edit. What the resources become in Envoy, and why, is in
`control-plane/server/GATEWAY.md`. A file holds one or more YAML documents, separated by `---`:

```yaml
apiVersion: headgate.dev/v1
kind: Pool
metadata: {name: llm}
spec: {endpoints: [{address: 10.0.0.1, port: 8000}]}
---
apiVersion: headgate.dev/v1
kind: Route
metadata: {name: chat}
spec: {rules: [{pathPrefix: /v1/, backends: [{pool: llm}]}]}
---
apiVersion: headgate.dev/v1
kind: Gateway
metadata: {name: public}
spec: {port: 10000}
```

`headgate gateway validate -f FILE` names every error at once: resource, field, value and what is allowed. Unknown fields are errors.
";

/// A proto, the document made of it, its beginning, and messages that people do not write.
const REFERENCES: [(&str, &str, &str, &[&str]); 2] = [
    // `Policy` is the envelope: `metadata.name` and `spec`.
    ("policy.proto", "POLICY.md", POLICY_HEAD, &["Policy"]),
    (
        "gateway.proto",
        "GATEWAY.md",
        GATEWAY_HEAD,
        &[
            "GatewayResource",
            "ApplyGatewayRequest",
            "ApplyGatewayResponse",
            "ListGatewayRequest",
            "ListGatewayResponse",
            "EndpointStatus",
            "GatewayRefusal",
            "DeleteGatewayRequest",
            "DeleteGatewayResponse",
        ],
    ),
];

#[test]
fn references_are_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (proto, document, head, left_out) in REFERENCES {
        let reference = render(root, proto, head, left_out);
        let path = root.join(document);
        if env::var_os("HEADGATE_BLESS").is_some() {
            fs::write(&path, &reference).unwrap();
        }
        let checked_in = fs::read_to_string(&path).unwrap_or_default();
        assert!(reference == checked_in, "protos/{document} is stale; bless with HEADGATE_BLESS=1");
    }
}

fn render(root: &Path, proto: &str, head: &str, left_out: &[&str]) -> String {
    let files = protox::Compiler::new([root])
        .unwrap()
        .include_source_info(true)
        .open_file(format!("headgate/v1/{proto}"))
        .unwrap()
        .file_descriptor_set();
    let file = files.file.iter().find(|file| file.name().ends_with(proto)).unwrap();
    let comments = comments(file);
    let mut out = String::from(head);
    for (index, message) in file.message_type.iter().enumerate() {
        if !left_out.contains(&message.name()) {
            render_message(&mut out, message, &comments, index as i32);
        }
    }
    for (index, kind) in file.enum_type.iter().enumerate() {
        render_enum(&mut out, kind, &comments, index as i32);
    }
    out
}

fn render_message(out: &mut String, message: &DescriptorProto, comments: &BTreeMap<Vec<i32>, String>, index: i32) {
    writeln!(out, "\n## {}\n\n{}\n", message.name(), comments[&vec![4, index]]).unwrap();
    writeln!(out, "| field | type | meaning |\n|---|---|---|").unwrap();
    for (at, field) in message.field.iter().enumerate() {
        let meaning = &comments[&vec![4, index, 2, at as i32]];
        writeln!(out, "| `{}` | {} | {} |", field.json_name(), type_of(field), meaning.replace('|', "\\|")).unwrap();
    }
}

fn render_enum(out: &mut String, kind: &EnumDescriptorProto, comments: &BTreeMap<Vec<i32>, String>, index: i32) {
    writeln!(out, "\n## {}\n\n{}\n", kind.name(), comments[&vec![5, index]]).unwrap();
    writeln!(out, "| value | meaning |\n|---|---|").unwrap();
    let prefix = kind.value[0].name().trim_end_matches("UNSPECIFIED").to_owned();
    for (at, value) in kind.value.iter().enumerate().skip(1) {
        let name = value.name().trim_start_matches(prefix.as_str()).to_lowercase();
        writeln!(out, "| `{name}` | {} |", comments[&vec![5, index, 2, at as i32]]).unwrap();
    }
}

/// The leading comments of a file by descriptor path, each on one line.
fn comments(file: &FileDescriptorProto) -> BTreeMap<Vec<i32>, String> {
    let locations = &file.source_code_info.as_ref().unwrap().location;
    locations.iter().map(|at| (at.path.clone(), at.leading_comments().split_whitespace().collect::<Vec<_>>().join(" "))).collect()
}

fn type_of(field: &FieldDescriptorProto) -> String {
    let name = match field.r#type() {
        Type::Message | Type::Enum => {
            let name = field.type_name().rsplit('.').next().unwrap();
            format!("[{name}](#{})", name.to_lowercase())
        }
        Type::String => "string".into(),
        Type::Bool => "bool".into(),
        Type::Double => "number".into(),
        _ => "integer".into(),
    };
    if field.label() == Label::Repeated { format!("list of {name}") } else { name }
}
