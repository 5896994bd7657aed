//! One request: callback to event, outcome to effect.

use crate::host::{self, Action};
use headgate_core::envoy;
use headgate_core::policy::ClaimName;
use headgate_core::request::{HeaderView, RequestInfo, VerifiedIdentity};
use headgate_core::stream::{Decision, Event, HeaderOp, Outcome, Stream, StreamEnd};
use headgate_core::time::Timestamp;
use headgate_core::worker::Worker;
use headgate_protos::plugin::AccessLog;

/// What to do for a request beyond its headers. Each costs a host call per request, so only what a policy in force needs.
#[derive(Default)]
pub(crate) struct Reads {
    spiffe: bool,
    /// Property paths, in the order of `Needs::jwt_claims`.
    claims: Vec<String>,
    endpoint: bool,
    failed_dependency: bool,
    /// The status as soon as it is known, for breakers; without one it is enough at the end.
    early_status: bool,
    /// Whether an admitted request gets a line for the access log.
    admitted_line: bool,
}

impl Reads {
    /// What the policies of `worker` need.
    pub(crate) fn of(worker: &Worker, access_log: AccessLog) -> Self {
        let needs = worker.needs();
        let claim_path =
            |claim: &ClaimName| format!("metadata\0filter_metadata\0envoy.filters.http.jwt_authn\0{}\0{}", claim.payload, claim.claim);
        Self {
            spiffe: needs.spiffe,
            claims: needs.jwt_claims.iter().map(claim_path).collect(),
            endpoint: needs.endpoint,
            failed_dependency: needs.failed_dependency,
            admitted_line: access_log == AccessLog::All,
            early_status: worker.policies().any(|policy| policy.breaker().is_some()),
        }
    }
}

/// One admitted request from its headers to its log.
pub(crate) struct Exchange {
    stream: Stream,
    has_status: bool,
    has_body: bool,
    /// The response was seen to its end.
    has_ended: bool,
    /// When, if that was its first piece.
    ended_at: Option<Timestamp>,
}

impl Exchange {
    /// Decides on the request whose headers are being read. `None`: there is nothing more to see of it.
    pub(crate) fn open(worker: &mut Worker, reads: &Reads, now: Timestamp, line: &mut String) -> (Option<Self>, Action) {
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
        let is_admitted = stream.summary().is_some_and(|summary| summary.decision == Decision::Admit);
        if is_admitted {
            return (Some(Self { stream, has_status: false, has_body: false, has_ended: false, ended_at: None }), action);
        }
        note(&stream, line);
        (None, action)
    }

    /// A piece of the response's body. Only the first says something: the time to first token.
    pub(crate) fn on_response_body(&mut self, worker: &mut Worker, reads: &Reads, len: usize, end_of_stream: bool) {
        self.has_ended |= end_of_stream;
        if self.has_body || len == 0 {
            return;
        }
        self.has_body = true;
        let now = host::now();
        self.ended_at = end_of_stream.then_some(now);
        // With a dependency's breaker the headers must be seen too, and here Envoy does not show them.
        if reads.early_status && !reads.failed_dependency {
            let status = host::property("response\0code").map_or(0, |code| envoy::code(&code));
            self.learn_status(worker, reads, now, status);
        }
        self.stream.handle(worker, now, Event::ResponseBody { len, end_of_stream });
    }

    /// The request is over; its decision goes to the access log by way of `line`.
    pub(crate) fn on_log(mut self, worker: &mut Worker, reads: &Reads, line: &mut String) {
        let now = self.ended_at.unwrap_or_else(host::now);
        if !self.has_status {
            let is_presumed_good = self.has_ended && !worker.looks_at_status(now);
            let text = if is_presumed_good { Ok(None) } else { host::response_header(":status").map(Some) };
            let _ = text.map(|text| self.learn_status(worker, reads, now, text.map_or(200, |text| envoy::status(&text))));
        }
        let endpoint = if reads.endpoint { host::property("upstream\0address").ok() } else { None };
        let end =
            if self.has_ended { StreamEnd::Complete } else { envoy::stream_end(&host::property("response\0flags").unwrap_or_default()) };
        self.stream.handle(worker, now, Event::Log { endpoint: endpoint.as_deref(), end });
        if reads.admitted_line {
            note(&self.stream, line);
        }
    }

    fn learn_status(&mut self, worker: &mut Worker, reads: &Reads, now: Timestamp, status: u16) {
        self.has_status = true;
        let dependency = if reads.failed_dependency { host::response_header("x-headgate-failed-dependency").ok() } else { None };
        // Its outcome would take the header away, for which it is too late here.
        self.stream.handle(worker, now, Event::ResponseHeaders { status, failed_dependency: dependency.as_deref() });
    }
}

/// Hands the decision to the access log; `line` is only a buffer.
fn note(stream: &Stream, line: &mut String) {
    if let Some(summary) = stream.summary() {
        line.clear();
        summary.write_to(line);
        let _ = host::set_filter_state("headgate", line.as_bytes());
    }
}

/// Carries an outcome of the request phase out.
fn apply(outcome: Outcome) -> Action {
    match outcome {
        Outcome::Continue => Action::Continue,
        Outcome::ContinueWith(changes) | Outcome::Wait(changes) => {
            for change in changes {
                // A header that cannot be changed is a host error, which `host` counts; the request goes on.
                let _ = match change {
                    HeaderOp::Set { name, value } => host::set_request_header(name, value.as_bytes()),
                    HeaderOp::Remove { name } => host::remove_request_header(&name),
                };
            }
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
