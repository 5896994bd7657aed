//! The world: one loop over events.

use headgate_core::time::Timestamp;

use crate::controller::{Controller, Ctx, Effect, Ending, Gauges, RequestId, Verdict};
use crate::engine::{Engine, Output};
use crate::observe::{Fate, Observer, Over, Sample};
use crate::rng::Rng;
use crate::setup::{Patience, Setup};

mod clients;
mod events;
mod faults;
mod load;
mod requests;
#[cfg(test)]
mod tests;

use self::clients::{Clients, Frame, stream, wait_before_retry};
use self::events::{Event, Events};
pub(crate) use self::requests::Requests;
use self::requests::{Place, Request};

/// Counts of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Events.
    pub events: u64,
    /// Attempts sent by clients.
    pub sent: u64,
    /// Attempts that went to an engine.
    pub admitted: u64,
    /// Attempts that are over.
    pub over: u64,
    /// Attempts that completed.
    pub completed: u64,
}

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invariant broken: {what} (reproduce: scenario {scenario}, controller {controller}, seed {seed}, event {event}, at {at_ns} ns)")]
pub struct Violation {
    /// What is broken.
    pub what: String,
    /// Name of the setup.
    pub scenario: String,
    /// Name of the controller.
    pub controller: String,
    /// The seed.
    pub seed: u64,
    /// Number of the event after which it was found, from 1.
    pub event: u64,
    /// Virtual time, in nanoseconds.
    pub at_ns: u64,
}

/// A world before or during its run.
pub struct World<'a> {
    setup: &'a Setup,
    seed: u64,
    now: Timestamp,
    ends_at: Timestamp,
    events: Events,
    requests: Requests,
    engines: Vec<Engine>,
    /// When each engine's next event is; others are stale.
    engine_due: Vec<Option<Timestamp>>,
    clients: Vec<Clients>,
    frame: Frame,
    /// Rows of the trace that were sent.
    trace_sent: usize,
    trace_rng: Rng,
    balancer: Rng,
    retries: Rng,
    control_rng: Rng,
    effects: Vec<Effect>,
    timers: Vec<u64>,
    free_timers: Vec<u32>,
    waiting: u32,
    in_flight: u32,
    backing_off: u32,
    totals: Totals,
    outputs: Vec<Output>,
}

/// Who takes part in a run.
struct Cast<'a> {
    controller: &'a mut dyn Controller,
    observer: &'a mut dyn Observer,
}

// === impl World ===

impl<'a> World<'a> {
    /// A world at time zero.
    pub fn new(setup: &'a Setup, seed: u64) -> Self {
        let engine = |(index, config)| Engine::new(config, seed ^ (stream::ENGINES + index as u64));
        let clients = |(index, source)| Clients::new(source, index as u64, seed);
        let engines: Vec<Engine> = setup.engines.iter().enumerate().map(engine).collect();
        Self {
            seed,
            now: Timestamp::ZERO,
            ends_at: Timestamp::ZERO + setup.duration + setup.drain,
            events: Events::default(),
            requests: Requests::new(),
            engine_due: vec![None; engines.len()],
            engines,
            clients: setup.sources.iter().enumerate().map(clients).collect(),
            frame: Frame::new(setup),
            trace_sent: 0,
            trace_rng: Rng::new(seed, stream::TRACE),
            balancer: Rng::new(seed, stream::BALANCER),
            retries: Rng::new(seed, stream::RETRIES),
            control_rng: Rng::new(seed, stream::CONTROLLER),
            effects: Vec::new(),
            timers: Vec::new(),
            free_timers: Vec::new(),
            waiting: 0,
            in_flight: 0,
            backing_off: 0,
            totals: Totals::default(),
            outputs: Vec::new(),
            setup,
        }
    }

    /// Runs to the end of the drain, or of the load's time when nothing is left then that could happen to a request.
    ///
    /// # Errors
    /// The first broken invariant.
    pub fn run(mut self, controller: &mut dyn Controller, observer: &mut dyn Observer) -> Result<Totals, Violation> {
        let mut cast = Cast { controller, observer };
        self.begin();
        let mut ctx = self.ctx();
        cast.controller.on_start(&mut ctx);
        self.apply_effects(&mut cast);
        while let Some((at, event)) = self.events.pop() {
            if at > self.ends_at || self.is_drained(at, event) {
                break;
            }
            self.totals.events += 1;
            let is_monotonic = at >= self.now;
            self.now = at;
            self.happen(&mut cast, event);
            self.apply_effects(&mut cast);
            self.check(&mut cast, is_monotonic)?;
        }
        Ok(self.totals)
    }

    /// Whether with `event` at `at` the load is over, no request lives and no client will send another.
    fn is_drained(&self, at: Timestamp, event: Event) -> bool {
        let sends = event.sends() || self.events.has_senders();
        at >= Timestamp::ZERO + self.setup.duration && self.requests.len() == 0 && !sends
    }

    fn begin(&mut self) {
        for index in 0..self.clients.len() {
            let from = Timestamp::ZERO + self.setup.sources[index].from;
            if self.clients[index].is_closed() {
                self.events.push(from, Event::Population(index as u32));
            } else if let Some(at) = self.clients[index].next_arrival(from) {
                self.events.push(at, Event::Arrival(index as u32));
            }
        }
        if let Some(row) = self.setup.trace.first() {
            self.events.push(Timestamp::ZERO + row.at, Event::Trace);
        }
        for (index, fault) in self.setup.faults.iter().enumerate() {
            self.events.push(Timestamp::ZERO + fault.at, Event::Fault(index as u32));
        }
        self.events.push(Timestamp::ZERO + self.setup.sample_every, Event::Sample);
    }

    fn ctx(&mut self) -> Ctx<'_> {
        Ctx {
            now: self.now,
            effects: &mut self.effects,
            rng: &mut self.control_rng,
            engines: &self.engines,
            setup: self.setup,
            waiting: self.waiting,
            requests: &self.requests,
        }
    }

    fn happen(&mut self, cast: &mut Cast<'_>, event: Event) {
        match event {
            Event::Arrival(source) => self.on_arrival(cast, source),
            Event::Thought(source) => self.on_thought(cast, source),
            Event::Population(source) => self.on_population(source),
            Event::Trace => self.on_trace(cast),
            Event::Retry(slot) => self.on_retry(cast, RequestId(slot)),
            Event::Deadline(slot) => self.on_deadline(cast, RequestId(slot)),
            Event::Engine(engine) => self.on_engine(cast, engine),
            Event::Timer(slot) => {
                self.free_timers.push(slot);
                let token = self.timers[slot as usize];
                cast.controller.on_timer(&mut self.ctx(), token);
            }
            Event::Fault(index) => self.on_fault(cast, index),
            Event::FaultEnds(index) => self.on_fault_ends(cast, index),
            Event::Sample => self.on_sample(cast),
        }
    }

    /// Does what the controller asked for, and what follows from it, until nothing is left.
    fn apply_effects(&mut self, cast: &mut Cast<'_>) {
        let mut at = 0;
        while let Some(effect) = self.effects.get(at).copied() {
            at += 1;
            match effect {
                Effect::Timer { at, token } => {
                    let slot = self.free_timers.pop().unwrap_or(self.timers.len() as u32);
                    match self.timers.get_mut(slot as usize) {
                        Some(timer) => *timer = token,
                        None => self.timers.push(token),
                    }
                    self.events.push(at, Event::Timer(slot));
                }
                // A request that has left meanwhile needs no answer.
                Effect::Release(id, engine) if self.is_waiting(id) => {
                    self.waiting -= 1;
                    self.admit(cast, id, engine);
                }
                Effect::Refuse(id, retry_after) if self.is_waiting(id) => {
                    self.waiting -= 1;
                    self.finish(cast, id, Fate::Refused, 0, retry_after);
                }
                Effect::Release(..) | Effect::Refuse(..) => {}
            }
        }
        self.effects.clear();
    }

    fn is_waiting(&self, id: RequestId) -> bool {
        self.requests.get(id).place == Place::Waiting
    }

    /// An attempt arrives at its site.
    fn offer(&mut self, cast: &mut Cast<'_>, id: RequestId) {
        self.totals.sent += 1;
        let arrival = self.requests.get(id).arrival;
        cast.observer.on_sent(self.now, &arrival);
        match cast.controller.on_arrival(&mut self.ctx(), &arrival) {
            verdict @ (Verdict::Admit | Verdict::AdmitTo(_)) => {
                self.events.push(arrival.deadline, Event::Deadline(id.0));
                self.admit(cast, id, if let Verdict::AdmitTo(engine) = verdict { Some(engine) } else { None });
            }
            Verdict::Wait => {
                self.events.push(arrival.deadline, Event::Deadline(id.0));
                self.requests.get_mut(id).place = Place::Waiting;
                self.waiting += 1;
            }
            Verdict::Refuse { retry_after } => self.finish(cast, id, Fate::Refused, 0, retry_after),
        }
    }

    /// A request leaves the proxy for an engine.
    fn admit(&mut self, cast: &mut Cast<'_>, id: RequestId, wanted: Option<u16>) {
        self.totals.admitted += 1;
        let (now, request) = (self.now, self.requests.get_mut(id));
        request.admitted_at = Some(now);
        let arrival = request.arrival;
        cast.observer.on_admitted(now, &arrival);
        // As with `override_host`: what is named and does not live is passed over.
        let lives = |engine: &u16| self.engines.get(usize::from(*engine)).is_some_and(Engine::is_alive);
        let Some(engine) = wanted.filter(lives).or_else(|| self.balance()) else {
            return self.end(cast, id, Ending::Failed, 0);
        };
        let chosen = &mut self.engines[usize::from(engine)];
        match chosen.submit(now, id, arrival.prompt_tokens, arrival.secret_output_tokens) {
            Some(slot) => {
                self.requests.get_mut(id).place = Place::Engine { engine, slot };
                self.in_flight += 1;
                self.schedule_engine(engine);
            }
            None if chosen.is_lost() => self.end(cast, id, Ending::Failed, 0),
            None => self.end(cast, id, Ending::EngineRefused, 0),
        }
    }

    /// The less busy of two engines drawn from those that are alive.
    fn balance(&mut self) -> Option<u16> {
        let alive = self.engines.iter().filter(|engine| engine.is_alive()).count() as u32;
        if alive == 0 {
            return None;
        }
        let first = self.balancer.below(alive);
        let second = if alive > 1 { (first + 1 + self.balancer.below(alive - 1)) % alive } else { first };
        let nth = |n: u32| self.engines.iter().enumerate().filter(|(_, engine)| engine.is_alive()).nth(n as usize);
        let (first, second) = (nth(first)?, nth(second)?);
        let index = if second.1.outstanding() < first.1.outstanding() { second.0 } else { first.0 };
        u16::try_from(index).ok()
    }

    fn schedule_engine(&mut self, engine: u16) {
        let index = usize::from(engine);
        let due = self.engines[index].next_at(self.now);
        if due != self.engine_due[index] {
            self.engine_due[index] = due;
            if let Some(at) = due {
                self.events.push(at, Event::Engine(u32::from(engine)));
            }
        }
    }

    fn on_engine(&mut self, cast: &mut Cast<'_>, engine: u32) {
        let index = engine as usize;
        if self.engine_due[index] != Some(self.now) {
            return;
        }
        self.engine_due[index] = None;
        let mut outputs = std::mem::take(&mut self.outputs);
        self.engines[index].advance(self.now, &mut outputs);
        for output in outputs.drain(..) {
            match output {
                Output::FirstToken(id) => {
                    self.requests.get_mut(id).first_token_at = Some(self.now);
                    cast.controller.on_first_token(&mut self.ctx(), id);
                }
                Output::Done(id) => {
                    self.in_flight -= 1;
                    self.totals.completed += 1;
                    let tokens = self.requests.get(id).arrival.secret_output_tokens;
                    self.end(cast, id, Ending::Completed, tokens);
                }
            }
        }
        self.outputs = outputs;
        self.schedule_engine(engine as u16);
    }

    /// An admitted request is over; it is with no engine any more.
    fn end(&mut self, cast: &mut Cast<'_>, id: RequestId, ending: Ending, output_tokens: u32) {
        cast.controller.on_end(&mut self.ctx(), id, ending, output_tokens);
        self.finish(cast, id, Fate::Ended(ending), output_tokens, None);
    }

    /// An attempt is over; its client gives up or comes back later.
    fn finish(&mut self, cast: &mut Cast<'_>, id: RequestId, fate: Fate, output_tokens: u32, retry_after: Option<std::time::Duration>) {
        self.totals.over += 1;
        let request = *self.requests.get(id);
        let attempt = request.arrival.attempt;
        let wait = match fate {
            Fate::Ended(Ending::Completed) => None,
            _ => wait_before_retry(self.patience(request.source).retries, attempt, retry_after, &mut self.retries),
        };
        let wait = wait.filter(|_| self.now < Timestamp::ZERO + self.setup.duration);
        cast.observer.on_over(&Over {
            arrival: request.arrival,
            sent_at: request.sent_at,
            admitted_at: request.admitted_at,
            first_token_at: request.first_token_at,
            ended_at: self.now,
            fate,
            retry_after,
            output_tokens,
            is_last: wait.is_none(),
        });
        match wait {
            Some(wait) => {
                self.requests.get_mut(id).place = Place::Backoff;
                self.backing_off += 1;
                self.events.push(self.now + wait, Event::Retry(id.0));
            }
            None => {
                self.requests.remove(id);
                self.client_is_free(request.source);
            }
        }
    }

    fn patience(&self, source: u32) -> Patience {
        self.clients.get(source as usize).map_or(self.setup.trace_patience, Clients::patience)
    }

    fn on_deadline(&mut self, cast: &mut Cast<'_>, id: RequestId) {
        let request = *self.requests.get(id);
        // The slot may belong to another request by now, whose deadline is its own.
        if request.arrival.deadline != self.now || request.first_token_at.is_some() {
            return;
        }
        match request.place {
            Place::Waiting => {
                self.waiting -= 1;
                cast.controller.on_abandoned(&mut self.ctx(), id);
                self.finish(cast, id, Fate::Abandoned, 0, None);
            }
            Place::Engine { engine, slot } => {
                let tokens = self.engines[usize::from(engine)].abort(self.now, slot);
                self.in_flight -= 1;
                self.schedule_engine(engine);
                self.end(cast, id, Ending::ClientLeft, tokens);
            }
            Place::Free | Place::Deciding | Place::Backoff => {}
        }
    }

    fn on_sample(&mut self, cast: &mut Cast<'_>) {
        let mut gauges = Gauges::default();
        cast.controller.gauges(&mut gauges);
        cast.observer.on_sample(&Sample {
            now: self.now,
            engines: &self.engines,
            waiting: self.waiting,
            in_flight: self.in_flight,
            gauges,
        });
        self.events.push(self.now + self.setup.sample_every, Event::Sample);
    }

    /// After every event: time goes on, every attempt is somewhere, no engine holds more than it has, and what the controller says of
    /// itself.
    fn check(&mut self, cast: &mut Cast<'_>, is_monotonic: bool) -> Result<(), Violation> {
        let live = self.requests.len() as u64 - u64::from(self.backing_off);
        let somewhere = u64::from(self.waiting) + u64::from(self.in_flight);
        let what = if !is_monotonic {
            "time went back".to_owned()
        } else if self.totals.sent != self.totals.over + live || live != somewhere {
            let Self { totals: Totals { sent, over, .. }, waiting, in_flight, .. } = self;
            format!("{sent} attempts sent, {over} over, {live} live, but {waiting} wait and {in_flight} are in flight")
        } else if let Some(full) = self.engines.iter().position(|engine| engine.kv_used_tokens() > engine.kv_total_tokens()) {
            format!("engine {full} uses more KV cache than it has")
        } else if let Err(what) = cast.controller.check() {
            what
        } else {
            return Ok(());
        };
        Err(Violation {
            what,
            scenario: self.setup.name.clone(),
            controller: cast.controller.name().to_owned(),
            seed: self.seed,
            event: self.totals.events,
            at_ns: self.now.as_nanos(),
        })
    }
}
