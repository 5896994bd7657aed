//! A proxy inside a test: the core's session and one worker on gRPC streams of their own, as the filter's leading VM drives them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use headgate_core::discovery::{NodeIdentity, PolicySnapshot};
use headgate_core::policy::Policy;
use headgate_core::session::{Effect, Link, Session};
use headgate_core::shared::SharedLimits;
use headgate_core::time::Timestamp;
use headgate_core::worker::Worker;
use headgate_protos::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use headgate_protos::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use headgate_protos::v1;
use headgate_protos::v1::load_reporting_client::LoadReportingClient;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// One proxy with one worker.
pub struct Proxy {
    pub worker: Worker,
    index: usize,
    began: Instant,
    channel: Channel,
    session: Session,
    discovery: Option<(mpsc::Sender<DeltaDiscoveryRequest>, Streaming<DeltaDiscoveryResponse>)>,
    reports: Option<(mpsc::Sender<v1::LoadReport>, Streaming<v1::LoadReportResponse>)>,
}

impl Proxy {
    pub fn new(index: usize, began: Instant, channel: Channel) -> Self {
        let node = NodeIdentity { id: format!("proxy-{index}"), ..NodeIdentity::default() };
        let mut worker = Worker::new(index as u64 + 1);
        worker.set_process(index as u64 + 1000);
        let session = Session::begin(node, index as u64, &[], &[]);
        Self { worker, index, began, channel, session, discovery: None, reports: None }
    }

    /// Every proxy's clock is another one.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_000_000 * (self.index as u64 + 1)) + self.began.elapsed()
    }

    /// Moves on what moves with time, and reports when that is due.
    pub async fn on_tick(&mut self) {
        let now = self.now();
        self.worker.on_tick(now);
        self.take_permits();
        let effects: Vec<Effect> = self.session.on_tick(now).into_iter().collect();
        self.carry_out(effects).await;
        if self.session.is_report_due(now) {
            let worker = self.worker.report(now, 0).encode_to_vec();
            let report = self.session.report(now, std::iter::once(worker), self.worker.applied());
            self.carry_out(vec![report]).await;
        }
    }

    /// Loses its streams.
    pub fn cut(&mut self) {
        let now = self.now();
        (self.discovery, self.reports) = (None, None);
        self.session.on_close(now, Link::Reports);
        self.session.on_close(now, Link::Discovery);
    }

    /// The next message of the control plane; never, without a stream.
    pub async fn message(&mut self) -> DeltaDiscoveryResponse {
        match &mut self.discovery {
            Some((_, responses)) => match responses.message().await {
                Ok(Some(message)) => message,
                _ => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    /// Takes a message.
    pub async fn on_message(&mut self, message: &DeltaDiscoveryResponse) {
        let effects = self.session.on_message(self.now(), Link::Discovery, &message.encode_to_vec());
        self.carry_out(effects).await;
    }

    async fn carry_out(&mut self, effects: Vec<Effect>) {
        let mut effects = VecDeque::from(effects);
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
            self.take_permits();
        }
        for pool in limits.map(|bytes| SharedLimits::decode(bytes.as_slice()).unwrap()).unwrap_or_default().pools {
            self.worker.set_limits(Timestamp::from_nanos(pool.at_ns), &pool.limits.unwrap());
        }
    }

    /// The one worker has all that the proxy may have.
    fn take_permits(&mut self) {
        let quotas: Vec<usize> = self.worker.policies().map(|policy| policy.quotas().len()).collect();
        for (index, quotas) in quotas.into_iter().enumerate() {
            let permits = self.worker.permits_total(index).unwrap_or(u32::MAX);
            self.worker.set_permits(index, permits, 1.0);
            (0..quotas).for_each(|quota| self.worker.set_quota_part(index, quota, 1.0));
        }
    }
}
