//! The service `headgate.v1.DeviceReporting`: one stream a node, onto the board.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::Stream;
use headgate_core::time::Timestamp;
use headgate_protos::v1;
use headgate_protos::v1::device_reporting_server::DeviceReporting;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::clock::Clock;
use crate::device::wire::{Decoder, MAX_POOLS, MAX_TEXT_BYTES};
use crate::device::{DeviceBoard, DeviceState, PeerClock, SampleError, SourceState};
use crate::identity::Caller;

/// Time between two answers: by them the agent knows that it is heard, and how long a round trip takes.
const ANSWER_PERIOD: Duration = Duration::from_secs(1);
/// Longest name of a node, in bytes: that of a Kubernetes object.
const MAX_NODE_BYTES: usize = 253;
/// Longest round trip that is believed: half of it makes samples look older.
const MAX_ROUND_TRIP: Duration = Duration::from_secs(2);

/// The service.
#[derive(Clone)]
pub struct DeviceReports {
    board: DeviceBoard,
    clock: Clock,
    shutdown: CancellationToken,
    streams: Arc<Mutex<Streams>>,
}

/// Who speaks for which node: the one who came last.
#[derive(Default)]
struct Streams {
    by_node: BTreeMap<String, Speaker>,
    count: u64,
}

struct Speaker {
    number: u64,
    replaced: CancellationToken,
    /// Whether another replica passes it on.
    is_relayed: bool,
}

/// One stream, after its first message.
struct Session {
    state: DeviceState,
    decoder: Decoder,
    peer: PeerClock,
    number: u64,
    /// Ends when another stream speaks for the node.
    replaced: CancellationToken,
    newest: Option<(u64, Timestamp)>,
}

/// What gRPC and HTTP/2 put before each message.
const FRAME_BYTES: usize = 5 + 9;

/// The answers of one stream.
pub type Responses = Pin<Box<dyn Stream<Item = Result<v1::DeviceReportResponse, Status>> + Send>>;
type Answers = mpsc::Sender<Result<v1::DeviceReportResponse, Status>>;

// === impl DeviceReports ===

impl DeviceReports {
    /// A service that writes onto `board` and ends its streams at `shutdown`.
    pub fn new(board: DeviceBoard, clock: Clock, shutdown: CancellationToken) -> Self {
        Self { board, clock, shutdown, streams: Arc::default() }
    }

    /// Whether `node` speaks to this replica itself.
    pub fn hears(&self, node: &str) -> bool {
        self.lock().by_node.get(node).is_some_and(|speaker| !speaker.is_relayed)
    }

    /// Opens a stream that another replica passes on, which may speak for any node.
    pub fn open_relayed(&self, reports: Streaming<v1::DeviceReport>) -> Response<Responses> {
        self.open(None, reports)
    }

    /// Opens a stream; without a caller it is one that another replica passes on.
    fn open(&self, caller: Option<Caller>, reports: Streaming<v1::DeviceReport>) -> Response<Responses> {
        let (answers, stream) = mpsc::channel(2);
        tokio::spawn(self.clone().read(caller, reports, answers));
        Response::new(Box::pin(ReceiverStream::new(stream)))
    }

    async fn read(self, caller: Option<Caller>, mut reports: Streaming<v1::DeviceReport>, answers: Answers) {
        let mut session = match self.begin(caller.as_ref(), &mut reports).await {
            Ok(Some(session)) => session,
            Ok(None) => return,
            Err(status) => {
                let _ = answers.send(Err(status)).await;
                return;
            }
        };
        tracing::info!(node = %session.state.node, devices = session.state.devices.len(), "an agent reports its devices");
        let outcome = self.follow(&mut session, &mut reports, &answers).await;
        let problem = outcome.as_ref().err().map_or("the agent has ended its stream", Status::message).to_owned();
        tracing::info!(node = %session.state.node, problem, "an agent is gone");
        self.end(session, problem);
        if let Err(status) = outcome {
            // The agent may have gone at the same moment.
            let _ = answers.send(Err(status)).await;
        }
    }

    /// Reads the first message; `None` when there is none.
    async fn begin(&self, caller: Option<&Caller>, reports: &mut Streaming<v1::DeviceReport>) -> Result<Option<Session>, Status> {
        let first = tokio::select! {
            () = self.shutdown.cancelled() => return Err(shutting_down()),
            report = reports.message() => report?,
        };
        let Some(mut report) = first else { return Ok(None) };
        let node = checked(report.node.take().unwrap_or_default())?;
        if let Some(caller) = caller {
            caller.require_node(&node.name, None)?;
        }
        let mut session = {
            let mut streams = self.lock();
            streams.count += 1;
            let (number, replaced) = (streams.count, CancellationToken::new());
            let speaker = Speaker { number, replaced: replaced.clone(), is_relayed: caller.is_none() };
            if let Some(before) = streams.by_node.insert(node.name.clone(), speaker) {
                before.replaced.cancel();
            }
            Session::new(node, number, replaced)
        };
        self.take(&mut session, report)?;
        Ok(Some(session))
    }

    async fn follow(&self, session: &mut Session, reports: &mut Streaming<v1::DeviceReport>, answers: &Answers) -> Result<(), Status> {
        let mut period = self.board.period();
        let mut tick = tokio::time::interval(ANSWER_PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Err(shutting_down()),
                () = session.replaced.cancelled() => return Err(Status::aborted("another agent speaks for the node")),
                Ok(()) = period.changed() => self.answer(session, *period.borrow_and_update(), answers),
                // The first tick is at once.
                _ = tick.tick() => self.answer(session, *period.borrow(), answers),
                report = reports.message() => match report? {
                    Some(report) if report.node.is_some() => {
                        return Err(Status::invalid_argument("node: may be set in the first message only"));
                    }
                    Some(report) => self.take(session, report)?,
                    None => return Ok(()),
                },
            }
        }
    }

    /// An agent that does not read its answers gets fewer.
    fn answer(&self, session: &Session, period: Duration, answers: &Answers) {
        let (echo_sent_at_ns, arrived_at) = session.newest.unwrap_or((0, self.clock.now()));
        let _ = answers.try_send(Ok(v1::DeviceReportResponse {
            period_ms: u32::try_from(period.as_millis()).unwrap_or(u32::MAX),
            echo_sent_at_ns,
            held_ns: u64::try_from(self.clock.now().since(arrived_at).as_nanos()).unwrap_or(u64::MAX),
        }));
    }

    fn take(&self, session: &mut Session, report: v1::DeviceReport) -> Result<(), Status> {
        let now = self.clock.now();
        self.board.count_bytes(report.encoded_len() + FRAME_BYTES);
        session.take(now, report)?;
        let published = self.board.publish(now, Arc::new(session.state.clone()));
        published.map_err(|error| Status::resource_exhausted(error.to_string()))
    }

    /// The node's devices stay on the board and age; that nobody speaks for them is said.
    fn end(&self, mut session: Session, problem: String) {
        let mut streams = self.lock();
        let node = session.state.node.to_string();
        if streams.by_node.get(&node).is_none_or(|speaker| speaker.number != session.number) {
            return;
        }
        streams.by_node.remove(&node);
        drop(streams);
        session.state.state = SourceState::Failing(SampleError::Agent { problem });
        let _ = self.board.publish(self.clock.now(), Arc::new(session.state));
    }

    fn lock(&self) -> MutexGuard<'_, Streams> {
        // Every write leaves the table whole.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl DeviceReporting for DeviceReports {
    type StreamDeviceSamplesStream = Responses;

    async fn stream_device_samples(&self, request: Request<Streaming<v1::DeviceReport>>) -> Result<Response<Responses>, Status> {
        let caller = Caller::of(request.extensions())?;
        Ok(self.open(Some(caller), request.into_inner()))
    }
}

// === impl Session ===

impl Session {
    fn new(node: v1::AgentNode, number: u64, replaced: CancellationToken) -> Self {
        let state = DeviceState { node: node.name.into(), pools: node.pools.into(), ..DeviceState::starting(node.source) };
        Self { state, decoder: Decoder::default(), peer: PeerClock::default(), number, replaced, newest: None }
    }

    fn take(&mut self, now: Timestamp, report: v1::DeviceReport) -> Result<(), Status> {
        let (epoch, sampled_at_ns, sent_at_ns) = (report.epoch, report.sampled_at_ns, report.sent_at_ns);
        let round_trip = Duration::from_nanos(report.round_trip_ns).min(MAX_ROUND_TRIP);
        if report.problem.len() > MAX_TEXT_BYTES {
            return Err(Status::invalid_argument(format!("problem: {} bytes is outside 0..={MAX_TEXT_BYTES}", report.problem.len())));
        }
        let problem = report.problem.clone();
        self.peer.observe(now, sent_at_ns);
        self.newest = Some((sent_at_ns, now));
        let readings = self.decoder.decode(report).map_err(|error| Status::invalid_argument(error.to_string()))?;
        if !problem.is_empty() {
            self.state.state = SourceState::Failing(SampleError::Agent { problem });
            return Ok(());
        }
        if epoch == self.state.epoch && self.state.sampled_at.is_some() {
            // The same sample again makes nothing younger.
            return Ok(());
        }
        self.state.take(self.peer.to_ours(now, sampled_at_ns.min(sent_at_ns), round_trip), readings);
        self.state.epoch = epoch;
        self.state.details = self.decoder.details();
        Ok(())
    }
}

fn shutting_down() -> Status {
    Status::unavailable("the control plane is shutting down")
}

/// A node that can be kept.
fn checked(node: v1::AgentNode) -> Result<v1::AgentNode, Status> {
    let refuse = |field: &str, got: usize, most: usize| Err(Status::invalid_argument(format!("node.{field}: {got} is outside 1..={most}")));
    if !(1..=MAX_NODE_BYTES).contains(&node.name.len()) {
        return refuse("name", node.name.len(), MAX_NODE_BYTES);
    }
    if !(1..=MAX_TEXT_BYTES).contains(&node.source.len()) {
        return refuse("source", node.source.len(), MAX_TEXT_BYTES);
    }
    if node.pools.len() > MAX_POOLS {
        return refuse("pools", node.pools.len(), MAX_POOLS);
    }
    if let Some(pool) = node.pools.iter().find(|pool| !(1..=MAX_TEXT_BYTES).contains(&pool.len())) {
        return refuse("pools", pool.len(), MAX_TEXT_BYTES);
    }
    Ok(node)
}
