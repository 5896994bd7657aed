//! `Any` with a shared value.

use alloc::string::String;
use bytes::Bytes;

/// `google.protobuf.Any` with a shared value: a resource is encoded once and its bytes go to every stream without a copy.
///
/// Wire-compatible with `prost_types::Any`, whose `Vec<u8>` would have to be cloned for every stream.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Any {
    /// URL of the message's type.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The encoded message.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}
