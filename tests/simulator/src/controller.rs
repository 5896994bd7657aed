//! What an admission algorithm is to the world: callbacks in, effects through [`Ctx`] out.

use std::time::Duration;

use headgate_core::time::Timestamp;

use crate::engine::Engine;
use crate::rng::Rng;
use crate::setup::{Fault, Setup};
use crate::world::Requests;

/// Identity of a request while it lives: a small index, given anew once the request is over. A retry is a request of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u32);

impl RequestId {
    /// As an index, for tables with one entry a request.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a request is decided: one worker of one proxy. Workers share nothing but what a controller models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// Proxy, `0..proxies`.
    pub proxy: u16,
    /// Worker of that proxy, `0..workers`.
    pub worker: u16,
}

/// A request that arrives.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Identity.
    pub id: RequestId,
    /// Where it is decided.
    pub site: Site,
    /// Class as position in [`Setup::classes`], 0 the most important.
    pub class: u8,
    /// Tenant.
    pub tenant: u32,
    /// `content-length`, in bytes: what a proxy sees of the size.
    pub content_length: u64,
    /// Number of this attempt, 1 the first.
    pub attempt: u32,
    /// When the client gives up.
    pub deadline: Timestamp,
    /// Tokens of the prompt. A proxy knows only `content_length`.
    pub prompt_tokens: u32,
    /// Tokens that the response will have. For the clairvoyant oracle alone.
    pub secret_output_tokens: u32,
}

/// What is to happen to an arriving request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the pool.
    Admit,
    /// It goes to this engine of the pool, as with [`Ctx::release_to`].
    AdmitTo(u16),
    /// It waits until [`Ctx::release`] or [`Ctx::refuse`], or until its client leaves.
    Wait,
    /// It is refused.
    Refuse {
        /// `Retry-After`, when the answer carries one.
        retry_after: Option<Duration>,
    },
}

/// How an admitted request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The response was sent to its end.
    Completed,
    /// The client went away first.
    ClientLeft,
    /// The engine refused it (queue full, too long): 429 or 503.
    EngineRefused,
    /// The engine was lost.
    Failed,
}

/// An admission algorithm over the whole fleet; it keeps its own state for each site. Time is virtual; every effect goes through
/// `ctx`.
///
/// Every arrival ends in exactly one of: a refusal, `on_abandoned` (while it waits), `on_end` (after it was admitted).
pub trait Controller {
    /// Name in reports.
    fn name(&self) -> &'static str;

    /// The world begins.
    fn on_start(&mut self, ctx: &mut Ctx<'_>) {
        let _ = ctx;
    }

    /// A request arrives.
    fn on_arrival(&mut self, ctx: &mut Ctx<'_>, arrival: &Arrival) -> Verdict;

    /// The first token of an admitted request passes the proxy.
    fn on_first_token(&mut self, ctx: &mut Ctx<'_>, id: RequestId) {
        let _ = (ctx, id);
    }

    /// An admitted request is over, after `output_tokens` tokens.
    fn on_end(&mut self, ctx: &mut Ctx<'_>, id: RequestId, ending: Ending, output_tokens: u32) {
        let _ = (ctx, id, ending, output_tokens);
    }

    /// The client of a waiting request has left; the request is over.
    fn on_abandoned(&mut self, ctx: &mut Ctx<'_>, id: RequestId) {
        let _ = (ctx, id);
    }

    /// The time that [`Ctx::schedule`] set has come.
    fn on_timer(&mut self, ctx: &mut Ctx<'_>, token: u64) {
        let _ = (ctx, token);
    }

    /// A fault begins that concerns proxies: a worker restarted (what it knew is gone; its waiting requests have failed already and
    /// end without a further callback), or the control plane was cut off or is back.
    fn on_fault(&mut self, ctx: &mut Ctx<'_>, fault: &Fault) {
        let _ = (ctx, fault);
    }

    /// Values for the report now.
    fn gauges(&self, out: &mut Gauges) {
        let _ = out;
    }

    /// Checks the algorithm's own invariants; the text says what is broken.
    ///
    /// # Errors
    /// When one does not hold; the world stops and prints how to reproduce it.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// What an algorithm shows of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gauges {
    /// Part of the offered work that the present setting admits, `0..=1`.
    pub admit_fraction: Option<f64>,
    /// Cut-off as a level, `0..=1024`, with its fraction as decimals.
    pub cut_off: Option<f64>,
    /// Saturation, 1 = full.
    pub saturation: Option<f64>,
    /// Limit of the work in flight, in the algorithm's own unit.
    pub limit: Option<f64>,
    /// What limits it: the term of the saturation that binds.
    pub binding: Option<&'static str>,
    /// Target of the KV use, `0..=1`.
    pub kv_target: Option<f64>,
}

/// State of the link between one proxy and the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A message sent now arrives after this time; loss has become retransmission, so it is part of the time.
    Up(Duration),
    /// Cut off.
    Down,
}

/// What a controller asks of the world.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Effect {
    /// See [`Ctx::schedule`].
    Timer {
        /// When.
        at: Timestamp,
        /// What comes back.
        token: u64,
    },
    /// See [`Ctx::release`] and [`Ctx::release_to`].
    Release(RequestId, Option<u16>),
    /// See [`Ctx::refuse`].
    Refuse(RequestId, Option<Duration>),
}

/// The world as a controller may use it.
pub struct Ctx<'a> {
    pub(crate) now: Timestamp,
    pub(crate) effects: &'a mut Vec<Effect>,
    pub(crate) rng: &'a mut Rng,
    pub(crate) engines: &'a [Engine],
    pub(crate) setup: &'a Setup,
    pub(crate) waiting: u32,
    pub(crate) requests: &'a Requests,
}

impl<'a> Ctx<'a> {
    /// A context outside any world, for tests of one algorithm: what it asks for is appended to `effects`.
    pub fn detached(now: Timestamp, setup: &'a Setup, engines: &'a [Engine], rng: &'a mut Rng, effects: &'a mut Vec<Effect>) -> Self {
        Self { now, effects, rng, engines, setup, waiting: 0, requests: Requests::NONE }
    }

    /// Virtual time.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Calls `on_timer(token)` after `delay`.
    pub fn schedule(&mut self, delay: Duration, token: u64) {
        self.effects.push(Effect::Timer { at: self.now + delay, token });
    }

    /// Sends a waiting request to the pool, after this callback.
    pub fn release(&mut self, id: RequestId) {
        self.effects.push(Effect::Release(id, None));
    }

    /// Sends a waiting request to an engine of the algorithm's choice, past the world's balancer, as long as that engine lives.
    pub fn release_to(&mut self, id: RequestId, engine: u16) {
        self.effects.push(Effect::Release(id, Some(engine)));
    }

    /// Refuses a waiting request, after this callback.
    pub fn refuse(&mut self, id: RequestId, retry_after: Option<Duration>) {
        self.effects.push(Effect::Refuse(id, retry_after));
    }

    /// Randomness of the algorithm's own: what it draws changes nothing in the load.
    pub fn rng(&mut self) -> &mut Rng {
        self.rng
    }

    /// The engines as they are now, lost ones included. An algorithm that scrapes models period and delay itself; the oracle looks.
    pub fn engines(&self) -> &'a [Engine] {
        self.engines
    }

    /// Facts of the world: topology, classes with their objectives, network.
    pub fn setup(&self) -> &'a Setup {
        self.setup
    }

    /// Time that an admitted request spent in its engine's own queue; `None` while it is there or is not with an engine.
    pub fn engine_queueing(&self, id: RequestId) -> Option<Duration> {
        let (engine, slot) = self.requests.place(id)?;
        self.engines.get(usize::from(engine))?.queueing(slot)
    }

    /// Requests that wait for a release now, over all sites.
    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    /// Link between a proxy and the control plane for a message sent now; draws its delay.
    pub fn link(&mut self, proxy: u16) -> Link {
        self.setup.network.link(self.now, proxy, &self.setup.faults, self.rng)
    }
}
