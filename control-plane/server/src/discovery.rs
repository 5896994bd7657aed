//! The discovery services: each stream is a task that moves messages between a connection and a protocol machine of `headgate_xds`.

mod source;
#[cfg(test)]
mod tests;

use std::pin::Pin;

use futures::Stream;
use headgate_protos::discovery::aggregated_discovery_service_server::AggregatedDiscoveryService;
use headgate_protos::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse};
use headgate_protos::envoy_core::Node;
use headgate_protos::extension::extension_config_discovery_service_server::ExtensionConfigDiscoveryService;
use headgate_xds::{DeltaStream, ResourceType, Scope, Snapshot, SotwStream, Step, StreamError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::config::FilterDelivery;
use crate::fleet::Fleet;
use crate::identity::Caller;
use source::{Observer, Source};

/// Responses that wait for the connection. A stream has at most one unanswered response per type, so it never needs more.
const QUEUED_RESPONSES: usize = ResourceType::ALL.len();

/// The aggregated and the extension configuration discovery service. Cheap to clone.
#[derive(Clone)]
pub struct Discovery {
    source: Source,
    shutdown: CancellationToken,
}

/// Responses of one stream.
type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A variant of the protocol.
trait Machine: Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;
    fn node_of(request: &Self::Request) -> Option<&Node>;
    fn on_request(&mut self, request: &Self::Request, snapshot: &Snapshot) -> Result<Step<Self::Response>, StreamError>;
    fn on_snapshot(&mut self, snapshot: &Snapshot) -> Vec<Self::Response>;
}

macro_rules! machine {
    ($machine:ty, $request:ty, $response:ty) => {
        impl Machine for $machine {
            type Request = $request;
            type Response = $response;
            fn node_of(request: &$request) -> Option<&Node> {
                request.node.as_ref()
            }
            fn on_request(&mut self, request: &$request, snapshot: &Snapshot) -> Result<Step<$response>, StreamError> {
                self.on_request(request, snapshot)
            }
            fn on_snapshot(&mut self, snapshot: &Snapshot) -> Vec<$response> {
                self.on_snapshot(snapshot)
            }
        }
    };
}

machine!(DeltaStream, DeltaDiscoveryRequest, DeltaDiscoveryResponse);
machine!(SotwStream, DiscoveryRequest, DiscoveryResponse);

// === impl Discovery ===

impl Discovery {
    /// Serves what is in `fleet`, and the filter's configuration. Streams end when `shutdown` is cancelled.
    pub fn new(fleet: Fleet, filter: FilterDelivery, shutdown: CancellationToken) -> Self {
        Self { source: Source::new(fleet, filter), shutdown }
    }

    fn serve<M: Machine>(&self, machine: M, request: Request<Streaming<M::Request>>) -> Result<Response<Responses<M::Response>>, Status> {
        let caller = Caller::of(request.extensions())?;
        let requests = request.into_inner();
        let (responses, receiver) = mpsc::channel(QUEUED_RESPONSES);
        let (source, shutdown) = (self.source.clone(), self.shutdown.clone());
        tokio::spawn(async move {
            if let Err(status) = pump(machine, requests, &caller, &source, &responses, &shutdown).await {
                // The client may be gone, or no longer read; either way the stream ends here.
                let _ = responses.try_send(Err(status));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Runs one stream until the client ends it, breaks the protocol, or the server stops.
async fn pump<M: Machine>(
    mut machine: M,
    mut requests: Streaming<M::Request>,
    caller: &Caller,
    source: &Source,
    responses: &mpsc::Sender<Result<M::Response, Status>>,
    shutdown: &CancellationToken,
) -> Result<(), Status> {
    let mut observer: Option<Observer> = None;
    loop {
        let to_send = tokio::select! {
            () = shutdown.cancelled() => return Err(Status::unavailable("the server is shutting down")),
            () = responses.closed() => return Ok(()),
            request = requests.message() => {
                // An error is a message that is malformed or too long, or the connection's end, of which nobody is left to hear.
                let Some(request) = request? else { return Ok(()) };
                let observer = match &mut observer {
                    Some(observer) => observer,
                    None => {
                        let node = M::node_of(&request);
                        let (id, cluster) = node.map_or(("", ""), |node| (node.id.as_str(), node.cluster.as_str()));
                        caller.require_node(id, Some(cluster))?;
                        observer.insert(source.observe(node))
                    }
                };
                let step = machine.on_request(&request, observer.snapshot()).map_err(|error| Status::invalid_argument(error.to_string()))?;
                step.events.iter().for_each(|event| observer.note(event));
                step.responses
            }
            snapshot = source::changed(&mut observer) => machine.on_snapshot(snapshot?),
        };
        for response in to_send {
            // Full only when a client answers responses that it has not read.
            responses
                .try_send(Ok(response))
                .map_err(|_| Status::resource_exhausted("the client answers responses that it does not read"))?;
        }
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Responses<DiscoveryResponse>>, Status> {
        self.serve(SotwStream::new(Scope::Aggregated), request)
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses<DeltaDiscoveryResponse>>, Status> {
        self.serve(DeltaStream::new(Scope::Aggregated), request)
    }
}

#[tonic::async_trait]
impl ExtensionConfigDiscoveryService for Discovery {
    type StreamExtensionConfigsStream = Responses<DiscoveryResponse>;
    type DeltaExtensionConfigsStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_extension_configs(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Responses<DiscoveryResponse>>, Status> {
        self.serve(SotwStream::new(Scope::Only(ResourceType::ExtensionConfig)), request)
    }

    async fn delta_extension_configs(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses<DeltaDiscoveryResponse>>, Status> {
        self.serve(DeltaStream::new(Scope::Only(ResourceType::ExtensionConfig)), request)
    }
}
