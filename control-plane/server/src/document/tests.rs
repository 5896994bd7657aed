#![allow(clippy::unwrap_used)]

use super::*;

fn lines(text: &str) -> Vec<String> {
    CheckedPolicy::from_document(text).unwrap_err().iter().map(ToString::to_string).collect()
}

const GOOD: &str = "
apiVersion: headgate.dev/v1
kind: AdmissionPolicy
metadata: { name: demo }
spec:
  pool: llm
  classes:
  - { name: high, whenTripped: reserved_lane }
  - { name: low, whenTripped: refuse }
";

#[test]
fn a_good_document_gets_the_version_of_its_content() {
    let checked = CheckedPolicy::from_document(GOOD).unwrap();
    assert_eq!(checked.wire().name, "demo");
    assert_eq!(checked.wire().version, content_version(checked.wire()));
    assert_eq!(checked.policy().version(), checked.wire().version);
    let again = CheckedPolicy::from_wire(v1::Policy { version: "claimed".into(), ..checked.wire().clone() }).unwrap();
    assert_eq!(again, checked, "a claimed version counts for nothing");
}

#[test]
fn json_is_a_document_too() {
    let checked = CheckedPolicy::from_document(GOOD).unwrap();
    let json = document::render(checked.wire()).to_string();
    assert_eq!(CheckedPolicy::from_document(&json).unwrap(), checked);
}

#[test]
fn a_policy_with_any_character_in_a_text_can_be_shown_and_applied_again() {
    let fallback = "breaker: { fallback: { staticReply: { body: \"\\x00\\x7f\\x85\" } } }";
    let checked = CheckedPolicy::from_document(&GOOD.replace("pool: llm", &format!("pool: llm\n  {fallback}"))).unwrap();
    assert_eq!(CheckedPolicy::from_document(&document::render(checked.wire()).to_string()).unwrap(), checked);
}

#[test]
fn errors_of_the_document_and_of_the_policy_come_together() {
    let lines = lines(&GOOD.replace("pool: llm", "pool: 7\n  levels: { gpuMemory: { tripPercent: 140, tripPercnt: 1 } }"));
    let fields: Vec<&str> = lines.iter().filter_map(|line| line.split_once(": ")).map(|(field, _)| field).collect();
    assert_eq!(fields, ["levels.gpuMemory.tripPercnt", "pool", "levels.gpuMemory.tripPercent"], "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("140 is outside 1..=100")), "{lines:?}");
}

#[test]
fn what_is_no_yaml_is_refused_with_its_place() {
    for (text, expected) in [
        ("a: [1", "line"),
        ("a: 1\na: 2", "`a` is given twice"),
        ("a: .nan", "NaN is not a finite number"),
        ("a: .inf", "inf is not a finite number"),
        ("a: 1\n---\nb: 2", "more than one document"),
        ("", "not an object"),
        ("a: &x [*x]", ""),
    ] {
        let lines = lines(text);
        assert!(lines.first().is_some_and(|line| line.starts_with("document: ") && line.contains(expected)), "{text:?} gives {lines:?}");
    }
}

#[test]
fn aliases_cannot_multiply_a_document_without_bound() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..9 {
        let list = vec![format!("*a{}", level - 1); 10].join(", ");
        text += &format!("a{level}: &a{level} [{list}]\n");
    }
    let lines = lines(&text);
    assert!(lines.len() == 1 && lines.iter().all(|line| line.starts_with("document: ")), "{lines:?}");
}

#[test]
fn a_document_beyond_the_bound_is_refused_unread() {
    assert_eq!(lines(&"x".repeat(MAX_DOCUMENT_BYTES + 1)), ["document: 1048577 bytes are more than 1048576"]);
}

#[test]
fn every_policy_of_the_examples_is_valid() {
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let folders = std::fs::read_dir(examples).unwrap().map(|entry| entry.unwrap().path().join("policy.yaml"));
    let files: Vec<_> = folders.filter(|file| file.exists()).collect();
    assert!(files.len() >= 2, "{files:?}");
    for file in files {
        let checked = CheckedPolicy::from_document(&std::fs::read_to_string(&file).unwrap());
        assert!(checked.is_ok(), "{}: {}", file.display(), checked.unwrap_err());
    }
}
