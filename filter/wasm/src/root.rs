//! One instance of the filter in one VM: what moves with time. Takes up what other VMs shared, shares its own state, and holds its part
//! of the proxy's permits.
//!
//! A new plugin configuration is a new root context in the same VM. It takes the instance over, so that counters, breakers and
//! buckets live on; the streams of the old root keep their place in the same worker.

use crate::control::Control;
use crate::host;
use crate::http::Reads;
use crate::metrics::Metrics;
use headgate_core::discovery::PolicySnapshot;
use headgate_core::lease::{Grant, Want};
use headgate_core::metrics;
use headgate_core::policy::Policy;
use headgate_core::shared::{self, Keys, Revisions, SharedLimits};
use headgate_core::time::Timestamp;
use headgate_core::worker::Worker;
use headgate_protos::plugin::{AccessLog, PluginConfig};
use std::sync::Arc;
use std::time::Duration;

const TICK_MS: u32 = 20;
/// The same in a VM that has seen no request, such as the main thread's: a tick wakes its thread, which costs more than what it does there.
const IDLE_TICK_MS: u32 = 100;
/// Between two refreshes of the sub-leases and of the report; a slot lapses after ten of them.
const SHARE_EVERY: Duration = Duration::from_millis(100);
/// Between two reports of a VM that has not seen a request; its slot lapses after two of them.
const IDLE_REPORT_EVERY: Duration = Duration::from_millis(400);
/// Between two refreshes of the sub-leases when they do not suffice.
const LEASE_AGAIN: Duration = Duration::from_millis(5);
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// A root that has not ticked for this long is gone, and another root of the instance may take its place.
const ROOT_LAPSE: Duration = Duration::from_secs(1);

/// One instance in this VM.
pub(crate) struct Instance {
    pub(crate) name: String,
    /// What decides.
    pub(crate) worker: Worker,
    /// What `worker` needs besides headers.
    pub(crate) reads: Reads,
    keys: Keys,
    /// Random identity of this VM.
    owner: u64,
    /// The root whose ticks count.
    root: u32,
    access_log: AccessLog,
    inline: Vec<Arc<Policy>>,
    delivered: Vec<Arc<Policy>>,
    seen: Revisions,
    control: Option<Control>,
    metrics: Metrics,
    /// Permits by policy, `None`: unbounded. Empty before the first request: the main thread's VM and the one that only tries a
    /// configuration out never see one, and hold nothing that others need.
    permits: Vec<Option<u32>>,
    tick_ms: u32,
    ticked_at: Timestamp,
    leased_at: Timestamp,
    reported_at: Timestamp,
    flushed_at: Timestamp,
    host_errors: u64,
}

impl Instance {
    /// An instance that governs nothing yet.
    ///
    /// # Errors
    /// The host has no randomness: two VMs with one identity would hold the same permits.
    pub(crate) fn new(name: &str) -> Result<Self, String> {
        let owner = host::random().map_err(|error| format!("the host has no random numbers: {error:?}"))?;
        Ok(Self {
            name: name.into(),
            worker: Worker::new(owner),
            reads: Reads::default(),
            keys: Keys::new(name),
            owner,
            root: 0,
            access_log: AccessLog::All,
            inline: Vec::new(),
            delivered: Vec::new(),
            seen: Revisions::default(),
            control: None,
            metrics: Metrics::default(),
            permits: Vec::new(),
            tick_ms: IDLE_TICK_MS,
            ticked_at: Timestamp::ZERO,
            leased_at: Timestamp::ZERO,
            reported_at: Timestamp::ZERO,
            flushed_at: Timestamp::ZERO,
            host_errors: 0,
        })
    }

    /// Puts a configuration in force; `json` is its text.
    pub(crate) fn configure(&mut self, root: u32, config: &PluginConfig, policies: Vec<Arc<Policy>>, json: &[u8]) {
        let now = host::now();
        let step = |bytes: &[u8]| Some(shared::next_generation(bytes, json, self.owner));
        let (generation, process) = host::update_shared(&self.keys.generation, step).unwrap_or_default();
        self.worker.set_process(process);
        (self.access_log, self.inline) = (config.access_log, policies);
        self.control = config.control_plane.as_ref().map(|target| Control::new(target, self.owner, generation));
        self.adopt(root, now);
        // The VM that only tries the configuration out comes first and alone, so it is the one that creates the records.
        for key in config.policies.iter().flat_map(|policy| self.keys.leases_of(policy)) {
            let _ = host::shared_or_empty(&key);
        }
        self.apply_policies(now);
        self.take_up(now);
    }

    /// Every 20 ms, or every 100 ms without requests.
    pub(crate) fn on_tick(&mut self, root: u32) {
        let now = host::now();
        if root != self.root {
            if now.since(self.ticked_at) < ROOT_LAPSE {
                return;
            }
            self.adopt(root, now);
        }
        self.ticked_at = now;
        (self.host_errors..host::errors()).for_each(|_| self.worker.count_host_error());
        self.host_errors = host::errors();
        self.worker.on_tick(now);
        self.take_up(now);
        if !self.permits.is_empty() && self.tick_ms != TICK_MS {
            self.tick_ms = TICK_MS;
            let _ = host::set_tick_period(TICK_MS);
        }
        if !self.permits.is_empty() && (now.since(self.leased_at) >= SHARE_EVERY || self.is_short_of_permits()) {
            self.lease(now);
        }
        let report_every = if self.permits.is_empty() { IDLE_REPORT_EVERY } else { SHARE_EVERY };
        if now.since(self.reported_at) >= report_every {
            self.reported_at = now;
            self.report(now);
        }
        self.control.iter_mut().for_each(|control| control.on_tick(now, &self.keys, &self.worker));
    }

    /// A message of the control plane.
    pub(crate) fn on_message(&mut self, token: u32, size: usize) {
        self.control.iter_mut().for_each(|control| control.on_message(host::now(), token, size, &self.keys));
    }

    /// A stream to the control plane has ended.
    pub(crate) fn on_close(&mut self, token: u32) {
        self.control.iter_mut().for_each(|control| control.on_close(host::now(), token));
    }

    /// Before a decision: takes permits up when there are none left, at most every 5 ms, instead of refusing until the next tick.
    pub(crate) fn ensure_permits(&mut self, now: Timestamp) {
        if self.permits.is_empty() && self.tick_ms != TICK_MS {
            // The first request: what has changed since the last of the few ticks.
            self.take_up(now);
        }
        if self.permits.is_empty() || (self.is_short_of_permits() && now.since(self.leased_at) >= LEASE_AGAIN) {
            self.lease(now);
        }
    }

    /// Lets `root` be the one whose ticks count. Streams belong to the root that opened them and end with it.
    fn adopt(&mut self, root: u32, now: Timestamp) {
        self.root = root;
        self.ticked_at = now;
        self.control.iter_mut().for_each(Control::forget_streams);
        let _ = host::set_tick_period(self.tick_ms);
    }

    /// Puts in force what the control plane has delivered, and the inline policies that it does not name.
    fn apply_policies(&mut self, now: Timestamp) {
        let is_delivered = |inline: &&Arc<Policy>| self.delivered.iter().any(|policy| policy.name() == inline.name());
        let fallback = self.inline.iter().filter(|inline| !is_delivered(inline));
        let policies = self.delivered.iter().chain(fallback).cloned().collect();
        self.worker.set_policies(now, policies);
        self.reads = Reads { needs: self.worker.needs(), admitted_line: self.access_log == AccessLog::All };
        if !self.permits.is_empty() {
            self.lease(now);
        }
    }

    /// Takes up what the leader has shared since the last look.
    #[inline(never)]
    fn take_up(&mut self, now: Timestamp) {
        let blob = |key: &str| host::shared(key).map(|(bytes, _)| bytes).unwrap_or_default();
        let newest = Revisions::decode(&blob(&self.keys.revisions));
        let has_policies = newest.policies != self.seen.policies;
        if has_policies && let Some(snapshot) = PolicySnapshot::decode(&blob(&self.keys.policies)) {
            // The leader has checked them; what fails here is somebody else's writing.
            self.delivered = snapshot.policies.iter().filter_map(|wire| Policy::try_from_wire(wire).ok().map(Arc::new)).collect();
            self.apply_policies(now);
        }
        if has_policies || newest.limits != self.seen.limits {
            for pool in SharedLimits::read(&blob(&self.keys.limits)).pools {
                // False: no policy protects the pool yet; the next policies bring the limits up again.
                let _ = pool.limits.map(|limits| self.worker.set_limits(Timestamp::from_nanos(pool.at_ns), &limits));
            }
        }
        self.seen = newest;
    }

    fn is_short_of_permits(&self) -> bool {
        let is_short = |(index, held): (usize, &Option<u32>)| held.is_some_and(|held| self.worker.wants(index).permits_in_use >= held);
        self.permits.iter().enumerate().any(is_short)
    }

    /// Refreshes this VM's sub-leases.
    #[inline(never)]
    fn lease(&mut self, now: Timestamp) {
        self.leased_at = now;
        self.permits.clear();
        for lease in self.worker.sub_leases(&self.keys) {
            let refresh = |bytes: &[u8]| shared::refresh_lease(bytes, now, self.owner, lease.want, lease.grant);
            let held = host::update_shared(&lease.key, refresh).map(|(_, holding)| holding);
            let _ = held.map(|holding| self.worker.take_holding(&lease, holding));
            self.permits.extend(lease.is_of_policy().then(|| held.and_then(|holding| holding.permits)));
        }
    }

    /// Shares this VM's report, and flushes its metrics.
    fn report(&mut self, now: Timestamp) {
        let refresh = |bytes: &[u8]| shared::refresh_lease(bytes, now, self.owner, Want::default(), Grant { permits_total: None });
        let Some((slot, _)) = host::update_shared(&self.keys.roster, refresh) else { return };
        let report = self.worker.report(now, slot as u32);
        let _ = host::set_shared(&self.keys.report(slot), &shared::encode_report(&report), 0);
        if now.since(self.flushed_at) < FLUSH_EVERY {
            return;
        }
        self.flushed_at = now;
        metrics::counters(&report).into_iter().for_each(|(name, total)| self.metrics.count(name, total));
        let Some(session) = self.control.as_ref().and_then(Control::session) else { return };
        metrics::gauges(now, session, &self.worker).into_iter().for_each(|(name, value)| self.metrics.set(name, value));
    }
}
