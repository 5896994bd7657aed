//! Whoever calls whatever method with whatever bytes: refused with the right status, recorded, and nothing breaks.
//!
//! Every caller sends mutated messages in good and bad frames to every method, over TLS. What must come of a call follows from who calls,
//! the table of methods and the bytes alone. `HEADGATE_INPUTS` says how many: `HEADGATE_INPUTS=1000000 cargo nextest run --workspace
//! --cargo-profile fuzz -E 'binary(strangers)' --no-capture` takes minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use authority::Authority;
use bytes::Bytes;
use client::connect;
use headgate::identity::rpcs::{Need, rpc_of};
use headgate_core::rng::Rng;
use headgate_protos::discovery::{DeltaDiscoveryRequest, DiscoveryRequest};
use headgate_protos::envoy_core::Node;
use headgate_protos::{POLICY_TYPE_URL, v1};
use http_body_util::{BodyExt, Full};
use issuer::TokenIssuer;
use mutate::{below, mutate};
use prost::Message;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

#[path = "../../../tests/support/src/authority.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with other tests")]
mod authority;
mod client;
#[path = "client/issuer.rs"]
mod issuer;
#[path = "../../../tests/fuzz/src/mutate.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the fuzzer")]
mod mutate;
#[allow(dead_code, unreachable_pub, reason = "shared with other tests")]
mod running;

const DEFAULT_INPUTS: u64 = 4000;
/// Calls under way at once.
const WORKERS: u64 = 16;
/// A stream that nothing is wrong with stays open; so long is waited for what comes of a call.
const PATIENCE: Duration = Duration::from_millis(500);
const ACCESS: &str = "\
tokens:
- {issuer: 'https://issuer.example.com', audiences: [headgate], jwks: keys.json, clockSkewSeconds: 0}
roles:
- {to: {subject: ops}, role: admin, policies: ['*']}
- {to: {subject: guest}, role: view, policies: ['search-*']}
proxies:
- {of: {certificate: 'spiffe://headgate/proxy/{id}'}, nodes: ['{id}'], clusters: [edge]}
replicas:
- {of: {certificate: 'spiffe://headgate/replica/*'}}
limits: {requestsPerSecond: 1000000, burst: 1000000, streams: 1000000}
";
const DOCUMENT: &str = "\
apiVersion: headgate.dev/v1
kind: AdmissionPolicy
metadata: {name: search-a}
spec:
  pool: search
  classes: [{name: low, whenTripped: refuse}]
";
const WORDS: &[&str] = &["search-a", "search-b", "edge", "a", POLICY_TYPE_URL, "*", "spec", "{}"];

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Nobody,
    ForgedToken,
    ExpiredToken,
    Guest,
    Operator,
    Proxy,
    Replica,
}

const EVERYBODY: [Who; 7] = [Who::Nobody, Who::ForgedToken, Who::ExpiredToken, Who::Guest, Who::Operator, Who::Proxy, Who::Replica];

/// A method, and a message of it that is in order.
struct Method {
    path: &'static str,
    is_stream: bool,
    reads: fn(&[u8]) -> bool,
    seed: Vec<u8>,
}

/// What the first frame of some bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    /// There is none, or nothing after its head.
    Nothing,
    /// A message of the method.
    Good,
    /// Nothing that the method reads, or not whole.
    Bad,
    /// Longer than the method takes.
    Long,
}

// === impl Who ===

impl Who {
    /// The status of the guard in front of a method that needs `need`; `None`: it lets the call through.
    fn refusal(self, need: Option<Need>) -> Option<Code> {
        let is_let_through = matches!(
            (self, need),
            (_, Some(Need::Open))
                | (Self::Guest | Self::Operator, Some(Need::View))
                | (Self::Operator, Some(Need::Operate | Need::Admin))
                | (Self::Proxy, Some(Need::Proxy))
                | (Self::Replica, Some(Need::Replica))
        );
        match self {
            _ if is_let_through => None,
            Self::Nobody | Self::ForgedToken | Self::ExpiredToken => Some(Code::Unauthenticated),
            _ => Some(Code::PermissionDenied),
        }
    }

    fn certificate(self) -> Option<&'static str> {
        match self {
            Self::Proxy => Some("spiffe://headgate/proxy/a"),
            Self::Replica => Some("spiffe://headgate/replica/b"),
            _ => None,
        }
    }

    fn token(self, issuer: &TokenIssuer) -> Option<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let signed = |by: &TokenIssuer, subject: &str, ends: u64| {
            by.sign(&json!({"iss": "https://issuer.example.com", "aud": "headgate", "sub": subject, "exp": ends}))
        };
        match self {
            Self::Guest => Some(signed(issuer, "guest", now + 36_000)),
            Self::Operator => Some(signed(issuer, "ops", now + 36_000)),
            Self::ExpiredToken => Some(signed(issuer, "ops", now - 10)),
            Self::ForgedToken => Some(signed(&TokenIssuer::new(), "ops", now + 36_000)),
            Self::Nobody | Self::Proxy | Self::Replica => None,
        }
    }
}

// === Methods ===

fn method<M: Message + Default>(path: &'static str, is_stream: bool, seed: &M) -> Method {
    Method { path, is_stream, reads: |bytes| M::decode(bytes).is_ok(), seed: seed.encode_to_vec() }
}

fn node() -> Option<Node> {
    Some(Node { id: "a".to_owned(), cluster: "edge".to_owned(), ..Default::default() })
}

fn methods() -> Vec<Method> {
    let source = || Some(v1::PolicySource { source: Some(v1::policy_source::Source::Document(DOCUMENT.to_owned())) });
    let name = || "search-a".to_owned();
    let delta = DeltaDiscoveryRequest { node: node(), type_url: POLICY_TYPE_URL.to_owned(), ..Default::default() };
    let whole = DiscoveryRequest { node: node(), type_url: POLICY_TYPE_URL.to_owned(), ..Default::default() };
    let report = v1::LoadReport { node_id: "a".to_owned(), filter_version: "1".to_owned(), ..Default::default() };
    vec![
        method("/headgate.v1.PolicyService/ApplyPolicy", false, &v1::ApplyPolicyRequest { source: source(), ..Default::default() }),
        method("/headgate.v1.PolicyService/ValidatePolicy", false, &v1::ValidatePolicyRequest { source: source() }),
        method("/headgate.v1.PolicyService/GetPolicy", false, &v1::GetPolicyRequest { name: name() }),
        method("/headgate.v1.PolicyService/ListPolicies", false, &v1::ListPoliciesRequest::default()),
        method("/headgate.v1.PolicyService/DeletePolicy", false, &v1::DeletePolicyRequest { name: name(), ..Default::default() }),
        method("/headgate.v1.PolicyService/WatchPolicies", true, &v1::WatchPoliciesRequest::default()),
        method("/headgate.v1.PolicyLife/ListPolicyRevisions", false, &v1::ListPolicyRevisionsRequest { name: name() }),
        method("/headgate.v1.PolicyLife/GetPolicyRevision", false, &v1::GetPolicyRevisionRequest { name: name(), ..Default::default() }),
        method("/headgate.v1.PolicyLife/RollbackPolicy", false, &v1::RollbackPolicyRequest { name: name(), ..Default::default() }),
        method("/headgate.v1.PolicyLife/PromotePolicy", false, &v1::PromotePolicyRequest { name: name(), ..Default::default() }),
        method("/headgate.v1.PolicyLife/AbortPolicy", false, &v1::AbortPolicyRequest { name: name(), ..Default::default() }),
        method("/headgate.v1.PolicyLife/ListPolicyProxies", false, &v1::ListPolicyProxiesRequest { name: name(), ..Default::default() }),
        method("/headgate.v1.PolicyTrial/DryRunPolicy", false, &v1::DryRunPolicyRequest { source: source() }),
        method("/headgate.v1.GatewayService/ApplyGateway", false, &v1::ApplyGatewayRequest::default()),
        method("/headgate.v1.GatewayService/ListGateway", false, &v1::ListGatewayRequest::default()),
        method("/headgate.v1.GatewayService/DeleteGateway", false, &v1::DeleteGatewayRequest { name: name(), ..Default::default() }),
        method("/headgate.v1.LoadReporting/StreamLoadReports", true, &report),
        method("/headgate.v1.DeviceReporting/StreamDeviceSamples", true, &v1::DeviceReport::default()),
        method("/headgate.v1.Replication/Follow", true, &v1::FollowerMessage::default()),
        method("/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources", true, &delta),
        method("/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources", true, &whole),
        method("/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters", true, &delta),
        method("/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs", true, &whole),
        // The service `headgate`, by name; and what is no method.
        method("/grpc.health.v1.Health/Check", false, &name()),
        method("/headgate.v1.PolicyService/Nonsense", false, &name()),
        method("/headgate.v2.PolicyService/ApplyPolicy", false, &name()),
    ]
}

// === Frames ===

/// Bytes of a call's body: a mutated message, in a frame that is mostly right.
fn body(rng: &mut Rng, method: &Method, max_bytes: usize) -> Vec<u8> {
    let message = if below(rng, 4) == 0 { method.seed.clone() } else { mutate(rng, &method.seed, DOCUMENT.as_bytes(), WORDS) };
    let framed = |flag: u8, length: usize| [&[flag][..], &u32::try_from(length).unwrap().to_be_bytes(), &message].concat();
    match below(rng, 12) {
        0 => framed(1, message.len()),
        1 => framed(rng.next_u64() as u8, message.len()),
        2 => framed(0, message.len() + 1 + below(rng, 64)),
        3 => framed(0, max_bytes + 1 + below(rng, 1 << 20)),
        4 => message,
        5 => Vec::new(),
        _ => framed(0, message.len()),
    }
}

/// The first frame of a body, and whether there is something after it, by the length that it says it has: that may be bad or long in its turn.
fn first_frame(bytes: &[u8], method: &Method, max_bytes: usize) -> (Frame, bool) {
    let Some((&[flag, a, b, c, d], rest)) = bytes.split_first_chunk::<5>() else {
        return (if bytes.is_empty() { Frame::Nothing } else { Frame::Bad }, false);
    };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    let frame = match rest.get(..length) {
        _ if length > max_bytes => Frame::Long,
        Some(message) if flag == 0 && (method.reads)(message) => Frame::Good,
        None if flag == 0 && rest.is_empty() => Frame::Nothing,
        _ => Frame::Bad,
    };
    (frame, rest.len() > length)
}

// === Calls ===

/// The status of a call, or `None` when it is still open after a while.
async fn call(mut channel: Channel, path: &str, token: Option<&str>, body: Vec<u8>) -> Result<Option<Code>, String> {
    let mut request = http::Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Body::new(Full::new(Bytes::from(body)))).unwrap();
    channel.ready().await.map_err(|error| format!("no connection: {error}"))?;
    let answer = async {
        let answer = channel.call(request).await.map_err(|error| format!("no answer: {error:?}"))?;
        if let Some(status) = Status::from_header_map(answer.headers()) {
            return Ok(status.code());
        }
        let trailers = answer.into_body().collect().await.map_err(|status| format!("broken off: {status}"))?;
        let status = trailers.trailers().and_then(Status::from_header_map);
        status.map(|status| status.code()).ok_or_else(|| "an answer without a status".to_owned())
    };
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(code) => code.map(Some),
        Err(_) => Ok(None),
    }
}

/// What is wrong with `code` as the answer to a call, if anything is.
fn judge(
    refusal: Option<Code>,
    (frame, has_more): (Frame, bool),
    is_known: bool,
    is_stream: bool,
    code: Option<Code>,
) -> Option<&'static str> {
    let is_refusal_of_service =
        [Code::InvalidArgument, Code::NotFound, Code::AlreadyExists, Code::PermissionDenied, Code::FailedPrecondition, Code::Aborted];
    let is_answer = |code: Code| code == Code::Ok || code == Code::ResourceExhausted || is_refusal_of_service.contains(&code);
    let is_right = match (refusal, frame, code) {
        (Some(refusal), _, code) => code == Some(refusal),
        (None, _, Some(Code::Internal | Code::ResourceExhausted)) if has_more => true,
        (None, _, Some(Code::Unimplemented)) => !is_known,
        (None, _, None) => is_stream && frame == Frame::Good,
        (None, Frame::Long, Some(code)) => code == Code::ResourceExhausted,
        (None, Frame::Bad, Some(code)) => code == Code::Internal,
        // A stream may end without a message, a call may not.
        (None, Frame::Nothing, Some(code)) => code == Code::Internal || (is_stream && is_answer(code)),
        // What comes on a stream after a good message may be bad.
        (None, Frame::Good, Some(code)) => is_answer(code) || (is_stream && code == Code::Internal),
    };
    (!is_right).then_some("another status was to be expected")
}

struct World {
    methods: Vec<Method>,
    channels: BTreeMap<Who, (Channel, Option<String>)>,
}

/// How often each caller got which status, and what was wrong.
#[derive(Default)]
struct Seen {
    statuses: BTreeMap<(Who, Option<i32>), u64>,
    /// Calls that the audit log must have.
    recorded: u64,
    wrong: BTreeSet<String>,
}

impl World {
    async fn play(self: Arc<Self>, seed: u64, inputs: u64) -> Seen {
        let (mut rng, mut seen) = (Rng::new(seed), Seen::default());
        for _ in 0..inputs {
            let (who, method) = (EVERYBODY[below(&mut rng, EVERYBODY.len())], &self.methods[below(&mut rng, self.methods.len())]);
            let rpc = rpc_of(method.path);
            let max_bytes = rpc.map_or(64 << 10, |rpc| rpc.max_message_bytes);
            let bytes = body(&mut rng, method, max_bytes);
            let (refusal, (frame, has_more)) = (who.refusal(rpc.map(|rpc| rpc.need)), first_frame(&bytes, method, max_bytes));
            let (channel, token) = &self.channels[&who];
            let shown = format!("{who:?} {} {frame:?} {:02x?}", method.path, &bytes[..bytes.len().min(64)]);
            match call(channel.clone(), method.path, token.as_deref(), bytes).await {
                Ok(code) => {
                    *seen.statuses.entry((who, code.map(i32::from))).or_default() += 1;
                    let is_known = rpc.is_some() && !method.path.ends_with("Nonsense");
                    seen.recorded += u64::from(refusal.is_some() || code == Some(Code::Internal) || frame == Frame::Long && is_known);
                    if let Some(why) = judge(refusal, (frame, has_more), is_known, method.is_stream, code) {
                        seen.wrong.insert(format!("{why}, not {code:?}: {shown}"));
                    }
                }
                Err(broken) => drop(seen.wrong.insert(format!("{broken}: {shown}"))),
            }
        }
        seen
    }
}

/// Refusals that the audit log has, those that it counted only included, and their actions.
fn refusals(folder: &Path) -> (u64, BTreeSet<String>) {
    let text = fs::read_to_string(folder.join("data/audit.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let refused = lines.iter().filter(|line| line["outcome"] == "refused");
    let actions: Vec<&str> = refused.filter_map(|line| line["action"].as_str()).collect();
    let counted: u64 = lines.iter().filter_map(|line| line["left_out"].as_u64()).sum();
    (actions.len() as u64 + counted, actions.into_iter().map(str::to_owned).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_comes_is_refused_with_its_status_and_nothing_breaks() {
    let inputs = std::env::var("HEADGATE_INPUTS").map_or(DEFAULT_INPUTS, |text| text.parse().unwrap());
    let (folder, authority, issuer) = (tempfile::tempdir().unwrap(), Authority::new("authority"), TokenIssuer::new());
    let running = running::serve(issuer.flags(folder.path(), &authority, ACCESS)).await;
    let mut channels = BTreeMap::new();
    for who in EVERYBODY {
        let identity = who.certificate().map(|name| authority.client(name));
        channels.insert(who, (connect(running.grpc, &authority, identity.as_ref()).await.unwrap(), who.token(&issuer)));
    }
    let world = Arc::new(World { methods: methods(), channels });
    let mut workers: JoinSet<Seen> = (0..WORKERS).map(|seed| world.clone().play(seed + 1, inputs.div_ceil(WORKERS))).collect();
    let mut all = Seen::default();
    while let Some(seen) = workers.join_next().await {
        let seen = seen.expect("no worker panics");
        seen.statuses.into_iter().for_each(|(key, count)| *all.statuses.entry(key).or_default() += count);
        all.recorded += seen.recorded;
        all.wrong.extend(seen.wrong);
    }
    println!("caller, status, calls: {:#?}", all.statuses);
    assert!(all.wrong.is_empty(), "{} wrong, such as {:#?}", all.wrong.len(), all.wrong.iter().take(20).collect::<Vec<_>>());
    // It still serves, and one refusal more brings what the log has counted without a line since the last one.
    let (channel, token) = &world.channels[&Who::Operator];
    let list = [0; 5].to_vec();
    assert_eq!(call(channel.clone(), "/headgate.v1.PolicyService/ListPolicies", token.as_deref(), list).await, Ok(Some(Code::Ok)));
    let (mut recorded, began) = (all.recorded, std::time::Instant::now());
    loop {
        recorded += 1;
        let refused = call(world.channels[&Who::Nobody].0.clone(), "/headgate.v1.PolicyService/ListPolicies", None, vec![0; 5]).await;
        assert_eq!(refused, Ok(Some(Code::Unauthenticated)));
        let (found, actions) = refusals(folder.path());
        if found >= recorded {
            let wanted = ["access", "authentication", "message"].map(str::to_owned);
            assert!(wanted.iter().all(|action| actions.contains(action)), "{actions:?}");
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "the audit log has {found} of {recorded} refusals");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    running.stop().await;
}
