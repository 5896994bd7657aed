//! The server's side of xDS: whatever a client says, it is told only of what exists, nonces are never given twice, and only what expires is
//! renewed.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use headgate_protos::discovery::{DeltaDiscoveryRequest, DiscoveryRequest};
use headgate_protos::envoy_core::Node;
use headgate_protos::{LIMITS_TYPE_URL, POLICY_TYPE_URL};
use headgate_xds::{DeltaResponse, DeltaStream, Resource, ResourceName, ResourceType, Scope, Snapshot, SotwStream};
use prost::Message;

use crate::input::{Input, fingerprint, push_frame};

pub(super) const WORDS: &[&str] =
    &[POLICY_TYPE_URL, LIMITS_TYPE_URL, "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig", "a", "b", "*", KNOWS_TTL];

/// Feature of clients that let resources expire.
const KNOWS_TTL: &str = "xds.config.supports-resource-ttl";
/// Content from which on a resource expires.
const EXPIRING_FROM: u8 = 128;
const TTL: Duration = Duration::from_secs(3);

const KINDS: [ResourceType; 3] = [ResourceType::HeadgatePolicy, ResourceType::HeadgateLimits, ResourceType::ExtensionConfig];
const NAMES: [&str; 3] = ["a", "b", "c"];

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let subscribe = |type_url: &str, nonce: &str| DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_subscribe: vec!["a".to_owned(), "*".to_owned()],
        response_nonce: nonce.to_owned(),
        node: Some(Node { client_features: vec![KNOWS_TTL.to_owned()], ..Node::default() }),
        ..Default::default()
    };
    let named =
        |type_url: &str| DiscoveryRequest { type_url: type_url.to_owned(), resource_names: vec!["a".to_owned()], ..Default::default() };
    let mut script = vec![2, 0, 0, 1, 2, 1, 1, 200];
    for (op, message) in [
        (0, subscribe(POLICY_TYPE_URL, "").encode_to_vec()),
        (0, subscribe(LIMITS_TYPE_URL, "").encode_to_vec()),
        (0, subscribe(POLICY_TYPE_URL, "1").encode_to_vec()),
        (1, named(POLICY_TYPE_URL).encode_to_vec()),
    ] {
        script.push(op);
        push_frame(&mut script, &message);
        script.extend([2, 0, 0, 7, 3, 4]);
    }
    vec![script]
}

pub(super) fn run(input: &[u8]) -> u64 {
    let mut input = Input::new(input);
    let (mut delta, mut sotw) = (DeltaStream::new(Scope::Aggregated), SotwStream::new(Scope::Aggregated));
    let mut content = [[0_u8; NAMES.len()]; KINDS.len()];
    let mut world = snapshot(&content);
    let mut nonces = BTreeSet::new();
    let mut seen = Vec::new();
    for _ in 0..128 {
        if input.is_empty() {
            break;
        }
        match input.choice(5) {
            0 => {
                let Ok(request) = DeltaDiscoveryRequest::decode(input.frame()) else { continue };
                // A client that breaks the protocol loses its stream.
                let Ok(step) = delta.on_request(&request, &world) else { return fingerprint([seen]) };
                seen.push(1 + step.responses.len() as u8 + 16 * step.events.len() as u8);
                step.responses.iter().for_each(|response| check(response, &world, &mut nonces));
            }
            1 => {
                let Ok(request) = DiscoveryRequest::decode(input.frame()) else { continue };
                let Ok(step) = sotw.on_request(&request, &world) else { return fingerprint([seen]) };
                seen.push(2 + step.responses.len() as u8 + 16 * step.events.len() as u8);
            }
            2 => {
                let (kind, name) = (input.choice(KINDS.len()), input.choice(NAMES.len()));
                content[kind][name] = input.byte();
                world = snapshot(&content);
            }
            3 => {
                let responses = delta.on_heartbeat(&world);
                assert!(responses.is_empty() || delta.heartbeat_after(&world) == Some(TTL / 3), "a heartbeat that was never due");
                seen.push(4 + responses.len() as u8);
                responses.iter().for_each(|response| check(response, &world, &mut nonces));
                responses.iter().for_each(|response| check_renewal(response, &world));
                seen.push(5 + sotw.on_heartbeat(&world).len() as u8);
            }
            _ => {
                let responses = delta.on_snapshot(&world);
                seen.push(3 + responses.len() as u8);
                responses.iter().for_each(|response| check(response, &world, &mut nonces));
                sotw.on_snapshot(&world);
            }
        }
    }
    fingerprint([seen])
}

/// A resource a kind and name whose content is not 0.
fn snapshot(content: &[[u8; NAMES.len()]; KINDS.len()]) -> Snapshot {
    let resources = KINDS.iter().zip(content).flat_map(|(kind, contents)| {
        NAMES.iter().zip(contents).filter(|(_, content)| **content > 0).map(|(name, content)| {
            let name = ResourceName::new(name).expect("the names are valid");
            let resource = Resource::new(*kind, name, Bytes::from(vec![*content]));
            if *content < EXPIRING_FROM { resource } else { resource.expiring(TTL) }
        })
    });
    Snapshot::try_new(resources).expect("no resource needs another")
}

fn check(response: &DeltaResponse, world: &Snapshot, nonces: &mut BTreeSet<String>) {
    let response = response.message().expect("a response is well-formed");
    assert!(nonces.insert(response.nonce.clone()), "the nonce {} was given twice", response.nonce);
    let kind = ResourceType::from_type_url(&response.type_url).expect("a response is of a known type");
    for resource in &response.resources {
        let exists = world.set(kind).iter().any(|known| known.name().as_str() == resource.name);
        assert!(exists, "{} does not exist", resource.name);
    }
}

/// A renewal has no body: what it renews, the client has, in the version that is the newest.
fn check_renewal(response: &DeltaResponse, world: &Snapshot) {
    let response = response.message().expect("a response is well-formed");
    let kind = ResourceType::from_type_url(&response.type_url).expect("a response is of a known type");
    for resource in &response.resources {
        assert!(resource.resource.is_none() && resource.ttl.is_some(), "{} is told in a heartbeat", resource.name);
        let newest = world.set(kind).iter().find(|known| known.name().as_str() == resource.name).expect("it exists");
        assert_eq!((newest.version().to_string(), newest.ttl()), (resource.version.clone(), Some(TTL)));
    }
}
