//! The server side of the xDS transport protocol, without I/O.
//!
//! A stream of either variant ([`DeltaStream`], [`SotwStream`]) is a state machine: requests and snapshots go in, responses and
//! [`StreamEvent`]s come out. There is no clock, no task and no socket in here, so every rule of the protocol is tested by a table
//! (`tests/conformance.rs`) and by arbitrary histories (`tests/convergence.rs`).
//!
//! What the streams promise:
//! - at most one response per type awaits its ACK; what changes meanwhile is merged and sent after it, so a slow client gets the
//!   newest content, never a backlog;
//! - content that a client refused is not sent to it again until it changes or the client asks for it anew;
//! - nothing is sent that is not subscribed to, and nothing twice that the client already has;
//! - nothing is taken away, in either variant, while something that the client has may refer to it; what is referred to comes first;
//! - a cluster that changes is followed by its endpoints, changed or not: Envoy uses the new cluster only when it has heard of them;
//! - versions are hashes of content, so a delta client that reconnects to any replica gets only what differs;
//! - each resource is encoded once, and all streams share its bytes;
//! - what a client can make a stream remember is bounded.
//!
//! Source: <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>.

mod delta;
mod order;
mod resource;
mod snapshot;
mod sotw;
mod stream;
mod subscription;
mod wire;

pub use delta::DeltaStream;
pub use resource::{InvalidName, Resource, ResourceName, ResourceType, Version};
pub use snapshot::{Inconsistent, ResourceSet, Snapshot};
pub use sotw::SotwStream;
pub use stream::{Change, Scope, Step, StreamError, StreamEvent};
pub use subscription::{Interest, Subscription, TooManyNames};
pub use wire::{DeltaResponse, SotwResponse};
