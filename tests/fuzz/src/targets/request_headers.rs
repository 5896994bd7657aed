//! Requests as Envoy hands them over.

use std::sync::{Arc, OnceLock};

use headgate_core::policy::Policy;
use headgate_core::request::{ApiFormat, HeaderView, RequestInfo, VerifiedIdentity};
use headgate_core::stream::{Event, Outcome, Stream, StreamEnd};
use headgate_core::time::Timestamp;
use headgate_core::worker::Worker;
use headgate_protos::v1;

use super::build;
use crate::{Marks, Source};

pub(super) fn run(input: &[u8]) -> u64 {
    Marks::of(input, story)
}

fn story(input: &[u8], marks: &mut Marks) {
    let mut source = Source::new(input);
    if source.is_so(128) {
        let bytes = source.all();
        let Some(view) = HeaderView::from_serialized(bytes) else { return marks.note("unreadable") };
        let inside = bytes.as_ptr_range();
        for (name, value) in &view {
            let is_inside = |text: &[u8]| text.is_empty() || (inside.contains(&text.as_ptr()) && text.as_ptr_range().end <= inside.end);
            assert!(is_inside(name) && is_inside(value));
        }
        let count = view.iter().count();
        marks.count("headers", count as u64);
        assert!(count <= bytes.len() / 8);
        return decide(&view, marks);
    }
    let pairs: Vec<(Vec<u8>, Vec<u8>)> = (0..source.below(8)).map(|_| (name(&mut source), value(&mut source))).collect();
    let borrowed: Vec<(&[u8], &[u8])> = pairs.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).collect();
    let bytes = serialized(&borrowed);
    let view = HeaderView::from_serialized(&bytes).expect("what was put together can be taken apart");
    assert!(view.iter().eq(borrowed.iter().copied()), "headers change on the way");
    for (name, _) in &borrowed {
        assert_eq!(view.first(name), HeaderView::from_pairs(&borrowed).first(name));
    }
    decide(&view, marks);
}

fn name(source: &mut Source<'_>) -> Vec<u8> {
    let known = [
        ":path",
        ":method",
        ":authority",
        "content-length",
        "authorization",
        "x-api-key",
        "api-key",
        "x-envoy-attempt-count",
        "x-stainless-retry-count",
        "x-headgate-pool",
        "x-headgate-",
        "x-priority",
        "x-model",
    ];
    source.text(&known).into_bytes()
}

fn value(source: &mut Source<'_>) -> Vec<u8> {
    let known = [
        "/v1/chat/completions",
        "/v1/messages?x",
        "/",
        "GET",
        "api.example.com:443",
        "Bearer test-key-gold",
        "bearer  ",
        "test-key-silver",
        "18446744073709551615",
        "18446744073709551616",
        "1000",
        "2",
        "-1",
        "high",
        "low",
        "",
    ];
    source.text(&known).into_bytes()
}

/// Headers as the host hands them over.
fn serialized(pairs: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut bytes = (pairs.len() as u32).to_le_bytes().to_vec();
    for (name, value) in pairs {
        for text in [name, value] {
            bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
        }
    }
    for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
        bytes.extend_from_slice(text);
        bytes.push(0);
    }
    bytes
}

fn decide(view: &HeaderView<'_>, marks: &mut Marks) {
    let request = RequestInfo::new(*view, VerifiedIdentity::default());
    let has_forged = view.iter().any(|(name, _)| name.starts_with(b"x-headgate-"));
    assert_eq!(request.has_forged_headers, has_forged);
    let mut worker = Worker::new(7);
    worker.set_policies(Timestamp::ZERO, vec![policy()]);
    let mut stream = Stream::new();
    let outcome = stream.handle(&mut worker, Timestamp::ZERO, Event::RequestHeaders(&request));
    let is_governed = stream.summary().is_some();
    if let Outcome::Reply(reply) = &outcome {
        assert!((200..600).contains(&reply.status) && !reply.headers.is_empty(), "{reply:?}");
    }
    if let Some(summary) = stream.summary() {
        let mut line = String::new();
        summary.write_to(&mut line);
        assert_eq!(line, summary.to_string());
    }
    marks.note((
        is_governed,
        std::mem::discriminant(&outcome),
        ApiFormat::of_path(request.path) == ApiFormat::Anthropic,
        request.content_length.is_some(),
        request.is_retry,
        request.api_keys.map(|key| key.is_some()),
    ));
    stream.handle(&mut worker, Timestamp::ZERO, Event::Log { endpoint: None, end: StreamEnd::Complete });
}

/// Three tenants, a queue, and routes by path and host.
fn policy() -> Arc<Policy> {
    static POLICY: OnceLock<Arc<Policy>> = OnceLock::new();
    let make = || {
        let mut wire = (0..)
            .map(|seed| {
                let mut rng = headgate_core::rng::Rng::new(seed);
                let bytes: Vec<u8> = (0..400).map(|_| rng.next_u64() as u8).collect();
                build::policy(&mut Source::new(&bytes), "demo", "llm")
            })
            .find(|wire| {
                let tenants = wire.spec.as_ref().and_then(|spec| spec.classification.as_ref()).map_or(0, |of| of.tenants.len());
                tenants == 3 && Policy::try_from_wire(wire).is_ok()
            })
            .expect("some policy is valid");
        if let Some(spec) = &mut wire.spec {
            spec.routes = vec![v1::RouteMatch { path_prefix: "/v1/".to_owned(), host: String::new() }];
        }
        Arc::new(Policy::try_from_wire(&wire).expect("it was valid but for its routes"))
    };
    Arc::clone(POLICY.get_or_init(make))
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let pairs: [(&[u8], &[u8]); 4] =
        [(b":path", b"/v1/chat"), (b":authority", b"a"), (b"x-api-key", b"test-key-gold"), (b"x-headgate-reason", b"x")];
    vec![[vec![0], serialized(&pairs)].concat(), [vec![0], serialized(&[])].concat(), vec![200, 6, 0, 0, 3, 1, 9, 8, 7, 6, 5]]
}
