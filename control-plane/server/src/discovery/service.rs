//! The seven services, which differ in their names and in the types that they carry.

use std::convert::Infallible;
use std::future::{self, Future};
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use headgate_xds::{DeltaStream, ResourceType, Scope, SotwStream};
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec};
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};
use tower::Service;

use super::Discovery;
use super::conversation::{Machine, Responses};

/// First size of the buffers of a stream, in bytes: they grow with its messages, most of which are ACKs. A fleet has thousands.
const BUFFER_BYTES: usize = 512;
/// Encoded bytes after which the connection takes what there is.
const FULL_BUFFER_BYTES: usize = 32 << 10;

/// A service.
pub(super) struct Spec {
    /// `package.Service`.
    pub(super) name: &'static str,
    /// Its method for the state of the world.
    pub(super) sotw: &'static str,
    /// Its method for deltas.
    pub(super) delta: &'static str,
    scope: Scope,
}

/// Every service.
pub(super) const SERVICES: [Spec; 7] = [
    Spec {
        name: "envoy.service.discovery.v3.AggregatedDiscoveryService",
        sotw: "StreamAggregatedResources",
        delta: "DeltaAggregatedResources",
        scope: Scope::Aggregated,
    },
    Spec {
        name: "envoy.service.cluster.v3.ClusterDiscoveryService",
        sotw: "StreamClusters",
        delta: "DeltaClusters",
        scope: Scope::Only(ResourceType::Cluster),
    },
    Spec {
        name: "envoy.service.endpoint.v3.EndpointDiscoveryService",
        sotw: "StreamEndpoints",
        delta: "DeltaEndpoints",
        scope: Scope::Only(ResourceType::Endpoint),
    },
    Spec {
        name: "envoy.service.listener.v3.ListenerDiscoveryService",
        sotw: "StreamListeners",
        delta: "DeltaListeners",
        scope: Scope::Only(ResourceType::Listener),
    },
    Spec {
        name: "envoy.service.route.v3.RouteDiscoveryService",
        sotw: "StreamRoutes",
        delta: "DeltaRoutes",
        scope: Scope::Only(ResourceType::Route),
    },
    Spec {
        name: "envoy.service.runtime.v3.RuntimeDiscoveryService",
        sotw: "StreamRuntime",
        delta: "DeltaRuntime",
        scope: Scope::Only(ResourceType::Runtime),
    },
    Spec {
        name: "envoy.service.extension.v3.ExtensionConfigDiscoveryService",
        sotw: "StreamExtensionConfigs",
        delta: "DeltaExtensionConfigs",
        scope: Scope::Only(ResourceType::ExtensionConfig),
    },
];

/// One of the services, by its place in [`SERVICES`].
#[derive(Clone)]
pub(super) struct DiscoveryService<const AT: usize>(Discovery);

/// prost with buffers of the size of our messages.
struct SmallBuffers<T, U>(PhantomData<(T, U)>);

// === impl DiscoveryService ===

impl<const AT: usize> DiscoveryService<AT> {
    pub(super) fn new(discovery: &Discovery) -> Self {
        Self(discovery.clone())
    }
}

impl<const AT: usize> NamedService for DiscoveryService<AT> {
    const NAME: &'static str = SERVICES[AT].name;
}

impl<const AT: usize> Service<http::Request<Body>> for DiscoveryService<AT> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (Spec { sotw, delta, scope, .. }, discovery) = (&SERVICES[AT], self.0.clone());
        match request.uri().path().rsplit_once('/') {
            Some((_, method)) if method == *sotw => Box::pin(answer(discovery, || SotwStream::new(*scope), request)),
            Some((_, method)) if method == *delta => Box::pin(answer(discovery, || DeltaStream::new(*scope), request)),
            _ => Box::pin(future::ready(Ok(Status::unimplemented("no such method").into_http()))),
        }
    }
}

/// Answers a call with a stream of responses of the machine.
async fn answer<M: Machine>(
    discovery: Discovery,
    machine: impl Fn() -> M + Send + Sync,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, Infallible> {
    let converse = |request: Request<Streaming<M::Request>>| future::ready(discovery.converse(machine(), request));
    let mut grpc = tonic::server::Grpc::new(SmallBuffers::<M::Response, M::Request>(PhantomData));
    Ok(grpc.streaming(tower::service_fn(converse), request).await)
}

impl Discovery {
    fn converse<M: Machine>(&self, machine: M, request: Request<Streaming<M::Request>>) -> Result<Response<Responses<M>>, Status> {
        Ok(Response::new(Responses::new(machine, request, &self.source, &self.shutdown)?))
    }
}

// === impl SmallBuffers ===

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: prost::Message + 'static,
    U: prost::Message + Default + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER_BYTES, FULL_BUFFER_BYTES))
    }

    fn decoder(&mut self) -> ProstDecoder<U> {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER_BYTES, FULL_BUFFER_BYTES))
    }
}
