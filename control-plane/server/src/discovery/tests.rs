#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::extensions::filters::http::wasm::v3::Wasm;
use envoy_types::pb::envoy::extensions::wasm::v3::plugin_config::Vm;
use futures::StreamExt;
use headgate_protos::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use headgate_protos::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse};
use headgate_protos::envoy_core::Node;
use headgate_protos::extension::extension_config_discovery_service_client::ExtensionConfigDiscoveryServiceClient;
use headgate_protos::rpc;
use headgate_xds::ResourceType;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Code, Streaming};

use super::*;
use crate::document::CheckedPolicy;
use crate::fleet::{LimitsTable, PolicySet, PoolLimits, RenderedResources, StoredPolicy};
use crate::resources::ATTEMPT_VARIABLE;

/// Both services on a connection in memory.
struct Bench {
    channel: Channel,
    fleet: Fleet,
    shutdown: CancellationToken,
}

/// One stream as its client sees it.
struct Client<Q, R> {
    requests: mpsc::Sender<Q>,
    responses: Streaming<R>,
}

async fn bench() -> Bench {
    let (fleet, shutdown) = (Fleet::new(), CancellationToken::new());
    let filter = FilterDelivery { wasm: "/headgate.wasm".into(), control_cluster: "c".into(), control_authority: "a".into() };
    let discovery = Discovery::new(fleet.clone(), filter, shutdown.clone());
    let server = Server::builder().layer(crate::identity::Guard::open()).add_routes(discovery.routes());
    let (near, far) = tokio::io::duplex(1 << 16);
    let connections = tokio_stream::once(Ok::<_, std::io::Error>(far)).chain(tokio_stream::pending());
    tokio::spawn(server.serve_with_incoming(connections));
    let mut near = Some(near);
    let connector = tower::service_fn(move |_: Uri| {
        let near = near.take().map(TokioIo::new).ok_or_else(|| std::io::Error::other("one connection only"));
        async move { near }
    });
    let channel = Endpoint::from_static("http://headgate.local").connect_with_connector(connector).await.unwrap();
    Bench { channel, fleet, shutdown }
}

impl Bench {
    async fn delta(&self) -> Client<DeltaDiscoveryRequest, DeltaDiscoveryResponse> {
        let (requests, receiver) = mpsc::channel(8);
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel.clone());
        let responses = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Client { requests, responses }
    }

    async fn sotw_extensions(&self) -> Client<DiscoveryRequest, DiscoveryResponse> {
        let (requests, receiver) = mpsc::channel(8);
        let mut client = ExtensionConfigDiscoveryServiceClient::new(self.channel.clone());
        let responses = client.stream_extension_configs(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Client { requests, responses }
    }

    fn publish(&self, names: &[&str]) {
        let stored = |name: &str| {
            let text = format!(
                "{{apiVersion: headgate.dev/v1, kind: AdmissionPolicy, metadata: {{name: {name}}}, spec: {{pool: {name}-pool, classes: [{{name: low, whenTripped: refuse}}]}}}}"
            );
            let policy = CheckedPolicy::from_document(&text).unwrap().wire().clone();
            (name.to_owned(), Arc::new(StoredPolicy { policy, changed_at_unix_ms: 1 }))
        };
        self.fleet.publish_policies(PolicySet { policies: names.iter().map(|name| stored(name)).collect() });
    }
}

impl<Q, R> Client<Q, R> {
    async fn send(&self, request: Q) {
        self.requests.send(request).await.unwrap();
    }

    async fn receive(&mut self) -> R {
        self.responses.message().await.unwrap().unwrap()
    }
}

fn subscribe(kind: ResourceType) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(Node { id: "node-1".into(), ..Node::default() }),
        type_url: kind.type_url().into(),
        resource_names_subscribe: vec!["*".into()],
        ..DeltaDiscoveryRequest::default()
    }
}

fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

#[tokio::test]
async fn a_client_gets_what_is_there_and_every_change() {
    let bench = bench().await;
    bench.publish(&["a"]);
    let mut client = bench.delta().await;
    client.send(subscribe(ResourceType::HeadgatePolicy)).await;
    let first = client.receive().await;
    assert_eq!(names(&first), ["a"]);
    client.send(ack(&first)).await;
    bench.publish(&["a", "b"]);
    let second = client.receive().await;
    assert_eq!(names(&second), ["b"]);
    client.send(ack(&second)).await;
    bench.publish(&["b"]);
    assert_eq!(client.receive().await.removed_resources, ["a"]);
}

#[tokio::test]
async fn limits_follow_their_policy() {
    let bench = bench().await;
    let mut client = bench.delta().await;
    client.send(subscribe(ResourceType::HeadgateLimits)).await;
    let empty = client.receive().await;
    client.send(ack(&empty)).await;
    let fleet = headgate_protos::v1::Limits { pool: "a-pool".into(), epoch: 7, ..Default::default() };
    let pools = [("a-pool".to_owned(), Arc::new(PoolLimits { fleet, ..PoolLimits::default() }))].into();
    bench.fleet.publish_limits(LimitsTable { pools });
    bench.publish(&["a"]);
    assert_eq!(names(&client.receive().await), ["a-pool"]);
}

#[tokio::test]
async fn rendered_resources_are_told_to_whom_they_are_for() {
    let bench = bench().await;
    let resource = |kind, name| headgate_xds::Resource::new(kind, headgate_xds::ResourceName::new(name).unwrap(), bytes::Bytes::new());
    let listener = |name| vec![resource(ResourceType::Listener, name)];
    let rendered = |clusters: &[&'static str], listeners| {
        let clusters = clusters.iter().map(|name| resource(ResourceType::Cluster, name));
        RenderedResources::try_new(clusters, [("edge".to_owned(), listeners)]).unwrap()
    };
    bench.fleet.publish_rendered(rendered(&["pool"], listener("edge")));
    let mut client = bench.delta().await;
    client.send(subscribe(ResourceType::Cluster)).await;
    let clusters = client.receive().await;
    assert_eq!(names(&clusters), ["pool"]);
    client.send(ack(&clusters)).await;
    client.send(subscribe(ResourceType::Listener)).await;
    let listeners = client.receive().await;
    assert!(names(&listeners).is_empty(), "the node is of no cluster");
    client.send(ack(&listeners)).await;
    bench.fleet.publish_rendered(rendered(&["pool", "other"], listener("edge")));
    assert_eq!(names(&client.receive().await), ["other"]);
    let mut edge = bench.delta().await;
    let node = Some(Node { id: "edge-1".into(), cluster: "edge".into(), ..Node::default() });
    edge.send(DeltaDiscoveryRequest { node, ..subscribe(ResourceType::Listener) }).await;
    assert_eq!(names(&edge.receive().await), ["edge"]);
}

#[tokio::test]
async fn a_refused_policy_is_shown_with_its_field() {
    let bench = bench().await;
    bench.publish(&["a"]);
    let mut client = bench.delta().await;
    client.send(subscribe(ResourceType::HeadgatePolicy)).await;
    let response = client.receive().await;
    let refusal = rpc::Status { code: 3, message: "a: levels.p99.periods: 0 is outside 1..=100".into(), details: Vec::new() };
    client.send(DeltaDiscoveryRequest { error_detail: Some(refusal), ..ack(&response) }).await;
    // The answer to a later request shows that the refusal was taken.
    client.send(subscribe(ResourceType::ExtensionConfig)).await;
    client.receive().await;
    let views = bench.fleet.proxies().views(Instant::now());
    let rejected = &views.first().unwrap().rejected;
    assert_eq!(views.first().unwrap().node_id, "node-1");
    let [rejected] = rejected.as_slice() else { unreachable!("{rejected:?}") };
    assert_eq!((rejected.name.as_str(), rejected.error.as_str()), ("a", "levels.p99.periods: 0 is outside 1..=100"));
    assert_eq!(rejected.version, bench.fleet.policies().borrow().policies.get("a").unwrap().policy.version);
}

#[tokio::test]
async fn a_client_that_reads_nothing_holds_up_no_other() {
    let bench = bench().await;
    bench.publish(&["a"]);
    let silent = bench.delta().await;
    silent.send(subscribe(ResourceType::HeadgatePolicy)).await;
    let mut client = bench.delta().await;
    client.send(subscribe(ResourceType::HeadgatePolicy)).await;
    for _ in 0..100 {
        let response = client.receive().await;
        client.send(ack(&response)).await;
        bench.publish(&[]);
        let response = client.receive().await;
        client.send(ack(&response)).await;
        bench.publish(&["a"]);
    }
}

#[tokio::test]
async fn the_extension_service_delivers_the_filter_without_being_told_the_type() {
    let bench = bench().await;
    let mut client = bench.sotw_extensions().await;
    let request = DiscoveryRequest { resource_names: vec!["headgate".into()], ..DiscoveryRequest::default() };
    client.send(request).await;
    let response = client.receive().await;
    assert_eq!(response.type_url, ResourceType::ExtensionConfig.type_url());
    assert_eq!(response.resources.len(), 1);
}

/// The module's configuration in a response, without what tells attempts apart, and that.
fn attempt_of(response: &DeltaDiscoveryResponse) -> (Wasm, Option<String>) {
    let [resource] = response.resources.as_slice() else { unreachable!("{response:?}") };
    let extension = TypedExtensionConfig::decode(resource.resource.as_ref().unwrap().value.clone()).unwrap();
    let mut wasm = Wasm::decode(extension.typed_config.unwrap().value.as_slice()).unwrap();
    let Some(Vm::VmConfig(vm)) = &mut wasm.config.as_mut().unwrap().vm else { unreachable!() };
    let attempt = vm.environment_variables.take().map(|variables| variables.key_values[ATTEMPT_VARIABLE].clone());
    (wasm, attempt)
}

fn refuse(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    let refusal = rpc::Status { code: 13, message: "no such file".into(), details: Vec::new() };
    DeltaDiscoveryRequest { error_detail: Some(refusal), ..ack(response) }
}

#[tokio::test(start_paused = true)]
async fn a_refused_filter_is_told_again_in_other_bytes_after_ever_longer_pauses() {
    let bench = bench().await;
    let mut client = bench.delta().await;
    client
        .send(DeltaDiscoveryRequest { resource_names_subscribe: vec!["headgate".into()], ..subscribe(ResourceType::ExtensionConfig) })
        .await;
    let mut response = client.receive().await;
    let (first, attempt) = attempt_of(&response);
    assert_eq!(attempt, None);
    let (mut versions, began) = (vec![response.resources[0].version.clone()], tokio::time::Instant::now());
    for expected in 1..=8_u32 {
        let refused_at = tokio::time::Instant::now();
        client.send(refuse(&response)).await;
        response = client.receive().await;
        let (pause, least) = (refused_at.elapsed().as_secs_f64(), f64::from(1 << (expected - 1)));
        assert!(pause >= least && pause <= least * 1.25 + 0.1, "attempt {expected} after {pause} s");
        let (again, attempt) = attempt_of(&response);
        assert_eq!((again, attempt), (first.clone(), Some(expected.to_string())), "it differs in the attempt alone");
        assert!(!versions.contains(&response.resources[0].version));
        versions.push(response.resources[0].version.clone());
    }
    assert!(began.elapsed() >= Duration::from_secs(255), "eight attempts in {:?}", began.elapsed());
    assert_eq!(bench.fleet.refusals().list().len(), 1);
    client.send(ack(&response)).await;
    // What the client has taken stays, whatever else is published.
    bench.publish(&["a"]);
    let silence = tokio::time::timeout(Duration::from_secs(3600), client.responses.message()).await;
    assert!(silence.is_err(), "{silence:?}");
    assert_eq!(bench.fleet.refusals().list(), []);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_filter_of_ours_is_told_once() {
    let bench = bench().await;
    let type_url = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua".into();
    let typed_config = Some(envoy_types::pb::google::protobuf::Any { type_url, value: Vec::new() });
    let lua = TypedExtensionConfig { name: "lua".into(), typed_config }.encode_to_vec();
    let lua = headgate_xds::Resource::new(ResourceType::ExtensionConfig, headgate_xds::ResourceName::new("lua").unwrap(), lua.into());
    bench.fleet.publish_rendered(RenderedResources::try_new([lua], []).unwrap());
    let mut client = bench.delta().await;
    client.send(DeltaDiscoveryRequest { resource_names_subscribe: vec!["lua".into()], ..subscribe(ResourceType::ExtensionConfig) }).await;
    let response = client.receive().await;
    client.send(refuse(&response)).await;
    let silence = tokio::time::timeout(Duration::from_secs(3600), client.responses.message()).await;
    assert!(silence.is_err(), "{silence:?}");
}

#[tokio::test]
async fn a_request_without_a_type_ends_an_aggregated_stream() {
    let bench = bench().await;
    let mut client = bench.delta().await;
    client.send(DeltaDiscoveryRequest::default()).await;
    let status = client.responses.message().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "type_url: required on an aggregated stream"));
}

#[tokio::test]
async fn streams_end_with_the_server_whether_or_not_they_have_spoken() {
    let bench = bench().await;
    let mut idle = bench.delta().await;
    let mut busy = bench.delta().await;
    busy.send(subscribe(ResourceType::HeadgatePolicy)).await;
    busy.receive().await;
    bench.shutdown.cancel();
    assert_eq!(idle.responses.message().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(busy.responses.message().await.unwrap_err().code(), Code::Unavailable);
}

#[test]
fn every_discovery_service_that_is_described_is_served() {
    let described = prost_types::FileDescriptorSet::decode(headgate_protos::FILE_DESCRIPTOR_SET).unwrap();
    let mut methods = Vec::new();
    for file in described.file.iter().filter(|file| file.package().starts_with("envoy.service.")) {
        for service in &file.service {
            let name = format!("{}.{}", file.package(), service.name());
            let [sotw, delta] = service.method.as_slice() else { unreachable!("{name}") };
            methods.push((name, sotw.name().to_owned(), delta.name().to_owned()));
        }
    }
    let served = service::SERVICES.map(|spec| (spec.name.to_owned(), spec.sotw.to_owned(), spec.delta.to_owned()));
    methods.sort();
    let mut served = served.to_vec();
    served.sort();
    assert_eq!(methods, served);
}
