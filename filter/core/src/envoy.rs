//! What Envoy's own values mean.

use alloc::format;
use alloc::string::String;
use core::ops::Deref;

use crate::policy::ClaimName;
use crate::stream::StreamEnd;

/// Downstream connection termination, downstream remote reset: bits of `CoreResponseFlag`.
const BY_CLIENT: u64 = 1 << 14 | 1 << 28;
/// Upstream request timeout, local reset, remote reset, connection failure, connection termination, protocol error.
const BY_UPSTREAM: u64 = 0b111_1100 | 1 << 23;

/// Request header that names the endpoint, `IP:PORT`, to which Envoy's `override_host` sends the request.
///
/// Source: the Gateway API inference extension, proposal 004 (endpoint picker protocol).
pub const DESTINATION_ENDPOINT: &str = "x-gateway-destination-endpoint";

/// The property that holds a claim of a verified JWT; its parts are separated by NUL.
#[must_use]
pub fn claim_path(claim: &ClaimName) -> String {
    let ClaimName { payload, claim } = claim;
    format!("metadata\0filter_metadata\0envoy.filters.http.jwt_authn\0{payload}\0{claim}")
}

/// Who ended a response that was not seen to its end, by the property `response.flags`: 8 bytes, little-endian.
///
/// Source: Envoy `source/common/stream_info/response_flag.h` (`CoreResponseFlag`), the same from 1.36 to 1.40.
#[must_use]
pub fn stream_end(flags: &[u8]) -> StreamEnd {
    let flags = flags.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    if flags & BY_CLIENT != 0 {
        StreamEnd::ByClient
    } else if flags & BY_UPSTREAM != 0 {
        StreamEnd::ByUpstream
    } else {
        StreamEnd::Complete
    }
}

/// The status of the pseudo-header `:status`; 0 for anything but three digits.
#[must_use]
pub fn status(text: &[u8]) -> u16 {
    match text {
        [b'0'..=b'9', b'0'..=b'9', b'0'..=b'9'] => text.iter().fold(0, |number, digit| number * 10 + u16::from(*digit - b'0')),
        _ => 0,
    }
}

/// The status of the property `response.code`: 8 bytes, little-endian; 0 for anything else.
#[must_use]
pub fn code(bytes: &[u8]) -> u16 {
    <[u8; 8]>::try_from(bytes).ok().and_then(|bytes| u16::try_from(u64::from_le_bytes(bytes)).ok()).unwrap_or(0)
}

/// `status` as far as the engine goes. A 503 that Envoy made itself, as for an engine that it could not reach, is no refusal of the engine's
/// and says nothing of its load: it is the 502 of a gateway without an answer. `details` reads the property `response.code_details`, which is
/// `via_upstream` for what came from the engine; where it says nothing, the engine is taken to have answered.
pub fn engine_status<D: Deref<Target = [u8]>>(status: u16, details: impl FnOnce() -> D) -> u16 {
    let is_envoys = status == 503 && !matches!(&*details(), b"" | b"via_upstream");
    if is_envoys { 502 } else { status }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_left_is_told_from_an_upstream_that_broke_off() {
        let end = |bit: u32| stream_end(&(1_u64 << bit).to_le_bytes());
        assert_eq!([end(14), end(28)], [StreamEnd::ByClient; 2]);
        assert_eq!([end(2), end(4), end(6), end(23)], [StreamEnd::ByUpstream; 4]);
        assert_eq!([end(0), end(1), stream_end(b"")], [StreamEnd::Complete; 3]);
    }

    #[test]
    fn a_503_that_no_engine_said_is_none_of_an_engine() {
        let of = |status, details: &'static str| engine_status(status, || details.as_bytes());
        assert_eq!(of(503, "upstream_reset_before_response_started{connection_failure}"), 502);
        assert_eq!([of(503, "via_upstream"), of(503, ""), of(429, "request_rate_limited")], [503, 503, 429]);
        assert_eq!(engine_status(200, || -> &[u8] { unreachable!("nothing is read for it") }), 200);
    }

    #[test]
    fn only_three_digits_are_a_status() {
        assert_eq!([status(b"200"), status(b"099"), status(b"20"), status(b"2000"), status(b"2 0")], [200, 99, 0, 0, 0]);
        assert_eq!([code(&503_u64.to_le_bytes()), code(&u64::MAX.to_le_bytes()), code(b"200")], [503, 0, 0]);
    }
}
