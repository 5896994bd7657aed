//! Generates `POLICY.md`, the reference of the policy document, from the comments of `policy.proto`, and fails when it is stale.
//!
//! `HEADGATE_BLESS=1 cargo test -p headgate-protos --test reference` writes it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto};

const HEAD: &str = "# Policy reference

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

#[test]
fn policy_reference_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let reference = render(root);
    let path = root.join("POLICY.md");
    if env::var_os("HEADGATE_BLESS").is_some() {
        fs::write(&path, &reference).unwrap();
    }
    let checked_in = fs::read_to_string(&path).unwrap_or_default();
    assert!(reference == checked_in, "protos/POLICY.md is stale; bless with HEADGATE_BLESS=1");
}

fn render(root: &Path) -> String {
    let files = protox::Compiler::new([root])
        .unwrap()
        .include_source_info(true)
        .open_file("headgate/v1/policy.proto")
        .unwrap()
        .file_descriptor_set();
    let file = files.file.iter().find(|file| file.name().ends_with("policy.proto")).unwrap();
    let comments = comments(file);
    let mut out = String::from(HEAD);
    for (index, message) in file.message_type.iter().enumerate() {
        // `Policy` is the envelope: `metadata.name` and `spec`.
        if message.name() != "Policy" {
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
