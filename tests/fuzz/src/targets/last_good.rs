//! The filter's side of discovery: the client, and the session that it runs in.

use std::collections::BTreeMap;

use headgate_core::discovery::{BACKOFF_MAX, DiscoveryClient, LimitsSnapshot, MAX_RESOURCES, NodeIdentity, PolicySnapshot};
use headgate_core::policy::Policy;
use headgate_core::session::{Effect, Link, Session};
use headgate_core::shared::SharedLimits;
use headgate_core::time::Timestamp;
use headgate_protos::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use headgate_protos::{Any, LIMITS_TYPE_URL, POLICY_TYPE_URL, v1};
use prost::Message;

use super::build;
use crate::{Marks, Source};

/// Messages of one conversation at most.
const MAX_STEPS: usize = 40;
const NAMES: [&str; 4] = ["demo", "second", "third", ""];

/// What the client must hold, besides the client itself.
#[derive(Default)]
struct Model {
    /// The newest valid policy of each name.
    policies: BTreeMap<String, v1::Policy>,
}

impl Model {
    fn take(&mut self, response: &DeltaDiscoveryResponse) {
        if response.type_url != POLICY_TYPE_URL {
            return;
        }
        for name in &response.removed_resources {
            self.policies.remove(name);
        }
        for resource in &response.resources {
            let Some(mut policy) = valid(resource) else { continue };
            if policy.version.is_empty() {
                policy.version.clone_from(&resource.version);
            }
            if self.policies.len() < MAX_RESOURCES || self.policies.contains_key(&policy.name) {
                self.policies.insert(policy.name.clone(), policy);
            }
        }
    }
}

/// The policy that a resource holds, when it may come into force.
fn valid(resource: &Resource) -> Option<v1::Policy> {
    let body = resource.resource.as_ref().filter(|body| body.type_url == POLICY_TYPE_URL)?;
    let policy = v1::Policy::decode(body.value.as_ref()).ok()?;
    let mut checked = policy.clone();
    if checked.version.is_empty() {
        checked.version.clone_from(&resource.version);
    }
    (policy.name == resource.name && Policy::try_from_wire(&checked).is_ok()).then_some(policy)
}

pub(super) fn run(input: &[u8]) -> u64 {
    Marks::of(input, story)
}

fn story(input: &[u8], marks: &mut Marks) {
    let mut source = Source::new(input);
    if source.is_so(64) {
        return session(&mut source, marks);
    }
    let mut client = DiscoveryClient::new(NodeIdentity::default(), source.number());
    let mut model = Model::default();
    let mut now = Timestamp::from_millis(1);
    for _ in 0..MAX_STEPS {
        if source.is_empty() {
            break;
        }
        now = now + source.span();
        match source.below(8) {
            0 => {
                let wait = client.on_close(now);
                assert!(wait <= BACKOFF_MAX, "{wait:?}");
                assert!(client.is_due(now + BACKOFF_MAX));
            }
            1 => assert_opens(&client.open(), &model),
            2 => {
                // What another VM has shared counts for as much as what the server has sent.
                let shared = PolicySnapshot { revision: 1, policies: client.policies().cloned().collect() };
                let mut heir = DiscoveryClient::new(NodeIdentity::default(), 3);
                heir.adopt(&PolicySnapshot::decode(&shared.encode()).expect("what was encoded decodes"), &LimitsSnapshot::default());
                client = heir;
            }
            3 => marks.note(("garbage", client.on_message(source.bytes(64)).is_ok())),
            _ => say(&mut client, &mut model, &mut source, marks),
        }
        let held: BTreeMap<String, v1::Policy> = client.policies().map(|policy| (policy.name.clone(), policy.clone())).collect();
        if held != model.policies {
            // Random bytes may happen to be a message.
            assert!(held.values().all(|policy| Policy::try_from_wire(policy).is_ok()), "an invalid policy is held");
            panic!("held {:?}, expected {:?}", held.keys(), model.policies.keys());
        }
        assert!(client.limits().count() <= MAX_RESOURCES && client.rejected().count() <= MAX_RESOURCES);
    }
    marks.count("held", model.policies.len() as u64);
}

fn assert_opens(requests: &[DeltaDiscoveryRequest], model: &Model) {
    let named = requests.iter().find(|request| request.type_url == POLICY_TYPE_URL).map(|request| request.initial_resource_versions.keys());
    assert!(named.is_some_and(|named| named.eq(model.policies.keys())), "a client must name what it has");
}

/// One message, well-formed but for what is damaged on purpose.
fn say(client: &mut DiscoveryClient, model: &mut Model, source: &mut Source<'_>, marks: &mut Marks) {
    let response = response(source);
    let mut bytes = response.encode_to_vec();
    if source.is_so(24) {
        bytes.truncate(source.below(bytes.len() + 1));
        let Ok(response) = DeltaDiscoveryResponse::decode(bytes.as_slice()) else {
            assert!(client.on_message(&bytes).is_err());
            return marks.note("cut");
        };
        return heard(client, model, &response, &bytes, marks);
    }
    heard(client, model, &response, &bytes, marks);
}

fn heard(client: &mut DiscoveryClient, model: &mut Model, response: &DeltaDiscoveryResponse, bytes: &[u8], marks: &mut Marks) {
    let output = client.on_message(bytes).expect("it decodes and is short");
    model.take(response);
    let [reply] = output.replies.as_slice() else { panic!("{} replies to one message", output.replies.len()) };
    assert_eq!((&reply.type_url, &reply.response_nonce), (&response.type_url, &response.nonce));
    let is_known = [POLICY_TYPE_URL, LIMITS_TYPE_URL].contains(&response.type_url.as_str());
    assert!(is_known || reply.error_detail.is_some(), "a type that nobody asked for is acknowledged");
    if response.type_url == POLICY_TYPE_URL {
        let bad = response.resources.iter().filter(|resource| resource.resource.is_some() && valid(resource).is_none()).count();
        assert!(bad == 0 || reply.error_detail.is_some(), "a bad policy is acknowledged");
        assert!(bad > 0 || reply.error_detail.is_none() || model.policies.len() >= MAX_RESOURCES, "good policies are refused: {reply:?}");
        for policy in &output.policies {
            assert!(Policy::try_from_wire(policy).is_ok(), "an invalid policy comes into force");
        }
        marks.note(("policies", bad.min(2), output.policies.len().min(3), output.removed_policies.len().min(2)));
    } else {
        marks.note(("limits", output.limits.len().min(3), output.removed_limits.len().min(2), reply.error_detail.is_some()));
    }
}

fn response(source: &mut Source<'_>) -> DeltaDiscoveryResponse {
    let is_policies = source.is_so(180);
    let count = source.below(4);
    let resources = (0..count).map(|_| if is_policies { policy_resource(source) } else { limits_resource(source) }).collect();
    let removed_resources = (0..source.below(3)).map(|_| source.text(&NAMES)).collect();
    let type_url = match source.below(16) {
        0 => source.text(&["", "type.googleapis.com/envoy.config.cluster.v3.Cluster"]),
        _ if is_policies => POLICY_TYPE_URL.to_owned(),
        _ => LIMITS_TYPE_URL.to_owned(),
    };
    DeltaDiscoveryResponse {
        system_version_info: String::new(),
        resources,
        type_url,
        nonce: source.text(&["1", "2", ""]),
        removed_resources,
    }
}

fn policy_resource(source: &mut Source<'_>) -> Resource {
    let name = source.text(&NAMES);
    let mut policy = build::policy(source, &name, "llm");
    policy.version = source.text(&["", "v1", "v2"]);
    resource(source, name, POLICY_TYPE_URL, policy.encode_to_vec())
}

fn limits_resource(source: &mut Source<'_>) -> Resource {
    let name = source.text(&build::POOLS);
    let epoch = source.number();
    let limits = build::limits(source, &name, epoch);
    resource(source, name, LIMITS_TYPE_URL, limits.encode_to_vec())
}

fn resource(source: &mut Source<'_>, name: String, type_url: &str, mut value: Vec<u8>) -> Resource {
    if source.is_so(12) {
        value.truncate(source.below(value.len() + 1));
    }
    let type_url = if source.is_so(8) { source.text(&["", LIMITS_TYPE_URL, POLICY_TYPE_URL]) } else { type_url.to_owned() };
    let body = Any { type_url, value: value.into() };
    let name = if source.is_so(8) { source.text(&NAMES) } else { name };
    Resource { version: source.text(&["v1", "v2", ""]), resource: (!source.is_so(8)).then_some(body), name, ttl: None }
}

/// The session around the client: what it shares can be read, and it never asks for what it has not opened.
fn session(source: &mut Source<'_>, marks: &mut Marks) {
    let mut session = Session::begin(NodeIdentity::default(), source.number(), source.bytes(64), source.bytes(64));
    let mut now = Timestamp::from_millis(1);
    for _ in 0..MAX_STEPS {
        if source.is_empty() {
            break;
        }
        now = now + source.span();
        let link = *source.pick(&[Link::Discovery, Link::Reports]);
        let effects = match source.below(6) {
            0 => session.on_tick(now).into_iter().collect(),
            1 => session.on_open(now, link, source.is_so(200)),
            2 => {
                session.on_close(now, link);
                Vec::new()
            }
            3 => session.on_message(now, link, source.bytes(64)),
            4 if session.is_report_due(now) => {
                let workers =
                    (0..source.below(3)).map(|_| build::worker_report(source, now.as_nanos()).encode_to_vec()).collect::<Vec<_>>();
                vec![session.report(now, workers.into_iter(), Vec::new())]
            }
            _ => {
                let response = response(source);
                session.on_message(now, Link::Discovery, &response.encode_to_vec())
            }
        };
        for effect in effects {
            marks.note(("effect", std::mem::discriminant(&effect)));
            if let Effect::Share { policies, limits } = effect {
                let readable = policies.is_none_or(|policies| {
                    let snapshot = PolicySnapshot::decode(&policies).expect("a VM shares what the others can read");
                    snapshot.policies.iter().all(|policy| Policy::try_from_wire(policy).is_ok())
                });
                assert!(readable, "an invalid policy is shared");
                assert!(limits.is_none_or(|limits| SharedLimits::decode(limits.as_slice()).is_ok()));
            }
        }
        let _ = session.limits_age(now, "llm");
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    super::random_seeds(600)
}
