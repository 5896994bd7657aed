//! One request from its headers to its access log.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::request::RequestInfo;
use crate::time::Timestamp;
use crate::worker::Worker;

/// What happened to a request.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// The request's headers are there.
    RequestHeaders(&'a RequestInfo<'a>),
    /// The response's headers are there, from the upstream or from Envoy itself.
    ResponseHeaders {
        /// HTTP status.
        status: u16,
        /// Value of `x-headgate-failed-dependency`.
        failed_dependency: Option<&'a [u8]>,
    },
    /// A piece of the response's body.
    ResponseBody {
        /// Its length, in bytes.
        len: usize,
        /// Whether it is the last.
        end_of_stream: bool,
    },
    /// The request is over.
    Log {
        /// Address of the upstream endpoint, when one was chosen.
        endpoint: Option<&'a [u8]>,
        /// How it ended.
        end: StreamEnd,
    },
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// The response was sent to its end, or none came.
    Complete,
    /// The client went away first (response flag `DC`).
    ByClient,
    /// The upstream broke off (response flags `UF`, `UC`, `UR`, `LR`, `UT`, `UPE`).
    ByUpstream,
}

/// What the adapter does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Let the request or response go on as it is.
    Continue,
    /// Change its headers, then let it go on.
    ContinueWith(Vec<HeaderOp>),
    /// Answer it.
    Reply(Reply),
}

/// A change of one header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderOp {
    /// Set it, replacing every value it has.
    Set {
        /// Name, in lower case.
        name: &'static str,
        /// Value.
        value: String,
    },
    /// Remove it.
    Remove {
        /// Name as it was received.
        name: Vec<u8>,
    },
}

/// An answer in place of the upstream's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers besides those that Envoy adds.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: Vec<u8>,
    /// Response code details for the access log.
    pub details: &'static str,
}

/// One request.
#[derive(Debug, Default)]
pub struct Stream {}

impl Stream {
    /// A request of which nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one event and says what to do. Once the request is over, every later event changes nothing.
    pub fn handle(&mut self, worker: &mut Worker, now: Timestamp, event: Event<'_>) -> Outcome {
        let _ = (worker, now, event);
        Outcome::Continue
    }

    /// The decision for the access log; `None` when no policy governs the request.
    #[must_use]
    pub fn summary(&self) -> Option<Summary<'_>> {
        None
    }
}

/// A decision as the access log shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary<'a> {
    /// Class.
    pub class: &'a str,
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.class)
    }
}
