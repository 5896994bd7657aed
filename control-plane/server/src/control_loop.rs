//! The control loop: signals in, limits out, every 100 ms and at once when a GPU sample arrives.
//!
//! What it computes is core's: [`Controls`]. The task around it waits, reads the signals and publishes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use headgate_core::fleet::{Controls, Ledger, LimitsLifetime, PoolControlView, PoolView, StepInputs};
use headgate_core::level::{GpuMemorySample, SignalSource};
use headgate_core::policy::GpuMemoryConfig;
use headgate_core::time::Timestamp;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, unix_ms};
use crate::device::{DEFAULT_PERIOD, DeviceSample, DeviceState, SamplerControl};
use crate::engine::{Engines, FreezeWatch, PoolEngines};
use crate::fleet::{Fleet, PolicySet};

/// Longest time between two steps.
const TICK: Duration = Duration::from_millis(100);
/// Time between two rounds of housekeeping.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
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
    /// The devices.
    pub devices: watch::Receiver<Arc<DeviceState>>,
    /// Sets how often the devices are asked.
    pub sampler: SamplerControl,
    /// The engines.
    pub engines: Engines,
    /// What tells the frozen ones of each pool.
    pub freezes: BTreeMap<String, FreezeWatch>,
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

/// The fullest device of the pool. Not the sum: a request runs on one device, and an average hides the one that is about to fail.
pub(crate) fn fullest(wanted: &[impl AsRef<str>], state: &DeviceState) -> Option<GpuMemorySample> {
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

/// Requests of a pool that ended well, cumulative.
fn completed(load: &PoolView) -> u64 {
    load.classes.iter().map(|class| class.control.completed).sum()
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

    fn take_policies(&mut self, controls: &mut Controls, policies: &PolicySet) {
        self.ledger.lock().set_policies(policies);
        for (policy, errors) in controls.set_policies(self.clock.now(), unix_ms(), policies) {
            tracing::error!(policy, %errors, "a stored policy is not valid; it is left out");
        }
        self.sampler.set_period(controls.device_period().unwrap_or(DEFAULT_PERIOD));
        self.engines.set(controls.engines().flat_map(|(_, urls)| urls).map(String::as_str));
        // Pools that are gone leave at once; a filter must not go on with the limits of a policy that was deleted.
        self.fleet.publish_limits(controls.table());
    }

    fn step(&mut self, controls: &mut Controls, steps: u64) {
        let began = Instant::now();
        let at = self.clock.now();
        let loads = self.ledger.lock().view(at);
        let devices = self.devices.borrow_and_update().clone();
        let board = self.engines.board();
        let mut freezes = std::mem::take(&mut self.freezes);
        let mut read = |(pool, urls): (&str, &[String])| {
            let completed = loads.get(pool).map_or(0, completed);
            let mut watch = freezes.remove(pool).unwrap_or_default();
            let engines = PoolEngines::read(&board, at, urls, completed, &mut watch);
            self.freezes.insert(pool.to_owned(), watch);
            (pool.to_owned(), engines)
        };
        let engines: BTreeMap<String, PoolEngines> = controls.engines().map(&mut read).collect();
        let sample = |pool: &str| engines.get(pool).and_then(|engines| engines.sample);
        let shares = |pool: &str| self.ledger.lock().shares(at, pool);
        let gpu_memory = |config: &GpuMemoryConfig| fullest(&config.devices, &devices);
        let table = controls.step(at, &StepInputs { loads: &loads, gpu_memory: &gpu_memory, engines: &sample, shares: &shares });
        if let Some(table) = table {
            self.fleet.publish_limits(table);
        }
        self.view.send_replace(Arc::new(ControlView { pools: controls.views(), engines, at, step: began.elapsed(), steps }));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::SourceState;

    /// Devices with the given use in percent, `GPU-0` first.
    fn devices(now: Timestamp, used_percent: &[u64]) -> DeviceState {
        let device = |(index, used): (usize, &u64)| DeviceSample {
            index: u32::try_from(index).unwrap(),
            uuid: format!("GPU-{index}").into(),
            name: "test".into(),
            memory_used_bytes: *used << 30,
            memory_reserved_bytes: 0,
            memory_total_bytes: 100 << 30,
            ..DeviceSample::default()
        };
        DeviceState {
            source: "test",
            state: SourceState::Sampling,
            sampled_at: Some(now),
            devices: used_percent.iter().enumerate().map(device).collect(),
            details: Vec::new(),
        }
    }

    #[test]
    fn the_fullest_device_of_the_pool_counts() {
        let state = devices(Timestamp::ZERO, &[20, 90, 40]);
        let none: [&str; 0] = [];
        assert_eq!(fullest(&none, &state).unwrap().used_bytes, 90 << 30);
        assert_eq!(fullest(&["GPU-0", "GPU-2"], &state).unwrap().used_bytes, 40 << 30);
        assert!(fullest(&["GPU-9"], &state).is_none());
    }
}
