//! The control plane: books, control loop and discovery, called as `headgate serve` calls them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use headgate_core::fleet::{Controls, Ledger, LimitsLifetime, PolicySet, Ring, StepInputs, StoredPolicy};
use headgate_core::overload::{EngineSample, LEVELS, Paces, Term};
use headgate_core::policy::OverloadConfig;
use headgate_core::session::Link;
use headgate_core::time::Timestamp;
use headgate_protos::discovery::DeltaDiscoveryRequest;
use headgate_protos::v1;
use headgate_xds::{DeltaResponse, DeltaStream, Scope};
use prost::Message as _;

use super::catalogue::Catalogue;
use super::engine_address;
use super::reports::Reports;
use super::transit::{Direction, Message};
use crate::controller::Gauges;
use crate::engine::Engine;

/// How long limits hold, as `headgate serve` has it by default.
const LIFETIME: LimitsLifetime = LimitsLifetime { ttl: Duration::from_secs(3), decay: Duration::from_secs(10) };
/// What a proxy is told at its first report.
const REPORT_INTERVAL_MS: u32 = 100;
/// Age at which a reading of the engines leaves the decision.
const STALE_AFTER: Duration = Duration::from_millis(300);

/// The control plane.
pub(super) struct Plane {
    catalogue: Catalogue,
    ledger: Ledger,
    controls: Controls,
    /// Discovery streams by proxy, with their number.
    streams: BTreeMap<u16, (u32, DeltaStream)>,
    /// Report streams that have been greeted.
    greeted: BTreeMap<u16, u32>,
    /// A reading that was taken and is not there yet.
    taken: Option<EngineSample>,
    engines: Option<EngineSample>,
    readings: u64,
    paces: Paces<usize>,
    kv_target: Option<f64>,
    /// Requests in the queues of all proxies, and the most that one proxy may queue.
    queued: u64,
    max_queued: u64,
}

// === impl Plane ===

impl Plane {
    pub(super) fn new(policy: &v1::Policy) -> Self {
        let stored = Arc::new(StoredPolicy { policy: policy.clone(), changed_at_unix_ms: 0 });
        let policies = PolicySet { policies: [(policy.name.clone(), stored)].into() };
        let mut ledger = Ledger::default();
        ledger.set_policies(&policies);
        let mut controls = Controls::new(LIFETIME);
        controls.set_policies(Timestamp::ZERO, 0, &policies);
        let spec = policy.spec.clone().unwrap_or_default();
        let queue = spec.overload.as_ref().and_then(|overload| overload.queue).unwrap_or_default();
        Self {
            catalogue: Catalogue::new(policy, &spec.pool),
            ledger,
            controls,
            streams: BTreeMap::new(),
            greeted: BTreeMap::new(),
            taken: None,
            engines: None,
            readings: 0,
            paces: Paces::default(),
            queued: 0,
            max_queued: u64::from(queue.max_requests.unwrap_or(5000)),
            kv_target: spec.overload.map(|overload| {
                let percent = overload.kv_target_percent.unwrap_or_else(|| OverloadConfig::default().kv_target_percent);
                f64::from(percent) / 100.0
            }),
        }
    }

    /// One step of the control loop; what the proxies are told.
    pub(super) fn step(&mut self, now: Timestamp) -> Vec<(u16, Vec<Message>)> {
        let loads = self.ledger.control_view(now);
        self.queued = loads.get(self.catalogue.pool()).and_then(|load| load.flow.as_ref()).map_or(0, |flow| flow.queued_requests);
        let ledger = &self.ledger;
        let engines = self.engines.filter(|sample| now.since(sample.at) <= STALE_AFTER);
        let inputs = StepInputs {
            loads: &loads,
            gpu_memory: &|_, _| None,
            capacity: &|_, _| 1.0,
            engines: &|_| engines,
            rings: &|_| Ring::of(self.paces.widths().map(|(index, width)| (engine_address(*index), width))),
            shares: &|pool| ledger.shares(now, pool),
        };
        let Some(table) = self.controls.step(now, &inputs) else { return Vec::new() };
        self.catalogue.set_limits(table);
        let catalogue = &mut self.catalogue;
        let tell = |(proxy, (number, stream)): (&u16, &mut (u32, DeltaStream))| {
            (*proxy, answers(*number, stream.on_snapshot(catalogue.snapshot(*proxy))))
        };
        self.streams.iter_mut().map(tell).collect()
    }

    /// Parts of the proxies never sum above the whole, and no queue is over its bound (`design.md`, invariants 6 and 9).
    pub(super) fn check(&self, proxies: usize) -> Result<(), String> {
        if let Some(limits) = self.catalogue.limits() {
            let given: f64 = limits.shares.values().map(|share| share.rate).sum();
            if given > 1.0 + 1e-6 {
                return Err(format!("the proxies are given {given} of the pool"));
            }
        }
        let bound = self.max_queued.saturating_mul(proxies as u64);
        if self.queued > bound { Err(format!("{} requests are queued, the bound is {bound}", self.queued)) } else { Ok(()) }
    }

    /// Takes a message of a proxy, whose workers' `reports` are those that it has sent.
    pub(super) fn on_message(&mut self, now: Timestamp, proxy: u16, message: &Message, reports: &mut Reports) -> Vec<Message> {
        match message.link {
            Link::Discovery => self.on_discovery(proxy, message),
            Link::Reports => self.on_report(now, proxy, message, reports),
        }
    }

    /// The streams of a proxy are gone.
    pub(super) fn forget_streams(&mut self, proxy: u16) {
        self.streams.remove(&proxy);
        self.greeted.remove(&proxy);
    }

    /// Reads the engines' metrics; the answer is there with [`Plane::take_reading`].
    pub(super) fn scrape(&mut self, now: Timestamp, engines: &[Engine]) {
        self.readings += 1;
        let pace = |(index, engine): (usize, &Engine)| (index, now, u64::from(engine.running()), engine.counters().output_tokens);
        self.paces.read(engines.iter().enumerate().filter(|(_, engine)| engine.is_alive()).map(pace));
        let alive = || engines.iter().filter(|engine| engine.is_alive());
        self.taken = alive().next().map(|_| EngineSample {
            at: now,
            epoch: self.readings,
            kv_used_tokens: alive().map(Engine::kv_used_tokens).sum(),
            kv_total_tokens: if alive().all(|engine| engine.llm().is_some()) { alive().map(Engine::kv_total_tokens).sum() } else { 0 },
            kv_fullest: alive().map(Engine::kv_usage).fold(0.0, f64::max),
            running: alive().map(|engine| u64::from(engine.running())).sum(),
            waiting: alive().map(|engine| u64::from(engine.waiting())).sum(),
            preemptions: engines.iter().map(|engine| engine.counters().preemptions).sum(),
            output_tokens: engines.iter().map(|engine| engine.counters().output_tokens).sum(),
            engines: alive().count() as u32,
            slowest: self.paces.slowest(),
            tpot_p95: None,
        });
    }

    /// The newest reading is there.
    pub(super) fn take_reading(&mut self) {
        self.engines = self.taken.take().or(self.engines);
    }

    pub(super) fn gauges(&self, out: &mut Gauges) {
        out.kv_target = self.kv_target;
        let Some(overload) = self.controls.overload(self.catalogue.pool()) else { return };
        out.saturation = Some(overload.saturation.value);
        let cut = f64::from(overload.cut_off.level) + if overload.cut_off.level < LEVELS { overload.cut_off.fraction } else { 0.0 };
        out.cut_off = Some(cut);
        out.binding = overload.saturation.binding.map(term_name);
        out.limit = overload.budgets.kv_tokens.map(|tokens| tokens as f64);
    }

    fn on_discovery(&mut self, proxy: u16, message: &Message) -> Vec<Message> {
        let Ok(request) = DeltaDiscoveryRequest::decode(message.bytes.as_slice()) else { return Vec::new() };
        let (number, stream) = self.streams.entry(proxy).or_insert_with(|| (message.stream, DeltaStream::new(Scope::Aggregated)));
        if *number != message.stream {
            (*number, *stream) = (message.stream, DeltaStream::new(Scope::Aggregated));
        }
        match stream.on_request(&request, self.catalogue.snapshot(proxy)) {
            Ok(step) => answers(*number, step.responses),
            Err(_) => Vec::new(),
        }
    }

    fn on_report(&mut self, now: Timestamp, proxy: u16, message: &Message, reports: &mut Reports) -> Vec<Message> {
        if reports.with_arrived(&message.bytes, |report| self.ledger.record(now, report)).is_err() {
            return Vec::new();
        }
        if self.greeted.insert(proxy, message.stream) == Some(message.stream) {
            return Vec::new();
        }
        let bytes = v1::LoadReportResponse { report_interval_ms: REPORT_INTERVAL_MS }.encode_to_vec();
        vec![Message { direction: Direction::ToProxy, link: Link::Reports, stream: message.stream, bytes }]
    }
}

fn term_name(term: Term) -> &'static str {
    match term {
        Term::Prefill => "prefill",
        Term::Kv => "kv",
        Term::Decode => "decode",
        Term::EngineQueue => "engine_queue",
        Term::Ttft => "ttft",
        Term::Tpot => "tpot",
        Term::Level => "level",
    }
}

fn answers(stream: u32, responses: Vec<DeltaResponse>) -> Vec<Message> {
    let message =
        |response: DeltaResponse| Message { direction: Direction::ToProxy, link: Link::Discovery, stream, bytes: response.encode_to_vec() };
    responses.into_iter().map(message).collect()
}
