//! Every rule of the protocol that the streams promise, one test a rule.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use headgate_protos::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse};
use headgate_protos::envoy_core::Node;
use headgate_protos::rpc::Status;
use headgate_xds::ResourceType::{Cluster, Endpoint, ExtensionConfig, HeadgateLimits, HeadgatePolicy, Listener, Route, Runtime};
use headgate_xds::{
    DeltaResponse, DeltaStream, Inconsistent, InvalidName, Resource, ResourceName, ResourceType, Scope, Snapshot, SotwResponse, SotwStream,
    Step, StreamError, StreamEvent, Subscription, Version,
};
use prost::Message as _;

type Entry = (ResourceType, &'static str, &'static str);

fn name(text: &str) -> ResourceName {
    ResourceName::new(text).unwrap()
}

fn version(content: &str) -> String {
    Version::of(content.as_bytes()).to_string()
}

fn resource((kind, named, content): Entry) -> Resource {
    Resource::new(kind, name(named), Bytes::from_static(content.as_bytes()))
}

fn snapshot(entries: &[Entry]) -> Snapshot {
    Snapshot::try_new(entries.iter().copied().map(resource)).unwrap()
}

/// Resources of which some expire after nine seconds.
fn expiring(kind: ResourceType, names: &[&'static str], lasting: &[&'static str]) -> Snapshot {
    let lasting = lasting.iter().map(|name| resource((kind, name, "1")));
    let expiring = names.iter().map(|name| resource((kind, name, "1")).expiring(Duration::from_secs(9)));
    Snapshot::try_new(lasting.chain(expiring)).unwrap()
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn refusal(message: &str) -> Option<Status> {
    Some(Status { code: 3, message: message.into(), details: Vec::new() })
}

fn events_of<R>(step: &Step<R>) -> Vec<&'static str> {
    step.events
        .iter()
        .map(|event| match event {
            StreamEvent::Accepted { .. } => "accepted",
            StreamEvent::AcceptedAfterRefusal { .. } => "accepted after refusal",
            StreamEvent::Rejected { .. } => "rejected",
            StreamEvent::StaleNonce { .. } => "stale",
            StreamEvent::UnknownType { .. } => "unknown type",
        })
        .collect()
}

mod delta {
    use super::*;

    fn subscribe(kind: ResourceType, names: &[&str]) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest { type_url: kind.type_url().into(), resource_names_subscribe: strings(names), ..Default::default() }
    }

    fn unsubscribe(kind: ResourceType, names: &[&str]) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest { type_url: kind.type_url().into(), resource_names_unsubscribe: strings(names), ..Default::default() }
    }

    fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest { type_url: response.type_url.clone(), response_nonce: response.nonce.clone(), ..Default::default() }
    }

    fn nack(response: &DeltaDiscoveryResponse, message: &str) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest { error_detail: refusal(message), ..ack(response) }
    }

    fn reconnect(kind: ResourceType, names: &[&str], has: &[(&str, String)]) -> DeltaDiscoveryRequest {
        let initial_resource_versions: BTreeMap<String, String> =
            has.iter().map(|(name, version)| ((*name).into(), version.clone())).collect();
        DeltaDiscoveryRequest { initial_resource_versions, ..subscribe(kind, names) }
    }

    /// A stream whose responses are read as a client reads them.
    #[derive(Clone)]
    struct Stream(DeltaStream);

    impl Stream {
        fn on_request(
            &mut self,
            request: &DeltaDiscoveryRequest,
            snapshot: &Snapshot,
        ) -> Result<Step<DeltaDiscoveryResponse>, StreamError> {
            let Step { responses, events } = self.0.on_request(request, snapshot)?;
            Ok(Step { responses: read(&responses), events })
        }

        fn on_snapshot(&mut self, snapshot: &Snapshot) -> Vec<DeltaDiscoveryResponse> {
            read(&self.0.on_snapshot(snapshot))
        }

        fn on_heartbeat(&mut self, snapshot: &Snapshot) -> Vec<DeltaDiscoveryResponse> {
            read(&self.0.on_heartbeat(snapshot))
        }
    }

    fn read(responses: &[DeltaResponse]) -> Vec<DeltaDiscoveryResponse> {
        responses.iter().map(|response| response.message().unwrap()).collect()
    }

    fn stream() -> Stream {
        Stream(DeltaStream::new(Scope::Aggregated))
    }

    fn send(stream: &mut Stream, request: &DeltaDiscoveryRequest, snapshot: &Snapshot) -> Vec<DeltaDiscoveryResponse> {
        stream.on_request(request, snapshot).unwrap().responses
    }

    /// `name=content` of what a response brings, `-name` of what it takes away.
    fn says(response: &DeltaDiscoveryResponse) -> Vec<String> {
        let brought = response.resources.iter().map(|resource| {
            let body = resource.resource.as_ref().unwrap();
            assert_eq!(body.type_url, response.type_url);
            assert_eq!(resource.version, Version::of(&body.value).to_string());
            format!("{}={}", resource.name, str::from_utf8(&body.value).unwrap())
        });
        brought.chain(response.removed_resources.iter().map(|name| format!("-{name}"))).collect()
    }

    fn all_say(responses: &[DeltaDiscoveryResponse]) -> Vec<Vec<String>> {
        responses.iter().map(says).collect()
    }

    #[test]
    fn a_named_resource_is_sent_with_its_version_and_a_nonce() {
        let mut stream = stream();
        let sent = send(&mut stream, &subscribe(Cluster, &["a"]), &snapshot(&[(Cluster, "a", "1"), (Cluster, "b", "1")]));
        assert_eq!(all_say(&sent), [["a=1"]]);
        assert!(!sent[0].nonce.is_empty());
        assert_eq!(sent[0].type_url, "type.googleapis.com/envoy.config.cluster.v3.Cluster");
    }

    #[test]
    fn an_ack_is_answered_with_nothing_and_reported() {
        let (mut stream, world) = (stream(), snapshot(&[(Cluster, "a", "1")]));
        let sent = send(&mut stream, &subscribe(Cluster, &["a"]), &world);
        let step = stream.on_request(&ack(&sent[0]), &world).unwrap();
        assert!(step.responses.is_empty());
        let [StreamEvent::Accepted { kind: Cluster, changes }] = step.events.as_slice() else { unreachable!("{step:?}") };
        assert_eq!((changes[0].name.as_str(), changes[0].version), ("a", Some(Version::of(b"1"))));
        assert!(stream.on_snapshot(&world).is_empty());
    }

    #[test]
    fn refused_content_is_not_sent_again_until_it_changes() {
        let (mut stream, bad) = (stream(), snapshot(&[(HeadgatePolicy, "p", "bad")]));
        let sent = send(&mut stream, &subscribe(HeadgatePolicy, &["p"]), &bad);
        let step = stream.on_request(&nack(&sent[0], "spec.pool: missing"), &bad).unwrap();
        assert!(step.responses.is_empty(), "the same content would loop");
        let [StreamEvent::Rejected { kind: HeadgatePolicy, changes, error }] = step.events.as_slice() else { unreachable!("{step:?}") };
        assert_eq!((changes[0].name.as_str(), error.as_str()), ("p", "spec.pool: missing"));
        assert!(stream.on_snapshot(&bad).is_empty());
        let unrelated = snapshot(&[(HeadgatePolicy, "p", "bad"), (HeadgatePolicy, "q", "1"), (Cluster, "c", "1")]);
        assert!(stream.on_snapshot(&unrelated).is_empty());
        assert_eq!(all_say(&stream.on_snapshot(&snapshot(&[(HeadgatePolicy, "p", "good")]))), [["p=good"]]);
    }

    #[test]
    fn after_a_refusal_the_client_is_taken_to_have_what_it_accepted_before() {
        let (mut stream, old) = (stream(), snapshot(&[(HeadgatePolicy, "p", "old")]));
        let sent = send(&mut stream, &subscribe(HeadgatePolicy, &["p"]), &old);
        send(&mut stream, &ack(&sent[0]), &old);
        let bad = snapshot(&[(HeadgatePolicy, "p", "bad")]);
        let sent = stream.on_snapshot(&bad);
        send(&mut stream, &nack(&sent[0], "no"), &bad);
        assert!(stream.on_snapshot(&old).is_empty(), "the client still has it");
        let gone = stream.on_snapshot(&snapshot(&[]));
        assert_eq!(all_say(&gone), [["-p"]], "what it had before is taken away");
    }

    #[test]
    fn refused_content_is_sent_again_when_the_client_asks_for_it() {
        let (mut stream, world) = (stream(), snapshot(&[(HeadgatePolicy, "p", "bad")]));
        let sent = send(&mut stream, &subscribe(HeadgatePolicy, &["p"]), &world);
        send(&mut stream, &nack(&sent[0], "no"), &world);
        assert_eq!(all_say(&send(&mut stream, &subscribe(HeadgatePolicy, &["p"]), &world)), [["p=bad"]]);
    }

    #[test]
    fn a_refused_response_is_sent_again_whole_when_a_part_of_it_changes() {
        let (mut stream, bad) = (stream(), snapshot(&[(Cluster, "a", "bad"), (Cluster, "b", "1")]));
        let sent = send(&mut stream, &subscribe(Cluster, &["a", "b"]), &bad);
        assert!(send(&mut stream, &nack(&sent[0], "no"), &bad).is_empty());
        assert_eq!(all_say(&stream.on_snapshot(&snapshot(&[(Cluster, "a", "good"), (Cluster, "b", "1")]))), [["a=good", "b=1"]]);
    }

    #[test]
    fn what_was_refused_with_something_that_is_no_longer_wanted_is_sent_again() {
        let (mut stream, world) = (stream(), snapshot(&[(Cluster, "a", "bad"), (Cluster, "b", "1")]));
        let sent = send(&mut stream, &subscribe(Cluster, &["*", "b"]), &world);
        assert_eq!(all_say(&sent), [["a=bad", "b=1"]]);
        send(&mut stream, &unsubscribe(Cluster, &["*"]), &world);
        assert_eq!(all_say(&send(&mut stream, &nack(&sent[0], "a: no"), &world)), [["b=1"]]);
    }

    #[test]
    fn a_refused_policy_or_filter_configuration_holds_back_no_other() {
        for kind in [HeadgatePolicy, ExtensionConfig] {
            let (mut stream, world) = (stream(), snapshot(&[(kind, "a", "bad"), (kind, "b", "1")]));
            let sent = send(&mut stream, &subscribe(kind, &["a", "b"]), &world);
            assert_eq!(all_say(&sent), [["a=bad"]]);
            let sent = send(&mut stream, &nack(&sent[0], "no"), &world);
            assert_eq!(all_say(&sent), [["b=1"]]);
            assert!(send(&mut stream, &ack(&sent[0]), &world).is_empty());
        }
    }

    #[test]
    fn a_stale_nonce_neither_accepts_nor_refuses() {
        let (mut stream, first) = (stream(), snapshot(&[(Cluster, "a", "1")]));
        let old = send(&mut stream, &subscribe(Cluster, &["a"]), &first);
        send(&mut stream, &ack(&old[0]), &first);
        let second = snapshot(&[(Cluster, "a", "2")]);
        let new = stream.on_snapshot(&second);
        for stale in [ack(&old[0]), nack(&old[0], "no")] {
            let step = stream.on_request(&stale, &second).unwrap();
            assert_eq!((events_of(&step), step.responses.len()), (vec!["stale"], 0));
        }
        assert_eq!(events_of(&stream.on_request(&ack(&new[0]), &second).unwrap()), ["accepted"]);
    }

    #[test]
    fn a_subscription_in_a_request_with_a_stale_nonce_counts() {
        let (mut stream, world) = (stream(), snapshot(&[(Cluster, "a", "1"), (Cluster, "b", "1")]));
        let sent = send(&mut stream, &subscribe(Cluster, &["a"]), &world);
        send(&mut stream, &ack(&sent[0]), &world);
        let late = DeltaDiscoveryRequest { response_nonce: sent[0].nonce.clone(), ..subscribe(Cluster, &["b"]) };
        assert_eq!(all_say(&send(&mut stream, &late, &world)), [["b=1"]]);
    }

    #[test]
    fn what_changes_while_a_response_is_unanswered_is_sent_after_the_ack_newest_only() {
        let mut stream = stream();
        let sent = send(&mut stream, &subscribe(Cluster, &["a"]), &snapshot(&[(Cluster, "a", "1")]));
        assert!(stream.on_snapshot(&snapshot(&[(Cluster, "a", "2")])).is_empty());
        let newest = snapshot(&[(Cluster, "a", "3")]);
        assert!(stream.on_snapshot(&newest).is_empty());
        assert_eq!(all_say(&send(&mut stream, &ack(&sent[0]), &newest)), [["a=3"]]);
    }

    #[test]
    fn an_unanswered_type_does_not_hold_up_an_unrelated_one() {
        let (mut stream, world) = (stream(), snapshot(&[(Cluster, "a", "1"), (HeadgatePolicy, "p", "1")]));
        send(&mut stream, &subscribe(Cluster, &["a"]), &world);
        assert_eq!(all_say(&send(&mut stream, &subscribe(HeadgatePolicy, &["p"]), &world)), [["p=1"]]);
    }

    #[test]
    fn only_what_changed_is_sent() {
        let (mut stream, first) = (stream(), snapshot(&[(Cluster, "a", "1"), (Cluster, "b", "1")]));
        let sent = send(&mut stream, &subscribe(Cluster, &["a", "b"]), &first);
        send(&mut stream, &ack(&sent[0]), &first);
        assert_eq!(all_say(&stream.on_snapshot(&snapshot(&[(Cluster, "a", "1"), (Cluster, "b", "2")]))), [["b=2"]]);
    }

    #[test]
    fn a_name_that_does_not_exist_is_answered_as_removed_once_and_sent_when_it_appears() {
        let (mut stream, empty) = (stream(), snapshot(&[]));
        let sent = send(&mut stream, &subscribe(ExtensionConfig, &["x"]), &empty);
        assert_eq!(all_say(&sent), [["-x"]]);
        assert!(send(&mut stream, &ack(&sent[0]), &empty).is_empty());
        assert!(stream.on_snapshot(&empty).is_empty());
        assert_eq!(all_say(&stream.on_snapshot(&snapshot(&[(ExtensionConfig, "x", "1")]))), [["x=1"]]);
    }

    #[test]
    fn a_resource_that_goes_away_is_removed_once() {
        let (mut stream, world) = (stream(), snapshot(&[(HeadgatePolicy, "p", "1")]));
        let sent = send(&mut stream, &subscribe(HeadgatePolicy, &["*"]), &world);
        send(&mut stream, &ack(&sent[0]), &world);
        let gone = stream.on_snapshot(&snapshot(&[]));
        assert_eq!(all_say(&gone), [["-p"]]);
        assert!(send(&mut stream, &ack(&gone[0]), &snapshot(&[])).is_empty());
        assert!(stream.on_snapshot(&snapshot(&[])).is_empty());
    }

    #[test]
    fn an_unsubscribed_name_is_not_sent_again() {
        let (mut stream, first) = (stream(), snapshot(&[(Cluster, "a", "1"), (Cluster, "b", "1")]));
        let sent = send(&mut stream, &subscribe(Cluster, &["a", "b"]), &first);
        send(&mut stream, &ack(&sent[0]), &first);
        send(&mut stream, &unsubscribe(Cluster, &["a"]), &first);
        assert_eq!(all_say(&stream.on_snapshot(&snapshot(&[(Cluster, "a", "2"), (Cluster, "b", "2")]))), [["b=2"]]);
    }

    #[test]
    fn a_name_subscribed_to_anew_is_sent_although_it_did_not_change() {
        let (mut stream, world) = (stream(), snapshot(&[(Cluster, "a", "1")]));
        let sent = send(&mut stream, &subscribe(Cluster, &["a"]), &world);
        send(&mut stream, &ack(&sent[0]), &world);
        let again = send(&mut stream, &subscribe(Cluster, &["a"]), &world);
        assert_eq!(all_say(&again), [["a=1"]], "while subscribed");
        send(&mut stream, &ack(&again[0]), &world);
        send(&mut stream, &unsubscribe(Cluster, &["a"]), &world);
        assert_eq!(all_say(&send(&mut stream, &subscribe(Cluster, &["a"]), &world)), [["a=1"]], "after unsubscribing");
    }

    #[test]
    fn a_name_dropped_and_taken_up_again_while_it_was_in_flight_is_sent_again() {
        let (mut stream, world) = (stream(), snapshot(&[(Cluster, "a", "1")]));
        let sent = send(&mut stream, &subscribe(Cluster, &["a"]), &world);
        send(&mut stream, &unsubscribe(Cluster, &["a"]), &world);
        send(&mut stream, &subscribe(Cluster, &["a"]), &world);
        assert_eq!(all_say(&send(&mut stream, &ack(&sent[0]), &world)), [["a=1"]]);
    }

    #[test]
    fn no_names_in_the_first_request_mean_everything_where_the_type_allows_it() {
        for kind in ResourceType::ALL {
            let mut stream = stream();
            let sent = send(&mut stream, &subscribe(kind, &[]), &snapshot(&[(kind, "a", "1")]));
            let expected: Vec<Vec<String>> = if kind.has_legacy_wildcard() { vec![strings(&["a=1"])] } else { Vec::new() };
            assert_eq!(all_say(&sent), expected, "{kind}");
        }
    }

    #[test]
    fn a_star_means_everything_of_any_type() {
        for kind in ResourceType::ALL {
            assert_eq!(all_say(&send(&mut stream(), &subscribe(kind, &["*"]), &snapshot(&[(kind, "a", "1")]))), [["a=1"]], "{kind}");
        }
    }

    #[test]
    fn a_wildcard_client_is_answered_at_first_even_when_there_is_nothing() {
        let (mut stream, empty) = (stream(), snapshot(&[]));
        let sent = send(&mut stream, &subscribe(HeadgatePolicy, &["*"]), &empty);
        assert_eq!(all_say(&sent), [Vec::<String>::new()]);
        assert!(send(&mut stream, &ack(&sent[0]), &empty).is_empty());
    }

    #[test]
    fn without_the_star_only_named_resources_remain() {
        let (mut stream, first) = (stream(), snapshot(&[(Cluster, "a", "1"), (Cluster, "b", "1")]));
        let sent = send(&mut stream, &subscribe(Cluster, &["*", "a"]), &first);
        send(&mut stream, &ack(&sent[0]), &first);
        send(&mut stream, &unsubscribe(Cluster, &["*"]), &first);
        assert_eq!(all_say(&stream.on_snapshot(&snapshot(&[(Cluster, "a", "2"), (Cluster, "b", "2")]))), [["a=2"]]);
    }

    #[test]
    fn a_legacy_wildcard_outlives_a_named_subscription_and_ends_with_the_star() {
        let (mut stream, first) = (stream(), snapshot(&[(Cluster, "a", "1"), (Cluster, "b", "1")]));
        let sent = send(&mut stream, &subscribe(Cluster, &[]), &first);
        send(&mut stream, &ack(&sent[0]), &first);
        let sent = send(&mut stream, &subscribe(Cluster, &["a"]), &first);
        for response in &sent {
            send(&mut stream, &ack(response), &first);
        }
        let second = snapshot(&[(Cluster, "a", "2"), (Cluster, "b", "2")]);
        let sent = stream.on_snapshot(&second);
        assert_eq!(all_say(&sent), [["a=2", "b=2"]]);
        send(&mut stream, &DeltaDiscoveryRequest { resource_names_unsubscribe: strings(&["*"]), ..ack(&sent[0]) }, &second);
        assert_eq!(all_say(&stream.on_snapshot(&snapshot(&[(Cluster, "a", "3"), (Cluster, "b", "3")]))), [["a=3"]]);
    }

    #[test]
    fn a_name_unsubscribed_under_a_wildcard_is_told_again() {
        for (now, expected) in [(snapshot(&[(Cluster, "a", "1")]), "a=1"), (snapshot(&[]), "-a")] {
            let (mut stream, first) = (stream(), snapshot(&[(Cluster, "a", "1")]));
            let sent = send(&mut stream, &subscribe(Cluster, &["*", "a"]), &first);
            send(&mut stream, &ack(&sent[0]), &first);
            assert_eq!(all_say(&send(&mut stream, &unsubscribe(Cluster, &["a"]), &now)), [[expected]]);
        }
    }

    #[test]
    fn a_reconnecting_client_gets_only_what_differs_and_what_is_gone() {
        let world = snapshot(&[(Cluster, "same", "1"), (Cluster, "changed", "2"), (Cluster, "new", "1")]);
        let has = [("same", version("1")), ("changed", version("1")), ("gone", version("1")), ("foreign", "7".to_owned())];
        let names = ["same", "changed", "new", "gone", "foreign"];
        let sent = send(&mut stream(), &reconnect(Cluster, &names, &has), &world);
        assert_eq!(all_say(&sent), [["changed=2", "new=1", "-foreign", "-gone"]]);
        let sent = send(&mut stream(), &reconnect(Cluster, &[], &has), &world);
        assert_eq!(all_say(&sent), [["changed=2", "new=1", "-foreign", "-gone"]], "wildcard");
    }

    #[test]
    fn a_reconnecting_client_that_has_everything_gets_nothing() {
        let world = snapshot(&[(HeadgatePolicy, "p", "1")]);
        for names in [&["p"][..], &["*"], &[]] {
            assert!(send(&mut stream(), &reconnect(HeadgatePolicy, names, &[("p", version("1"))]), &world).is_empty(), "{names:?}");
        }
    }

    #[test]
    fn initial_versions_count_in_the_first_request_only() {
        let (mut stream, world) = (stream(), snapshot(&[(Cluster, "a", "1"), (Cluster, "b", "1")]));
        let sent = send(&mut stream, &subscribe(Cluster, &["a"]), &world);
        send(&mut stream, &ack(&sent[0]), &world);
        assert_eq!(all_say(&send(&mut stream, &reconnect(Cluster, &["b"], &[("b", version("1"))]), &world)), [["b=1"]]);
    }

    #[test]
    fn the_node_of_the_first_request_is_kept() {
        let mut stream = stream();
        assert!(stream.0.node().is_none());
        let node = Some(Node { id: "sidecar~1".into(), ..Default::default() });
        send(&mut stream, &DeltaDiscoveryRequest { node, ..subscribe(Cluster, &["a"]) }, &snapshot(&[]));
        send(&mut stream, &subscribe(Listener, &["a"]), &snapshot(&[]));
        assert_eq!(stream.0.node().unwrap().id, "sidecar~1");
    }

    #[test]
    fn a_request_that_breaks_the_protocol_or_a_bound_ends_the_stream() {
        let long = "n".repeat(ResourceName::MAX_BYTES + 1);
        let many: Vec<String> = (0..=Subscription::MAX_NAMES).map(|n| n.to_string()).collect();
        let many = DeltaDiscoveryRequest { resource_names_subscribe: many, ..subscribe(Cluster, &[]) };
        let cases = [
            (Scope::Aggregated, DeltaDiscoveryRequest::default(), "type_url: required on an aggregated stream"),
            (
                Scope::Only(ExtensionConfig),
                subscribe(Cluster, &["a"]),
                "type_url: this service serves type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig only",
            ),
            (Scope::Aggregated, subscribe(Cluster, &[""]), "envoy.config.cluster.v3.Cluster: a resource name is empty"),
            (
                Scope::Aggregated,
                subscribe(Cluster, &[&long]),
                "envoy.config.cluster.v3.Cluster: a resource name of 1025 bytes is longer than 1024",
            ),
            (Scope::Aggregated, many, "envoy.config.cluster.v3.Cluster: more than 4096 names"),
        ];
        for (scope, request, expected) in cases {
            let error = DeltaStream::new(scope).on_request(&request, &snapshot(&[])).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn names_are_bounded_over_all_requests_of_a_stream() {
        let (mut stream, empty) = (stream(), snapshot(&[]));
        let half = |from: usize| DeltaDiscoveryRequest {
            resource_names_subscribe: (from..from + Subscription::MAX_NAMES / 2).map(|n| n.to_string()).collect(),
            ..subscribe(Cluster, &[])
        };
        stream.on_request(&half(0), &empty).unwrap();
        stream.on_request(&half(10_000), &empty).unwrap();
        let error = stream.on_request(&subscribe(Cluster, &["one-more"]), &empty).unwrap_err();
        assert!(matches!(error, StreamError::TooManyNames { kind: Cluster, .. }));
    }

    #[test]
    fn a_type_that_is_not_served_is_reported_and_ignored() {
        let mut stream = stream();
        let request = DeltaDiscoveryRequest { type_url: "type.googleapis.com/x.Secret".into(), ..Default::default() };
        let step = stream.on_request(&request, &snapshot(&[])).unwrap();
        assert_eq!((events_of(&step), step.responses.len()), (vec!["unknown type"], 0));
    }

    #[test]
    fn a_per_type_stream_needs_no_type() {
        let mut stream = Stream(DeltaStream::new(Scope::Only(ExtensionConfig)));
        let request = DeltaDiscoveryRequest { resource_names_subscribe: strings(&["x"]), ..Default::default() };
        let sent = send(&mut stream, &request, &snapshot(&[(ExtensionConfig, "x", "1")]));
        assert_eq!(all_say(&sent), [["x=1"]]);
        assert_eq!(sent[0].type_url, ExtensionConfig.type_url());
    }

    #[test]
    fn types_are_sent_in_make_before_break_order() {
        let mut stream = stream();
        let kinds = [HeadgateLimits, HeadgatePolicy, Listener, Endpoint, Cluster];
        let mut answers = Vec::new();
        for kind in kinds {
            for sent in send(&mut stream, &subscribe(kind, &["*"]), &snapshot(&[])) {
                answers.push(ack(&sent));
            }
        }
        for answer in answers {
            send(&mut stream, &answer, &snapshot(&[]));
        }
        let sent = stream.on_snapshot(&snapshot(&kinds.map(|kind| (kind, "r", "1"))));
        let order: Vec<&str> = sent.iter().map(|response| response.type_url.as_str()).collect();
        assert_eq!(order, [Cluster, Endpoint, Listener, HeadgatePolicy, HeadgateLimits].map(ResourceType::type_url));
    }

    #[test]
    fn limits_wait_for_a_policy_that_cannot_be_sent_yet() {
        let (mut stream, first) = (stream(), snapshot(&[(HeadgatePolicy, "p", "1")]));
        let policy = send(&mut stream, &subscribe(HeadgatePolicy, &["*"]), &first);
        let limits = send(&mut stream, &subscribe(HeadgateLimits, &["*"]), &first);
        send(&mut stream, &ack(&limits[0]), &first);
        let second = snapshot(&[(HeadgatePolicy, "p", "2"), (HeadgateLimits, "pool", "1")]);
        assert!(stream.on_snapshot(&second).is_empty(), "the first policy is not acknowledged yet");
        assert_eq!(all_say(&send(&mut stream, &ack(&policy[0]), &second)), [["p=2"], ["pool=1"]]);
    }

    #[test]
    fn nothing_is_removed_before_the_client_settled_on_what_refers_to_it() {
        let (mut stream, first) = (stream(), snapshot(&[(Listener, "l", "1"), (ExtensionConfig, "x", "1")]));
        for kind in [Listener, ExtensionConfig] {
            let sent = send(&mut stream, &subscribe(kind, &["*"]), &first);
            send(&mut stream, &ack(&sent[0]), &first);
        }
        let second = snapshot(&[(Listener, "l", "2")]);
        let listener = stream.on_snapshot(&second);
        assert_eq!(all_say(&listener), [["l=2"]]);
        let mut refusing = stream.clone();
        assert!(send(&mut refusing, &nack(&listener[0], "no"), &second).is_empty(), "the old listener is in force and needs it");
        assert_eq!(all_say(&send(&mut stream, &ack(&listener[0]), &second)), [["-x"]]);
    }

    /// A client that lets resources expire.
    fn envoy(kind: ResourceType, names: &[&str]) -> DeltaDiscoveryRequest {
        let node = Some(Node { user_agent_name: "envoy".into(), ..Default::default() });
        DeltaDiscoveryRequest { node, ..subscribe(kind, names) }
    }

    fn ttls(response: &DeltaDiscoveryResponse) -> Vec<(&str, bool, Option<i64>)> {
        let of = |resource: &headgate_protos::discovery::Resource| resource.ttl.map(|ttl| ttl.seconds);
        response.resources.iter().map(|resource| (resource.name.as_str(), resource.resource.is_some(), of(resource))).collect()
    }

    #[test]
    fn what_expires_is_sent_with_its_time_to_live_and_renewed_without_its_body() {
        let (mut stream, world) = (stream(), expiring(Runtime, &["fault"], &["base"]));
        let sent = send(&mut stream, &envoy(Runtime, &["fault", "base"]), &world);
        assert_eq!(ttls(&sent[0]), [("base", true, None), ("fault", true, Some(9))]);
        send(&mut stream, &ack(&sent[0]), &world);
        assert_eq!(stream.0.heartbeat_after(&world), Some(Duration::from_secs(3)));
        let beat = stream.on_heartbeat(&world);
        assert_eq!(ttls(&beat[0]), [("fault", false, Some(9))]);
        assert_eq!(beat[0].resources[0].version, sent[0].resources[1].version, "another version would not be a heartbeat");
        assert!(send(&mut stream, &ack(&beat[0]), &world).is_empty());
    }

    #[test]
    fn only_clients_that_know_what_expiring_is_are_told_of_it() {
        let feature = Node { client_features: vec!["xds.config.supports-resource-ttl".into()], ..Default::default() };
        let other = Node { user_agent_name: "gRPC".into(), ..Default::default() };
        for (node, knows) in [(feature, true), (other, false), (Node::default(), false)] {
            let (mut stream, world) = (stream(), expiring(Runtime, &["fault"], &[]));
            let sent = send(&mut stream, &DeltaDiscoveryRequest { node: Some(node), ..subscribe(Runtime, &["fault"]) }, &world);
            assert_eq!(ttls(&sent[0]), [("fault", true, knows.then_some(9))]);
            send(&mut stream, &ack(&sent[0]), &world);
            assert_eq!((stream.0.heartbeat_after(&world).is_some(), stream.on_heartbeat(&world).len()), (knows, usize::from(knows)));
        }
    }

    #[test]
    fn what_could_not_be_renewed_in_time_is_sent_whole() {
        let (mut stream, world) = (stream(), expiring(Runtime, &["fault"], &["base"]));
        let sent = send(&mut stream, &envoy(Runtime, &["fault", "base"]), &world);
        send(&mut stream, &ack(&sent[0]), &world);
        let changed = world.with([resource((Runtime, "more", "1"))]).unwrap();
        let sent = send(&mut stream, &envoy(Runtime, &["more"]), &changed);
        assert!(stream.on_heartbeat(&changed).is_empty(), "an answer is awaited");
        let sent = send(&mut stream, &ack(&sent[0]), &changed);
        assert_eq!(ttls(&sent[0]), [("fault", true, Some(9))]);
    }

    #[test]
    fn what_was_to_be_renewed_in_a_refused_response_is_sent_without_what_was_refused() {
        let (mut stream, world) = (stream(), expiring(Runtime, &["fault"], &["base"]));
        let sent = send(&mut stream, &envoy(Runtime, &["fault", "base"]), &world);
        send(&mut stream, &ack(&sent[0]), &world);
        let changed = world.with([resource((Runtime, "more", "1")), resource((Runtime, "worse", "1"))]).unwrap();
        let sent = send(&mut stream, &envoy(Runtime, &["more"]), &changed);
        assert!(stream.on_heartbeat(&changed).is_empty(), "an answer is awaited");
        let asked = DeltaDiscoveryRequest { resource_names_subscribe: strings(&["worse"]), ..ack(&sent[0]) };
        let sent = send(&mut stream, &asked, &changed);
        assert_eq!(ttls(&sent[0]), [("fault", true, Some(9)), ("worse", true, None)]);
        let sent = send(&mut stream, &nack(&sent[0], "worse is bad"), &changed);
        assert_eq!(ttls(&sent[0]), [("fault", true, Some(9))], "the client accepted it before, and drops it unless it hears of it");
        let refused_again = send(&mut stream, &nack(&sent[0], "no"), &changed);
        assert!(refused_again.is_empty(), "nothing that the client minds is repeated");
    }

    #[test]
    fn what_was_not_renewed_while_something_else_was_the_newest_is_sent_whole_when_it_is_the_newest_again() {
        let (mut stream, world) = (stream(), expiring(Runtime, &["fault"], &[]));
        let sent = send(&mut stream, &envoy(Runtime, &["fault"]), &world);
        send(&mut stream, &ack(&sent[0]), &world);
        let bad = snapshot(&[(Runtime, "fault", "bad")]);
        let sent = stream.on_snapshot(&bad);
        send(&mut stream, &nack(&sent[0], "no"), &bad);
        stream.on_heartbeat(&bad);
        assert_eq!(ttls(&stream.on_snapshot(&world)[0]), [("fault", true, Some(9))]);
    }

    #[test]
    fn a_reconnecting_client_is_sent_what_expires_whether_or_not_it_has_it() {
        let world = expiring(Runtime, &["fault"], &["base"]);
        let version = |of| world.set(Runtime).get(&name(of)).unwrap().version().to_string();
        let again = reconnect(Runtime, &["fault", "base"], &[("fault", version("fault")), ("base", version("base"))]);
        let sent = send(&mut stream(), &DeltaDiscoveryRequest { node: envoy(Runtime, &[]).node, ..again }, &world);
        assert_eq!(ttls(&sent[0]), [("fault", true, Some(9))]);
    }

    #[test]
    fn another_time_to_live_is_another_version() {
        let lasting = || resource((Runtime, "fault", "1"));
        let versions =
            [lasting(), lasting().expiring(Duration::from_secs(9)), lasting().expiring(Duration::from_secs(8))].map(|it| it.version());
        assert!(versions[0] != versions[1] && versions[1] != versions[2]);
    }

    #[test]
    fn a_refused_heartbeat_refuses_nothing() {
        let (mut stream, world) = (stream(), expiring(Runtime, &["fault"], &[]));
        let sent = send(&mut stream, &envoy(Runtime, &["fault"]), &world);
        send(&mut stream, &ack(&sent[0]), &world);
        let beat = stream.on_heartbeat(&world);
        assert!(send(&mut stream, &nack(&beat[0], "no"), &world).is_empty());
        assert_eq!(stream.on_heartbeat(&world).len(), 1);
    }

    #[test]
    fn accepting_what_was_refused_before_proves_nothing_of_an_extension_configuration() {
        let (mut stream, bad) = (stream(), snapshot(&[(ExtensionConfig, "x", "bad")]));
        let sent = send(&mut stream, &subscribe(ExtensionConfig, &["x"]), &bad);
        send(&mut stream, &nack(&sent[0], "no"), &bad);
        let again = send(&mut stream, &subscribe(ExtensionConfig, &["x"]), &bad);
        let step = stream.on_request(&ack(&again[0]), &bad).unwrap();
        assert_eq!(events_of(&step), ["accepted after refusal"]);
        // Other bytes are applied, and after them the first ones as well.
        for content in ["salted", "bad"] {
            let world = snapshot(&[(ExtensionConfig, "x", content)]);
            let sent = stream.on_snapshot(&world);
            assert_eq!(events_of(&stream.on_request(&ack(&sent[0]), &world).unwrap()), ["accepted"], "{content}");
        }
    }

    #[test]
    fn a_changed_cluster_is_followed_by_its_endpoints_although_they_did_not_change() {
        let cluster = |content| resource((Cluster, "c", content)).needing(Endpoint, name("e"));
        let world =
            |content| Snapshot::try_new([cluster(content), resource((Endpoint, "e", "1")), resource((Endpoint, "f", "1"))]).unwrap();
        let (mut stream, first) = (stream(), world("1"));
        for request in [subscribe(Cluster, &[]), subscribe(Endpoint, &["e", "f"])] {
            let sent = send(&mut stream, &request, &first);
            assert_eq!(sent.len(), 1);
            send(&mut stream, &ack(&sent[0]), &first);
        }
        assert_eq!(all_say(&stream.on_snapshot(&world("2"))), [["c=2"], ["e=1"]]);
    }

    #[test]
    fn clusters_outlive_the_routes_and_listeners_that_name_them() {
        let kinds = [Cluster, Endpoint, Listener, Route];
        let (mut stream, first) = (stream(), snapshot(&kinds.map(|kind| (kind, "r", "1"))));
        for kind in kinds {
            let sent = send(&mut stream, &subscribe(kind, &["*"]), &first);
            send(&mut stream, &ack(&sent[0]), &first);
        }
        let mut order = Vec::new();
        let mut sent = stream.on_snapshot(&snapshot(&[]));
        while let Some(response) = sent.pop() {
            order.push(ResourceType::from_type_url(&response.type_url).unwrap());
            assert_eq!(says(&response), ["-r"]);
            sent.extend(send(&mut stream, &ack(&response), &snapshot(&[])));
        }
        assert_eq!(order, [Listener, Route, Cluster, Endpoint]);
    }

    #[test]
    fn a_filter_configuration_outlives_the_listener_that_names_it() {
        let (mut stream, first) = (stream(), snapshot(&[(Listener, "l", "1"), (ExtensionConfig, "x", "1")]));
        for request in [subscribe(Listener, &[]), subscribe(ExtensionConfig, &["x"])] {
            let sent = send(&mut stream, &request, &first);
            send(&mut stream, &ack(&sent[0]), &first);
        }
        let sent = stream.on_snapshot(&snapshot(&[]));
        assert_eq!(all_say(&sent), [["-l"]]);
        assert_eq!(all_say(&send(&mut stream, &ack(&sent[0]), &snapshot(&[]))), [["-x"]]);
    }

    #[test]
    fn resources_are_encoded_once_for_all_streams() {
        let world = snapshot(&[(Cluster, "a", "1")]);
        let [one, other] = [(), ()].map(|()| stream().0.on_request(&subscribe(Cluster, &["a"]), &world).unwrap().responses);
        assert_eq!(one[0].resources[0].as_ptr(), other[0].resources[0].as_ptr());
    }

    #[test]
    fn a_large_set_is_sent_in_parts() {
        let body = Bytes::from(vec![b'x'; 700_000]);
        let world = Snapshot::try_new((0..3).map(|n| Resource::new(Cluster, name(&n.to_string()), body.clone()))).unwrap();
        let mut stream = stream();
        let first = send(&mut stream, &subscribe(Cluster, &[]), &world);
        assert_eq!((first.len(), first[0].resources.len()), (1, 2));
        let second = send(&mut stream, &ack(&first[0]), &world);
        assert_eq!((second.len(), second[0].resources.len()), (1, 1));
        assert!(send(&mut stream, &ack(&second[0]), &world).is_empty());
    }
}

mod sotw {
    use super::*;

    fn subscribe(kind: ResourceType, names: &[&str]) -> DiscoveryRequest {
        DiscoveryRequest { type_url: kind.type_url().into(), resource_names: strings(names), ..Default::default() }
    }

    fn ack(response: &DiscoveryResponse, names: &[&str]) -> DiscoveryRequest {
        DiscoveryRequest {
            version_info: response.version_info.clone(),
            response_nonce: response.nonce.clone(),
            resource_names: strings(names),
            type_url: response.type_url.clone(),
            ..Default::default()
        }
    }

    fn nack(response: &DiscoveryResponse, names: &[&str], accepted: &str) -> DiscoveryRequest {
        DiscoveryRequest { version_info: accepted.into(), error_detail: refusal("no"), ..ack(response, names) }
    }

    /// A stream whose responses are read as a client reads them.
    #[derive(Clone)]
    struct Stream(SotwStream);

    impl Stream {
        fn on_request(&mut self, request: &DiscoveryRequest, snapshot: &Snapshot) -> Result<Step<DiscoveryResponse>, StreamError> {
            let Step { responses, events } = self.0.on_request(request, snapshot)?;
            Ok(Step { responses: read(&responses), events })
        }

        fn on_snapshot(&mut self, snapshot: &Snapshot) -> Vec<DiscoveryResponse> {
            read(&self.0.on_snapshot(snapshot))
        }

        fn on_heartbeat(&mut self, snapshot: &Snapshot) -> Vec<DiscoveryResponse> {
            read(&self.0.on_heartbeat(snapshot))
        }
    }

    fn read(responses: &[SotwResponse]) -> Vec<DiscoveryResponse> {
        responses.iter().map(|response| response.message().unwrap()).collect()
    }

    fn stream() -> Stream {
        Stream(SotwStream::new(Scope::Aggregated))
    }

    fn send(stream: &mut Stream, request: &DiscoveryRequest, snapshot: &Snapshot) -> Vec<DiscoveryResponse> {
        stream.on_request(request, snapshot).unwrap().responses
    }

    fn all_say(responses: &[DiscoveryResponse]) -> Vec<Vec<String>> {
        responses
            .iter()
            .map(|response| response.resources.iter().map(|body| str::from_utf8(&body.value).unwrap().to_owned()).collect())
            .collect()
    }

    #[test]
    fn every_response_holds_all_that_is_wanted_and_exists() {
        let (mut stream, first) =
            (stream(), snapshot(&[(ExtensionConfig, "a", "a1"), (ExtensionConfig, "b", "b1"), (ExtensionConfig, "c", "c1")]));
        let sent = send(&mut stream, &subscribe(ExtensionConfig, &["a", "b", "none"]), &first);
        assert_eq!(all_say(&sent), [["a1", "b1"]]);
        assert!(send(&mut stream, &ack(&sent[0], &["a", "b", "none"]), &first).is_empty());
        assert_eq!(all_say(&stream.on_snapshot(&snapshot(&[(ExtensionConfig, "a", "a1"), (ExtensionConfig, "b", "b2")]))), [["a1", "b2"]]);
    }

    #[test]
    fn versions_are_the_same_on_every_replica() {
        let world = snapshot(&[(Cluster, "a", "1"), (Cluster, "b", "1")]);
        let request = subscribe(Cluster, &[]);
        let one = send(&mut stream(), &request, &world);
        let other = send(&mut stream(), &request, &world.clone());
        assert_eq!(one[0].version_info, other[0].version_info);
        assert_ne!(one[0].version_info, send(&mut stream(), &subscribe(Cluster, &["a"]), &world)[0].version_info);
    }

    #[test]
    fn what_a_client_asks_for_after_a_list_that_crossed_the_first_response_is_sent() {
        let (mut stream, world) = (stream(), snapshot(&[(ExtensionConfig, "x", "1")]));
        let sent = send(&mut stream, &subscribe(ExtensionConfig, &["x"]), &world);
        // Written before the client saw the response, so without its nonce.
        assert!(send(&mut stream, &subscribe(ExtensionConfig, &["none"]), &world).is_empty());
        assert!(send(&mut stream, &ack(&sent[0], &["none"]), &world).is_empty());
        assert_eq!(all_say(&send(&mut stream, &ack(&sent[0], &["none", "x"]), &world)), [["1"]]);
    }

    #[test]
    fn a_reconnecting_client_is_answered_whatever_version_it_names() {
        let world = snapshot(&[(ExtensionConfig, "x", "1")]);
        let sent = send(&mut stream(), &subscribe(ExtensionConfig, &["x"]), &world);
        for version_info in [sent[0].version_info.as_str(), "7", ""] {
            let again = DiscoveryRequest { version_info: version_info.into(), ..subscribe(ExtensionConfig, &["x"]) };
            assert_eq!(all_say(&send(&mut stream(), &again, &world)), [["1"]], "it may have dropped x since it accepted {version_info:?}");
        }
    }

    #[test]
    fn refused_content_is_not_sent_again_until_it_changes() {
        let (mut stream, bad) = (stream(), snapshot(&[(ExtensionConfig, "x", "bad")]));
        let sent = send(&mut stream, &subscribe(ExtensionConfig, &["x"]), &bad);
        let step = stream.on_request(&nack(&sent[0], &["x"], ""), &bad).unwrap();
        assert_eq!((events_of(&step), step.responses.len()), (vec!["rejected"], 0));
        assert!(stream.on_snapshot(&bad).is_empty());
        assert_eq!(all_say(&stream.on_snapshot(&snapshot(&[(ExtensionConfig, "x", "good")]))), [["good"]]);
    }

    #[test]
    fn a_stale_nonce_is_ignored_altogether() {
        let (mut stream, first) = (stream(), snapshot(&[(ExtensionConfig, "x", "1"), (ExtensionConfig, "y", "1")]));
        let old = send(&mut stream, &subscribe(ExtensionConfig, &["x"]), &first);
        send(&mut stream, &ack(&old[0], &["x"]), &first);
        let second = snapshot(&[(ExtensionConfig, "x", "2"), (ExtensionConfig, "y", "1")]);
        let new = stream.on_snapshot(&second);
        let step = stream.on_request(&ack(&old[0], &["x", "y"]), &second).unwrap();
        assert_eq!((events_of(&step), step.responses.len()), (vec!["stale"], 0));
        assert_eq!(all_say(&send(&mut stream, &ack(&new[0], &["x", "y"]), &second)), [["2", "1"]], "the next answer brings the names");
    }

    #[test]
    fn newly_named_resources_are_answered_although_nothing_changed() {
        let (mut stream, world) = (stream(), snapshot(&[(ExtensionConfig, "x", "x1"), (ExtensionConfig, "y", "y1")]));
        let sent = send(&mut stream, &subscribe(ExtensionConfig, &["x"]), &world);
        send(&mut stream, &ack(&sent[0], &["x"]), &world);
        let sent = send(&mut stream, &ack(&sent[0], &["x", "y"]), &world);
        assert_eq!(all_say(&sent), [["x1", "y1"]]);
        assert!(send(&mut stream, &ack(&sent[0], &["y"]), &world).is_empty(), "fewer names need no answer");
        assert_eq!(all_say(&send(&mut stream, &ack(&sent[0], &["x", "y"]), &world)), [["x1", "y1"]], "x was dropped and is named anew");
    }

    #[test]
    fn absence_deletes_clusters_and_means_nothing_for_extension_configurations() {
        for (kind, expected) in [(Cluster, vec![Vec::<String>::new()]), (ExtensionConfig, Vec::new())] {
            let (mut stream, world) = (stream(), snapshot(&[(kind, "a", "1")]));
            let sent = send(&mut stream, &subscribe(kind, &["a"]), &world);
            send(&mut stream, &ack(&sent[0], &["a"]), &world);
            assert_eq!(all_say(&stream.on_snapshot(&snapshot(&[]))), expected, "{kind}");
        }
    }

    #[test]
    fn no_names_mean_everything_at_first_and_nothing_after_a_name() {
        let (mut stream, world) = (stream(), snapshot(&[(Cluster, "a", "a1"), (Cluster, "b", "b1")]));
        let sent = send(&mut stream, &subscribe(Cluster, &[]), &world);
        assert_eq!(all_say(&sent), [["a1", "b1"]]);
        assert!(send(&mut stream, &ack(&sent[0], &[]), &world).is_empty(), "still everything");
        send(&mut stream, &ack(&sent[0], &["a"]), &world);
        send(&mut stream, &ack(&sent[0], &[]), &world);
        assert!(stream.on_snapshot(&snapshot(&[(Cluster, "a", "a2"), (Cluster, "b", "b2")])).is_empty());
        let sent = send(&mut stream, &ack(&sent[0], &["*"]), &world);
        assert_eq!(all_say(&sent), [["a1", "b1"]]);
    }

    #[test]
    fn what_changes_while_a_response_is_unanswered_is_sent_after_the_ack_newest_only() {
        let mut stream = stream();
        let sent = send(&mut stream, &subscribe(Cluster, &[]), &snapshot(&[(Cluster, "a", "1")]));
        assert!(stream.on_snapshot(&snapshot(&[(Cluster, "a", "2")])).is_empty());
        let newest = snapshot(&[(Cluster, "a", "3")]);
        assert!(stream.on_snapshot(&newest).is_empty());
        assert_eq!(all_say(&send(&mut stream, &ack(&sent[0], &[]), &newest)), [["3"]]);
    }

    #[test]
    fn a_wildcard_client_is_answered_at_first_even_when_there_is_nothing() {
        let (mut stream, empty) = (stream(), snapshot(&[]));
        let sent = send(&mut stream, &subscribe(Cluster, &[]), &empty);
        assert_eq!(all_say(&sent), [Vec::<String>::new()]);
        assert!(send(&mut stream, &ack(&sent[0], &[]), &empty).is_empty());
    }

    #[test]
    fn types_are_sent_in_make_before_break_order() {
        let (mut stream, empty) = (stream(), snapshot(&[]));
        let mut sent = send(&mut stream, &subscribe(Listener, &[]), &empty);
        sent.extend(send(&mut stream, &subscribe(Cluster, &[]), &empty));
        for response in &sent {
            send(&mut stream, &ack(response, &[]), &empty);
        }
        let sent = stream.on_snapshot(&snapshot(&[(Listener, "l", "listener"), (Cluster, "c", "cluster")]));
        assert_eq!(all_say(&sent), [["cluster"], ["listener"]]);
    }

    fn envoy(kind: ResourceType, names: &[&str]) -> DiscoveryRequest {
        let node = Some(Node { user_agent_name: "envoy".into(), ..Default::default() });
        DiscoveryRequest { node, ..subscribe(kind, names) }
    }

    /// Name, whether there is a body, version and time to live of what is wrapped.
    fn wrapped(response: &DiscoveryResponse) -> Vec<(String, bool, String, Option<i64>)> {
        let unwrap = |any: &headgate_protos::Any| {
            assert_eq!(any.type_url, "type.googleapis.com/envoy.service.discovery.v3.Resource");
            let it = headgate_protos::discovery::Resource::decode(any.value.clone()).unwrap();
            (it.name, it.resource.is_some(), it.version, it.ttl.map(|ttl| ttl.seconds))
        };
        response.resources.iter().map(unwrap).collect()
    }

    #[test]
    fn what_expires_is_wrapped_with_its_time_to_live_and_renewed_whole() {
        let (mut stream, world) = (stream(), expiring(Runtime, &["fault"], &[]));
        let sent = send(&mut stream, &envoy(Runtime, &["fault"]), &world);
        let version = sent[0].version_info.clone();
        assert_eq!(wrapped(&sent[0]), [("fault".to_owned(), true, version.clone(), Some(9))]);
        send(&mut stream, &ack(&sent[0], &["fault"]), &world);
        assert_eq!(stream.0.heartbeat_after(&world), Some(Duration::from_secs(3)));
        let beat = stream.on_heartbeat(&world);
        assert_eq!((beat.len(), &beat[0].version_info), (1, &version));
        assert_eq!(wrapped(&beat[0]), [("fault".to_owned(), true, version, Some(9))]);
        assert!(send(&mut stream, &ack(&beat[0], &["fault"]), &world).is_empty());
    }

    #[test]
    fn clusters_that_expire_are_renewed_whole_because_absence_deletes() {
        let (mut stream, world) = (stream(), expiring(Cluster, &["a"], &["b"]));
        let sent = send(&mut stream, &envoy(Cluster, &[]), &world);
        send(&mut stream, &ack(&sent[0], &[]), &world);
        let beat = stream.on_heartbeat(&world);
        assert_eq!(beat.len(), 1);
        assert_eq!((beat[0].resources.len(), &beat[0].version_info), (2, &sent[0].version_info));
        assert!(send(&mut stream, &ack(&beat[0], &[]), &world).is_empty());
    }

    #[test]
    fn accepting_what_was_refused_before_proves_nothing_of_an_extension_configuration() {
        let (mut stream, bad) = (stream(), snapshot(&[(ExtensionConfig, "x", "bad"), (ExtensionConfig, "y", "1")]));
        let sent = send(&mut stream, &subscribe(ExtensionConfig, &["x"]), &bad);
        send(&mut stream, &nack(&sent[0], &["x"], ""), &bad);
        let again = send(&mut stream, &ack(&sent[0], &["x", "y"]), &bad);
        let step = stream.on_request(&ack(&again[0], &["x", "y"]), &bad).unwrap();
        assert_eq!(events_of(&step), ["accepted after refusal"]);
        let salted = snapshot(&[(ExtensionConfig, "x", "salted"), (ExtensionConfig, "y", "1")]);
        let sent = stream.on_snapshot(&salted);
        assert_eq!(events_of(&stream.on_request(&ack(&sent[0], &["x", "y"]), &salted).unwrap()), ["accepted"]);
    }

    #[test]
    fn a_changed_cluster_is_followed_by_its_endpoints_although_they_did_not_change() {
        let cluster = |content| resource((Cluster, "c", content)).needing(Endpoint, name("e"));
        let world = |content| Snapshot::try_new([cluster(content), resource((Endpoint, "e", "endpoints"))]).unwrap();
        let (mut stream, first) = (stream(), world("1"));
        let sent = send(&mut stream, &subscribe(Cluster, &[]), &first);
        send(&mut stream, &ack(&sent[0], &[]), &first);
        let sent = send(&mut stream, &subscribe(Endpoint, &["e"]), &first);
        assert!(send(&mut stream, &ack(&sent[0], &["e"]), &first).is_empty());
        assert_eq!(all_say(&stream.on_snapshot(&world("2"))), [["2"], ["endpoints"]]);
    }

    #[test]
    fn a_cluster_outlives_the_listener_that_names_it() {
        let (mut stream, first) = (stream(), snapshot(&[(Cluster, "a", "old"), (Listener, "l", "1")]));
        for kind in [Cluster, Listener] {
            let sent = send(&mut stream, &subscribe(kind, &[]), &first);
            send(&mut stream, &ack(&sent[0], &[]), &first);
        }
        let second = snapshot(&[(Cluster, "b", "new"), (Listener, "l", "2")]);
        let sent = stream.on_snapshot(&second);
        assert_eq!(all_say(&sent), [vec!["old", "new"], vec!["2"]], "the listener in force may still name it");
        send(&mut stream, &ack(&sent[0], &[]), &second);
        let mut refusing = stream.clone();
        assert!(send(&mut refusing, &nack(&sent[1], &[], ""), &second).is_empty(), "the old listener stays in force");
        assert_eq!(all_say(&send(&mut stream, &ack(&sent[1], &[]), &second)), [["new"]]);
    }

    #[test]
    fn a_request_that_breaks_the_protocol_ends_the_stream() {
        let error = stream().on_request(&DiscoveryRequest::default(), &snapshot(&[])).unwrap_err();
        assert_eq!(error, StreamError::MissingTypeUrl);
        let mut only = Stream(SotwStream::new(Scope::Only(ExtensionConfig)));
        let request = DiscoveryRequest { resource_names: strings(&["x"]), ..Default::default() };
        assert_eq!(all_say(&send(&mut only, &request, &snapshot(&[(ExtensionConfig, "x", "1")]))), [["1"]]);
        assert!(matches!(only.on_request(&subscribe(Cluster, &[]), &snapshot(&[])), Err(StreamError::WrongType { .. })));
    }
}

#[test]
fn an_inconsistent_snapshot_cannot_be_made() {
    let twice = Snapshot::try_new([resource((Cluster, "a", "1")), resource((Cluster, "a", "2"))]).unwrap_err();
    assert_eq!(twice, Inconsistent::Duplicate { kind: Cluster, name: name("a") });
    let limits = || resource((HeadgateLimits, "pool", "1")).needing(HeadgatePolicy, name("p"));
    let dangling = Snapshot::try_new([limits()]).unwrap_err();
    assert_eq!(dangling.to_string(), "headgate.v1.Limits `pool` needs headgate.v1.Policy `p`, which is not there");
    assert!(Snapshot::try_new([limits(), resource((HeadgatePolicy, "p", "1"))]).is_ok());
}

#[test]
fn a_type_is_found_by_its_url_alone() {
    for kind in ResourceType::ALL {
        assert_eq!(ResourceType::from_type_url(kind.type_url()), Some(kind));
    }
    assert_eq!(ResourceType::from_type_url("type.googleapis.com/headgate.v1.Nothing"), None);
}

#[test]
fn a_version_reads_back_and_nothing_else_is_one() {
    let version = Version::of(b"content");
    assert_eq!(Version::parse(&version.to_string()), Some(version));
    for text in ["", "7", "+0000000000000ff", "00000000000000FF", "00000000000000ff0"] {
        assert_eq!(Version::parse(text), None, "{text}");
    }
}

#[test]
fn the_wildcard_is_no_name() {
    assert_eq!(ResourceName::new("*"), Err(InvalidName::Wildcard));
}
