//! The control loop of all pools: one `PoolController` each, and the rule when its result is worth a push.
//!
//! **Restart.** A control plane that has just begun knows neither rates nor percentiles, and what it would push could only be a
//! guess. The filters hold their last limits meanwhile (`ttl_ms`). So nothing is pushed for a pool until its load has been
//! reported for a second, or, with no report at all, until two seconds have passed.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::{LimitsLifetime, LimitsTable, PolicySet, PoolLimits, PoolView, Ring, Shares};
use crate::control::{ClassLoad, LimitsFrame, PoolController, PoolState, Signals};
use crate::histogram::Histogram;
use crate::level::{GpuMemorySample, SignalSource};
use crate::overload::{EngineSample, OverloadState};
use crate::policy::{GpuMemoryConfig, OverloadConfig, Policy, PolicyErrors};
use crate::time::Timestamp;

mod derate;
mod material;
mod overload;
#[cfg(test)]
mod tests;

use self::derate::Derate;
use self::material::{Material, material};
pub use self::overload::OverloadPush;
use self::overload::{PoolOverload, release_classes, with_released_classes};

/// Longest time between two pushes of a pool: values for people, and the filters' TTL anew.
const REFRESH: Duration = Duration::from_millis(500);
/// Time from the first report about a pool to the first push.
const LEARNING: Duration = Duration::from_secs(1);
/// Time to the first push when nobody reports.
const SILENCE: Duration = Duration::from_secs(2);
/// How far ahead a filter's epoch may be and still be believed: a calendar that was set back by up to a year.
const MAX_EPOCH_LEAD: u64 = 366 * 86_400 * 1000;

/// One pool, for people.
#[derive(Clone, Debug)]
pub struct PoolControlView {
    /// Policy that protects it.
    pub policy: String,
    /// Version of that policy.
    pub version: String,
    /// What the controller found.
    pub state: PoolState,
    /// What overload control found; `None` when the policy has none.
    pub overload: Option<OverloadState>,
    /// What the policy asks of it.
    pub overload_config: Option<OverloadConfig>,
    /// Epoch of the newest pushed limits; 0 before the first.
    pub epoch: u64,
}

/// The pure part of the loop. A clone goes on from what was learned.
#[derive(Clone)]
pub struct Controls {
    lifetime: LimitsLifetime,
    pools: BTreeMap<String, PoolControl>,
}

/// One pool.
#[derive(Clone)]
struct PoolControl {
    policy: Policy,
    controller: PoolController,
    overload: Option<PoolOverload>,
    derate: Derate,
    /// Factor on what is pushed.
    able: f64,
    created_at: Timestamp,
    epoch: u64,
    pushed: Option<Pushed>,
}

#[derive(Clone)]
struct Pushed {
    limits: Arc<PoolLimits>,
    at: Timestamp,
}

/// What one step reads.
pub struct StepInputs<'a> {
    /// Load of every pool.
    pub loads: &'a BTreeMap<String, PoolView>,
    /// Newest sample of the GPU memory that the level of the named pool watches.
    pub gpu_memory: &'a dyn Fn(&str, &GpuMemoryConfig) -> Option<GpuMemorySample>,
    /// Part of the pool's devices that can be trusted with work, 0 to 1; 1 while nobody knows.
    pub capacity: &'a dyn Fn(&str, &GpuMemoryConfig) -> f64,
    /// Newest reading of a pool's engines; `None` when nobody reads them or it is stale.
    pub engines: &'a dyn Fn(&str) -> Option<EngineSample>,
    /// A pool's engines, each by how fast it is.
    pub rings: &'a dyn Fn(&str) -> Ring,
    /// How each pool's rates are split.
    pub shares: &'a dyn Fn(&str) -> Shares,
}

// === impl Controls ===

impl Controls {
    /// Without pools.
    pub fn new(lifetime: LimitsLifetime) -> Self {
        Self { lifetime, pools: BTreeMap::new() }
    }

    /// Takes the policies in force; a pool that persists keeps its controller. `epoch` is where a new pool's numbering begins.
    /// Returns the policies that are not valid, by name: they are left out.
    pub fn set_policies(&mut self, now: Timestamp, epoch: u64, policies: &PolicySet) -> Vec<(String, PolicyErrors)> {
        let mut invalid = Vec::new();
        let mut before = core::mem::take(&mut self.pools);
        for stored in policies.policies.values() {
            let policy = match Policy::try_from_wire(&stored.policy) {
                Ok(policy) => policy,
                Err(errors) => {
                    invalid.push((stored.policy.name.clone(), errors));
                    continue;
                }
            };
            if self.pools.contains_key(policy.pool()) {
                continue;
            }
            let pool = policy.pool().to_owned();
            let control = match before.remove(&pool) {
                Some(kept) => kept.with_policy(now, policy),
                None => PoolControl::new(now, policy, epoch),
            };
            self.pools.insert(pool, control);
        }
        invalid
    }

    /// How often the devices must be asked: as often as the most demanding policy wants; `None` when no policy looks at them.
    pub fn device_period(&self) -> Option<Duration> {
        let levels = self.pools.values().map(|pool| &pool.policy.levels().gpu_memory);
        levels.filter(|level| level.enabled).map(|level| level.sample).min()
    }

    /// The pools, each with what its level of GPU memory watches.
    pub fn gpu_memory(&self) -> impl Iterator<Item = (&str, &GpuMemoryConfig)> {
        self.pools.iter().map(|(name, pool)| (name.as_str(), &pool.policy.levels().gpu_memory))
    }

    /// The pools whose engines are read, each with the addresses of their metrics pages; none where only their responses are.
    pub fn engines(&self) -> impl Iterator<Item = (&str, &[String])> {
        let are_read = |policy: &Policy| policy.orca() || !policy.engines().is_empty();
        let pools = self.pools.iter().filter(move |(_, pool)| are_read(&pool.policy));
        pools.map(|(name, pool)| (name.as_str(), pool.policy.engines()))
    }

    /// The pools whose engines' responses are asked for their load.
    pub fn in_band(&self) -> impl Iterator<Item = &str> {
        self.pools.iter().filter(|(_, pool)| pool.policy.orca()).map(|(name, _)| name.as_str())
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
            pool.compute(now, load, &|config| (inputs.gpu_memory)(name, config), (inputs.engines)(name));
            pool.able = pool.derate.step(now, (inputs.capacity)(name, &pool.policy.levels().gpu_memory));
            if pool.may_push(now, load) {
                is_worth_it |= pool.offer(now, name, load, self.lifetime, inputs);
            }
        }
        is_worth_it.then(|| self.table())
    }

    /// Whether a policy protects `pool`.
    pub fn protects(&self, pool: &str) -> bool {
        self.pools.contains_key(pool)
    }

    /// The limits that have been pushed, of all pools.
    pub fn table(&self) -> LimitsTable {
        let pushed = self.pools.iter().filter_map(|(name, pool)| pool.pushed.as_ref().map(|pushed| (name.clone(), pushed.limits.clone())));
        LimitsTable { pools: pushed.collect() }
    }

    /// The pools, for people.
    pub fn views(&self) -> BTreeMap<String, PoolControlView> {
        let view = |pool: &PoolControl| PoolControlView {
            policy: pool.policy.name().to_owned(),
            version: pool.policy.version().to_owned(),
            state: pool.state(),
            overload: pool.overload.as_ref().map(|overload| overload.state().clone()),
            overload_config: pool.policy.overload().cloned(),
            epoch: pool.pushed.as_ref().map_or(0, |pushed| pushed.limits.fleet.epoch),
        };
        self.pools.iter().map(|(name, pool)| (name.clone(), view(pool))).collect()
    }

    /// What overload control of a pool found; `None` when its policy has none.
    pub fn overload(&self, pool: &str) -> Option<&OverloadState> {
        Some(self.pools.get(pool)?.overload.as_ref()?.state())
    }
}

// === impl PoolControl ===

impl PoolControl {
    fn new(now: Timestamp, policy: Policy, epoch: u64) -> Self {
        let (controller, overload) = (PoolController::new(now, &policy), PoolOverload::of(now, &policy));
        Self { controller, overload, policy, derate: Derate::default(), able: 1.0, created_at: now, epoch, pushed: None }
    }

    /// What was learned of the pool stays.
    fn with_policy(mut self, now: Timestamp, policy: Policy) -> Self {
        self.controller.set_policy(now, &policy);
        match &mut self.overload {
            Some(overload) if policy.overload().is_some() => overload.set_policy(now, &policy),
            overload => *overload = PoolOverload::of(now, &policy),
        }
        self.policy = policy;
        self
    }

    fn state(&self) -> PoolState {
        let state = self.controller.state();
        if self.overload.is_some() { with_released_classes(state) } else { state.clone() }
    }

    fn compute(
        &mut self,
        now: Timestamp,
        load: &PoolView,
        gpu_memory: &dyn Fn(&GpuMemoryConfig) -> Option<GpuMemorySample>,
        engine: Option<EngineSample>,
    ) {
        let classes: Vec<ClassLoad> = self.policy.classes().iter().map(|class| class_load(load, &class.name)).collect();
        let empty = Histogram::new();
        let signals = Signals {
            // The books only grow while this program runs.
            series: 0,
            gpu_memory: gpu_memory(&self.policy.levels().gpu_memory),
            classes: &classes,
            ttft_us: load.ttft.as_ref().unwrap_or(&empty),
            source: SignalSource::Filters,
        };
        let state = self.controller.step(now, &signals);
        if let Some(overload) = &mut self.overload {
            overload.step(now, load, engine, &state.levels);
        }
    }

    fn may_push(&self, now: Timestamp, load: &PoolView) -> bool {
        if self.pushed.is_some() {
            return true;
        }
        match load.first_report_at {
            // A replica that takes over has heard its own proxies for long, and those of the others only since then.
            Some(at) => now.since(at.max(self.created_at)) >= LEARNING,
            None => now.since(self.created_at) >= SILENCE,
        }
    }

    /// Pushes the controller's state if that is worth it; returns whether it was.
    fn offer(&mut self, now: Timestamp, pool: &str, load: &PoolView, lifetime: LimitsLifetime, inputs: &StepInputs<'_>) -> bool {
        let shares = (inputs.shares)(pool);
        let frame = LimitsFrame {
            pool,
            epoch: self.epoch + 1,
            policy_version: self.policy.version(),
            share: 1.0,
            safe_share: 1.0,
            ttl: lifetime.ttl,
            decay: lifetime.decay,
        };
        let mut fleet = self.controller.state().to_wire(&frame);
        for class in &mut fleet.classes {
            class.rate_rps *= self.able;
            class.drain_rps *= self.able;
        }
        let picks = self.policy.overload().is_some_and(|config| config.picks_endpoint);
        let ring = || if picks { (inputs.rings)(pool) } else { Ring::default() };
        let overload = self.overload.as_ref().map(|overload| overload.push(load, self.able, ring()));
        if overload.is_some() {
            release_classes(&mut fleet);
        }
        let limits = PoolLimits { fleet, overload, shares: shares.by_node, newcomer: shares.newcomer, grants: Arc::default() };
        let is_due = self.pushed.as_ref().is_none_or(|pushed| now.since(pushed.at) >= REFRESH.min(lifetime.ttl / 3));
        let is_material = self.pushed.as_ref().is_none_or(|pushed| material(&pushed.limits, &limits) == Material::Yes);
        if !is_due && !is_material {
            return false;
        }
        self.epoch += 1;
        if let (Some(overload), Some(push)) = (&mut self.overload, &limits.overload) {
            overload.pushed(push);
        }
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
