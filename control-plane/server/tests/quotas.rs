//! Quotas over the fleet: 20 proxies, each the core's session and worker on streams of its own, against a whole control plane.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headgate_core::discovery::{NodeIdentity, PolicySnapshot};
use headgate_core::policy::Policy;
use headgate_core::request::{HeaderView, RequestInfo, VerifiedIdentity};
use headgate_core::session::{Effect, Link, Session};
use headgate_core::shared::SharedLimits;
use headgate_core::stream::{Event, Outcome, Stream, StreamEnd};
use headgate_core::time::Timestamp;
use headgate_core::worker::Worker;
use headgate_protos::discovery::DeltaDiscoveryRequest;
use headgate_protos::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use headgate_protos::v1;
use headgate_protos::v1::load_reporting_client::LoadReportingClient;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use running::{apply, connect, get};

#[allow(dead_code, unreachable_pub, reason = "shared with other tests")]
mod running;

const PROXIES: usize = 20;
const RATE: f64 = 1000.0;
/// Requests that each proxy is asked for per second; a hundred times as many where the demand is.
const BASE: f64 = 10.0;
const TICK: Duration = Duration::from_millis(20);
const PHASE: Duration = Duration::from_secs(6);

const POLICY: &str = "\
apiVersion: headgate.dev/v1
kind: AdmissionPolicy
metadata: {name: demo}
spec:
  pool: demo
  classes: [{name: all, whenTripped: reserved_lane}]
  quotas: [{name: everybody, unit: requests, amount: 1000}]
";

/// What all proxies know of each other: nothing but this test's books.
struct World {
    began: Instant,
    /// When requests passed, over all proxies.
    passed: Mutex<Vec<Duration>>,
    over: AtomicBool,
}

/// One proxy with one worker.
struct Proxy {
    index: usize,
    world: Arc<World>,
    channel: Channel,
    session: Session,
    worker: Worker,
    discovery: Option<(mpsc::Sender<DeltaDiscoveryRequest>, Streaming<headgate_protos::discovery::DeltaDiscoveryResponse>)>,
    reports: Option<(mpsc::Sender<v1::LoadReport>, Streaming<v1::LoadReportResponse>)>,
    /// Requests that are due, with fractions.
    due: f64,
}

impl Proxy {
    fn new(index: usize, world: Arc<World>, channel: Channel) -> Self {
        let node = NodeIdentity { id: format!("proxy-{index}"), ..NodeIdentity::default() };
        let mut worker = Worker::new(index as u64 + 1);
        worker.set_process(index as u64 + 1000);
        let session = Session::begin(node, index as u64, &[], &[]);
        Self { index, world, channel, session, worker, discovery: None, reports: None, due: 0.0 }
    }

    /// Every proxy's clock is another one.
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_000_000 * (self.index as u64 + 1)) + self.world.began.elapsed()
    }

    async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        let mut last = Instant::now();
        while !self.world.over.load(Ordering::SeqCst) {
            tokio::select! {
                _ = tick.tick() => {
                    self.on_tick().await;
                    let elapsed = last.elapsed();
                    last = Instant::now();
                    self.serve(elapsed);
                }
                message = next(&mut self.discovery) => {
                    let (now, bytes) = (self.now(), message.encode_to_vec());
                    let effects = self.session.on_message(now, Link::Discovery, &bytes);
                    self.carry_out(effects).await;
                }
            }
        }
    }

    async fn on_tick(&mut self) {
        let now = self.now();
        self.worker.on_tick(now);
        self.worker.set_permits(0, u32::MAX, 1.0);
        // One proxy loses its streams in the second phase, and finds them again in the third.
        let is_cut = self.index == 9 && self.world.began.elapsed() > PHASE && self.world.began.elapsed() < 2 * PHASE;
        if is_cut {
            (self.discovery, self.reports) = (None, None);
            self.session.on_close(now, Link::Reports);
            self.session.on_close(now, Link::Discovery);
            return;
        }
        let effects: Vec<Effect> = self.session.on_tick(now).into_iter().collect();
        self.carry_out(effects).await;
        if self.session.is_report_due(now) {
            let worker = self.worker.report(now, 0).encode_to_vec();
            let report = self.session.report(now, std::iter::once(worker), self.worker.applied());
            self.carry_out(vec![report]).await;
        }
    }

    async fn carry_out(&mut self, effects: Vec<Effect>) {
        let mut effects = std::collections::VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Open(Link::Discovery) => {
                    let (requests, stream) = mpsc::channel(16);
                    let mut client = AggregatedDiscoveryServiceClient::new(self.channel.clone());
                    let now = self.now();
                    effects.extend(self.session.on_open(now, Link::Discovery, true));
                    // What a new stream says first is sent before it answers.
                    while let Some(Effect::Send(Link::Discovery, _)) = effects.front() {
                        let Some(Effect::Send(_, bytes)) = effects.pop_front() else { break };
                        requests.send(DeltaDiscoveryRequest::decode(bytes.as_slice()).unwrap()).await.unwrap();
                    }
                    let responses = client.delta_aggregated_resources(ReceiverStream::new(stream)).await.unwrap().into_inner();
                    self.discovery = Some((requests, responses));
                }
                Effect::Open(Link::Reports) => {
                    let (reports, stream) = mpsc::channel(16);
                    let mut client = LoadReportingClient::new(self.channel.clone());
                    let answers = client.stream_load_reports(ReceiverStream::new(stream)).await.unwrap().into_inner();
                    self.reports = Some((reports, answers));
                    let now = self.now();
                    effects.extend(self.session.on_open(now, Link::Reports, true));
                }
                Effect::Send(Link::Discovery, bytes) => {
                    if let Some((requests, _)) = &self.discovery {
                        let _ = requests.send(DeltaDiscoveryRequest::decode(bytes.as_slice()).unwrap()).await;
                    }
                }
                Effect::Send(Link::Reports, bytes) => {
                    if let Some((reports, _)) = &self.reports {
                        let _ = reports.send(v1::LoadReport::decode(bytes.as_slice()).unwrap()).await;
                    }
                }
                Effect::Reset(_) => panic!("the control plane broke the protocol"),
                Effect::Share { policies, limits } => self.take_up(policies, limits),
            }
        }
    }

    fn take_up(&mut self, policies: Option<Vec<u8>>, limits: Option<Vec<u8>>) {
        let now = self.now();
        if let Some(snapshot) = policies.as_deref().and_then(PolicySnapshot::decode) {
            let policies = snapshot.policies.iter().map(|wire| Arc::new(Policy::try_from_wire(wire).unwrap())).collect();
            self.worker.set_policies(now, policies);
            self.worker.set_permits(0, u32::MAX, 1.0);
        }
        for pool in limits.map(|bytes| SharedLimits::decode(bytes.as_slice()).unwrap()).unwrap_or_default().pools {
            self.worker.set_limits(Timestamp::from_nanos(pool.at_ns), &pool.limits.unwrap());
        }
    }

    /// Asks for what is due after `elapsed`.
    fn serve(&mut self, elapsed: Duration) {
        let phase = self.world.began.elapsed().as_secs() / PHASE.as_secs();
        let is_hot = self.index as u64 / 2 == phase * 3 % 10;
        self.due += elapsed.as_secs_f64() * if is_hot { 100.0 * BASE } else { BASE };
        let headers: [(&[u8], &[u8]); 2] = [(b":path", b"/v1/chat/completions"), (b"content-length", b"400")];
        while self.due >= 1.0 {
            self.due -= 1.0;
            let request = RequestInfo::new(HeaderView::from_pairs(&headers), VerifiedIdentity { spiffe: None, jwt_claims: &[] });
            let (mut stream, now) = (Stream::new(), self.now());
            if stream.handle(&mut self.worker, now, Event::RequestHeaders(&request)) == Outcome::Continue
                && self.worker.policies().next().is_some()
            {
                self.world.passed.lock().unwrap().push(self.world.began.elapsed());
            }
            stream.handle(&mut self.worker, now, Event::Log { endpoint: None, end: StreamEnd::Complete });
        }
    }
}

async fn next(
    discovery: &mut Option<(mpsc::Sender<DeltaDiscoveryRequest>, Streaming<headgate_protos::discovery::DeltaDiscoveryResponse>)>,
) -> headgate_protos::discovery::DeltaDiscoveryResponse {
    match discovery {
        Some((_, responses)) => match responses.message().await {
            Ok(Some(message)) => message,
            _ => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// Requests that passed between two times.
fn between(passed: &[Duration], from: Duration, to: Duration) -> f64 {
    passed.iter().filter(|at| (from..to).contains(*at)).count() as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_proxies_use_a_strict_quota_wherever_demand_goes_and_never_pass_it() {
    let directory = tempfile::tempdir().unwrap();
    let running = running::serve(running::flags(directory.path())).await;
    apply(connect(&running).await, POLICY).await;
    let world = Arc::new(World { began: Instant::now(), passed: Mutex::default(), over: AtomicBool::new(false) });
    let mut proxies = tokio::task::JoinSet::new();
    for index in 0..PROXIES {
        proxies.spawn(Proxy::new(index, world.clone(), connect(&running).await).run());
    }
    tokio::time::sleep(3 * PHASE).await;
    world.over.store(true, Ordering::SeqCst);
    while let Some(ended) = proxies.join_next().await {
        ended.unwrap();
    }
    let mut passed = world.passed.lock().unwrap().clone();
    passed.sort_unstable();
    // In any time t at most RATE × (t + 1 s): the balance never rises by more than a second's worth above its least.
    let (mut least, mut most) = (0.0_f64, 0.0_f64);
    for (count, at) in passed.iter().enumerate() {
        let balance = count as f64 - RATE * at.as_secs_f64();
        least = least.min(balance);
        most = most.max(balance + 1.0 - least);
    }
    let windows: Vec<f64> = (0..3)
        .map(|phase| {
            let from = PHASE * phase + Duration::from_secs(2);
            between(&passed, from, PHASE * (phase + 1)) / (RATE * (PHASE.as_secs_f64() - 2.0))
        })
        .collect();
    println!("{} passed; the most at once was {most:.0} of {RATE}; used from 2 s after each shift: {windows:.3?}", passed.len());
    assert!(most <= RATE, "{most} at once");
    assert!(windows.iter().all(|part| *part >= 0.9), "{windows:?}");
    let status = get(&running, "/throttle/status").await;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let quota = &status["pools"][0]["quotas"][0];
    assert_eq!((&quota["name"], &quota["unit"], &quota["mode"]), (&"everybody".into(), &"requests".into(), &"strict".into()), "{status}");
    assert!(quota["committed"].as_f64().unwrap() <= RATE && quota["used_total"].as_f64().unwrap() > 10_000.0, "{quota}");
    assert_eq!(quota["largest"].as_array().unwrap().len(), PROXIES, "{quota}");
    let metrics = get(&running, "/metrics").await;
    assert!(metrics.contains("headgate_quota_capacity_per_second{pool=\"demo\",quota=\"everybody\",unit=\"requests\"} 1000"), "{metrics}");
    running.stop().await;
}
