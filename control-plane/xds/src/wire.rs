//! Responses as they go over the wire: each resource is encoded once, and every stream that sends it shares the bytes.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use headgate_protos::Any;
use headgate_protos::discovery::{self, DeltaDiscoveryResponse, DiscoveryResponse};
use prost::{DecodeError, Message, length_delimiter_len};

use crate::resource::{ResourceName, ResourceType, Version};

/// Type URL of [`discovery::Resource`], in which state-of-the-world responses wrap what expires.
const RESOURCE_TYPE_URL: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// `envoy.service.discovery.v3.DeltaDiscoveryResponse` with resources that are encoded already.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DeltaResponse {
    /// Version of the type's resources, for people to read.
    #[prost(string, tag = "1")]
    pub system_version_info: String,
    /// New and changed resources, each a message `Resource`.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub resources: Vec<Bytes>,
    /// Type of the resources.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// Nonce to answer with.
    #[prost(string, tag = "5")]
    pub nonce: String,
    /// Names that are gone or do not exist.
    #[prost(string, repeated, tag = "6")]
    pub removed_resources: Vec<String>,
}

/// `envoy.service.discovery.v3.DiscoveryResponse` with resources that are encoded already.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SotwResponse {
    /// Version of all that the response says.
    #[prost(string, tag = "1")]
    pub version_info: String,
    /// The resources, each a message `Any`.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub resources: Vec<Bytes>,
    /// Type of the resources.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// Nonce to answer with.
    #[prost(string, tag = "5")]
    pub nonce: String,
}

/// A resource as messages `Resource` and `Any`, in one buffer: the `Any` is a part of the `Resource`, and the body one of the `Any`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Encoded {
    resource: Bytes,
    /// Where the time to live begins, the last field.
    ttl_at: usize,
    any: Range<usize>,
    body: Range<usize>,
}

// === impl DeltaResponse ===

impl DeltaResponse {
    /// The response as its client reads it.
    ///
    /// # Errors
    /// When a resource in it is no `Resource`, as none is that a stream has made.
    pub fn message(&self) -> Result<DeltaDiscoveryResponse, DecodeError> {
        DeltaDiscoveryResponse::decode(self.encode_to_vec().as_slice())
    }
}

// === impl SotwResponse ===

impl SotwResponse {
    /// The response as its client reads it.
    ///
    /// # Errors
    /// When a resource in it is no `Any`, as none is that a stream has made.
    pub fn message(&self) -> Result<DiscoveryResponse, DecodeError> {
        DiscoveryResponse::decode(self.encode_to_vec().as_slice())
    }
}

// === impl Encoded ===

impl Encoded {
    pub(crate) fn new(kind: ResourceType, name: &ResourceName, version: Version, ttl: Option<Duration>, body: Bytes) -> Self {
        let body_bytes = body.len();
        let any = Any { type_url: kind.type_url().into(), value: body };
        let any_bytes = any.encoded_len();
        let with_version = discovery::Resource { version: version.to_string(), ..discovery::Resource::default() };
        let any_at = with_version.encoded_len() + field_prefix(any_bytes);
        let resource = discovery::Resource { resource: Some(any), name: name.to_string(), ..with_version };
        let mut bytes = resource.encode_to_vec();
        let ttl_at = bytes.len();
        let lifetime = discovery::Resource { ttl: ttl.map(protobuf_duration), ..discovery::Resource::default() };
        bytes.extend(lifetime.encode_to_vec());
        // The body is the last field of the `Any`, and an empty one has no field at all.
        let any = any_at..any_at + any_bytes;
        Self { resource: bytes.into(), ttl_at, body: any.end - body_bytes..any.end, any }
    }

    /// The body: the encoded message that the resource is.
    pub(crate) fn body(&self) -> Bytes {
        self.resource.slice(self.body.clone())
    }

    /// For a delta response; with its time to live for clients that know what that is.
    pub(crate) fn resource(&self, with_ttl: bool) -> Bytes {
        if with_ttl { self.resource.clone() } else { self.resource.slice(..self.ttl_at) }
    }

    /// For a state-of-the-world response.
    pub(crate) fn any(&self) -> Bytes {
        self.resource.slice(self.any.clone())
    }
}

/// Bytes in front of a field of `length` bytes whose number is below 16.
fn field_prefix(length: usize) -> usize {
    1 + length_delimiter_len(length)
}

/// A `Resource` that renews the time to live of what the client has, for a delta response.
pub(crate) fn heartbeat(name: &ResourceName, version: &str, ttl: Duration) -> Bytes {
    let ttl = Some(protobuf_duration(ttl));
    discovery::Resource { version: version.into(), resource: None, name: name.to_string(), ttl }.encode_to_vec().into()
}

/// A resource with a time to live, for a state-of-the-world response, whose version it has.
pub(crate) fn wrapped_resource(kind: ResourceType, name: &ResourceName, version: &str, ttl: Duration, body: Bytes) -> Bytes {
    let resource = Some(Any { type_url: kind.type_url().into(), value: body });
    let ttl = Some(protobuf_duration(ttl));
    let resource = discovery::Resource { version: version.into(), resource, name: name.to_string(), ttl };
    Any { type_url: RESOURCE_TYPE_URL.into(), value: resource.encode_to_vec().into() }.encode_to_vec().into()
}

fn protobuf_duration(duration: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    // Below 10⁹.
    prost_types::Duration { seconds, nanos: duration.subsec_nanos().cast_signed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_an_encoded_resource_are_messages_of_their_own() {
        for body in [Bytes::new(), Bytes::from_static(b"body"), Bytes::from(vec![7; 200]), Bytes::from(vec![7; 70_000])] {
            let (name, version) = (ResourceName::new("pool").unwrap(), Version::of(&body));
            let encoded = Encoded::new(ResourceType::Cluster, &name, version, Some(Duration::from_millis(1500)), body.clone());
            assert_eq!(encoded.body(), body);
            let any = Any { type_url: ResourceType::Cluster.type_url().into(), value: body };
            assert_eq!(Any::decode(encoded.any()).unwrap(), any);
            for with_ttl in [true, false] {
                let ttl = with_ttl.then_some(prost_types::Duration { seconds: 1, nanos: 500_000_000 });
                let expected = discovery::Resource { version: version.to_string(), resource: Some(any.clone()), name: "pool".into(), ttl };
                assert_eq!(discovery::Resource::decode(encoded.resource(with_ttl)).unwrap(), expected);
            }
        }
    }
}
