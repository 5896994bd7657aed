//! A control plane that sends a broken policy: what the filter answers, and what keeps serving.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};
use futures::{Stream, StreamExt as _};
use headgate_protos::discovery::aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer};
use headgate_protos::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource};
use headgate_protos::{Any, POLICY_TYPE_URL, document, v1};
use headgate_test_support::envoy::{Bootstrap, EnvoyOptions, HttpFilter, Upstream as To, WasmFilter};
use headgate_test_support::{EnvoyProcess, EnvoyVersion, wait_until};
use headgate_tests::connection::Connection;
use headgate_tests::documents::{document as render, key_header, spec};
use headgate_tests::mesh::PATIENCE;
use headgate_tests::upstream::Upstream;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Sends a good policy first and a broken one after it was accepted; keeps what it was told.
#[derive(Clone, Default)]
struct Careless {
    answers: Arc<Mutex<Vec<DeltaDiscoveryRequest>>>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Careless {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("the filter speaks delta"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let mut requests = request.into_inner();
        let answers = self.answers.clone();
        let (send, receive) = mpsc::channel(8);
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                if request.type_url != POLICY_TYPE_URL {
                    continue;
                }
                let next = match request.response_nonce.as_str() {
                    "" => Some(response("good", 75.0)),
                    "good" => Some(response("broken", 140.0)),
                    _ => None,
                };
                answers.lock().expect("no holder panics").push(request);
                if let Some(next) = next
                    && send.send(Ok(next)).await.is_err()
                {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}

fn response(version: &str, trip_percent: f64) -> DeltaDiscoveryResponse {
    let text = render("test", &spec());
    let mut policy: v1::Policy = document::parse(serde_json::from_str(&text).expect("JSON")).expect("a good policy");
    policy.version = version.to_owned();
    let levels = policy.spec.as_mut().and_then(|spec| spec.levels.as_mut()).expect("the spec has levels");
    levels.gpu_memory.as_mut().expect("the spec has this level").trip_percent = Some(trip_percent);
    let resource = Resource {
        name: "test".to_owned(),
        version: version.to_owned(),
        resource: Some(Any { type_url: POLICY_TYPE_URL.to_owned(), value: policy.encode_to_vec().into() }),
        ttl: None,
    };
    DeltaDiscoveryResponse {
        resources: vec![resource],
        type_url: POLICY_TYPE_URL.to_owned(),
        nonce: version.to_owned(),
        ..DeltaDiscoveryResponse::default()
    }
}

pub(crate) async fn policy_that_the_filter_refuses_is_a_nack_with_its_field(version: EnvoyVersion) -> Result<()> {
    let careless = Careless::default();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let service = AggregatedDiscoveryServiceServer::new(careless.clone());
    let server =
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));

    let upstream = Upstream::start().await?;
    let filter = HttpFilter::Wasm(WasmFilter::headgate_controlled()?);
    let mut options = EnvoyOptions::new(Bootstrap::new(filter, To::Endpoint(upstream.address())).with_control_plane(address));
    options.version = version;
    let envoy = EnvoyProcess::start(options).await?;

    let nack = wait_until("NACK of the broken policy", PATIENCE, || {
        let answers = careless.answers.lock().expect("no holder panics");
        let answer = answers.iter().find(|answer| answer.response_nonce == "broken").cloned();
        std::future::ready(Ok(answer))
    })
    .await?;
    let error = nack.error_detail.map(|status| status.message).unwrap_or_default();
    ensure!(error.contains("test") && error.contains("levels.gpuMemory.tripPercent: 140 is outside 1..=100"), "NACK: {error}");

    // The worker that is asked takes the good policy up on its next tick.
    wait_until("request under the good policy", PATIENCE, || async {
        let response = Connection::open(envoy.address()).await?.get("/v1/models", &[key_header("high")]).await?;
        ensure!(response.status == 200, "after the NACK: {}", response.status);
        Ok(envoy.access_log().iter().any(|line| line.contains("policy=test@good")).then_some(()))
    })
    .await?;
    server.abort();
    Ok(())
}
