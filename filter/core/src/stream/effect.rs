//! What a decision does to a request's headers, and to the request.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{FAILED_DEPENDENCY_HEADER, HeaderOp, HeaderOps, Outcome};
use crate::admission::{Dues, Passes};
use crate::envoy::DESTINATION_ENDPOINT;
use crate::policy::{Fallback, Policy, RungKind};
use crate::reason::Cause;
use crate::refusal;
use crate::request::{OWN_HEADER_PREFIX, RequestInfo};

/// Header on which Envoy routes to another pool.
const POOL_HEADER: &str = "x-headgate-pool";

/// What the rung of the ladder at this position does to a request.
#[inline(never)]
pub(super) fn degrade(policy: &Policy, rung: usize, mut headers: HeaderOps) -> Outcome {
    headers.extend(policy.overload().and_then(|config| degraded_header(&config.ladder.get(rung)?.kind)));
    continue_with(headers)
}

fn degraded_header(kind: &RungKind) -> Option<HeaderOp> {
    match kind {
        RungKind::SwitchModel(pool) => Some(HeaderOp::Set { name: POOL_HEADER, value: pool.as_str().into() }),
        RungKind::CacheFirst => Some(only_if_cached()),
        RungKind::CapMaxTokens(_) | RungKind::DropFeatures | RungKind::Delay(_) => None,
    }
}

/// RFC 9111 section 5.2.1.7: a cache answers 504 when it has nothing stored.
fn only_if_cached() -> HeaderOp {
    HeaderOp::Set { name: "cache-control", value: Arc::from("only-if-cached") }
}

// Apart from here on: what few requests need is kept out of the code of those that are just admitted.

/// Removal of every header that only Headgate may set, once for each name.
#[inline]
pub(super) fn forged_headers(request: &RequestInfo<'_>) -> HeaderOps {
    if request.has_forged_headers { removals(request) } else { HeaderOps::default() }
}

#[inline(never)]
fn removals(request: &RequestInfo<'_>) -> HeaderOps {
    let mut names: Vec<&[u8]> = request.headers.iter().map(|(name, _)| name).filter(|name| name.starts_with(OWN_HEADER_PREFIX)).collect();
    crate::shellsort::ascending(&mut names);
    names.dedup();
    names.into_iter().map(|name| HeaderOp::Remove { name: Vec::from(name) }).collect()
}

#[inline]
pub(super) fn continue_with(headers: HeaderOps) -> Outcome {
    if headers.is_empty() { Outcome::Continue } else { Outcome::ContinueWith(headers) }
}

#[inline]
pub(super) fn without_dependency_header(failed_dependency: Option<&[u8]>) -> Outcome {
    if failed_dependency.is_none() { Outcome::Continue } else { dependency_header_removed() }
}

#[inline(never)]
fn dependency_header_removed() -> Outcome {
    Outcome::ContinueWith(alloc::vec![HeaderOp::Remove { name: Vec::from(FAILED_DEPENDENCY_HEADER.as_bytes()) }].into())
}

/// Removal of a destination that the client has named: where the cluster follows the header, it is ours to choose.
#[inline(never)]
pub(super) fn forged_destination(request: &RequestInfo<'_>) -> Option<HeaderOp> {
    let name = DESTINATION_ENDPOINT.as_bytes();
    request.headers.first(name).map(|_| HeaderOp::Remove { name: Vec::from(name) })
}

/// What an admitted request carries to the pool: that it goes past an open breaker, and the engine that was picked for it.
#[inline]
pub(super) fn note_admission(headers: &mut HeaderOps, passes: Passes, dues: &Dues) {
    if passes.is_direct {
        note_direct(headers);
    }
    if let Dues::Work(held) = dues
        && let Some(pick) = &held.pick
    {
        headers.push(HeaderOp::Set { name: DESTINATION_ENDPOINT, value: pick.address() });
    }
}

#[inline(never)]
fn note_direct(headers: &mut HeaderOps) {
    headers.push(HeaderOp::Set { name: "x-headgate-fallback", value: Arc::from("direct") });
}

/// What the fallback of an open breaker does with the request.
#[inline(never)]
pub(super) fn divert(policy: &Policy, cause: &Cause, mut headers: HeaderOps) -> Outcome {
    match policy.breaker().and_then(|config| config.fallback.as_ref()) {
        Some(Fallback::StaticReply(reply)) => return Outcome::Reply(refusal::static_reply(policy, reply, cause)),
        Some(Fallback::CacheOnly) => headers.push(only_if_cached()),
        Some(Fallback::OtherPool(name)) => headers.push(HeaderOp::Set { name: POOL_HEADER, value: name.as_str().into() }),
        Some(Fallback::Direct) | None => {}
    }
    continue_with(headers)
}
