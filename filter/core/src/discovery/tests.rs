use super::*;
use crate::record;
use alloc::vec;
use proptest::prelude::*;

fn client() -> DiscoveryClient {
    let node = NodeIdentity { id: "proxy-1".into(), cluster: "edge".into(), version: "0.1.0".into() };
    DiscoveryClient::new(node, 7)
}

fn policy(name: &str, trip_percent: f64) -> v1::Policy {
    let class = v1::PriorityClass { name: "high".into(), when_tripped: v1::WhenTripped::ReservedLane.into(), ..Default::default() };
    let gpu_memory = v1::GpuMemoryLevel { trip_percent: Some(trip_percent), ..Default::default() };
    let spec = v1::PolicySpec {
        pool: "pool".into(),
        classes: vec![class],
        levels: Some(v1::Levels { gpu_memory: Some(gpu_memory), ..Default::default() }),
        ..Default::default()
    };
    v1::Policy { name: name.into(), spec: Some(spec), version: format!("content-{trip_percent}") }
}

fn limits(pool: &str, epoch: u64) -> v1::Limits {
    v1::Limits { pool: pool.into(), epoch, ..Default::default() }
}

fn resource<T: Message>(type_url: &str, name: &str, version: &str, message: &T) -> Resource {
    let body = Any { type_url: type_url.into(), value: message.encode_to_vec().into() };
    Resource { name: name.into(), version: version.into(), resource: Some(body), ttl: None }
}

fn response(type_url: &str, nonce: &str, resources: Vec<Resource>, removed: &[&str]) -> Vec<u8> {
    DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: nonce.into(),
        resources,
        removed_resources: removed.iter().map(|name| (*name).into()).collect(),
        ..Default::default()
    }
    .encode_to_vec()
}

fn push_policy(client: &mut DiscoveryClient, name: &str, trip_percent: f64) -> DiscoveryOutput {
    let resource = resource(POLICY_TYPE_URL, name, &format!("v{trip_percent}"), &policy(name, trip_percent));
    client.on_message(&response(POLICY_TYPE_URL, "n", vec![resource], &[])).unwrap()
}

fn only_error(output: &DiscoveryOutput) -> Option<&str> {
    assert_eq!(output.replies.len(), 1, "every response is answered once");
    output.replies[0].error_detail.as_ref().map(|status| status.message.as_str())
}

#[test]
fn subscribes_to_everything_of_both_types_and_says_who_it_is() {
    let requests = client().open();
    let types: Vec<&str> = requests.iter().map(|request| request.type_url.as_str()).collect();
    assert_eq!(types, [POLICY_TYPE_URL, LIMITS_TYPE_URL]);
    for request in requests {
        assert_eq!(request.resource_names_subscribe, ["*"]);
        assert!(request.initial_resource_versions.is_empty() && request.response_nonce.is_empty());
        let node = request.node.unwrap();
        assert_eq!((node.id.as_str(), node.cluster.as_str(), node.user_agent_name.as_str()), ("proxy-1", "edge", "headgate-filter"));
    }
}

#[test]
fn acknowledges_by_nonce_what_it_takes_over() {
    let mut client = client();
    client.open();
    let resource = resource(POLICY_TYPE_URL, "demo", "v1", &policy("demo", 75.0));
    let output = client.on_message(&response(POLICY_TYPE_URL, "nonce-1", vec![resource], &[])).unwrap();
    assert_eq!(output.policies, [policy("demo", 75.0)]);
    assert_eq!(output.replies[0].response_nonce, "nonce-1");
    assert_eq!(output.replies[0].type_url, POLICY_TYPE_URL);
    assert_eq!(only_error(&output), None);
    assert_eq!(client.policies().count(), 1);
}

#[test]
fn refuses_a_bad_policy_by_its_fields_and_keeps_the_last_good_one() {
    let mut client = client();
    push_policy(&mut client, "demo", 75.0);
    let output = push_policy(&mut client, "demo", 140.0);
    let error = only_error(&output).unwrap();
    assert!(error.starts_with("demo: levels.gpuMemory.tripPercent: 140 is outside 1..=100"), "{error}");
    assert!(output.policies.is_empty());
    assert_eq!(client.policies().next(), Some(&policy("demo", 75.0)));
    let rejected: Vec<_> = client.rejected().map(|r| (r.name.as_str(), r.version.as_str())).collect();
    assert_eq!(rejected, [("demo", "v140")]);
    assert_eq!(only_error(&push_policy(&mut client, "demo", 80.0)), None);
    assert_eq!(client.rejected().count(), 0);
}

#[test]
fn takes_the_good_policies_of_a_message_that_it_refuses() {
    let mut client = client();
    let resources =
        vec![resource(POLICY_TYPE_URL, "bad", "1", &policy("bad", 0.0)), resource(POLICY_TYPE_URL, "good", "1", &policy("good", 50.0))];
    let output = client.on_message(&response(POLICY_TYPE_URL, "n", resources, &[])).unwrap();
    assert_eq!(output.policies, [policy("good", 50.0)]);
    assert!(only_error(&output).unwrap().starts_with("bad: "));
}

#[test]
fn refuses_resources_that_are_not_what_they_are_called() {
    let mut client = client();
    let misnamed = resource(POLICY_TYPE_URL, "other", "1", &policy("demo", 50.0));
    let mistyped = resource(LIMITS_TYPE_URL, "demo", "1", &policy("demo", 50.0));
    let mut broken = resource(POLICY_TYPE_URL, "broken", "1", &policy("broken", 50.0));
    broken.resource.as_mut().unwrap().value = vec![0xff, 0xff].into();
    let output = client.on_message(&response(POLICY_TYPE_URL, "n", vec![misnamed, mistyped, broken], &[])).unwrap();
    assert!(output.policies.is_empty());
    let error = only_error(&output).unwrap();
    for name in ["other: name", "demo: type", "broken: cannot be decoded"] {
        assert!(error.contains(name), "{error}");
    }
    let output = client.on_message(&response("type.googleapis.com/other", "n", vec![], &[])).unwrap();
    assert!(only_error(&output).unwrap().contains("was not asked for"));
}

#[test]
fn removes_what_the_server_removes() {
    let mut client = client();
    push_policy(&mut client, "demo", 75.0);
    let output = client.on_message(&response(POLICY_TYPE_URL, "n", vec![], &["demo", "never-had"])).unwrap();
    assert_eq!(output.removed_policies, ["demo"]);
    assert_eq!(client.policies().count(), 0);
}

#[test]
fn follows_limits_and_their_removal() {
    let mut client = client();
    for epoch in 1..=2 {
        let resource = resource(LIMITS_TYPE_URL, "pool", "v", &limits("pool", epoch));
        let output = client.on_message(&response(LIMITS_TYPE_URL, "n", vec![resource], &[])).unwrap();
        assert_eq!((output.limits, output.replies[0].error_detail.clone()), (vec![limits("pool", epoch)], None));
    }
    assert_eq!(client.limits().next().unwrap().epoch, 2);
    let output = client.on_message(&response(LIMITS_TYPE_URL, "n", vec![], &["pool"])).unwrap();
    assert_eq!((output.removed_limits.len(), client.limits().count()), (1, 0));
}

#[test]
fn tells_a_new_server_what_it_already_has() {
    let mut client = client();
    client.open();
    push_policy(&mut client, "demo", 75.0);
    push_policy(&mut client, "demo", 140.0);
    client.on_close(Timestamp::ZERO);
    let requests = client.open();
    assert_eq!(requests[0].initial_resource_versions, BTreeMap::from([("demo".into(), "v75".into())]), "the refused version is not held");
}

#[test]
fn a_heartbeat_without_a_body_changes_nothing() {
    let mut client = client();
    push_policy(&mut client, "demo", 75.0);
    let heartbeat = Resource { name: "demo".into(), version: "v75".into(), resource: None, ttl: None };
    let output = client.on_message(&response(POLICY_TYPE_URL, "n", vec![heartbeat], &[])).unwrap();
    assert_eq!((output.policies.len(), only_error(&output)), (0, None));
    assert_eq!(client.policies().count(), 1);
}

#[test]
fn holds_no_more_policies_than_its_bound() {
    let mut client = client();
    for n in 0..MAX_RESOURCES {
        assert_eq!(only_error(&push_policy(&mut client, &format!("p{n}"), 50.0)), None);
    }
    assert!(only_error(&push_policy(&mut client, "one-more", 50.0)).unwrap().contains("64"));
    assert_eq!(only_error(&push_policy(&mut client, "p3", 60.0)), None, "one that it holds may change");
}

#[test]
fn a_message_that_is_too_long_or_no_response_ends_the_stream() {
    let mut client = client();
    assert_eq!(client.on_message(&vec![0; MAX_MESSAGE_BYTES + 1]), Err(StreamFault::TooLong { got: MAX_MESSAGE_BYTES + 1 }));
    assert!(matches!(client.on_message(&[0xff; 8]), Err(StreamFault::Undecodable { .. })));
}

#[test]
fn waits_longer_after_every_failure_and_starts_over_with_a_message() {
    let mut client = client();
    let now = Timestamp::from_millis(1000);
    assert!(client.is_due(now), "the first attempt is due at once");
    client.open();
    assert!(!client.is_due(now), "the stream is open");
    let waits: Vec<Duration> = (0..200).map(|_| client.on_close(now)).collect();
    for (attempt, wait) in waits.iter().enumerate() {
        let bound = (BACKOFF_MIN * 2_u32.pow(attempt.min(8) as u32)).min(BACKOFF_MAX);
        assert!(*wait <= bound, "attempt {attempt}: {wait:?}");
    }
    assert!(waits.iter().any(|wait| *wait > BACKOFF_MAX.mul_f64(0.9)), "full jitter reaches the bound");
    let last = waits[199];
    assert!(client.is_due(now + last) && !client.is_due(now + last.saturating_sub(Duration::from_millis(1))));
    push_policy(&mut client, "demo", 50.0);
    assert!(client.on_close(now) <= BACKOFF_MIN);
}

#[test]
fn a_new_leader_takes_over_what_the_old_one_published() {
    let policies = PolicySnapshot { revision: 3, policies: vec![policy("demo", 75.0), policy("bad", 140.0)] };
    let mut client = client();
    client.adopt(&policies, &LimitsSnapshot { revision: 1, limits: vec![limits("pool", 9)] });
    assert_eq!(client.policies().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["demo"]);
    assert_eq!(client.open()[0].initial_resource_versions.get("demo").map(String::as_str), Some("content-75"));
    assert_eq!(client.limits().count(), 1);
}

#[test]
fn snapshots_survive_shared_data_and_damage_is_noticed() {
    let policies = PolicySnapshot { revision: 3, policies: vec![policy("a", 75.0), policy("b", 50.0)] };
    assert_eq!(PolicySnapshot::decode(&policies.encode()), Some(policies.clone()));
    let limits = LimitsSnapshot { revision: 4, limits: vec![limits("pool", 9)] };
    assert_eq!(LimitsSnapshot::decode(&limits.encode()), Some(limits.clone()));
    assert_eq!(PolicySnapshot::decode(&limits.encode()), None, "one kind is not the other");
    let mut damaged = policies.encode();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    assert_eq!(PolicySnapshot::decode(&damaged), None);
    assert_eq!(PolicySnapshot::decode(&[]), None);
}

#[test]
fn a_peers_text_is_cut_between_characters() {
    assert_eq!(clip("héllo", 2), "h");
    assert_eq!(clip("héllo", 3), "hé");
    assert_eq!(clip("héllo", 99), "héllo");
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = client().on_message(&bytes);
        let _ = PolicySnapshot::decode(&bytes);
        let _ = PolicySnapshot::decode(&record::seal(u32::from_le_bytes(*b"HGP1"), &bytes));
        let _ = LimitsSnapshot::decode(&record::seal(u32::from_le_bytes(*b"HGM1"), &bytes));
    }
}
