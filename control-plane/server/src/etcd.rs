//! A client of etcd, as far as replicas need it: ranges, transactions, watches and leases, on whichever member answers.
//!
//! Every call goes to the member that answered last, and to the others in turn when it does not. A request that changes something may
//! therefore arrive twice: callers make them so that the second time does nothing (a condition that the first has made false).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use headgate_protos::etcd;
use headgate_protos::etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use headgate_protos::etcd::kv_client::KvClient;
use headgate_protos::etcd::lease_client::LeaseClient;
use headgate_protos::etcd::request_op::Request as Op;
use headgate_protos::etcd::watch_client::WatchClient;
use headgate_protos::etcd::watch_request::RequestUnion;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

/// Longest wait for a connection to a member.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);
/// Longest wait for a member's answer before the next one is asked.
const ANSWER_LIMIT: Duration = Duration::from_millis(700);
/// A member that answers no ping for this long is gone, however quiet its connection is.
const PING: Duration = Duration::from_secs(1);
/// Longest answer: everything that the store may hold, and room for keys and authors.
const MAX_ANSWER_BYTES: usize = crate::records::MAX_TOTAL_BYTES * 2;

/// A cluster. Cheap to clone.
#[derive(Clone)]
pub struct Etcd {
    members: Arc<[Member]>,
    preferred: Arc<AtomicUsize>,
}

struct Member {
    address: String,
    channel: Channel,
}

/// What etcd did not do.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// No member answered. What was asked for may have been done all the same.
    #[error("etcd does not answer: {0}")]
    Unavailable(String),
    /// It answered, and will not.
    #[error("etcd refuses: {}", .0.message())]
    Refused(Box<Status>),
}

/// Keys from the first on and before the second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    from: Vec<u8>,
    to: Vec<u8>,
}

/// A lease as etcd gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its number.
    pub id: i64,
    /// Its time to live.
    pub ttl: Duration,
}

// === impl Etcd ===

impl Etcd {
    /// A client of `members`, each a URL. Connects when it is first used.
    ///
    /// # Errors
    /// When a URL is none.
    pub fn new(members: &[String], connector: &HttpsConnector<HttpConnector>) -> Result<Self, tonic::transport::Error> {
        let member = |address: &String| {
            let endpoint = Endpoint::from_shared(address.clone())?
                .connect_timeout(CONNECT_LIMIT)
                .http2_keep_alive_interval(PING)
                .keep_alive_timeout(PING)
                .keep_alive_while_idle(true)
                .tcp_nodelay(true);
            Ok(Member { address: address.clone(), channel: endpoint.connect_with_connector_lazy(connector.clone()) })
        };
        let members = members.iter().map(member).collect::<Result<Arc<[Member]>, _>>()?;
        Ok(Self { members, preferred: Arc::default() })
    }

    /// Reads keys at one revision.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn range(&self, span: &Span) -> Result<etcd::RangeResponse, EtcdError> {
        self.call(|channel| async move {
            let mut client = KvClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
            Ok(client.range(request(span.request())).await?.into_inner())
        })
        .await
    }

    /// Does a transaction. It may be sent twice, and then the second answer is returned.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn transact(&self, transaction: &etcd::TxnRequest) -> Result<etcd::TxnResponse, EtcdError> {
        self.call(|channel| async move { Ok(KvClient::new(channel).txn(request(transaction.clone())).await?.into_inner()) }).await
    }

    /// Makes a lease of at least `ttl`. One that was made and not heard of ends by itself.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn grant(&self, ttl: Duration) -> Result<Lease, EtcdError> {
        let granted = self
            .call(|channel| async move {
                let wanted = etcd::LeaseGrantRequest { ttl: seconds(ttl), id: 0 };
                Ok(LeaseClient::new(channel).lease_grant(request(wanted)).await?.into_inner())
            })
            .await?;
        Ok(Lease { id: granted.id, ttl: duration(granted.ttl) })
    }

    /// Renews a lease; `None` when it has ended.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn renew(&self, lease: i64) -> Result<Option<Duration>, EtcdError> {
        let renewed = self
            .call(|channel| async move {
                let asked = tokio_stream::once(etcd::LeaseKeepAliveRequest { id: lease });
                let mut answers = LeaseClient::new(channel).lease_keep_alive(request(asked)).await?.into_inner();
                answers.message().await?.ok_or_else(|| Status::unavailable("no answer to a renewal"))
            })
            .await?;
        Ok((renewed.ttl > 0).then(|| duration(renewed.ttl)))
    }

    /// Ends a lease: its keys go at once.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn revoke(&self, lease: i64) -> Result<(), EtcdError> {
        self.call(|channel| async move {
            LeaseClient::new(channel).lease_revoke(request(etcd::LeaseRevokeRequest { id: lease })).await.map(drop)
        })
        .await
    }

    /// Watches keys from `revision` on; 0 from now on.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn watch(&self, span: &Span, revision: i64) -> Result<Streaming<etcd::WatchResponse>, EtcdError> {
        self.call(|channel| async move {
            let create = etcd::WatchCreateRequest {
                key: span.from.clone().into(),
                range_end: span.to.clone().into(),
                start_revision: revision,
                progress_notify: true,
            };
            let asked = etcd::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
            // The stream of requests must stay open as long as the watch.
            let requests = futures::StreamExt::chain(tokio_stream::once(asked), futures::stream::pending());
            let mut client = WatchClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
            Ok(client.watch(request(requests)).await?.into_inner())
        })
        .await
    }

    /// Asks the members in turn, first the one that answered last, until one answers.
    async fn call<T, F>(&self, attempt: impl Fn(Channel) -> F) -> Result<T, EtcdError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut problems = Vec::new();
        for n in 0..self.members.len() {
            let at = (first + n) % self.members.len();
            let Some(member) = self.members.get(at) else { break };
            match tokio::time::timeout(ANSWER_LIMIT, attempt(member.channel.clone())).await {
                Ok(Ok(answer)) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Err(status)) if is_final(status.code()) => return Err(EtcdError::Refused(Box::new(status))),
                Ok(Err(status)) => problems.push(format!("{}: {}", member.address, status.message())),
                Err(_) => problems.push(format!("{}: no answer for {} ms", member.address, ANSWER_LIMIT.as_millis())),
            }
        }
        // The member that answered last answers no longer: the next call begins with another one.
        self.preferred.store(first.wrapping_add(1) % self.members.len().max(1), Ordering::Relaxed);
        Err(EtcdError::Unavailable(problems.join("; ")))
    }
}

/// Whether another member would say the same.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::ResourceExhausted
    )
}

/// A request that a member without a leader refuses at once, instead of waiting for one.
fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    request
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

fn duration(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

// === impl Span ===

impl Span {
    /// Every key that begins with `prefix`, which must end with a byte other than 255.
    pub fn prefix(prefix: &str) -> Self {
        let mut to = prefix.as_bytes().to_vec();
        if let Some(last) = to.last_mut() {
            *last = last.saturating_add(1);
        }
        Self { from: prefix.as_bytes().to_vec(), to }
    }

    /// One key.
    pub fn key(key: &str) -> Self {
        Self { from: key.as_bytes().to_vec(), to: Vec::new() }
    }

    fn request(&self) -> etcd::RangeRequest {
        etcd::RangeRequest { key: self.from.clone().into(), range_end: self.to.clone().into(), limit: 0, revision: 0 }
    }
}

/// The condition that `key` has been written `version` times since it was made; 0: it is not there.
pub fn if_version(key: &str, version: u64) -> etcd::Compare {
    etcd::Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Version.into(),
        key: key.as_bytes().to_vec().into(),
        target_union: Some(TargetUnion::Version(i64::try_from(version).unwrap_or(i64::MAX))),
    }
}

/// Reads keys within a transaction.
pub fn get(span: &Span) -> etcd::RequestOp {
    etcd::RequestOp { request: Some(Op::RequestRange(span.request())) }
}

/// Writes a key within a transaction, on a lease unless that is 0.
pub fn put(key: &str, value: Vec<u8>, lease: i64) -> etcd::RequestOp {
    etcd::RequestOp { request: Some(Op::RequestPut(etcd::PutRequest { key: key.as_bytes().to_vec().into(), value: value.into(), lease })) }
}

/// Deletes a key within a transaction.
pub fn delete(key: &str) -> etcd::RequestOp {
    let range = etcd::DeleteRangeRequest { key: key.as_bytes().to_vec().into(), range_end: bytes::Bytes::new() };
    etcd::RequestOp { request: Some(Op::RequestDeleteRange(range)) }
}

/// The one key that the last read of a transaction found.
pub fn last_read(response: &etcd::TxnResponse) -> Option<&etcd::KeyValue> {
    response.responses.iter().rev().find_map(|answer| match &answer.response {
        Some(etcd::response_op::Response::ResponseRange(range)) => range.kvs.first(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(Span::prefix("/a/"), Span { from: b"/a/".to_vec(), to: b"/a0".to_vec() });
    }
}
