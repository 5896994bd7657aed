//! One request: callback to event, outcome to effect.

use crate::host::{self, Action, Headers};
use headgate_core::envoy;
use headgate_core::policy::ClaimName;
use headgate_core::request::{HeaderView, RequestInfo, VerifiedIdentity};
use headgate_core::stream::{Event, HeaderOp, Outcome, Stream, StreamEnd};
use headgate_core::time::Timestamp;
use headgate_core::worker::Worker;
use std::fmt::Write;

/// What to read of a request besides its headers. Each costs a host call per request, so only what a policy in force needs.
#[derive(Default)]
pub(crate) struct Reads {
    spiffe: bool,
    /// Property paths, in the order of `Needs::jwt_claims`.
    claims: Vec<String>,
    endpoint: bool,
    failed_dependency: bool,
    /// The status as soon as it is known, for breakers; without one it is enough at the end.
    early_status: bool,
}

impl Reads {
    /// What the policies of `worker` need.
    pub(crate) fn of(worker: &Worker) -> Self {
        let needs = worker.needs();
        let claim_path =
            |claim: &ClaimName| format!("metadata\0filter_metadata\0envoy.filters.http.jwt_authn\0{}\0{}", claim.payload, claim.claim);
        Self {
            spiffe: needs.spiffe,
            claims: needs.jwt_claims.iter().map(claim_path).collect(),
            endpoint: needs.endpoint,
            failed_dependency: needs.failed_dependency,
            early_status: worker.policies().any(|policy| policy.breaker().is_some()),
        }
    }
}

/// One request from its headers to its log.
pub(crate) struct Exchange {
    stream: Stream,
    /// Answered here; Envoy shows us our own reply as if it came from the upstream.
    is_ours: bool,
    has_status: bool,
    has_body: bool,
    /// The response was seen to its end.
    has_ended: bool,
}

impl Exchange {
    /// Decides on the request whose headers are being read.
    pub(crate) fn open(worker: &mut Worker, reads: &Reads, now: Timestamp) -> (Self, Action) {
        let mut stream = Stream::new();
        let bytes = host::request_headers().unwrap_or_default();
        let spiffe = if reads.spiffe { host::property("connection\0uri_san_peer_certificate").ok() } else { None };
        let claims: Vec<_> = reads.claims.iter().map(|path| host::property(path).ok()).collect();
        let claims: Vec<_> = claims.iter().map(Option::as_deref).collect();
        let identity = VerifiedIdentity { spiffe: spiffe.as_deref(), jwt_claims: &claims };
        let info = HeaderView::from_serialized(&bytes).map_or(RequestInfo::unreadable(), |headers| RequestInfo::new(headers, identity));
        #[cfg(feature = "fault-injection")]
        crate::fault::trap_if_asked(&info.headers);
        let action = apply(stream.handle(worker, now, Event::RequestHeaders(&info)));
        (Self { stream, is_ours: matches!(action, Action::Pause), has_status: false, has_body: false, has_ended: false }, action)
    }

    /// The response's headers are there. Envoy need not call this: the status is learned later then, for a VM entry less per request.
    pub(crate) fn on_response_headers(&mut self, worker: &mut Worker, reads: &Reads, end_of_stream: bool) {
        self.has_ended |= end_of_stream;
        if !self.is_ours {
            let status = host::response_header(":status").map_or(0, |text| envoy::status(&text));
            if let Outcome::ContinueWith(changes) = self.learn_status(worker, reads, host::now(), status) {
                change_headers(Headers::Response, changes);
            }
        }
    }

    /// A piece of the response's body. Only the first says something: the time to first token.
    pub(crate) fn on_response_body(&mut self, worker: &mut Worker, reads: &Reads, len: usize, end_of_stream: bool) {
        self.has_ended |= end_of_stream;
        if self.is_ours || self.has_body || len == 0 {
            return;
        }
        self.has_body = true;
        let now = host::now();
        // With a dependency's breaker the headers must be seen too, and here Envoy does not show them.
        if !self.has_status && reads.early_status && !reads.failed_dependency {
            let status = host::property("response\0code").map_or(0, |code| envoy::code(&code));
            self.learn_status(worker, reads, now, status);
        }
        self.stream.handle(worker, now, Event::ResponseBody { len, end_of_stream });
    }

    /// The request is over; writes its decision into `line`, empty if no policy governs it.
    pub(crate) fn on_log(mut self, worker: &mut Worker, reads: &Reads, line: &mut String) {
        let now = host::now();
        if !self.has_status && !self.is_ours {
            let status = host::response_header(":status").map_or(0, |text| envoy::status(&text));
            if status > 0 {
                self.learn_status(worker, reads, now, status);
            }
        }
        let endpoint = if reads.endpoint && !self.is_ours { host::property("upstream\0address").ok() } else { None };
        let is_whole = self.has_ended || self.is_ours;
        let end = if is_whole { StreamEnd::Complete } else { envoy::stream_end(&host::property("response\0flags").unwrap_or_default()) };
        self.stream.handle(worker, now, Event::Log { endpoint: endpoint.as_deref(), end });
        line.clear();
        if let Some(summary) = self.stream.summary() {
            // Writing to a string cannot fail.
            let _ = write!(line, "{summary}");
        }
    }

    fn learn_status(&mut self, worker: &mut Worker, reads: &Reads, now: Timestamp, status: u16) -> Outcome {
        self.has_status = true;
        let dependency = if reads.failed_dependency { host::response_header("x-headgate-failed-dependency").ok() } else { None };
        self.stream.handle(worker, now, Event::ResponseHeaders { status, failed_dependency: dependency.as_deref() })
    }
}

/// Carries an outcome of the request phase out.
fn apply(outcome: Outcome) -> Action {
    match outcome {
        Outcome::Continue => Action::Continue,
        Outcome::ContinueWith(changes) => {
            change_headers(Headers::Request, changes);
            Action::Continue
        }
        Outcome::Reply(reply) => {
            let headers: Vec<_> = reply.headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
            match host::reply(reply.status, reply.details, &headers, &reply.body) {
                Ok(()) => Action::Pause,
                Err(_) => Action::Continue,
            }
        }
    }
}

/// A header that cannot be changed is a host error, which `host` counts; the request goes on.
fn change_headers(headers: Headers, changes: Vec<HeaderOp>) {
    for change in changes {
        let _ = match change {
            HeaderOp::Set { name, value } => host::set_header(headers, name, value.as_bytes()),
            HeaderOp::Remove { name } => host::remove_header(headers, &name),
        };
    }
}
