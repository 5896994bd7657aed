//! One request: callback to event, outcome to effect.

use crate::host::{self, Action};
use headgate_core::envoy;
use headgate_core::in_band::LoadSeen;
use headgate_core::needs::Needs;
use headgate_core::request::{HeaderView, RequestInfo, VerifiedIdentity};
use headgate_core::resume::Resumed;
use headgate_core::stream::{Event, Outcome, Stream, StreamEnd};
use headgate_core::time::Timestamp;
use headgate_core::worker::Worker;

/// What to do for a request beyond its headers.
#[derive(Default)]
pub(crate) struct Reads {
    pub(crate) needs: Needs,
    /// Whether an admitted request gets a line for the access log.
    pub(crate) admitted_line: bool,
}

/// One admitted request from its headers to its log.
#[derive(Default)]
pub(crate) struct Exchange {
    /// Index of the instance that decided.
    pub(crate) instance: usize,
    stream: Stream,
    /// The response was seen to its end.
    has_ended: bool,
    /// When, and of what length, if that was its first piece; its body is handled together with its end then.
    ended_at: Option<(Timestamp, usize)>,
    /// How it was continued, if it was held.
    pub(crate) resumed: Resumed,
}

impl Exchange {
    /// Decides on the request whose headers are being read. False: there is nothing more to see of it.
    pub(crate) fn open(&mut self, context: u32, worker: &mut Worker, reads: &Reads, now: Timestamp, line: &mut String) -> (bool, Action) {
        self.stream.restart(context);
        (self.has_ended, self.ended_at, self.resumed) = (false, None, Resumed::default());
        let bytes = host::request_headers().unwrap_or_default();
        let spiffe = if reads.needs.spiffe { host::property("connection\0uri_san_peer_certificate").ok() } else { None };
        let claims: Vec<_> = reads.needs.claim_paths.iter().map(|path| host::property(path).ok()).collect();
        let claims: Vec<_> = claims.iter().map(Option::as_deref).collect();
        let identity = VerifiedIdentity { spiffe: spiffe.as_deref(), jwt_claims: &claims };
        let info = read(&bytes, identity);
        #[cfg(feature = "fault-injection")]
        crate::fault::trap_if_asked(&info.headers);
        let mut action = match self.stream.handle(worker, now, Event::RequestHeaders(&info)) {
            Outcome::Continue => Action::Continue,
            outcome => apply(outcome),
        };
        // A proxy that would not let us come back to a request, since its configuration lacks the capability, must not hold one.
        if self.stream.is_waiting() && host::turn_to(context).is_err() {
            self.abandon(worker, now);
            action = Action::Continue;
        }
        let is_open = self.stream.is_open();
        if !is_open {
            self.end(Some(line));
        }
        (is_open, action)
    }

    /// The request has waited and has an answer: goes on, or is refused. The host's calls are about it.
    pub(crate) fn resume(&mut self, worker: &mut Worker, now: Timestamp, resumed: Resumed, line: &mut String) {
        self.resumed = resumed;
        let outcome = self.stream.release(worker, now);
        if matches!(apply(outcome), Action::Continue) {
            let _ = host::continue_request();
        }
        if !self.stream.is_open() {
            self.end(Some(line));
        }
    }

    /// The request is gone without a log.
    pub(crate) fn abandon(&mut self, worker: &mut Worker, now: Timestamp) {
        self.stream.observe(worker, now, Event::Log { endpoint: None, end: StreamEnd::ByClient });
        self.end(None);
    }

    /// A piece of the response's body. The first says the time to first token, the number of the others how long the output is.
    pub(crate) fn on_response_body(&mut self, worker: &mut Worker, reads: &Reads, len: usize, end_of_stream: bool) {
        self.has_ended |= end_of_stream;
        if len == 0 || self.ended_at.is_some() {
            return;
        }
        self.stream.look_at_piece(|size| host::body_tail(len, size));
        if !self.stream.awaits_first_byte() {
            return self.stream.count_pieces(1, len as u64);
        }
        let now = host::now();
        // With a dependency's breaker the headers must be seen too, and here Envoy does not show them.
        if reads.needs.early_status && !reads.needs.failed_dependency {
            self.learn_status(worker, reads, now, host::property("response\0code").map_or(0, |code| envoy::code(&code)));
        }
        if end_of_stream {
            self.ended_at = Some((now, len));
        } else {
            self.stream.observe(worker, now, Event::ResponseBody { len, end_of_stream });
            self.stream.learn_load(worker, now, LoadSeen::AtFirstByte, host::engine_load);
        }
    }

    /// The request is over; its decision goes to the access log by way of `line`.
    pub(crate) fn on_log(&mut self, worker: &mut Worker, reads: &Reads, line: &mut String) {
        let now = self.ended_at.map_or_else(host::now, |(at, _)| at);
        let is_presumed_good = !self.stream.has_status() && self.has_ended && !worker.looks_at_status(now);
        if !(is_presumed_good && self.ended_at.is_some() && self.stream.end_whole(worker, now)) {
            self.end_by_steps(worker, reads, now, is_presumed_good);
        }
        self.end(if reads.admitted_line { Some(line) } else { None });
    }

    #[inline(never)]
    fn end_by_steps(&mut self, worker: &mut Worker, reads: &Reads, now: Timestamp, is_presumed_good: bool) {
        if let Some((_, len)) = self.ended_at {
            self.stream.observe(worker, now, Event::ResponseBody { len, end_of_stream: true });
        }
        if !self.stream.has_status() {
            let text = if is_presumed_good { Ok(None) } else { host::response_header(":status").map(Some) };
            let _ = text.map(|text| self.learn_status(worker, reads, now, text.map_or(200, |text| envoy::status(&text))));
        }
        self.stream.learn_load(worker, now, LoadSeen::AtEnd, host::engine_load);
        let endpoint = if reads.needs.endpoint { host::property("upstream\0address").ok() } else { None };
        let end =
            if self.has_ended { StreamEnd::Complete } else { envoy::stream_end(&host::property("response\0flags").unwrap_or_default()) };
        self.stream.observe(worker, now, Event::Log { endpoint: endpoint.as_deref(), end });
    }

    fn learn_status(&mut self, worker: &mut Worker, reads: &Reads, now: Timestamp, status: u16) {
        let status = envoy::engine_status(status, || host::property("response\0code_details").unwrap_or_default());
        let dependency = if reads.needs.failed_dependency { host::failed_dependency() } else { None };
        self.stream.observe(worker, now, Event::ResponseHeaders { status, failed_dependency: dependency.as_deref() });
    }

    /// Hands the decision to the access log if there is a buffer for it. The place is kept for another request, the policy is not.
    fn end(&mut self, line: Option<&mut String>) {
        if let Some(line) = line
            && self.stream.write_line(line)
        {
            let _ = host::set_filter_state("headgate", line.as_bytes());
        }
        self.stream.clear();
    }
}

/// What the host's bytes say of a request. A function of its own: its loop over the headers needs every register.
#[inline(never)]
fn read<'a>(headers: &'a [u8], identity: VerifiedIdentity<'a>) -> RequestInfo<'a> {
    HeaderView::from_serialized(headers).map_or_else(RequestInfo::unreadable, |headers| RequestInfo::new(headers, identity))
}

/// Carries an outcome of the request phase out.
#[inline(never)]
fn apply(outcome: Outcome) -> Action {
    match outcome {
        Outcome::Continue => Action::Continue,
        Outcome::ContinueWith(changes) => host::change_request_headers(&changes, Action::Continue),
        Outcome::Wait(changes) => host::change_request_headers(&changes, Action::Pause),
        Outcome::Reply(reply) => host::reply(&reply).map_or(Action::Continue, |()| Action::Pause),
    }
}
