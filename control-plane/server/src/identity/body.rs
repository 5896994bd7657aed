//! Bodies of calls: bounds on the messages of the caller, and what ends with the answer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::{Code, Status};

use super::audit::{Entry, Outcome};
use super::caller::{Caller, shortened};
use super::frames::FrameReader;
use super::rates::Slot;

/// Messages of one stream in a second, in the long run and at once. A proxy sends some tens.
const MESSAGES_PER_S: f64 = 2000.0;
const MESSAGES_AT_ONCE: f64 = 10_000.0;

/// What is wrong with the messages of one call goes to the audit log.
#[derive(Clone)]
pub(super) struct Complaints {
    caller: Caller,
    call: Arc<str>,
}

/// The messages of a caller, none longer than allowed, and not too many of them. The bound is checked when the length is read, before
/// anything of the message is kept.
pub(super) struct BoundedMessages {
    inner: Body,
    max_bytes: usize,
    complaints: Complaints,
    frames: FrameReader,
    messages_left: f64,
    seen_at: Instant,
}

/// When an answer is cut off, and what its caller is told then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The caller's token has expired.
    Expired(Instant),
    /// The connection is to be replaced.
    Moved(Instant),
}

/// An answer, with its place among the peer's open calls, cut off at its end at the latest.
pub(super) struct HeldAnswer {
    inner: Body,
    complaints: Complaints,
    _slot: Option<Slot>,
    ends: Option<(Pin<Box<Sleep>>, End)>,
    has_ended: bool,
}

// === impl Complaints ===

impl Complaints {
    pub(super) fn new(caller: Caller, call: &str) -> Self {
        Self { caller, call: shortened(call).into() }
    }

    fn record(&self, status: &Status) {
        let (call, reason) = (Some(&*self.call), Some(shortened(status.message())));
        self.caller.audit(&Entry { action: "message", outcome: Outcome::Refused, call, reason, ..Entry::default() });
    }

    /// Records an answer that says that a message could not be read: a server's INTERNAL, by gRPC's own list of codes.
    pub(super) fn look_at(&self, answer: &HeaderMap) {
        if let Some(status) = Status::from_header_map(answer)
            && status.code() == Code::Internal
        {
            self.record(&status);
        }
    }
}

// === impl BoundedMessages ===

impl BoundedMessages {
    pub(super) fn new(inner: Body, max_bytes: usize, complaints: Complaints) -> Self {
        let (frames, seen_at) = (FrameReader::default(), Instant::now());
        Self { inner, max_bytes, complaints, frames, messages_left: MESSAGES_AT_ONCE, seen_at }
    }

    fn check(&mut self, bytes: &[u8], now: Instant) -> Result<(), Status> {
        let (began, longest) = self.frames.read(bytes);
        if longest > self.max_bytes {
            return Err(Status::resource_exhausted(format!("a message of {longest} bytes is longer than {}", self.max_bytes)));
        }
        let since = now.saturating_duration_since(self.seen_at).as_secs_f64();
        self.seen_at = now;
        self.messages_left = (self.messages_left + since * MESSAGES_PER_S).min(MESSAGES_AT_ONCE) - began as f64;
        if self.messages_left < 0.0 {
            return Err(Status::resource_exhausted(format!("more than {MESSAGES_PER_S} messages a second on one stream")));
        }
        Ok(())
    }
}

impl HttpBody for BoundedMessages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(status) = self.check(data, Instant::now())
        {
            self.complaints.record(&status);
            return Poll::Ready(Some(Err(status)));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
}

// === impl End ===

impl End {
    const fn at(self) -> Instant {
        match self {
            Self::Expired(at) | Self::Moved(at) => at,
        }
    }

    fn status(self) -> Status {
        match self {
            Self::Expired(_) => Status::unauthenticated("the token has expired; call again with a new one"),
            Self::Moved(_) => Status::unavailable("the connection is old; call again on a new one"),
        }
    }
}

// === impl HeldAnswer ===

impl HeldAnswer {
    /// An answer that ends at the first of `ends` at the latest.
    pub(super) fn new(inner: Body, complaints: Complaints, slot: Option<Slot>, ends: [Option<End>; 2]) -> Self {
        let first = ends.into_iter().flatten().min_by_key(|end| end.at());
        let ends = first.map(|end| (Box::pin(tokio::time::sleep_until(end.at().into())), end));
        Self { inner, complaints, _slot: slot, ends, has_ended: false }
    }
}

impl HttpBody for HeldAnswer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        if let Some((sleep, end)) = &mut self.ends
            && sleep.as_mut().poll(context).is_ready()
        {
            let mut trailers = HeaderMap::new();
            // The text is plain ASCII, so this cannot fail; a body without trailers would end the call all the same.
            let _ = end.status().add_header(&mut trailers);
            self.has_ended = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        if let Some(trailers) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.trailers_ref()) {
            self.complaints.look_at(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended || self.inner.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::super::audit::Audit;
    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        bytes.extend(message);
        bytes
    }

    fn bounded() -> BoundedMessages {
        BoundedMessages::new(Body::default(), 10, Complaints::new(Caller::itself(Audit::without_file()), "/a.B/C"))
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_the_message_comes() {
        let mut body = bounded();
        let now = Instant::now();
        assert!(body.check(&framed(&[0; 10]), now).is_ok());
        assert_eq!(body.check(&[0, 255, 255, 255, 255], now).unwrap_err().code(), tonic::Code::ResourceExhausted);
    }

    #[test]
    fn a_flood_of_messages_is_refused_and_a_steady_stream_is_not() {
        let mut flood = bounded();
        let now = Instant::now();
        let many = framed(b"").repeat(10_000);
        assert!(flood.check(&many, now).is_ok());
        assert_eq!(flood.check(&framed(b""), now).unwrap_err().code(), tonic::Code::ResourceExhausted);
        let mut steady = bounded();
        for second in 0..60 {
            assert!(steady.check(&framed(b"").repeat(1900), now + std::time::Duration::from_secs(second)).is_ok());
        }
    }
}
