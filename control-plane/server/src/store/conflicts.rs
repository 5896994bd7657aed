//! Policies that are each valid but cannot be in force together.

use headgate_core::policy::{Policy, Route};

use crate::document::{Violation, Violations};

/// What keeps `policy` from being in force beside `others`.
///
/// Limits are computed for a pool by the classes of its one policy, and a request is governed by the policy with the most
/// specific route: two policies of a pool, or two with the same route, would leave it to chance which of them acts.
pub(super) fn with_others<'a>(policy: &Policy, others: impl Iterator<Item = &'a Policy>) -> Option<Violations> {
    let mut violations = Vec::new();
    for other in others {
        if other.pool() == policy.pool() {
            violations.push(Violation {
                field: "pool".into(),
                problem: format!("{:?} is already protected by policy `{}`", policy.pool(), other.name()),
            });
        }
        for (index, route) in policy.routes().iter().enumerate().filter(|(_, route)| other.routes().contains(route)) {
            violations.push(Violation {
                field: format!("routes[{index}]"),
                problem: format!("{} is already governed by policy `{}`", shown(route), other.name()),
            });
        }
    }
    Violations::try_new(violations)
}

fn shown(route: &Route) -> String {
    match &route.host {
        Some(host) => format!("path {:?} on host {host:?}", route.path_prefix),
        None => format!("path {:?} on any host", route.path_prefix),
    }
}
