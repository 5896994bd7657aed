//! Connections of the gRPC listener.

use std::fmt;

use super::{Labels, Out};

/// Connections that are open, and ends of others by why.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectionCounts {
    pub(super) open: u64,
    pub(super) ended: Vec<(&'static str, u64)>,
}

/// Writes the families of `headgate_grpc_connections*`.
pub(super) fn encode(counts: &ConnectionCounts, out: &mut Out<'_>) -> fmt::Result {
    out.gauges("headgate_grpc_connections", "Connections to the gRPC listener", [(Labels::new(), counts.open as f64)].into_iter())?;
    let ended = counts.ended.iter().map(|(cause, count)| (vec![("cause", (*cause).to_owned())], *count));
    out.counters(
        "headgate_grpc_ended_connections",
        "Connections to the gRPC listener that have ended; age: told to go, and replaced",
        ended,
    )
}
