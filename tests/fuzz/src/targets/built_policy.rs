//! Policies that are nearly right: what the validator accepts keeps its version on the wire, has a document that reads back as itself, and
//! can be put in force; every refusal names its field.

use std::sync::Arc;
use std::time::Duration;

use headgate::document::CheckedPolicy;
use headgate_core::policy::{Policy, content_version};
use headgate_core::request::{HeaderView, RequestInfo, VerifiedIdentity};
use headgate_core::stream::{Event, Stream, StreamEnd};
use headgate_core::time::Timestamp;
use headgate_core::worker::Worker;
use headgate_protos::{document as documents, v1};
use prost::Message;
use serde_json::Value;

use super::build;
use crate::{Marks, Source};

/// Longest path of a field that a person could still read.
const MAX_FIELD_BYTES: usize = 1024;

fn without_digits(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).take(64).collect()
}

/// Marks which parts an accepted policy has.
fn note_accepted(wire: &v1::Policy, marks: &mut Marks) {
    marks.note("accepted");
    let Some(spec) = &wire.spec else { return };
    for key in keys(&documents::render(&v1::Policy { spec: Some(spec.clone()), ..Default::default() })) {
        marks.note(("accepted", key));
    }
}

fn keys(value: &Value) -> Vec<String> {
    match value {
        Value::Object(object) => object.iter().flat_map(|(key, value)| std::iter::once(key.clone()).chain(keys(value))).collect(),
        Value::Array(list) => list.iter().flat_map(keys).collect(),
        _ => Vec::new(),
    }
}

pub(super) fn run(input: &[u8]) -> u64 {
    Marks::of(input, story)
}

fn story(input: &[u8], marks: &mut Marks) {
    let mut source = Source::new(input);
    let wire = build::policy(&mut source, "demo", "llm");
    match Policy::try_from_wire(&wire) {
        Ok(policy) => {
            note_accepted(&wire, marks);
            assert_travels(&wire, &policy);
            assert_has_document(wire);
            put_in_force(Arc::new(policy), &mut source);
        }
        Err(errors) => {
            assert!(errors.iter().next().is_some(), "a refusal without a reason");
            for error in &errors {
                assert!(!error.field.is_empty() && error.field.len() <= MAX_FIELD_BYTES, "a refusal without a field: {}", error.problem);
                assert!(error.to_string().starts_with(&error.field));
                marks.note((without_digits(&error.field), std::mem::discriminant(&error.problem)));
            }
        }
    }
}

fn assert_travels(wire: &v1::Policy, policy: &Policy) {
    let again = v1::Policy::decode(wire.encode_to_vec().as_slice()).expect("what was encoded decodes");
    assert_eq!(content_version(&again), content_version(wire), "the version changes on the wire");
    assert_eq!(Policy::try_from_wire(&again).as_ref(), Ok(policy));
}

/// What `policy get` shows can be applied and means the same.
fn assert_has_document(wire: v1::Policy) {
    let checked = CheckedPolicy::from_wire(wire).expect("the validator has accepted it");
    let text = documents::render(checked.wire()).to_string();
    match CheckedPolicy::from_document(&text) {
        Ok(again) => assert_eq!(again.policy(), checked.policy(), "{text}"),
        Err(violations) => panic!("its document is refused: {violations} in {text}"),
    }
}

fn put_in_force(policy: Arc<Policy>, source: &mut Source<'_>) {
    let mut worker = Worker::new(7);
    let mut now = Timestamp::from_millis(5);
    worker.set_policies(now, vec![policy]);
    worker.set_permits(0, 10, 1.0);
    for _ in 0..3 {
        now = now + source.span();
        let headers: [(&[u8], &[u8]); 3] = [(b":path", b"/v1/x"), (b":authority", b"api.example.com"), (b"content-length", b"1000")];
        let request = RequestInfo::new(HeaderView::from_pairs(&headers), VerifiedIdentity::default());
        let mut stream = Stream::identified(1);
        stream.handle(&mut worker, now, Event::RequestHeaders(&request));
        now = now + Duration::from_millis(100);
        worker.on_tick(now);
        stream.handle(&mut worker, now, Event::Log { endpoint: None, end: StreamEnd::Complete });
    }
    let _ = worker.report(now, 0);
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    super::random_seeds(400)
}
