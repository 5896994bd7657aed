//! The control loop: signals in, limits out, every 100 ms and at once when a GPU sample arrives.
//!
//! [`Controls`] is the pure part: one production `PoolController` a pool, and the rule when its result is worth a push. The task
//! around it waits, reads the signals and publishes.
//!
//! **Restart.** A control plane that has just begun knows neither rates nor percentiles, and what it would push could only be a
//! guess. The filters hold their last limits meanwhile (`ttl_ms`). So nothing is pushed for a pool until its load has been
//! reported for a second, or, with no report at all, until two seconds have passed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use headgate_core::control::{ClassLoad, LimitsFrame, PoolController, PoolState, Signals};
use headgate_core::histogram::Histogram;
use headgate_core::level::{GpuMemorySample, SignalSource};
use headgate_core::policy::Policy;
use headgate_core::time::Timestamp;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, unix_ms};
use crate::config::LimitsLifetime;
use crate::device::{DEFAULT_PERIOD, DeviceSample, DeviceState, SamplerControl};
use crate::fleet::{Fleet, LimitsTable, PolicySet, PoolLimits};
use crate::ledger::{Ledger, PoolView, Shares};

mod material;
#[cfg(test)]
mod tests;

use self::material::{Material, material};

/// Longest time between two steps.
const TICK: Duration = Duration::from_millis(100);
/// Longest time between two pushes of a pool: values for people, and the filters' TTL anew.
const REFRESH: Duration = Duration::from_millis(500);
/// Time from the first report about a pool to the first push.
const LEARNING: Duration = Duration::from_secs(1);
/// Time to the first push when nobody reports.
const SILENCE: Duration = Duration::from_secs(2);
/// Time between two rounds of housekeeping.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How far ahead a filter's epoch may be and still be believed: a calendar that was set back by up to a year.
const MAX_EPOCH_LEAD: u64 = 366 * 86_400 * 1000;

/// The books, as load reporting, control loop and HTTP share them.
#[derive(Clone, Default)]
pub struct SharedLedger(Arc<Mutex<Ledger>>);

/// What the control loop has found, for people.
#[derive(Clone, Debug, Default)]
pub struct ControlView {
    /// The pools, by name.
    pub pools: BTreeMap<String, PoolControlView>,
    /// Time of the step on the monotonic clock.
    pub at: Timestamp,
    /// How long the last step took.
    pub step: Duration,
    /// Steps since the start.
    pub steps: u64,
}

/// One pool, for people.
#[derive(Clone, Debug)]
pub struct PoolControlView {
    /// Policy that protects it.
    pub policy: String,
    /// Version of that policy.
    pub version: String,
    /// What the controller found.
    pub state: PoolState,
    /// Epoch of the newest pushed limits; 0 before the first.
    pub epoch: u64,
}

/// The pure part of the loop.
pub struct Controls {
    lifetime: LimitsLifetime,
    pools: BTreeMap<String, PoolControl>,
}

/// One pool.
struct PoolControl {
    policy: Policy,
    controller: PoolController,
    created_at: Timestamp,
    epoch: u64,
    pushed: Option<Pushed>,
}

struct Pushed {
    limits: Arc<PoolLimits>,
    at: Timestamp,
}

/// What one step reads.
pub struct StepInputs<'a> {
    /// Load of every pool.
    pub loads: &'a BTreeMap<String, PoolView>,
    /// The devices.
    pub devices: &'a DeviceState,
    /// How each pool's rates are split.
    pub shares: &'a dyn Fn(&str) -> Shares,
}

/// Everything that the task needs.
pub struct ControlLoop {
    /// Where policies come from and limits go.
    pub fleet: Fleet,
    /// The books.
    pub ledger: SharedLedger,
    /// The devices.
    pub devices: watch::Receiver<Arc<DeviceState>>,
    /// Sets how often the devices are asked.
    pub sampler: SamplerControl,
    /// The monotonic clock.
    pub clock: Clock,
    /// How long limits hold.
    pub lifetime: LimitsLifetime,
    /// Where the view goes.
    pub view: watch::Sender<Arc<ControlView>>,
}

// === impl SharedLedger ===

impl SharedLedger {
    /// The books, locked. Never hold it across an await.
    pub fn lock(&self) -> MutexGuard<'_, Ledger> {
        // Books that a panic has left behind are still the best there are; counters are monotone in themselves.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Controls ===

impl Controls {
    /// Without pools.
    pub fn new(lifetime: LimitsLifetime) -> Self {
        Self { lifetime, pools: BTreeMap::new() }
    }

    /// Takes the policies in force; a pool that persists keeps its controller. `epoch` is where a new pool's numbering begins.
    pub fn set_policies(&mut self, now: Timestamp, epoch: u64, policies: &PolicySet) {
        let mut before = std::mem::take(&mut self.pools);
        for stored in policies.policies.values() {
            let policy = match Policy::try_from_wire(&stored.policy) {
                Ok(policy) => policy,
                Err(errors) => {
                    tracing::error!(policy = stored.policy.name, %errors, "a stored policy is not valid; it is left out");
                    continue;
                }
            };
            if self.pools.contains_key(policy.pool()) {
                continue;
            }
            let pool = policy.pool().to_owned();
            let control = match before.remove(&pool) {
                Some(mut kept) => {
                    kept.controller.set_policy(now, &policy);
                    kept.policy = policy;
                    kept
                }
                None => PoolControl { controller: PoolController::new(now, &policy), policy, created_at: now, epoch, pushed: None },
            };
            self.pools.insert(pool, control);
        }
    }

    /// How often the devices must be asked: as often as the most demanding policy wants.
    pub fn device_period(&self) -> Duration {
        let levels = self.pools.values().map(|pool| &pool.policy.levels().gpu_memory);
        levels.filter(|level| level.enabled).map(|level| level.sample).min().unwrap_or(DEFAULT_PERIOD)
    }

    /// Raises the numbering of `policy`'s pool above `seen`, an epoch that a filter has: after a calendar was set back, the filter
    /// would ignore everything below it.
    pub fn raise_epoch(&mut self, policy: &str, seen: u64) {
        for pool in self.pools.values_mut().filter(|pool| pool.policy.name() == policy) {
            if seen > pool.epoch && seen - pool.epoch <= MAX_EPOCH_LEAD {
                pool.epoch = seen;
            }
        }
    }

    /// One step of every pool. Returns the table to push when any pool's limits are worth it, or a pool is gone.
    pub fn step(&mut self, now: Timestamp, inputs: &StepInputs<'_>) -> Option<LimitsTable> {
        let nothing = PoolView::default();
        let mut is_worth_it = false;
        for (name, pool) in &mut self.pools {
            let load = inputs.loads.get(name).unwrap_or(&nothing);
            pool.compute(now, load, inputs.devices);
            if pool.may_push(now, load) {
                is_worth_it |= pool.offer(now, name, self.lifetime, (inputs.shares)(name));
            }
        }
        is_worth_it.then(|| self.table())
    }

    /// The limits that have been pushed, of all pools.
    pub fn table(&self) -> LimitsTable {
        let pushed = self.pools.iter().filter_map(|(name, pool)| pool.pushed.as_ref().map(|pushed| (name.clone(), pushed.limits.clone())));
        LimitsTable { pools: pushed.collect() }
    }

    fn views(&self) -> BTreeMap<String, PoolControlView> {
        let view = |pool: &PoolControl| PoolControlView {
            policy: pool.policy.name().to_owned(),
            version: pool.policy.version().to_owned(),
            state: pool.controller.state().clone(),
            epoch: pool.pushed.as_ref().map_or(0, |pushed| pushed.limits.fleet.epoch),
        };
        self.pools.iter().map(|(name, pool)| (name.clone(), view(pool))).collect()
    }
}

// === impl PoolControl ===

impl PoolControl {
    fn compute(&mut self, now: Timestamp, load: &PoolView, devices: &DeviceState) {
        let classes: Vec<ClassLoad> = self.policy.classes().iter().map(|class| class_load(load, &class.name)).collect();
        let empty = Histogram::new();
        let signals = Signals {
            // The books only grow while this program runs.
            series: 0,
            gpu_memory: fullest(&self.policy.levels().gpu_memory.devices, devices),
            classes: &classes,
            ttft_us: load.ttft.as_ref().unwrap_or(&empty),
            source: SignalSource::Filters,
        };
        self.controller.step(now, &signals);
    }

    fn may_push(&self, now: Timestamp, load: &PoolView) -> bool {
        if self.pushed.is_some() {
            return true;
        }
        match load.first_report_at {
            Some(at) => now.since(at) >= LEARNING,
            None => now.since(self.created_at) >= SILENCE,
        }
    }

    /// Pushes the controller's state if that is worth it; returns whether it was.
    fn offer(&mut self, now: Timestamp, pool: &str, lifetime: LimitsLifetime, shares: Shares) -> bool {
        let frame = LimitsFrame {
            pool,
            epoch: self.epoch + 1,
            policy_version: self.policy.version(),
            share: 1.0,
            safe_share: 1.0,
            ttl: lifetime.ttl,
            decay: lifetime.decay,
        };
        let limits = PoolLimits { fleet: self.controller.state().to_wire(&frame), shares: shares.by_node, newcomer: shares.newcomer };
        let is_due = self.pushed.as_ref().is_none_or(|pushed| now.since(pushed.at) >= REFRESH.min(lifetime.ttl / 3));
        let is_material = self.pushed.as_ref().is_none_or(|pushed| material(&pushed.limits, &limits) == Material::Yes);
        if !is_due && !is_material {
            return false;
        }
        self.epoch += 1;
        self.pushed = Some(Pushed { limits: Arc::new(limits), at: now });
        true
    }
}

fn class_load(load: &PoolView, class: &str) -> ClassLoad {
    let Some(view) = load.classes.iter().find(|view| view.class == class) else { return ClassLoad::default() };
    ClassLoad {
        offered: view.control.offered,
        admitted: view.control.admitted,
        completed: view.control.completed,
        in_flight: u32::try_from(view.in_flight).unwrap_or(u32::MAX),
    }
}

/// The fullest device of the pool. Not the sum: a request runs on one device, and an average hides the one that is about to fail.
fn fullest(wanted: &[impl AsRef<str>], state: &DeviceState) -> Option<GpuMemorySample> {
    let serves = |device: &&DeviceSample| wanted.is_empty() || wanted.iter().any(|uuid| uuid.as_ref() == &*device.uuid);
    let fraction = |device: &DeviceSample| device.memory_used_bytes as f64 / device.memory_total_bytes.max(1) as f64;
    let device = state.devices.iter().filter(serves).max_by(|a, b| fraction(a).total_cmp(&fraction(b)))?;
    Some(GpuMemorySample {
        at: state.sampled_at?,
        used_bytes: device.memory_used_bytes,
        total_bytes: device.memory_total_bytes,
        source: SignalSource::Nvml,
    })
}

// === impl ControlLoop ===

impl ControlLoop {
    /// Runs until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut policies = self.fleet.policies();
        let mut controls = Controls::new(self.lifetime);
        self.take_policies(&mut controls, &policies.borrow_and_update().clone());
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut housekeeping_at = self.clock.now();
        let mut steps = 0;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                Ok(()) = policies.changed() => self.take_policies(&mut controls, &policies.borrow_and_update().clone()),
                Ok(()) = self.devices.changed() => {}
                _ = tick.tick() => {}
            }
            steps += 1;
            self.step(&mut controls, steps);
            let now = self.clock.now();
            if now.since(housekeeping_at) >= HOUSEKEEPING {
                housekeeping_at = now;
                self.keep_house(&mut controls, now);
            }
        }
    }

    fn take_policies(&self, controls: &mut Controls, policies: &PolicySet) {
        self.ledger.lock().set_policies(policies);
        controls.set_policies(self.clock.now(), unix_ms(), policies);
        self.sampler.set_period(controls.device_period());
        // Pools that are gone leave at once; a filter must not go on with the limits of a policy that was deleted.
        self.fleet.publish_limits(controls.table());
    }

    fn step(&mut self, controls: &mut Controls, steps: u64) {
        let began = Instant::now();
        let at = self.clock.now();
        let loads = self.ledger.lock().view(at);
        let devices = self.devices.borrow_and_update().clone();
        let shares = |pool: &str| self.ledger.lock().shares(at, pool);
        let table = controls.step(at, &StepInputs { loads: &loads, devices: &devices, shares: &shares });
        if let Some(table) = table {
            self.fleet.publish_limits(table);
        }
        self.view.send_replace(Arc::new(ControlView { pools: controls.views(), at, step: began.elapsed(), steps }));
    }

    fn keep_house(&self, controls: &mut Controls, now: Timestamp) {
        for node_id in self.fleet.proxies().expire(Instant::now()) {
            tracing::info!(node_id, "a proxy has gone silent");
        }
        self.ledger.lock().expire(now);
        for (policy, epoch) in self.fleet.proxies().limits_epochs() {
            controls.raise_epoch(&policy, epoch);
        }
    }
}
