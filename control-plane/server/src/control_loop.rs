//! The control loop: signals in, limits out, every 100 ms and at once when a GPU sample arrives.
//!
//! What it computes is core's: [`Controls`]. The task around it waits, reads the signals and publishes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use headgate_core::fleet::{Controls, Ledger, LimitsLifetime, PoolControlView, PoolView, StepInputs, Term, first_epoch};
use headgate_core::level::{EngineFacts, MemoryFacts, MemorySource, SourceReason};
use headgate_core::policy::{GpuMemoryConfig, serving_pool};
use headgate_core::time::Timestamp;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::alarms::{Alarms, PolicySeen};
use crate::clock::{Clock, unix_ms};
use crate::device::{DEFAULT_PERIOD, DeviceBoard, PoolCapacity};
use crate::dry_run::{Frame, Tape};
use crate::engine::{EngineBoard, EngineKind, EnginePaces, EngineTimings, Engines, FreezeWatch, PoolEngines};
use crate::fleet::{Fleet, LimitsTable, PolicySet};
use crate::replica::Helm;

/// Longest time between two steps.
const TICK: Duration = Duration::from_millis(100);
/// Shortest time between two steps that new samples cause: 125 agents at 10 Hz would cause 1250 a second.
const LEAST_TICK: Duration = Duration::from_millis(20);
/// Time between two rounds of housekeeping.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// What is remembered of a pool's engines from step to step.
#[derive(Clone, Debug, Default)]
pub struct EngineMemories {
    /// What tells the frozen ones.
    freezes: FreezeWatch,
    /// What tells the slow ones.
    paces: EnginePaces,
    /// What they are, as far as memory goes.
    source: MemorySource,
    /// What their histograms of latencies have told.
    timings: EngineTimings,
}

/// The books, as load reporting, control loop and HTTP share them.
#[derive(Clone, Default)]
pub struct SharedLedger(Arc<Mutex<Ledger>>);

/// What the control loop has found, for people.
#[derive(Clone, Debug, Default)]
pub struct ControlView {
    /// The pools, by name.
    pub pools: BTreeMap<String, PoolControlView>,
    /// The engines of each pool that has any, by the pool's name.
    pub engines: BTreeMap<String, PoolEngines>,
    /// What the devices of each pool can do, by the pool's name.
    pub capacities: BTreeMap<String, PoolCapacity>,
    /// Why each pool's level of GPU memory watches what it watches, by the pool's name.
    pub memory_sources: BTreeMap<String, SourceReason>,
    /// Time of the step on the monotonic clock.
    pub at: Timestamp,
    /// How long the last step took.
    pub step: Duration,
    /// Steps since the start.
    pub steps: u64,
}

/// Everything that the task needs.
pub struct ControlLoop {
    /// Where policies come from and limits go.
    pub fleet: Fleet,
    /// The books.
    pub ledger: SharedLedger,
    /// The devices of all nodes.
    pub devices: DeviceBoard,
    /// The engines.
    pub engines: Engines,
    /// What is remembered of each pool's engines, by the pool's name.
    pub memories: BTreeMap<String, EngineMemories>,
    /// The monotonic clock.
    pub clock: Clock,
    /// How long limits hold.
    pub lifetime: LimitsLifetime,
    /// Where the view goes.
    pub view: watch::Sender<Arc<ControlView>>,
    /// Whether this replica may act.
    pub helm: Helm,
    /// The last minutes' signals.
    pub tape: Tape,
    /// Limits of the leader before: they stay in force until this one has learned enough to push its own.
    pub inherited: Arc<LimitsTable>,
    /// Watches for what is stored and not at work.
    pub alarms: Alarms,
}

// === impl SharedLedger ===

impl SharedLedger {
    /// The books, locked. Never hold it across an await.
    pub fn lock(&self) -> MutexGuard<'_, Ledger> {
        // Books that a panic has left behind are still the best there are; counters are monotone in themselves.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests of a pool that ended well, cumulative.
fn completed(load: &PoolView) -> u64 {
    load.classes.iter().map(|class| class.control.completed).sum()
}

// === impl ControlLoop ===

impl ControlLoop {
    /// A loop that has taken no step, over what it shares with the others.
    pub fn new(
        (fleet, ledger, devices): (Fleet, SharedLedger, DeviceBoard),
        clock: Clock,
        lifetime: LimitsLifetime,
        view: watch::Sender<Arc<ControlView>>,
        helm: Helm,
    ) -> Self {
        let (engines, memories, inherited) = (Engines::new(clock), BTreeMap::new(), Arc::default());
        let (tape, alarms) = (Tape::default(), Alarms::default());
        Self { fleet, ledger, devices, engines, memories, clock, lifetime, view, helm, tape, inherited, alarms }
    }

    /// Where what is known of the engines stands.
    pub fn engine_board(&self) -> EngineBoard {
        self.engines.board()
    }

    /// Runs until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut policies = self.fleet.policies();
        let mut controls = Controls::new(self.lifetime);
        let mut term = self.helm.acting_term();
        self.begin_quotas(term);
        self.take_policies(&mut controls, term, &policies.borrow_and_update().clone());
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut housekeeping_at = self.clock.now();
        let mut changed = self.devices.changed();
        // When to step because of new samples; `None` while there are none.
        let mut due: Option<tokio::time::Instant> = None;
        let mut stepped_at = tokio::time::Instant::now();
        let mut steps = 0;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                Ok(()) = policies.changed() => self.take_policies(&mut controls, term, &policies.borrow_and_update().clone()),
                Ok(()) = changed.changed(), if due.is_none() => {
                    due = Some(stepped_at + LEAST_TICK);
                    continue;
                }
                () = sleep_until(due.unwrap_or(stepped_at)), if due.is_some() => {}
                _ = tick.tick() => {}
            }
            due = None;
            changed.mark_unchanged();
            stepped_at = tokio::time::Instant::now();
            steps += 1;
            match self.helm.acting_term() {
                Some(acting) => {
                    if term != Some(acting) {
                        term = Some(acting);
                        controls = Controls::new(self.lifetime);
                        self.inherited = self.fleet.limits().borrow().clone();
                        self.begin_quotas(term);
                        self.take_policies(&mut controls, term, &policies.borrow_and_update().clone());
                    }
                    self.step(&mut controls, term, steps);
                }
                // What is known of pools is what the leader knows.
                None => {
                    self.tape.clear();
                    drop(self.view.send_replace(Arc::new(ControlView { at: self.clock.now(), steps, ..ControlView::default() })));
                }
            }
            let now = self.clock.now();
            if now.since(housekeeping_at) >= HOUSEKEEPING {
                housekeeping_at = now;
                self.keep_house(&mut controls, now);
            }
        }
    }

    fn take_policies(&mut self, controls: &mut Controls, term: Option<Term>, policies: &PolicySet) {
        let now = self.clock.now();
        {
            let mut ledger = self.ledger.lock();
            ledger.set_policies(policies);
            ledger.quotas().set_policies(now, policies);
        }
        let epoch = first_epoch(term.unwrap_or(0), unix_ms());
        for (policy, errors) in controls.set_policies(now, epoch, policies) {
            tracing::error!(policy, %errors, "a stored policy is not valid; it is left out");
        }
        // Another policy may name other engines: what they are is found out anew.
        self.memories.clear();
        self.devices.set_period(controls.device_period().unwrap_or(DEFAULT_PERIOD));
        self.engines.set(controls.engines().flat_map(|(_, urls)| urls).map(String::as_str));
        self.engines.board().keep_in_band(controls.in_band());
        // Pools that are gone leave at once; a filter must not go on with the limits of a policy that was deleted.
        self.publish(controls, term, controls.table());
    }

    /// Leads with a fence of its own from now on, and with no knowledge of what earlier leaders have granted.
    fn begin_quotas(&self, term: Option<Term>) {
        if let Some(term) = term {
            self.ledger.lock().quotas().begin(first_epoch(term, unix_ms()));
        }
    }

    /// Publishes the limits, unless this replica may no longer act.
    fn publish(&self, controls: &Controls, term: Option<Term>, mut table: LimitsTable) {
        for (pool, limits) in &self.inherited.pools {
            if controls.protects(pool) {
                table.pools.entry(pool.clone()).or_insert_with(|| limits.clone());
            }
        }
        for (pool, grants) in self.ledger.lock().quotas().grants() {
            if let Some(limits) = table.pools.get_mut(pool) {
                Arc::make_mut(limits).grants = grants.clone();
            }
        }
        // A replica that leads again must not push what it had computed when it led before.
        if term.is_some() && self.helm.acting_term() == term {
            self.fleet.publish_limits(table);
        }
    }

    fn step(&mut self, controls: &mut Controls, term: Option<Term>, steps: u64) {
        let began = Instant::now();
        let at = self.clock.now();
        let loads = self.ledger.lock().control_view(at);
        let devices = self.devices.view_to_decide(at);
        let board = self.engines.board();
        let mut read = |(pool, urls): (&str, &[String])| {
            let completed = loads.get(pool).map_or(0, completed);
            let memories = self.memories.entry(pool.to_owned()).or_default();
            let mut engines = PoolEngines::read(&board, at, (pool, urls), completed, &mut memories.freezes);
            engines.compare(&mut memories.paces);
            memories.timings.follow(at, &mut engines);
            (pool.to_owned(), engines)
        };
        let engines: BTreeMap<String, PoolEngines> = controls.engines().map(&mut read).collect();
        let sample = |pool: &str| engines.get(pool).and_then(|engines| engines.sample);
        let shares = |pool: &str| self.ledger.lock().shares(at, pool);
        let memories = RefCell::new((&mut self.memories, BTreeMap::new(), BTreeMap::new()));
        let gpu_memory = |books: &str, config: &GpuMemoryConfig| {
            let pool = serving_pool(books);
            let engines = engines.get(books).map(PoolEngines::memory).unwrap_or_default();
            let process = (engines == EngineFacts::NotNamed).then(|| devices.up_front(pool, config)).flatten();
            let facts = MemoryFacts { nvml: devices.fullest(pool, config), engines, process: process.map(EngineKind::as_str) };
            let (memories, reasons, samples) = &mut *memories.borrow_mut();
            let choice = memories.entry(books.to_owned()).or_default().source.choose(config.source, &facts);
            reasons.insert(books.to_owned(), choice.reason);
            samples.extend(choice.sample.map(|sample| (books.to_owned(), sample)));
            choice.sample
        };
        let capacity = |books: &str, config: &GpuMemoryConfig| devices.capacity(serving_pool(books), config).fraction();
        let ring = |books: &str| {
            let memories = memories.borrow();
            let known = engines.get(books).zip(memories.0.get(books));
            known.map(|(engines, memories)| engines.ring(&memories.paces)).unwrap_or_default()
        };
        let inputs =
            StepInputs { loads: &loads, gpu_memory: &gpu_memory, capacity: &capacity, engines: &sample, rings: &ring, shares: &shares };
        let table = controls.step(at, &inputs);
        let (_, memory_sources, gpu_memory) = memories.into_inner();
        let is_granted = self.ledger.lock().quotas().step(at);
        if table.is_some() || is_granted {
            self.publish(controls, term, table.unwrap_or_else(|| controls.table()));
        }
        let capacities: BTreeMap<String, PoolCapacity> =
            controls.gpu_memory().map(|(pool, config)| (pool.to_owned(), devices.capacity(serving_pool(pool), config))).collect();
        if self.tape.is_due(at) {
            let capacity = capacities.iter().map(|(pool, capacity)| (pool.clone(), capacity.fraction())).collect();
            let engines = engines.iter().filter_map(|(pool, engines)| Some((pool.clone(), engines.sample?))).collect();
            self.tape.record(Frame { at, loads, gpu_memory, capacity, engines, learned: None }, || controls.clone());
        }
        let (pools, step) = (controls.views(), began.elapsed());
        self.view.send_replace(Arc::new(ControlView { pools, engines, memory_sources, capacities, at, step, steps }));
    }

    fn keep_house(&mut self, controls: &mut Controls, now: Timestamp) {
        for node_id in self.fleet.proxies().expire(Instant::now()) {
            tracing::info!(node_id, "a proxy has gone silent");
        }
        {
            let mut ledger = self.ledger.lock();
            ledger.expire(now);
            ledger.quotas().expire(now);
        }
        self.devices.expire(now);
        for (policy, epoch) in self.fleet.proxies().limits_epochs() {
            controls.raise_epoch(&policy, epoch);
        }
        self.raise_alarms(now);
    }

    /// A replica that does not lead sees no pools, so it raises nothing.
    fn raise_alarms(&mut self, now: Timestamp) {
        let (view, loads) = (self.view.borrow().clone(), self.ledger.lock().view(now));
        let policies = self.fleet.policies().borrow().clone();
        let raised = self.alarms.step(now, &PolicySeen::all(&view, &loads, &policies, self.fleet.proxies()));
        self.fleet.publish_alarms(raised);
    }
}
