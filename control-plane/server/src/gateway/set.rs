//! All resources together: whatever one names is there, and no two want the same place.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::config::{Checked, Entry, Part, Pool, Route};
use crate::document::{Violation, Violations};

/// Most resources at once.
pub const MAX_RESOURCES: usize = 1024;

/// A set of resources that renders.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatewaySet {
    pools: BTreeMap<String, Pool>,
    routes: BTreeMap<String, Route>,
    entries: BTreeMap<String, Entry>,
}

// === impl GatewaySet ===

impl GatewaySet {
    /// Puts resources together, one of each kind and name. Errs with everything that does not fit.
    pub fn try_new<'a>(resources: impl IntoIterator<Item = &'a Checked>) -> Result<Self, Violations> {
        let mut set = Self::default();
        for checked in resources {
            match checked.part() {
                Part::Pool(pool) => drop(set.pools.insert(pool.name.clone(), pool.clone())),
                Part::Route(route) => drop(set.routes.insert(route.name.clone(), route.clone())),
                Part::Entry(entry) => drop(set.entries.insert(entry.name.clone(), entry.clone())),
            }
        }
        let mut violations = Vec::new();
        set.check_size(&mut violations);
        set.check_routes(&mut violations);
        set.check_places(&mut violations);
        match Violations::try_new(violations) {
            Some(violations) => Err(violations),
            None => Ok(set),
        }
    }

    /// The pools, by name.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.values()
    }

    /// The pool of that name.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.get(name)
    }

    /// The gateways, by name.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The routes that a gateway serves, by name.
    pub fn routes_of(&self, entry: &Entry) -> impl Iterator<Item = &Route> {
        self.routes.values().filter(|route| route.gateways.is_empty() || route.gateways.contains(&entry.name))
    }

    fn check_size(&self, violations: &mut Vec<Violation>) {
        let count = self.pools.len() + self.routes.len() + self.entries.len();
        if count > MAX_RESOURCES {
            violations.push(violation("resources", format!("{count} are more than {MAX_RESOURCES}")));
        }
    }

    fn check_routes(&self, violations: &mut Vec<Violation>) {
        for route in self.routes.values() {
            for (index, gateway) in route.gateways.iter().enumerate().filter(|(_, name)| !self.entries.contains_key(*name)) {
                let field = format!("Route {}: gateways[{index}]", route.name);
                violations.push(violation(&field, format!("there is no Gateway {gateway:?}")));
            }
            for (rule, backends) in route.rules.iter().map(|rule| &rule.backends).enumerate() {
                for (index, backend) in backends.iter().enumerate().filter(|(_, backend)| !self.pools.contains_key(&backend.pool)) {
                    let field = format!("Route {}: rules[{rule}].backends[{index}].pool", route.name);
                    violations.push(violation(&field, format!("there is no Pool {:?}", backend.pool)));
                }
            }
        }
    }

    /// Two gateways of one proxy cannot listen on one port.
    fn check_places(&self, violations: &mut Vec<Violation>) {
        let entries: Vec<&Entry> = self.entries.values().collect();
        for (at, entry) in entries.iter().enumerate() {
            if let Some(other) = entries.iter().take(at).find(|other| share_a_proxy(entry, other) && share_a_place(entry, other)) {
                let field = format!("Gateway {}: port", entry.name);
                violations
                    .push(violation(&field, format!("{} is where Gateway {:?} listens for the same proxies", entry.port, other.name)));
            }
        }
    }
}

fn share_a_proxy(one: &Entry, other: &Entry) -> bool {
    one.node_cluster.is_none() || other.node_cluster.is_none() || one.node_cluster == other.node_cluster
}

fn share_a_place(one: &Entry, other: &Entry) -> bool {
    let overlap = |a: IpAddr, b: IpAddr| a == b || a.is_unspecified() || b.is_unspecified();
    one.port == other.port && overlap(one.address, other.address)
}

fn violation(field: &str, problem: String) -> Violation {
    Violation { field: field.to_owned(), problem }
}
