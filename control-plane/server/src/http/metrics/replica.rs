//! Metrics of a replica among others.

use std::fmt;

use super::Out;
use crate::status::ReplicaStatus;

pub(super) fn encode(replica: &ReplicaStatus, out: &mut Out<'_>) -> fmt::Result {
    let flag = |is_so: bool| f64::from(u8::from(is_so));
    out.gauge(
        "headgate_replica_acting",
        "Whether this replica computes limits: of several one does, or for a moment none",
        flag(replica.is_acting),
    )?;
    out.gauge("headgate_replica_term", "Newest term that this replica knows of; 0: there are no others", replica.term as f64)?;
    out.gauge(
        "headgate_store_up",
        "Whether the store can be reached, so that policies can be changed",
        flag(replica.store_problem.is_empty()),
    )
}
