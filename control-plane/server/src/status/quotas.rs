//! Quotas over the fleet, for people.

use headgate_core::fleet::FleetQuotaView;
use headgate_core::quota::HolderView;
use serde::{Deserialize, Serialize};

/// Holders that are listed of one quota: those that hold the most.
const MAX_LISTED: usize = 100;

/// One quota. Amounts are in its unit, rates per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QuotaStatus {
    /// Name.
    pub name: String,
    /// `requests`, `tokens` or `work_tokens`.
    pub unit: String,
    /// `strict` or `fast`.
    pub mode: String,
    /// The rate that it allows.
    pub capacity: f64,
    /// What the newest leases give.
    pub granted: f64,
    /// The most that may be in force, counting what is not acknowledged or cannot be reached.
    pub committed: f64,
    /// What is used, over the last second.
    pub used: f64,
    /// What is asked for.
    pub wanted: f64,
    /// Amount used since this leader began.
    pub used_total: f64,
    /// Requests refused for it since this leader began.
    pub refused_total: u64,
    /// Time until the leases of earlier leaders have ended and new ones are given, in milliseconds.
    pub learning_ms: u64,
    /// Proxies that hold something, or may.
    pub holders: usize,
    /// Those that hold the most, at most 100.
    pub largest: Vec<QuotaHolderStatus>,
}

/// One proxy's part of a quota, per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QuotaHolderStatus {
    /// `node.id`.
    pub node_id: String,
    /// What its newest lease gives.
    pub granted: f64,
    /// The most that may be in force.
    pub committed: f64,
    /// What it uses.
    pub used: f64,
    /// What it asks for.
    pub wanted: f64,
    /// Time since it was heard, in milliseconds.
    pub silent_ms: u64,
}

// === impl QuotaStatus ===

impl QuotaStatus {
    /// The quotas of one pool.
    pub fn list(views: &[FleetQuotaView], pool: &str) -> Vec<Self> {
        views.iter().filter(|view| view.pool == pool).map(Self::of).collect()
    }

    fn of(view: &FleetQuotaView) -> Self {
        let quota = &view.quota;
        let mut largest: Vec<&HolderView> = quota.holders.iter().collect();
        largest.sort_by(|one, other| other.committed.total_cmp(&one.committed));
        Self {
            name: view.name.clone(),
            unit: view.unit.as_str().to_owned(),
            mode: if view.is_strict { "strict" } else { "fast" }.to_owned(),
            capacity: quota.capacity,
            granted: quota.granted,
            committed: quota.committed,
            used: quota.used,
            wanted: quota.wanted,
            used_total: view.used_total,
            refused_total: view.refused_total,
            learning_ms: u64::try_from(quota.learning.as_millis()).unwrap_or(u64::MAX),
            holders: quota.holders.len(),
            largest: largest.into_iter().take(MAX_LISTED).map(QuotaHolderStatus::of).collect(),
        }
    }
}

// === impl QuotaHolderStatus ===

impl QuotaHolderStatus {
    fn of(view: &HolderView) -> Self {
        Self {
            node_id: if view.key.is_candidate { format!("{} (candidate)", view.key.node) } else { view.key.node.clone() },
            granted: view.granted,
            committed: view.committed,
            used: view.used,
            wanted: view.wanted,
            silent_ms: u64::try_from(view.silent.as_millis()).unwrap_or(u64::MAX),
        }
    }
}
