//! Open-loop load over HTTP/1.1: requests leave when the clock says so, whether or not earlier ones have been answered.
//!
//! Latency counts from the scheduled time, so a slow server cannot hide behind a client that waits for it. The load runs on a thread of
//! its own and does not share a runtime with what watches it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;

mod arrivals;
mod connections;
mod recorder;
mod saturate;
mod sender;

pub use self::arrivals::{Arrivals, Pace, Segment};
pub use self::recorder::{ClassReport, Kind, Outcome, Report};
pub use self::saturate::{Saturation, saturate};

use self::recorder::Recorder;

/// What is sent, to whom, for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to.
    pub target: SocketAddr,
    /// Seed of every random choice; the same seed gives the same arrivals.
    pub seed: u64,
    /// One entry per stream of requests; entries of the same class are reported together.
    pub traffic: Vec<Traffic>,
    /// Most requests in flight over all classes. What the schedule asks for beyond it is not sent and counts as `overrun`.
    pub max_in_flight: u32,
    /// Longest that one request may take; then it has failed.
    pub request_timeout: Duration,
    /// Longest time to the first byte of the body, when that is shorter; then the client goes away and the request has failed.
    pub first_byte_timeout: Option<Duration>,
    /// Response header that names the worker that answered, when there is one; otherwise workers are told apart by connection.
    pub worker_header: Option<&'static str>,
}

impl Plan {
    /// When the requests of the traffic at `index` leave, since the start: what [`Load`] does, for who plays the same load elsewhere.
    pub fn schedule(&self, index: usize) -> impl Iterator<Item = Duration> + use<> {
        // Streams with the same seed would all arrive at the same instants.
        let seed = self.seed.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        self.traffic.get(index).map(|traffic| traffic.arrivals.times(seed)).into_iter().flatten()
    }
}

/// One stream of requests.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// Under which name it is reported.
    pub class: String,
    /// What is sent.
    pub request: Template,
    /// When.
    pub arrivals: Arrivals,
}

/// A request to send many times.
#[derive(Clone, Debug)]
pub struct Template {
    /// Its method.
    pub method: http::Method,
    /// Path and query.
    pub path: String,
    /// Its headers; `host` and `content-length` are added.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Bytes,
}

impl Template {
    /// `GET path`.
    #[must_use]
    pub fn get(path: &str) -> Self {
        Self { method: http::Method::GET, path: path.to_owned(), headers: Vec::new(), body: Bytes::new() }
    }

    /// `POST path` with a JSON body.
    #[must_use]
    pub fn post_json(path: &str, body: &serde_json::Value) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Self { method: http::Method::POST, path: path.to_owned(), headers, body: Bytes::from(body.to_string()) }
    }

    /// With one header more.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A load that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug)]
struct Shared {
    plan: Plan,
    started: Instant,
    stop: AtomicBool,
    in_flight: AtomicU32,
    recorder: Mutex<Recorder>,
}

impl Shared {
    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        // A panic elsewhere does not make the counts wrong.
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no further request is to be sent.
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Load {
    /// Starts sending.
    ///
    /// # Errors
    /// When a template is no valid request or the thread cannot be started.
    pub fn start(plan: Plan) -> Result<Self> {
        for traffic in &plan.traffic {
            sender::build(&plan, &traffic.request).with_context(|| format!("the request of class {}", traffic.class))?;
        }
        let recorder = Mutex::new(Recorder::new(plan.traffic.iter().map(|traffic| traffic.class.clone())));
        let shared = Shared { plan, started: Instant::now(), stop: AtomicBool::new(false), in_flight: AtomicU32::new(0), recorder };
        let shared = Arc::new(shared);
        let owned = Arc::clone(&shared);
        let thread = thread::Builder::new().name("load".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            tokio::task::LocalSet::new().block_on(&runtime, sender::run(owned));
            Ok(())
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// When the first request could leave: the zero of every [`Outcome`]'s times.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.shared.started
    }

    /// The counts so far.
    #[must_use]
    pub fn report(&self) -> Report {
        self.shared.recorder().report(self.shared.started.elapsed())
    }

    /// Outcomes number `from` and later, in the order in which they became known.
    #[must_use]
    pub fn outcomes(&self, from: usize) -> Vec<Outcome> {
        self.shared.recorder().outcomes(from)
    }

    /// Whether the schedule has ended and every request has been answered.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the schedule's end and for the last answers, then returns all counts.
    ///
    /// # Errors
    /// When the load's own thread has failed.
    pub async fn finish(mut self) -> Result<Report> {
        let thread = self.thread.take();
        tokio::task::spawn_blocking(move || join(thread)).await??;
        Ok(self.report())
    }

    /// Sends no further request, waits for the last answers, then returns all counts.
    ///
    /// # Errors
    /// When the load's own thread has failed.
    pub async fn stop(self) -> Result<Report> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.finish().await
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Whoever drops a load no longer asks how it went.
        let _ = join(self.thread.take());
    }
}

fn join(thread: Option<JoinHandle<Result<()>>>) -> Result<()> {
    thread.map_or(Ok(()), |thread| thread.join().map_err(|_| anyhow!("the load's thread has panicked"))?)
}

/// The counts of one class of [`Report::classes`] by name, for tests that know it is there.
///
/// # Errors
/// When there is no such class.
pub fn class<'a>(classes: &'a BTreeMap<String, ClassReport>, name: &str) -> Result<&'a ClassReport> {
    classes.get(name).with_context(|| format!("no class {name} in the report"))
}

#[cfg(test)]
mod tests;
