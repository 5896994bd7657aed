//! What came of access logs.

use std::fmt;

use super::{Labels, Out};

/// Entries by what became of them, and streams that were refused.
#[derive(Clone, Debug, Default)]
pub(super) struct AccessLogCounts {
    pub(super) outcomes: Vec<(&'static str, u64)>,
    pub(super) refused_streams: u64,
}

/// Writes the families of `headgate_access_log_*`.
pub(super) fn encode(counts: &AccessLogCounts, out: &mut Out<'_>) -> fmt::Result {
    let outcomes = counts.outcomes.iter().map(|(outcome, count)| (vec![("outcome", (*outcome).to_owned())], *count));
    out.counters("headgate_access_log_entries", "Entries of access logs by what became of them", outcomes)?;
    let refused = [(Labels::new(), counts.refused_streams)];
    out.counters("headgate_access_log_refused_streams", "Access-log streams beyond the bound", refused.into_iter())
}
