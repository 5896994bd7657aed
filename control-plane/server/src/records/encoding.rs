//! How a row is written, in every backend: kind, name and revision are its key, the rest is a message.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::{Kind, Record, StoreError};

#[derive(Clone, PartialEq, Message)]
struct Row {
    #[prost(string, tag = "1")]
    author: String,
    #[prost(uint64, tag = "2")]
    at_unix_ms: u64,
    #[prost(bytes = "bytes", optional, tag = "3")]
    body: Option<Bytes>,
}

pub(super) fn encode(record: &Record) -> Vec<u8> {
    Row { author: record.author.clone(), at_unix_ms: record.at_unix_ms, body: record.body.clone() }.encode_to_vec()
}

pub(super) fn decode(kind: Kind, name: &str, revision: u64, bytes: &[u8]) -> Result<Arc<Record>, StoreError> {
    let row = Row::decode(Bytes::copy_from_slice(bytes));
    let Row { author, at_unix_ms, body } =
        row.map_err(|error| StoreError::Unreadable { kind, name: name.to_owned(), problem: error.to_string() })?;
    Ok(Arc::new(Record { kind, name: name.to_owned(), revision, author, at_unix_ms, body }))
}
