//! What both variants of the protocol share: scope, node, nonces, errors, events.

use std::time::Duration;

use headgate_protos::envoy_core::Node;
use headgate_protos::rpc::Status;

use crate::resource::{InvalidName, ResourceName, ResourceType, Version};
use crate::snapshot::Snapshot;
use crate::subscription::{Interest, Subscription, TooManyNames};

/// Which types a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every type (ADS); each request names its type.
    Aggregated,
    /// One type, as the per-type services carry it; a request may leave its type out.
    Only(ResourceType),
}

/// What follows from one input.
#[derive(Clone, Debug, PartialEq)]
pub struct Step<R> {
    /// Responses, to be sent in this order.
    pub responses: Vec<R>,
    /// What the input told about the client.
    pub events: Vec<StreamEvent>,
}

/// One resource in a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub name: ResourceName,
    /// The version that was sent; `None` when the client was told that it is gone or does not exist.
    pub version: Option<Version>,
}

/// What a client let us know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// It accepted a response (ACK).
    Accepted {
        /// Type.
        kind: ResourceType,
        /// What was in the response.
        changes: Vec<Change>,
    },
    /// It refused a response (NACK) and keeps what it had.
    Rejected {
        /// Type.
        kind: ResourceType,
        /// What was in the response.
        changes: Vec<Change>,
        /// Its words, cut at [`StreamEvent::MAX_ERROR_BYTES`].
        error: String,
    },
    /// It accepted what it had refused before. Envoy takes the same bytes for applied when they come again and says so, without having
    /// applied them, so nothing follows from it; other bytes are what helps.
    AcceptedAfterRefusal {
        /// Type.
        kind: ResourceType,
        /// What of the response had been refused.
        changes: Vec<Change>,
    },
    /// It answered a response that is not the newest of the type; the answer was ignored.
    StaleNonce {
        /// Type.
        kind: ResourceType,
    },
    /// It asked for a type that we do not serve; the request was ignored.
    UnknownType {
        /// The type's URL, cut at [`StreamEvent::MAX_ERROR_BYTES`].
        type_url: String,
    },
}

/// A request that ends the stream: the client breaks the protocol or a bound. gRPC status: `INVALID_ARGUMENT`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// A request on an aggregated stream without a type.
    #[error("type_url: required on an aggregated stream")]
    MissingTypeUrl,
    /// A request for another type than that of the service.
    #[error("type_url: this service serves {expected} only")]
    WrongType {
        /// URL of the service's type.
        expected: &'static str,
    },
    /// A name that cannot be one.
    #[error("{kind}: {problem}")]
    InvalidName {
        /// Type of the request.
        kind: ResourceType,
        /// What is wrong.
        problem: InvalidName,
    },
    /// More names than a stream remembers.
    #[error("{kind}: {problem}")]
    TooManyNames {
        /// Type of the request.
        kind: ResourceType,
        /// What is wrong.
        problem: TooManyNames,
    },
}

/// Feature by which a client says that it knows what a time to live is.
const TTL_FEATURE: &str = "xds.config.supports-resource-ttl";
/// Program that knows it and does not say so.
const ENVOY: &str = "envoy";
/// Heartbeats in a time to live: two may be late or lost.
const HEARTBEATS_PER_TTL: u32 = 3;

/// What a stream knows besides its types.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    scope: Scope,
    node: Option<Node>,
    nonces: u64,
}

// === impl StreamEvent ===

impl StreamEvent {
    /// Longest text of a client that an event carries, in bytes.
    pub const MAX_ERROR_BYTES: usize = 4096;

    pub(crate) fn rejected(kind: ResourceType, changes: Vec<Change>, status: &Status) -> Self {
        Self::Rejected { kind, changes, error: cut(&status.message) }
    }
}

// === impl Step ===

impl<R> Step<R> {
    pub(crate) fn only(event: StreamEvent) -> Self {
        Self { responses: Vec::new(), events: vec![event] }
    }
}

// === impl Session ===

impl Session {
    pub(crate) fn new(scope: Scope) -> Self {
        Self { scope, node: None, nonces: 0 }
    }

    /// Keeps the node of the first request that has one: later requests may leave it out.
    pub(crate) fn note_node(&mut self, node: Option<&Node>) {
        if self.node.is_none() {
            self.node = node.cloned();
        }
    }

    pub(crate) fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// Whether the client lets resources expire.
    pub(crate) fn knows_ttl(&self) -> bool {
        let says_so = |node: &Node| node.client_features.iter().any(|feature| feature == TTL_FEATURE);
        self.node.as_ref().is_some_and(|node| says_so(node) || node.user_agent_name == ENVOY)
    }

    /// Time until the next heartbeat of a client with these types; `None` when nothing that it may have expires.
    pub(crate) fn heartbeat_after<'a>(&self, kinds: impl Iterator<Item = &'a ResourceType>, snapshot: &Snapshot) -> Option<Duration> {
        let least = kinds.filter_map(|kind| snapshot.set(*kind).least_ttl()).min().filter(|_| self.knows_ttl());
        least.map(|ttl| ttl / HEARTBEATS_PER_TTL)
    }

    /// The type of a request; `Ok(Err)` for a type that we do not serve.
    pub(crate) fn kind(&self, type_url: &str) -> Result<Result<ResourceType, StreamEvent>, StreamError> {
        match (self.scope, type_url) {
            (Scope::Only(kind), "") => Ok(Ok(kind)),
            (Scope::Only(kind), url) if url == kind.type_url() => Ok(Ok(kind)),
            (Scope::Only(kind), _) => Err(StreamError::WrongType { expected: kind.type_url() }),
            (Scope::Aggregated, "") => Err(StreamError::MissingTypeUrl),
            (Scope::Aggregated, url) => Ok(ResourceType::from_type_url(url).ok_or_else(|| StreamEvent::UnknownType { type_url: cut(url) })),
        }
    }

    pub(crate) fn next_nonce(&mut self) -> String {
        self.nonces += 1;
        self.nonces.to_string()
    }
}

/// Names as a request lists them.
pub(crate) struct Listed {
    /// Whether the wildcard is among them.
    pub(crate) interest: Interest,
    /// All others.
    pub(crate) names: Vec<ResourceName>,
}

impl Listed {
    /// Whether nothing was listed.
    pub(crate) fn is_empty(&self) -> bool {
        self.interest == Interest::Named && self.names.is_empty()
    }
}

/// Reads the names of a request, of which there may be no more than a subscription can hold.
pub(crate) fn listed<'a>(kind: ResourceType, names: impl ExactSizeIterator<Item = &'a String>) -> Result<Listed, StreamError> {
    if names.len() > Subscription::MAX_NAMES {
        return Err(StreamError::TooManyNames { kind, problem: TooManyNames });
    }
    let mut listed = Listed { interest: Interest::Named, names: Vec::with_capacity(names.len()) };
    for name in names {
        match ResourceName::new(name) {
            Ok(name) => listed.names.push(name),
            Err(InvalidName::Wildcard) => listed.interest = Interest::Wildcard,
            Err(problem) => return Err(StreamError::InvalidName { kind, problem }),
        }
    }
    Ok(listed)
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(StreamEvent::MAX_ERROR_BYTES)].to_owned()
}
