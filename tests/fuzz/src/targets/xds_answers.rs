//! The server side of discovery: what a client says is anything, then the client behaves and must fall silent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use headgate_protos::discovery::{DeltaDiscoveryRequest, DiscoveryRequest};
use headgate_protos::envoy_core::Node;
use headgate_protos::rpc::Status;
use headgate_xds::{DeltaResponse, DeltaStream, Resource, ResourceName, ResourceType, Scope, Snapshot, SotwResponse, SotwStream};

use crate::{Marks, Source};

/// Steps of one story at most.
const MAX_STEPS: usize = 80;
/// Answers after which a client that behaves must have everything.
const MAX_ANSWERS: usize = 400;
const NAMES: [&str; 5] = ["a", "b", "c", "*", ""];
/// Time to live of what expires.
const TTL: Duration = Duration::from_secs(3);
const KINDS: [ResourceType; 4] =
    [ResourceType::Cluster, ResourceType::ExtensionConfig, ResourceType::HeadgatePolicy, ResourceType::HeadgateLimits];

pub(super) fn run(input: &[u8]) -> u64 {
    Marks::of(input, story)
}

fn story(input: &[u8], marks: &mut Marks) {
    let mut source = Source::new(input);
    if source.is_so(128) { delta(&mut source, marks) } else { sotw(&mut source, marks) }
}

/// Resources named `a`, `b`, `c`, some of them.
fn snapshot(source: &mut Source<'_>) -> Snapshot {
    let mut resources = Vec::new();
    for kind in KINDS {
        for name in &NAMES[..3] {
            if source.is_so(128) {
                let name = ResourceName::new(name).expect("it is a name");
                let resource = Resource::new(kind, name, vec![source.byte()].into());
                resources.push(if source.is_so(40) { resource.expiring(TTL) } else { resource });
            }
        }
    }
    Snapshot::try_new(resources).expect("names are unique and nothing refers to anything")
}

fn scope(source: &mut Source<'_>) -> Scope {
    if source.is_so(40) { Scope::Only(*source.pick(&KINDS)) } else { Scope::Aggregated }
}

fn type_url(source: &mut Source<'_>) -> String {
    if source.is_so(12) { source.text(&["", "type.googleapis.com/x"]) } else { source.pick(&KINDS).type_url().to_owned() }
}

fn names(source: &mut Source<'_>) -> Vec<String> {
    (0..source.below(4))
        .map(|_| if source.is_so(10) { "x".repeat(source.number() as usize % 2000) } else { source.text(&NAMES[..4]) })
        .collect()
}

fn refusal(source: &mut Source<'_>) -> Option<Status> {
    source.is_so(60).then(|| Status { code: 3, message: source.text(&["no", "é"]), details: Vec::new() })
}

/// Who the client is: one that lets resources expire, or one that does not say.
fn node(source: &mut Source<'_>) -> Option<Node> {
    source.is_so(128).then(|| Node { client_features: vec!["xds.config.supports-resource-ttl".to_owned()], ..Node::default() })
}

/// What a client has asked for of each type, and what awaits its answer.
#[derive(Default)]
struct Client {
    named: BTreeMap<String, BTreeSet<String>>,
    pending: BTreeMap<String, String>,
    nonces: BTreeSet<String>,
}

impl Client {
    /// Notes a response: its nonce is new, and no other of its type awaits an answer.
    fn hear(&mut self, type_url: &str, nonce: &str) {
        assert!(self.nonces.insert(nonce.to_owned()), "nonce {nonce} comes twice");
        let earlier = self.pending.insert(type_url.to_owned(), nonce.to_owned());
        assert_eq!(earlier, None, "a second response of {type_url} while the first awaits its answer");
    }

    /// Notes an answer.
    fn answer(&mut self, type_url: &str, nonce: &str) {
        self.pending.retain(|pending, awaited| pending != type_url || awaited != nonce);
    }

    /// The nonce that an answer carries: mostly the one that is awaited.
    fn nonce(&self, source: &mut Source<'_>, type_url: &str) -> String {
        match source.below(8) {
            0 => String::new(),
            1 => source.text(&["1", "2", "3", "99"]),
            _ => self.pending.get(type_url).cloned().unwrap_or_default(),
        }
    }

    fn may_have_asked(&self, type_url: &str, name: &str) -> bool {
        self.named.get(type_url).is_some_and(|named| named.contains("*") || named.contains(name))
    }
}

fn delta(source: &mut Source<'_>, marks: &mut Marks) {
    let scope = scope(source);
    let (mut stream, mut client, mut newest) = (DeltaStream::new(scope), Client::default(), snapshot(source));
    for _ in 0..MAX_STEPS {
        if source.is_empty() {
            break;
        }
        let responses = if source.is_so(90) {
            newest = snapshot(source);
            stream.on_snapshot(&newest)
        } else if source.is_so(30) {
            renew(stream.on_heartbeat(&newest), stream.heartbeat_after(&newest), marks)
        } else {
            let request = delta_request(source, &client);
            let type_url = effective_type(scope, &request.type_url);
            ask(&mut client, &type_url, &request);
            match stream.on_request(&request, &newest) {
                Ok(step) => {
                    marks.count("delta events", step.events.len() as u64);
                    client.answer(&type_url, &request.response_nonce);
                    step.responses
                }
                Err(error) => return marks.note(("delta", std::mem::discriminant(&error))),
            }
        };
        hear_delta(&mut client, &responses, marks);
    }
    // From here on it accepts everything.
    for _ in 0..MAX_ANSWERS {
        let Some((type_url, nonce)) = client.pending.pop_first() else { return };
        let request = DeltaDiscoveryRequest { type_url, response_nonce: nonce, ..Default::default() };
        let step = stream.on_request(&request, &newest).expect("an ACK is no breach");
        hear_delta(&mut client, &step.responses, marks);
    }
    panic!("a client that accepts everything is never left alone");
}

fn effective_type(scope: Scope, type_url: &str) -> String {
    match scope {
        Scope::Only(kind) if type_url.is_empty() => kind.type_url().to_owned(),
        _ => type_url.to_owned(),
    }
}

fn ask(client: &mut Client, type_url: &str, request: &DeltaDiscoveryRequest) {
    let is_first = !client.named.contains_key(type_url);
    let named = client.named.entry(type_url.to_owned()).or_default();
    named.extend(request.resource_names_subscribe.iter().cloned());
    let has_legacy = ResourceType::from_type_url(type_url).is_some_and(ResourceType::has_legacy_wildcard);
    if is_first && request.resource_names_subscribe.is_empty() && has_legacy {
        named.insert("*".to_owned());
    }
}

fn delta_request(source: &mut Source<'_>, client: &Client) -> DeltaDiscoveryRequest {
    let type_url = type_url(source);
    DeltaDiscoveryRequest {
        resource_names_subscribe: names(source),
        resource_names_unsubscribe: names(source),
        initial_resource_versions: (0..source.below(3))
            .map(|_| (source.text(&NAMES[..3]), source.text(&["", "0", "0123456789abcdef"])))
            .collect(),
        response_nonce: client.nonce(source, &type_url),
        error_detail: refusal(source),
        node: node(source),
        type_url,
    }
}

/// Responses of a heartbeat, which are none unless one can be due.
fn renew<R>(responses: Vec<R>, after: Option<Duration>, marks: &mut Marks) -> Vec<R> {
    assert!(responses.is_empty() || after == Some(TTL / 3), "{} renewals, due after {after:?}", responses.len());
    marks.note(("renewals", responses.len()));
    responses
}

fn hear_delta(client: &mut Client, responses: &[DeltaResponse], marks: &mut Marks) {
    for response in responses.iter().map(|response| response.message().expect("a response is well-formed")) {
        client.hear(&response.type_url, &response.nonce);
        for resource in &response.resources {
            assert!(client.may_have_asked(&response.type_url, &resource.name), "{} was never asked for", resource.name);
        }
        marks.note((&response.type_url, response.resources.len(), response.removed_resources.len()));
    }
}

fn sotw(source: &mut Source<'_>, marks: &mut Marks) {
    let scope = scope(source);
    let (mut stream, mut client, mut newest) = (SotwStream::new(scope), Client::default(), snapshot(source));
    let mut asked: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for _ in 0..MAX_STEPS {
        if source.is_empty() {
            break;
        }
        let responses = if source.is_so(90) {
            newest = snapshot(source);
            stream.on_snapshot(&newest)
        } else if source.is_so(30) {
            renew(stream.on_heartbeat(&newest), stream.heartbeat_after(&newest), marks)
        } else {
            let url = type_url(source);
            let request = DiscoveryRequest {
                node: node(source),
                resource_names: names(source),
                response_nonce: client.nonce(source, &url),
                version_info: source.text(&["", "1"]),
                error_detail: refusal(source),
                type_url: url,
            };
            let url = effective_type(scope, &request.type_url);
            let named = client.named.entry(url.clone()).or_default();
            named.extend(request.resource_names.iter().cloned());
            if request.resource_names.is_empty() {
                named.insert("*".to_owned());
            }
            asked.insert(url.clone(), request.resource_names.clone());
            // A request without a nonce begins the type anew, so what was awaited is so no longer.
            if request.response_nonce.is_empty() {
                client.pending.remove(&url);
            }
            match stream.on_request(&request, &newest) {
                Ok(step) => {
                    marks.count("sotw events", step.events.len() as u64);
                    client.answer(&url, &request.response_nonce);
                    step.responses
                }
                Err(error) => return marks.note(("sotw", std::mem::discriminant(&error))),
            }
        };
        hear_sotw(&mut client, &responses, marks);
    }
    for _ in 0..MAX_ANSWERS {
        let Some((type_url, nonce)) = client.pending.pop_first() else { return };
        let resource_names = asked.get(&type_url).cloned().unwrap_or_default();
        let request = DiscoveryRequest { type_url, response_nonce: nonce, resource_names, ..Default::default() };
        let Ok(step) = stream.on_request(&request, &newest) else { return };
        hear_sotw(&mut client, &step.responses, marks);
    }
    panic!("a client that accepts everything is never left alone");
}

fn hear_sotw(client: &mut Client, responses: &[SotwResponse], marks: &mut Marks) {
    for response in responses.iter().map(|response| response.message().expect("a response is well-formed")) {
        client.hear(&response.type_url, &response.nonce);
        marks.note(("sotw", &response.type_url, response.resources.len()));
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    super::random_seeds(600)
}
