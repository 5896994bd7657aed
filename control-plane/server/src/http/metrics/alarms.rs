//! Metrics of what is stored and not at work.

use std::fmt;

use super::Out;
use crate::alarms::AlarmKind;
use crate::status::StatusDocument;

pub(super) fn encode(status: &StatusDocument, out: &mut Out<'_>) -> fmt::Result {
    let rows = status.pools.iter().flat_map(|pool| {
        AlarmKind::ALL.map(|kind| {
            let is_raised = status.alarms.iter().any(|alarm| alarm.alarm == kind.as_str() && alarm.policy == pool.policy);
            let labels = vec![("alarm", kind.as_str().to_owned()), ("policy", pool.policy.clone()), ("pool", pool.pool.clone())];
            (labels, f64::from(u8::from(is_raised)))
        })
    });
    out.gauges("headgate_alarm", "Whether something stored is not at work: 1 for an alarm that is raised", rows)
}
