//! The fleet as the control plane sees it: the books of its load, the control loop of its pools, and the limits of each proxy.
//!
//! Reports go into the [`Ledger`], its view and the device samples into [`Controls`], and out comes a [`LimitsTable`]. All of it is
//! pure: server and simulator bring time, transport and locks.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use core::time::Duration;

use headgate_protos::v1;

mod controls;
mod ledger;
mod limits;
mod quotas;
mod ring;
mod term;

pub use self::controls::{Controls, OverloadPush, PoolControlView, StepInputs};
pub use self::ledger::{
    ClassTotals, ClassView, Completeness, ControlCounters, FleetServed, LATENCY_WINDOW, Ledger, MAX_MODELS, PoolLatencies, PoolView,
    QueueTotals, RecentView, Shares, StreamBook, StreamView, Tellers, TtftView,
};
pub use self::limits::{LimitsTable, PoolLimits, ProxyShare};
pub use self::quotas::{FleetQuotaView, FleetQuotas, PoolGrants};
pub use self::ring::Ring;
pub use self::term::{Term, first_epoch, term_of};

/// Proxies that are remembered at once; a further one is served but not accounted for.
pub const MAX_PROXIES: usize = 20_000;
/// Policies and refusals that are remembered of one proxy.
pub const MAX_POLICIES_PER_PROXY: usize = 256;
/// Silence after which a proxy counts as gone.
pub const GONE_AFTER: Duration = Duration::from_secs(5);

/// A stored policy.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredPolicy {
    /// The policy with its version; valid by the shared validator.
    pub policy: v1::Policy,
    /// Time of the last change, in milliseconds since the Unix epoch.
    pub changed_at_unix_ms: u64,
}

/// All policies in force, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicySet {
    /// The policies; shared, since every subscriber holds the set.
    pub policies: BTreeMap<String, Arc<StoredPolicy>>,
}

/// How long limits hold after receipt, and how they end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitsLifetime {
    /// Time for which they hold, 200 ms to 600 s.
    pub ttl: Duration,
    /// Time over which they then decay to the safe share, 0 to 600 s.
    pub decay: Duration,
}
