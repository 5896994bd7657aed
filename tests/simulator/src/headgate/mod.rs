//! Headgate itself in the world: the production core in every worker, the production session in every proxy, the production books,
//! control loop and xDS state machine in the control plane, and between them encoded messages over the simulated network (of workers'
//! reports the heads: `reports`).
//!
//! What is modelled here is only the host: who calls what when (`vm`), shared data and streams of one proxy (`proxy`), and the tasks of
//! the control plane (`plane`), each after the production adapter that it stands for.

use std::collections::BTreeMap;
use std::time::Duration;

use headgate_core::envoy::DESTINATION_ENDPOINT;
use headgate_core::request::{HeaderView, RequestInfo, VerifiedIdentity};
use headgate_core::stream::{Event, HeaderOp, Outcome, Reply, Stream, StreamEnd};
use headgate_core::time::Timestamp;
use headgate_protos::v1;

use crate::controller::{Arrival, Controller, Ctx, Ending, Gauges, Link as NetworkLink, RequestId, Site, Verdict};
use crate::setup::{Fault, Setup};

mod catalogue;
mod faces;
mod hunger;
mod plane;
mod policy;
mod proxy;
mod reports;
#[cfg(test)]
mod tests;
mod transit;
mod vm;

use self::faces::Faces;
use self::hunger::Hunger;
use self::plane::Plane;
pub use self::policy::default_policy;
use self::proxy::Proxy;
use self::transit::{Direction, Message, Transit};

/// Time between two steps of the control loop (`control_loop.rs`).
const CONTROL_EVERY: Duration = Duration::from_millis(100);
/// Time between two readings of the engines (`engine/scraper.rs`), and how long one takes.
const SCRAPE_EVERY: Duration = Duration::from_millis(100);
const SCRAPE_TAKES: Duration = Duration::from_millis(3);
/// Time without an answer after which a stream counts as broken (HTTP/2 keepalive).
const KEEPALIVE: Duration = Duration::from_secs(2);

/// A policy that the production validator refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PolicyError(String);

/// Headgate.
pub struct Headgate {
    proxies: Vec<Proxy>,
    plane: Plane,
    faces: Faces,
    hunger: Hunger,
    transit: Transit,
    /// By request id. Boxed: of most ids nothing is with a worker, since their clients wait before they try again.
    exchanges: Vec<Option<Box<Exchange>>>,
    /// Refusals by response code details, which name the reason.
    refusals: BTreeMap<&'static str, u64>,
    /// First invariant that was found broken.
    broken: Option<String>,
}

/// One request at its worker.
struct Exchange {
    stream: Stream,
    site: Site,
    has_first: bool,
}

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    Tick(Site),
    Control,
    Scrape,
    /// A reading that was taken is there.
    Scraped,
    /// A message arrives.
    Deliver(u32),
    /// The streams of a proxy that was cut off break.
    Break(u16),
}

// === impl Timer ===

impl Timer {
    fn token(self) -> u64 {
        match self {
            Self::Tick(Site { proxy, worker }) => u64::from(proxy) << 16 | u64::from(worker),
            Self::Control => 1 << 56,
            Self::Scrape => 2 << 56,
            Self::Scraped => 3 << 56,
            Self::Deliver(index) => 4 << 56 | u64::from(index),
            Self::Break(proxy) => 5 << 56 | u64::from(proxy),
        }
    }

    fn of(token: u64) -> Self {
        match token >> 56 {
            0 => Self::Tick(Site { proxy: (token >> 16) as u16, worker: token as u16 }),
            1 => Self::Control,
            2 => Self::Scrape,
            3 => Self::Scraped,
            4 => Self::Deliver(token as u32),
            _ => Self::Break(token as u16),
        }
    }
}

// === impl Headgate ===

impl Headgate {
    /// Headgate under `policy` in the world of `setup`. Where the policy names no tenants, those of the world are put in.
    ///
    /// # Errors
    /// What the production validator says of the policy.
    pub fn new(setup: &Setup, policy: &v1::Policy) -> Result<Self, PolicyError> {
        let policy = policy::with_tenants(policy, setup);
        let valid = headgate_core::policy::Policy::try_from_wire(&policy).map_err(|errors| PolicyError(errors.to_string()))?;
        Ok(Self {
            proxies: (0..setup.proxies.max(1)).map(|proxy| Proxy::new(proxy, setup.workers.max(1))).collect(),
            plane: Plane::new(&policy),
            faces: Faces::new(setup, &valid),
            hunger: Hunger::new(&valid),
            transit: Transit::default(),
            exchanges: Vec::new(),
            refusals: BTreeMap::new(),
            broken: None,
        })
    }

    /// Refusals so far, by response code details.
    pub fn refusals(&self) -> &BTreeMap<&'static str, u64> {
        &self.refusals
    }

    fn on_tick(&mut self, ctx: &mut Ctx<'_>, site: Site) {
        ctx.schedule(vm::TICK, Timer::Tick(site).token());
        let outgoing = self.proxies[usize::from(site.proxy)].on_tick(ctx.now(), site.worker, |_| link(ctx, site.proxy));
        self.send(ctx, site.proxy, outgoing);
        self.answer_released(ctx, site);
        let found = self.proxies[usize::from(site.proxy)].check();
        self.note(found);
    }

    /// Keeps the first invariant that was found broken.
    fn note(&mut self, found: Result<(), String>) {
        if let Err(what) = found {
            self.broken.get_or_insert(what);
        }
    }

    /// Counts a refusal. Every one carries its reason and a time to come back (`design.md`, invariant 7).
    fn count_refusal(&mut self, reply: &Reply, retry_after: Option<Duration>) {
        *self.refusals.entry(reply.details).or_default() += 1;
        let has = |name: &str| reply.headers.iter().any(|(header, _)| *header == name);
        if !has("x-headgate-reason") || retry_after.is_none() {
            self.note(Err(format!("a refusal without its reason or a time to come back: {:?}", reply.headers)));
        }
    }

    fn send(&mut self, ctx: &mut Ctx<'_>, proxy: u16, messages: Vec<Message>) {
        for message in messages {
            // What is sent while the link is down is lost, and the stream with it.
            if let NetworkLink::Up(delay) = ctx.link(proxy) {
                let (delay, index) = self.transit.send(ctx.now(), proxy, delay, message);
                ctx.schedule(delay, Timer::Deliver(index).token());
            }
        }
    }

    fn deliver(&mut self, ctx: &mut Ctx<'_>, index: u32) {
        let Some((proxy, message)) = self.transit.take(index) else { return };
        match message.direction {
            Direction::ToPlane => {
                let reports = self.proxies[usize::from(proxy)].reports_mut();
                let answers = self.plane.on_message(ctx.now(), proxy, &message, reports);
                self.send(ctx, proxy, answers);
            }
            Direction::ToProxy => {
                let outgoing = self.proxies[usize::from(proxy)].on_message(ctx.now(), &message, |_| link(ctx, proxy));
                self.send(ctx, proxy, outgoing);
            }
        }
    }

    fn on_control(&mut self, ctx: &mut Ctx<'_>) {
        ctx.schedule(CONTROL_EVERY, Timer::Control.token());
        for (proxy, messages) in self.plane.step(ctx.now()) {
            self.send(ctx, proxy, messages);
        }
        let found = self.plane.check(self.proxies.len());
        self.note(found);
        let outstanding = ctx.engines().iter().map(|engine| engine.is_alive().then(|| engine.outstanding()));
        let found = self.hunger.look(ctx.now(), ctx.waiting(), outstanding);
        self.note(found);
    }

    /// Carries out the answers that a worker has for waiting requests.
    fn answer_released(&mut self, ctx: &mut Ctx<'_>, site: Site) {
        let worker = &mut self.proxies[usize::from(site.proxy)].vm_mut(site.worker).worker;
        let mut refused = Vec::new();
        while let Some(id) = worker.next_released() {
            let Some(Some(exchange)) = self.exchanges.get_mut(id as usize) else { continue };
            match exchange.stream.release(worker, ctx.now()) {
                outcome @ (Outcome::Continue | Outcome::ContinueWith(_)) => match engine_named(&outcome) {
                    Some(engine) => ctx.release_to(RequestId(id), engine),
                    None => ctx.release(RequestId(id)),
                },
                Outcome::Reply(reply) => {
                    let retry_after = retry_after(&reply);
                    ctx.refuse(RequestId(id), retry_after);
                    self.exchanges[id as usize] = None;
                    refused.push((reply, retry_after));
                }
                Outcome::Wait(_) => {}
            }
        }
        for (reply, retry_after) in refused {
            self.count_refusal(&reply, retry_after);
        }
    }

    /// Hands an event of an admitted request to its worker; the exchange goes back afterwards unless it is over.
    fn with_exchange(&mut self, ctx: &mut Ctx<'_>, id: RequestId, then: impl FnOnce(&mut Exchange, &mut vm::Vm, Timestamp)) {
        let Some(Some(exchange)) = self.exchanges.get_mut(id.index()) else { return };
        let site = exchange.site;
        then(exchange, self.proxies[usize::from(site.proxy)].vm_mut(site.worker), ctx.now());
        self.answer_released(ctx, site);
    }
}

impl Controller for Headgate {
    fn name(&self) -> &'static str {
        "headgate"
    }

    fn on_start(&mut self, ctx: &mut Ctx<'_>) {
        for proxy in 0..self.proxies.len() as u16 {
            for worker in 0..ctx.setup().workers.max(1) {
                // Workers of a proxy start together but tick on their own.
                let phase = vm::TICK.mul_f64(ctx.rng().unit());
                ctx.schedule(phase, Timer::Tick(Site { proxy, worker }).token());
            }
        }
        ctx.schedule(Duration::ZERO, Timer::Scrape.token());
        ctx.schedule(CONTROL_EVERY, Timer::Control.token());
    }

    fn on_arrival(&mut self, ctx: &mut Ctx<'_>, arrival: &Arrival) -> Verdict {
        let now = ctx.now();
        let vm = self.proxies[usize::from(arrival.site.proxy)].before_request(now, arrival.site.worker);
        let mut stream = Stream::identified(arrival.id.0);
        let outcome = self.faces.with_headers(arrival, |headers, spiffe| {
            let identity = VerifiedIdentity { spiffe, jwt_claims: &[] };
            let info = RequestInfo::new(HeaderView::from_pairs(headers), identity);
            stream.handle(&mut vm.worker, now, Event::RequestHeaders(&info))
        });
        let verdict = match outcome {
            outcome @ (Outcome::Continue | Outcome::ContinueWith(_)) => engine_named(&outcome).map_or(Verdict::Admit, Verdict::AdmitTo),
            Outcome::Wait(_) => Verdict::Wait,
            Outcome::Reply(reply) => {
                let retry_after = retry_after(&reply);
                self.count_refusal(&reply, retry_after);
                Verdict::Refuse { retry_after }
            }
        };
        if !matches!(verdict, Verdict::Refuse { .. }) {
            if self.exchanges.len() <= arrival.id.index() {
                self.exchanges.resize_with(arrival.id.index() + 1, || None);
            }
            self.exchanges[arrival.id.index()] = Some(Box::new(Exchange { stream, site: arrival.site, has_first: false }));
        }
        self.answer_released(ctx, arrival.site);
        verdict
    }

    fn on_first_token(&mut self, ctx: &mut Ctx<'_>, id: RequestId) {
        self.with_exchange(ctx, id, |exchange, vm, now| {
            exchange.has_first = true;
            exchange.stream.handle(&mut vm.worker, now, Event::ResponseHeaders { status: 200, failed_dependency: None });
            exchange.stream.handle(&mut vm.worker, now, Event::ResponseBody { len: 64, end_of_stream: false });
        });
    }

    fn on_end(&mut self, ctx: &mut Ctx<'_>, id: RequestId, ending: Ending, output_tokens: u32) {
        self.with_exchange(ctx, id, |exchange, vm, now| {
            if exchange.has_first {
                // The first came with the body's first piece.
                exchange.stream.count_pieces(output_tokens.saturating_sub(1), 0);
            }
            let (status, end) = match ending {
                Ending::Completed => (None, StreamEnd::Complete),
                Ending::ClientLeft => (None, StreamEnd::ByClient),
                Ending::EngineRefused => (Some(503), StreamEnd::Complete),
                // Envoy's own 503 is a 502 to the filter (`headgate_core::envoy::engine_status`): a lost engine refuses nobody.
                Ending::Failed => (Some(502), StreamEnd::ByUpstream),
            };
            if let Some(status) = status {
                exchange.stream.handle(&mut vm.worker, now, Event::ResponseHeaders { status, failed_dependency: None });
            }
            exchange.stream.handle(&mut vm.worker, now, Event::Log { endpoint: None, end });
        });
        if let Some(exchange) = self.exchanges.get_mut(id.index()) {
            *exchange = None;
        }
    }

    fn on_abandoned(&mut self, ctx: &mut Ctx<'_>, id: RequestId) {
        self.on_end(ctx, id, Ending::ClientLeft, 0);
    }

    fn on_timer(&mut self, ctx: &mut Ctx<'_>, token: u64) {
        match Timer::of(token) {
            Timer::Tick(site) => self.on_tick(ctx, site),
            Timer::Control => self.on_control(ctx),
            Timer::Scrape => {
                ctx.schedule(SCRAPE_EVERY, Timer::Scrape.token());
                ctx.schedule(SCRAPE_TAKES, Timer::Scraped.token());
                self.plane.scrape(ctx.now(), ctx.engines());
            }
            Timer::Scraped => self.plane.take_reading(),
            Timer::Deliver(index) => self.deliver(ctx, index),
            Timer::Break(proxy) => {
                self.proxies[usize::from(proxy)].break_streams(ctx.now());
                self.plane.forget_streams(proxy);
                self.transit.forget(proxy);
            }
        }
    }

    fn on_fault(&mut self, ctx: &mut Ctx<'_>, fault: &Fault) {
        match *fault {
            Fault::ControlCut { proxies, lasts } => {
                for proxy in (0..proxies).filter(|proxy| usize::from(*proxy) < self.proxies.len()) {
                    ctx.schedule(KEEPALIVE.min(lasts), Timer::Break(proxy).token());
                }
            }
            Fault::WorkerRestart { site } => {
                if self.proxies[usize::from(site.proxy)].restart(site.worker) == proxy::Restarted::Leader {
                    self.plane.forget_streams(site.proxy);
                    self.transit.forget(site.proxy);
                }
                for exchange in self.exchanges.iter_mut().filter(|exchange| exchange.as_ref().is_some_and(|it| it.site == site)) {
                    *exchange = None;
                }
            }
            Fault::EngineLost { .. } | Fault::Derate { .. } => {}
        }
    }

    fn gauges(&self, out: &mut Gauges) {
        self.plane.gauges(out);
    }

    fn check(&self) -> Result<(), String> {
        self.broken.clone().map_or(Ok(()), Err)
    }
}

fn link(ctx: &mut Ctx<'_>, proxy: u16) -> NetworkLink {
    ctx.link(proxy)
}

/// The address of an engine of the world.
fn engine_address(index: usize) -> String {
    format!("engine-{index:05}")
}

/// The engine that an outcome sends its request to.
fn engine_named(outcome: &Outcome) -> Option<u16> {
    let Outcome::ContinueWith(changes) = outcome else { return None };
    changes.iter().find_map(|change| match change {
        HeaderOp::Set { name: DESTINATION_ENDPOINT, value } => value.rsplit('-').next()?.parse().ok(),
        HeaderOp::Set { .. } | HeaderOp::Remove { .. } => None,
    })
}

/// What the answer tells the client to wait: the header in milliseconds is the more exact.
fn retry_after(reply: &Reply) -> Option<Duration> {
    let value = |name: &str| reply.headers.iter().find(|(header, _)| *header == name).and_then(|(_, value)| value.parse().ok());
    value("retry-after-ms").map(Duration::from_millis).or_else(|| value("retry-after").map(Duration::from_secs))
}
