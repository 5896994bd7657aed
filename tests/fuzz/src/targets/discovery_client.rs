//! The filter's discovery client: whatever a server sends, what the client hands on has passed the validator, what it holds is bounded,
//! and what it publishes to the other VMs can be read back.

use headgate_core::discovery::{DiscoveryClient, LimitsSnapshot, MAX_RESOURCES, NodeIdentity, PolicySnapshot};
use headgate_core::policy::Policy;
use headgate_core::time::Timestamp;
use headgate_protos::discovery::{DeltaDiscoveryResponse, Resource};
use headgate_protos::{Any, LIMITS_TYPE_URL, POLICY_TYPE_URL, v1};
use prost::Message;

use super::policy::wire_seeds;
use crate::input::{Input, fingerprint, push_frame};

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let policies = wire_seeds().into_iter().map(|value| response(POLICY_TYPE_URL, "demo", value));
    let limits = v1::Limits { pool: "llm".to_owned(), epoch: 3, ttl_ms: 3000, ..Default::default() };
    let limits = response(LIMITS_TYPE_URL, "llm", limits.encode_to_vec());
    let script = |messages: &[Vec<u8>]| {
        let mut script = Vec::new();
        for message in messages {
            script.push(0);
            push_frame(&mut script, message);
        }
        script.extend([1, 10, 2, 3]);
        script
    };
    policies.map(|policy| script(&[policy.clone(), limits.clone(), policy])).collect()
}

fn response(type_url: &str, name: &str, value: Vec<u8>) -> Vec<u8> {
    let resource = Resource {
        name: name.to_owned(),
        version: "1".to_owned(),
        resource: Some(Any { type_url: type_url.to_owned(), value: value.into() }),
        ..Resource::default()
    };
    DeltaDiscoveryResponse { type_url: type_url.to_owned(), resources: vec![resource], nonce: "1".to_owned(), ..Default::default() }
        .encode_to_vec()
}

pub(super) fn run(input: &[u8]) -> u64 {
    let mut input = Input::new(input);
    let mut client = DiscoveryClient::new(NodeIdentity::default(), 1);
    let mut now = Timestamp::ZERO;
    let mut seen = Vec::new();
    client.open();
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        match input.choice(4) {
            0 => match client.on_message(input.frame()) {
                Ok(output) => {
                    for policy in &output.policies {
                        assert!(Policy::try_from_wire(policy).is_ok(), "an invalid policy was handed on");
                    }
                    seen.push(format!(
                        "{}{}{}{}",
                        output.policies.len().min(2),
                        output.limits.len().min(2),
                        output.replies.len(),
                        output.replies.iter().any(|reply| reply.error_detail.is_some())
                    ));
                }
                Err(_) => seen.push("fault".to_owned()),
            },
            1 => {
                now = now + client.on_close(now);
                client.open();
            }
            2 => {
                let policies = PolicySnapshot { revision: 1, policies: client.policies().cloned().collect() };
                let limits = LimitsSnapshot { revision: 1, limits: client.limits().cloned().collect() };
                assert_eq!(PolicySnapshot::decode(&policies.encode()).as_ref(), Some(&policies));
                assert_eq!(LimitsSnapshot::decode(&limits.encode()).map(|read| read.limits.len()), Some(limits.limits.len()));
                client.adopt(&policies, &limits);
            }
            _ => now = now + core::time::Duration::from_millis(input.number()),
        }
        assert!(client.policies().count() <= MAX_RESOURCES && client.limits().count() <= MAX_RESOURCES);
        assert!(client.rejected().count() <= 2 * MAX_RESOURCES);
    }
    fingerprint(seen)
}
