//! One stream: requests, changes and the time in, responses out.
//!
//! It has no task of its own: the connection asks for the next response when the client has room for it, and until then nothing of it is
//! made and no request is read. So a client that does not read costs nothing, holds up no other, and gets the newest when it does.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use futures::stream::BoxStream;
use headgate_protos::discovery::{DeltaDiscoveryRequest, DiscoveryRequest};
use headgate_protos::envoy_core::Node;
use headgate_xds::{DeltaResponse, DeltaStream, ResourceType, Snapshot, SotwResponse, SotwStream, Step, StreamError};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Request, Status, Streaming};

use super::source::{self, Observer, Source};
use crate::identity::Caller;

/// A variant of the protocol.
pub(super) trait Machine: Send + 'static {
    /// What clients say.
    type Request: prost::Message + Default + 'static;
    /// What they are told.
    type Response: prost::Message + 'static;
    fn node_of(request: &Self::Request) -> Option<&Node>;
    fn type_of(request: &Self::Request) -> &str;
    fn on_request(&mut self, request: &Self::Request, snapshot: &Snapshot) -> Result<Step<Self::Response>, StreamError>;
    fn on_snapshot(&mut self, snapshot: &Snapshot) -> Vec<Self::Response>;
    fn heartbeat_after(&self, snapshot: &Snapshot) -> Option<std::time::Duration>;
    fn on_heartbeat(&mut self, snapshot: &Snapshot) -> Vec<Self::Response>;
}

macro_rules! machine {
    ($machine:ty, $request:ty, $response:ty) => {
        impl Machine for $machine {
            type Request = $request;
            type Response = $response;
            fn node_of(request: &$request) -> Option<&Node> {
                request.node.as_ref()
            }
            fn type_of(request: &$request) -> &str {
                &request.type_url
            }
            fn on_request(&mut self, request: &$request, snapshot: &Snapshot) -> Result<Step<$response>, StreamError> {
                self.on_request(request, snapshot)
            }
            fn on_snapshot(&mut self, snapshot: &Snapshot) -> Vec<$response> {
                self.on_snapshot(snapshot)
            }
            fn heartbeat_after(&self, snapshot: &Snapshot) -> Option<std::time::Duration> {
                self.heartbeat_after(snapshot)
            }
            fn on_heartbeat(&mut self, snapshot: &Snapshot) -> Vec<$response> {
                self.on_heartbeat(snapshot)
            }
        }
    };
}

machine!(DeltaStream, DeltaDiscoveryRequest, DeltaResponse);
machine!(SotwStream, DiscoveryRequest, SotwResponse);

/// What a client is told, until it ends the stream, breaks the protocol, or the server stops.
pub(super) struct Responses<M: Machine>(BoxStream<'static, Result<M::Response, Status>>);

struct Conversation<M: Machine> {
    machine: M,
    requests: Streaming<M::Request>,
    caller: Caller,
    source: Source,
    /// The client's view, from its first request on.
    observer: Option<Observer>,
    /// When what the client has must be renewed.
    heartbeat_at: Option<Instant>,
    unsent: VecDeque<M::Response>,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
}

// === impl Responses ===

impl<M: Machine> Responses<M> {
    pub(super) fn new(
        machine: M,
        request: Request<Streaming<M::Request>>,
        source: &Source,
        shutdown: &CancellationToken,
    ) -> Result<Self, Status> {
        let conversation = Conversation {
            machine,
            caller: Caller::of(request.extensions())?,
            requests: request.into_inner(),
            source: source.clone(),
            observer: None,
            heartbeat_at: None,
            unsent: VecDeque::new(),
            shutdown: Box::pin(shutdown.clone().cancelled_owned()),
        };
        let next = |mut conversation: Conversation<M>| async move {
            let response = conversation.next().await?;
            Ok(response.map(|response| (response, conversation)))
        };
        Ok(Self(Box::pin(futures::stream::try_unfold(conversation, next))))
    }
}

impl<M: Machine> Stream for Responses<M> {
    type Item = Result<M::Response, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

// === impl Conversation ===

impl<M: Machine> Conversation<M> {
    /// The next response; `None` when the client has ended the stream.
    async fn next(&mut self) -> Result<Option<M::Response>, Status> {
        while self.unsent.is_empty() {
            let Some(responses) = self.step().await? else { return Ok(None) };
            self.unsent.extend(responses);
        }
        Ok(self.unsent.pop_front())
    }

    /// Takes what comes first. Changes go before requests: what all clients wait for, before their answers to it.
    async fn step(&mut self) -> Result<Option<Vec<M::Response>>, Status> {
        let responses = tokio::select! {
            biased;
            () = &mut self.shutdown => return Err(shutting_down()),
            snapshot = source::changed(&mut self.observer) => self.machine.on_snapshot(snapshot?),
            () = sleep_until(self.heartbeat_at.unwrap_or_else(Instant::now)), if self.heartbeat_at.is_some() => {
                self.heartbeat_at = None;
                self.observer.as_ref().map(|observer| self.machine.on_heartbeat(observer.snapshot())).unwrap_or_default()
            }
            request = self.requests.message() => {
                // An error is a message that is malformed or too long, or the connection's end, of which nobody is left to hear.
                let Some(request) = request? else { return Ok(None) };
                self.on_request(&request)?
            }
        };
        self.schedule_heartbeat();
        Ok(Some(responses))
    }

    fn on_request(&mut self, request: &M::Request) -> Result<Vec<M::Response>, Status> {
        let observer = match &mut self.observer {
            Some(observer) => observer,
            None => {
                let node = M::node_of(request);
                let (id, cluster) = node.map_or(("", ""), |node| (node.id.as_str(), node.cluster.as_str()));
                self.caller.require_node(id, Some(cluster))?;
                self.observer.insert(self.source.observe(node))
            }
        };
        if M::type_of(request) == ResourceType::HeadgateLimits.type_url() {
            observer.see_limits();
        }
        let broken = |error: StreamError| Status::invalid_argument(error.to_string());
        let step = self.machine.on_request(request, observer.snapshot()).map_err(broken)?;
        step.events.iter().for_each(|event| observer.note(event));
        Ok(step.responses)
    }

    /// A heartbeat that is due stays so: changes in between do not put it off.
    fn schedule_heartbeat(&mut self) {
        if self.heartbeat_at.is_none()
            && let Some(observer) = &self.observer
        {
            self.heartbeat_at = self.machine.heartbeat_after(observer.snapshot()).map(|after| Instant::now() + after);
        }
    }
}

/// What a stream ends with when the server does.
pub(super) fn shutting_down() -> Status {
    Status::unavailable("the server is shutting down")
}
