//! Quotas as metrics, by pool, quota and unit; no label names a proxy or a tenant.

use std::fmt;

use super::{Labels, Out};
use crate::status::{PoolStatus, QuotaStatus};

pub(super) fn encode(pools: &[PoolStatus], out: &mut Out<'_>) -> fmt::Result {
    out.gauges("headgate_quota_capacity_per_second", "Rate that a quota allows, in its unit", rows(pools, |quota| quota.capacity))?;
    let granted = rows(pools, |quota| quota.granted);
    out.gauges("headgate_quota_granted_per_second", "What the newest leases of a quota give", granted)?;
    let committed = rows(pools, |quota| quota.committed);
    out.gauges("headgate_quota_committed_per_second", "The most of a quota that may be in force", committed)?;
    let wanted = rows(pools, |quota| quota.wanted);
    out.gauges("headgate_quota_wanted_per_second", "What is asked of a quota", wanted)?;
    out.gauges("headgate_quota_holders", "Proxies that hold something of a quota, or may", rows(pools, |quota| quota.holders as f64))?;
    let learning = rows(pools, |quota| quota.learning_ms as f64 / 1000.0);
    out.gauges("headgate_quota_learning_seconds", "Time until leases of earlier leaders have ended", learning)?;
    let used = rows(pools, |quota| quota.used_total as u64);
    out.counters("headgate_quota_used", "Amount of a quota used since this leader began", used)?;
    let refused = rows(pools, |quota| quota.refused_total);
    out.counters("headgate_quota_refused_requests", "Requests refused for a quota since this leader began", refused)
}

fn rows<'a, T>(pools: &'a [PoolStatus], value: fn(&QuotaStatus) -> T) -> impl Iterator<Item = (Labels, T)> + 'a
where
    T: 'a,
{
    let quotas = pools.iter().flat_map(|pool| pool.quotas.iter().map(move |quota| (pool, quota)));
    quotas.map(move |(pool, quota)| {
        let labels = vec![("pool", pool.pool.clone()), ("quota", quota.name.clone()), ("unit", quota.unit.clone())];
        (labels, value(quota))
    })
}
