//! `headgate agent`: the devices of one node, streamed to the control plane.
//!
//! One thread asks the driver, one task sends. What finds no room is dropped, for only the newest sample decides anything; the epoch
//! shows the gap. After any failure the stream begins anew with everything, sooner at first and later and later then, each agent at a
//! moment of its own.

use std::io;
use std::time::Duration;

use headgate_core::rng::Rng;
use headgate_protos::v1;
use headgate_protos::v1::device_reporting_client::DeviceReportingClient;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use crate::clock::{Clock, unix_ms};
use crate::config::DeviceOrigin;
use crate::device::tape::TapeError;
use crate::device::wire::Encoder;
use crate::device::{self, DeviceState, Sampler, SamplerControl};

/// Messages that wait for the network before new ones are dropped: 0.8 s at 10 Hz.
const BUFFER: usize = 8;
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Silence of the control plane after which the stream is given up: it answers every second.
const SILENCE: Duration = Duration::from_secs(5);
/// First wait after a stream has broken, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3));
/// Round trips of which the shortest counts.
const ROUND_TRIPS: usize = 16;

/// What an agent is told.
pub struct AgentConfig {
    /// Address of the control plane's gRPC listener.
    pub server: Endpoint,
    /// How it is reached: plainly or by TLS.
    pub connector: HttpsConnector<HttpConnector>,
    /// The `authorization` of a stream, asked for anew each time.
    pub token: Box<dyn Fn() -> Option<MetadataValue<Ascii>> + Send + Sync>,
    /// Name of the node.
    pub node: String,
    /// Pools that its devices serve; empty: every pool.
    pub pools: Vec<String>,
    /// Who answers for the devices.
    pub devices: DeviceOrigin,
}

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The recording of GPUs cannot be used.
    #[error("--device-tape: {0}")]
    Tape(#[from] TapeError),
    /// The system gives no thread.
    #[error("cannot start the sampling thread: {0}")]
    Thread(#[from] io::Error),
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("cannot connect: {0}")]
    Connect(#[from] tonic::transport::Error),
    #[error("{}: {}", .0.code(), .0.message())]
    Refused(#[from] Box<Status>),
    #[error("no answer for {} s", SILENCE.as_secs())]
    Silence,
    #[error("the control plane has ended the stream")]
    Ended,
    #[error("the sampling thread has ended")]
    NoSampler,
}

/// What does not change while the agent runs.
struct Agent {
    config: AgentConfig,
    clock: Clock,
    states: watch::Receiver<std::sync::Arc<DeviceState>>,
    sampler: SamplerControl,
    run: u64,
}

/// Streams the node's devices until `shutdown`.
///
/// # Errors
/// [`AgentError`] when it cannot begin; a control plane that does not answer is no error, it is tried again.
pub async fn run(config: AgentConfig, shutdown: CancellationToken) -> Result<(), AgentError> {
    let clock = Clock::start();
    let sampler = Sampler::start(device::open(&config.devices)?.source, clock)?;
    let run = unix_ms().wrapping_mul(1_000_003) ^ u64::from(std::process::id());
    let mut rng = Rng::new(config.node.bytes().fold(run, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte))));
    let agent = Agent { config, clock, states: sampler.state(), sampler: sampler.control(), run };
    let mut wait = BACKOFF.0;
    loop {
        let began = Instant::now();
        let error = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            error = agent.stream() => error,
        };
        if began.elapsed() >= BACKOFF.1 {
            wait = BACKOFF.0;
        }
        tracing::warn!(server = %agent.config.server.uri(), %error, "the stream of device samples broke; it begins anew");
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait.mul_f64(0.5 + rng.next_f64())) => {}
        }
        wait = (wait * 2).min(BACKOFF.1);
    }
}

// === impl Agent ===

impl Agent {
    /// One stream, until it breaks.
    async fn stream(&self) -> StreamError {
        match self.try_stream().await {
            Ok(never) => never,
            Err(error) => error,
        }
    }

    async fn try_stream(&self) -> Result<StreamError, StreamError> {
        let endpoint = self.config.server.clone().connect_timeout(CONNECT_TIMEOUT);
        let channel = endpoint.connect_with_connector(self.config.connector.clone()).await?;
        let states = self.states.clone();
        let node = self.node(&states.borrow());
        let open = async |reports| {
            let mut request = Request::new(reports);
            if let Some(token) = (self.config.token)() {
                request.metadata_mut().insert("authorization", token);
            }
            let call = DeviceReportingClient::<Channel>::new(channel).stream_device_samples(request).await?;
            tracing::info!(server = %self.config.server.uri(), "device samples are streamed");
            Ok(call)
        };
        Ok(NodeStream { clock: self.clock, node, states }.run(open, |period| self.sampler.set_period(period)).await)
    }

    fn node(&self, state: &DeviceState) -> v1::AgentNode {
        v1::AgentNode {
            name: self.config.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            run: self.run,
            source: state.source.to_string(),
            pools: self.config.pools.clone(),
        }
    }
}

/// The devices of one node, as they are streamed.
pub(crate) struct NodeStream {
    /// The clock of the samples.
    pub(crate) clock: Clock,
    /// Whose devices they are.
    pub(crate) node: v1::AgentNode,
    /// The samples.
    pub(crate) states: watch::Receiver<std::sync::Arc<DeviceState>>,
}

/// A stream of reports, and of the answers to them.
type Reports = ReceiverStream<v1::DeviceReport>;
type Answers = Response<Streaming<v1::DeviceReportResponse>>;

// === impl NodeStream ===

impl NodeStream {
    /// Streams everything, then what changes, on the call that `open` makes, until that breaks; returns why it did. `on_period` is
    /// told how often the control plane wants samples.
    pub(crate) async fn run(self, open: impl AsyncFnOnce(Reports) -> Result<Answers, Status>, on_period: impl Fn(Duration)) -> StreamError {
        match self.try_run(open, on_period).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_run(
        mut self,
        open: impl AsyncFnOnce(Reports) -> Result<Answers, Status>,
        on_period: impl Fn(Duration),
    ) -> Result<std::convert::Infallible, StreamError> {
        let (sender, reports) = mpsc::channel(BUFFER);
        let mut encoder = Encoder::default();
        let state = self.states.borrow_and_update().clone();
        let first = v1::DeviceReport { node: Some(self.node.clone()), ..self.message(&mut encoder, &state, Duration::ZERO) };
        let _ = sender.try_send(first);
        let mut answers = open(ReceiverStream::new(reports)).await.map_err(Box::new)?.into_inner();
        let mut round_trips = RoundTrips::default();
        let mut heard_at = Instant::now();
        loop {
            tokio::select! {
                answer = answers.message() => {
                    let answer = answer.map_err(Box::new)?.ok_or(StreamError::Ended)?;
                    heard_at = Instant::now();
                    on_period(Duration::from_millis(answer.period_ms.into()));
                    round_trips.note(self.clock.now().as_nanos(), &answer);
                }
                changed = self.states.changed() => {
                    changed.map_err(|_| StreamError::NoSampler)?;
                    let state = self.states.borrow_and_update().clone();
                    match sender.try_reserve() {
                        Ok(place) => place.send(self.message(&mut encoder, &state, round_trips.shortest())),
                        Err(mpsc::error::TrySendError::Full(())) => {}
                        Err(mpsc::error::TrySendError::Closed(())) => return Err(StreamError::Ended),
                    }
                }
                () = tokio::time::sleep_until(heard_at + SILENCE) => return Err(StreamError::Silence),
            }
        }
    }

    fn message(&self, encoder: &mut Encoder, state: &DeviceState, round_trip: Duration) -> v1::DeviceReport {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        v1::DeviceReport {
            sampled_at_ns: state.sampled_at.map_or(0, |at| at.as_nanos()),
            sent_at_ns: self.clock.now().as_nanos(),
            round_trip_ns: nanos(round_trip),
            ..encoder.encode(state)
        }
    }
}

/// The last round trips, in nanoseconds.
#[derive(Default)]
struct RoundTrips {
    last: [Option<u64>; ROUND_TRIPS],
    next: usize,
}

// === impl RoundTrips ===

impl RoundTrips {
    fn note(&mut self, now_ns: u64, answer: &v1::DeviceReportResponse) {
        let on_the_way = now_ns.checked_sub(answer.echo_sent_at_ns).and_then(|since| since.checked_sub(answer.held_ns));
        if let Some(on_the_way) = on_the_way.filter(|_| answer.echo_sent_at_ns > 0) {
            self.last[self.next % ROUND_TRIPS] = Some(on_the_way);
            self.next += 1;
        }
    }

    fn shortest(&self) -> Duration {
        self.last.iter().flatten().min().map_or(Duration::ZERO, |nanos| Duration::from_nanos(*nanos))
    }
}
