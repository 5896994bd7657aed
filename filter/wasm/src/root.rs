//! One instance of the filter in one VM: what moves with time. Takes up what other VMs shared, shares its own state, divides the
//! proxy's permits, and lets `control` speak to the control plane when this VM leads.
//!
//! A new plugin configuration is a new root context in the same VM. It takes the instance over, so that counters, breakers and
//! buckets live on; the streams of the old root keep their place in the same worker.

use crate::config::Config;
use crate::control::Control;
use crate::host;
use crate::http::Reads;
use crate::metrics::Metrics;
use crate::shared::{self, Keys, LimitsSet};
use headgate_core::discovery::PolicySnapshot;
use headgate_core::lease::{Grant, Holding, LeaseRecord, Want};
use headgate_core::policy::Policy;
use headgate_core::time::Timestamp;
use headgate_core::worker::Worker;
use prost::Message;
use std::sync::Arc;
use std::time::Duration;

const TICK_MS: u32 = 20;
/// Between two refreshes of the sub-leases and of the report slot; a slot lapses after ten of them.
const SHARE_EVERY: Duration = Duration::from_millis(100);
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// A root that has not ticked for this long is gone, and another root of the instance may take its place.
const ROOT_LAPSE: Duration = Duration::from_secs(1);

/// One instance in this VM.
pub(crate) struct Instance {
    name: String,
    keys: Keys,
    /// Random identity of this VM.
    owner: u64,
    /// What decides.
    pub(crate) worker: Worker,
    /// What `worker` needs besides headers.
    pub(crate) reads: Reads,
    /// The root whose ticks count.
    root: u32,
    inline: Vec<Arc<Policy>>,
    delivered: Vec<Arc<Policy>>,
    /// Numbers of the policies and the limits taken up.
    seen: (u64, u64),
    control: Option<Control>,
    metrics: Metrics,
    /// Permits by policy; `None`: unbounded.
    held: Vec<Option<u32>>,
    ticked_at: Timestamp,
    shared_at: Timestamp,
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
            keys: Keys::new(name),
            owner,
            worker: Worker::new(owner),
            reads: Reads::default(),
            root: 0,
            inline: Vec::new(),
            delivered: Vec::new(),
            seen: (0, 0),
            control: None,
            metrics: Metrics::default(),
            held: Vec::new(),
            ticked_at: Timestamp::ZERO,
            shared_at: Timestamp::ZERO,
            flushed_at: Timestamp::ZERO,
            host_errors: 0,
        })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Puts a configuration in force; `json` is its text.
    pub(crate) fn configure(&mut self, root: u32, config: Config, json: &[u8]) {
        let now = host::now();
        let generation = next_generation(&self.keys.generation, json);
        self.inline = config.policies;
        self.control = config.control_plane.map(|control_plane| Control::new(&control_plane, self.owner, generation));
        self.adopt(root, now);
        self.apply_policies(now);
        self.take_up(now);
        self.share(now);
    }

    /// Every 20 ms.
    pub(crate) fn on_tick(&mut self, root: u32) {
        let now = host::now();
        if root != self.root {
            if now.since(self.ticked_at) < ROOT_LAPSE {
                return;
            }
            self.adopt(root, now);
        }
        self.ticked_at = now;
        for _ in self.host_errors..host::errors() {
            self.worker.count_host_error();
        }
        self.host_errors = host::errors();
        self.worker.on_tick(now);
        self.take_up(now);
        if now.since(self.shared_at) >= SHARE_EVERY || self.is_short_of_permits() {
            self.share(now);
        }
        if now.since(self.flushed_at) >= FLUSH_EVERY {
            self.flushed_at = now;
            self.metrics.flush(&self.worker.report(now, 0));
            if let Some(control) = &self.control {
                control.flush(now, &self.worker, &mut self.metrics);
            }
        }
        if let Some(control) = &mut self.control {
            control.on_tick(now, &self.keys, &self.worker);
        }
    }

    /// A message of the control plane.
    pub(crate) fn on_message(&mut self, token: u32, size: usize) {
        if let Some(control) = &mut self.control {
            control.on_message(host::now(), token, size, &self.keys);
        }
    }

    /// A stream to the control plane has ended.
    pub(crate) fn on_close(&mut self, token: u32) {
        if let Some(control) = &mut self.control {
            control.on_close(host::now(), token);
        }
    }

    /// Lets `root` be the one whose ticks count. Streams belong to the root that opened them and end with it.
    fn adopt(&mut self, root: u32, now: Timestamp) {
        self.root = root;
        self.ticked_at = now;
        if let Some(control) = &mut self.control {
            control.forget_streams();
        }
        let _ = host::set_tick_period(TICK_MS);
    }

    /// Puts in force what the control plane has delivered, and the inline policies that it does not name.
    fn apply_policies(&mut self, now: Timestamp) {
        let is_delivered = |inline: &&Arc<Policy>| self.delivered.iter().any(|policy| policy.name() == inline.name());
        let fallback = self.inline.iter().filter(|inline| !is_delivered(inline));
        let policies = self.delivered.iter().chain(fallback).cloned().collect();
        self.worker.set_policies(now, policies);
        self.reads = Reads::of(&self.worker);
    }

    /// Takes up what the leader has shared since the last look.
    fn take_up(&mut self, now: Timestamp) {
        let Ok((bytes, _)) = host::shared(&self.keys.version) else { return };
        let newest = shared::decode_pair(&bytes);
        let has_policies = newest.0 != self.seen.0;
        if has_policies
            && let Some(PolicySnapshot { policies, .. }) =
                host::shared(&self.keys.policies).ok().and_then(|(bytes, _)| PolicySnapshot::decode(&bytes))
        {
            // The leader has checked them; what fails here is somebody else's writing.
            self.delivered = policies.iter().filter_map(|wire| Policy::try_from_wire(wire).ok().map(Arc::new)).collect();
            self.apply_policies(now);
            self.share(now);
        }
        if has_policies || newest.1 != self.seen.1 {
            for pool in LimitsSet::read(&self.keys.limits).pools {
                if let Some(limits) = &pool.limits {
                    // False: no policy protects the pool yet; the next policies bring the limits up again.
                    self.worker.set_limits(Timestamp::from_nanos(pool.at_ns), limits);
                }
            }
        }
        self.seen = newest;
    }

    fn is_short_of_permits(&self) -> bool {
        self.held.iter().enumerate().any(|(index, held)| held.is_some_and(|held| self.worker.wants(index).permits_wanted > held))
    }

    /// Refreshes this VM's sub-leases and its report.
    fn share(&mut self, now: Timestamp) {
        self.shared_at = now;
        self.held.clear();
        let policies: Vec<_> = self.worker.policies().cloned().collect();
        for (index, policy) in policies.iter().enumerate() {
            let grant = Grant { permits_total: policy.concurrency().map(|concurrency| concurrency.max_in_flight) };
            let want = self.worker.wants(index);
            let want = Want { permits_in_use: want.permits_in_use, permits_wanted: want.permits_wanted, rate_wanted: want.rate_wanted };
            let holding = self.hold(now, &self.keys.lease(policy.name()), want, grant).map(|(_, holding)| holding);
            if let Some(holding) = holding {
                self.worker.set_permits(index, holding.permits.unwrap_or(u32::MAX), holding.rate_share);
            }
            self.held.push(holding.and_then(|holding| holding.permits));
        }
        if let Some((slot, _)) = self.hold(now, &self.keys.roster, Want::default(), Grant { permits_total: None }) {
            let report = self.worker.report(now, slot as u32).encode_to_vec();
            let _ = host::set_shared(&self.keys.slot(slot), &report, 0);
        }
    }

    /// Refreshes this VM's slot in a record.
    fn hold(&self, now: Timestamp, key: &str, want: Want, grant: Grant) -> Option<(usize, Holding)> {
        shared::update(key, |bytes| {
            let unreadable = || if bytes.is_empty() { LeaseRecord::new() } else { LeaseRecord::recovered(now) };
            let mut record = LeaseRecord::decode(bytes).unwrap_or_else(unreadable);
            let slot = record.claim(now, self.owner).ok()?;
            let holding = record.update(now, slot, self.owner, want, grant).ok()?;
            Some((record.encode(), (slot.index(), holding)))
        })
    }
}

/// Number of the configuration `json`: the newest one's if that is the same text, one more otherwise. A leader of a newer
/// configuration takes over from one of an older.
fn next_generation(key: &str, json: &[u8]) -> u64 {
    // FNV-1a; it only tells configurations of one operator apart.
    let hash = json.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    let next = shared::update(key, |bytes| {
        let (newest, newest_hash) = shared::decode_pair(bytes);
        let generation = if newest_hash == hash { newest } else { newest.wrapping_add(1) };
        Some((shared::encode_pair(generation, hash), generation))
    });
    next.unwrap_or(0)
}
