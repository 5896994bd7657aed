//! Quotas over the fleet in `headgate status`.

use super::super::table::{Align, Table};
use crate::status::QuotaStatus;

/// Holders that are shown of one quota.
const SHOWN: usize = 5;

pub(super) fn render(quotas: &[QuotaStatus]) -> String {
    let mut table = Table::new(&[
        ("QUOTA", Align::Left),
        ("UNIT", Align::Left),
        ("MODE", Align::Left),
        ("PER S", Align::Right),
        ("USED", Align::Right),
        ("ASKED", Align::Right),
        ("LEASED", Align::Right),
        ("COMMITTED", Align::Right),
        ("PROXIES", Align::Right),
        ("REFUSED", Align::Right),
        ("LARGEST", Align::Left),
    ]);
    for quota in quotas {
        let rate = |rate: f64| format!("{rate:.1}");
        let largest: Vec<String> =
            quota.largest.iter().take(SHOWN).map(|holder| format!("{} {:.1}", holder.node_id, holder.granted)).collect();
        let learning = format!("no new leases for {:.1} s", quota.learning_ms as f64 / 1000.0);
        table.row(vec![
            quota.name.clone(),
            quota.unit.clone(),
            quota.mode.clone(),
            rate(quota.capacity),
            rate(quota.used),
            rate(quota.wanted),
            rate(quota.granted),
            rate(quota.committed),
            quota.holders.to_string(),
            quota.refused_total.to_string(),
            if quota.learning_ms > 0 { learning } else { largest.join(", ") },
        ]);
    }
    table.render()
}
