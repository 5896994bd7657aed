//! Metrics of one instance in one VM: what counters have gained, flushed now and then, so that a request costs no call.

use crate::host::{self, MetricKind};
use std::collections::BTreeMap;

/// Most metrics of one VM. Envoy never forgets one, so what lies beyond this bound goes uncounted.
const MAX_METRICS: usize = 4096;

/// The host's number and the last value of every metric, by name.
#[derive(Default)]
pub(crate) struct Metrics(BTreeMap<String, (u32, u64)>);

impl Metrics {
    /// Adds to a counter what it has gained since the last time.
    pub(crate) fn count(&mut self, name: String, total: u64) {
        // A metric is defined with its first event.
        if total == 0 && !self.0.contains_key(&name) {
            return;
        }
        let Some((id, last)) = self.entry(name, MetricKind::Counter) else { return };
        // Counters of a policy that went away and came back begin anew.
        let gained = total.checked_sub(*last).unwrap_or(total);
        *last = total;
        if gained > 0 {
            let _ = host::increment_metric(*id, i64::try_from(gained).unwrap_or(i64::MAX));
        }
    }

    /// Sets a gauge. For the leader alone: the last VM to write wins.
    pub(crate) fn set(&mut self, name: String, value: u64) {
        let _ = self.entry(name, MetricKind::Gauge).map(|(id, _)| host::record_metric(*id, value));
    }

    fn entry(&mut self, name: String, kind: MetricKind) -> Option<&mut (u32, u64)> {
        if !self.0.contains_key(&name) {
            if self.0.len() >= MAX_METRICS {
                return None;
            }
            self.0.insert(name.clone(), (host::define_metric(kind, &name).ok()?, 0));
        }
        self.0.get_mut(&name)
    }
}
