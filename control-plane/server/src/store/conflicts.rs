//! Policies that are each valid but cannot be in force together.

use headgate_core::policy::{Policy, Route, Stage, TenantId, serving_pool};
use headgate_core::quota::Terms;

use crate::document::{Violation, Violations};

/// What keeps `policy` from being in force beside `others`.
///
/// Limits are computed for a pool by the classes of its one policy, and a request is governed by the policy with the most
/// specific route: two policies of a pool, or two with the same route, would leave it to chance which of them acts. A candidate stands
/// beside one policy, whose pool and routes it has, and is the only one there; one that governs is like it in what both share.
pub(super) fn with_others<'a>(policy: &Policy, others: impl Iterator<Item = &'a Policy> + Clone) -> Option<Violations> {
    let mut violations = Vec::new();
    for other in others.clone() {
        if other.pool() == policy.pool() {
            let pool = serving_pool(policy.pool());
            let problem = match policy.stage().of() {
                None => format!("{pool:?} is already protected by policy `{}`", other.name()),
                Some(_) => format!("{pool:?} already has the candidate `{}`", other.name()),
            };
            violations.push(Violation { field: "pool".into(), problem });
        }
        let both_stand_alone = policy.stage().of().is_none() && other.stage().of().is_none();
        for (index, route) in policy.routes().iter().enumerate().filter(|(_, route)| both_stand_alone && other.routes().contains(route)) {
            violations.push(Violation {
                field: format!("routes[{index}]"),
                problem: format!("{} is already governed by policy `{}`", shown(route), other.name()),
            });
        }
        if other.stage().of() == Some(policy.name()) && (serving_pool(other.pool()) != policy.pool() || policy.stage().of().is_some()) {
            let problem = format!("policy `{}` is its candidate, for the pool {:?}", other.name(), serving_pool(other.pool()));
            violations.push(Violation { field: "pool".into(), problem });
        }
        if other.stage().of() == Some(policy.name()) {
            violations.extend(unlike(other, policy));
        }
        if policy.stage().of() == Some(other.name()) {
            violations.extend(unlike(policy, other));
        }
    }
    violations.extend(policy.stage().of().and_then(|of| without_its_policy(policy, of, others)));
    Violations::try_new(violations)
}

/// A candidate without the policy that it is tried beside.
fn without_its_policy<'a>(policy: &Policy, of: &str, mut others: impl Iterator<Item = &'a Policy>) -> Option<Violation> {
    let problem = match others.find(|other| other.name() == of) {
        None => format!("policy `{of}` does not exist"),
        Some(other) if other.stage().of().is_some() => format!("policy `{of}` is itself a candidate"),
        Some(other) if other.pool() != serving_pool(policy.pool()) => format!("policy `{of}` protects the pool {:?}", other.pool()),
        Some(_) => return None,
    };
    Some(Violation { field: "candidate.of".into(), problem })
}

/// In what a candidate that governs differs from its policy though both share it: they are compared class by class, their work is one
/// pool's, and a quota holds for all of it.
fn unlike(candidate: &Policy, of: &Policy) -> Vec<Violation> {
    if !matches!(candidate.stage(), Stage::Canary(_)) {
        return Vec::new();
    }
    let (name, of_name) = (candidate.name(), of.name());
    let classes = |policy: &Policy| policy.classes().iter().map(|class| class.name.clone()).collect::<Vec<_>>();
    let differs = [
        ("classes", "the same classes in the same order", classes(candidate) != classes(of)),
        ("overload", "overload control both or neither", candidate.overload().is_some() != of.overload().is_some()),
        ("quotas", "the same quotas", quotas(candidate) != quotas(of)),
    ];
    let violation = |(field, wanted, _): (&str, &str, bool)| Violation {
        field: field.to_owned(),
        problem: format!("a candidate that governs and its policy have {wanted}; `{name}` and `{of_name}` have not"),
    };
    differs.into_iter().filter(|(_, _, differs)| *differs).map(violation).collect()
}

/// The quotas, with their tenants by name.
fn quotas(policy: &Policy) -> Vec<(&str, Terms, Vec<&str>)> {
    let name = |tenant: &TenantId| policy.tenants().get(tenant.index()).map_or("", |tenant| tenant.name.as_str());
    policy.quotas().iter().map(|quota| (quota.key.as_str(), quota.terms, quota.tenants.iter().map(name).collect())).collect()
}

fn shown(route: &Route) -> String {
    match &route.host {
        Some(host) => format!("path {:?} on host {host:?}", route.path_prefix),
        None => format!("path {:?} on any host", route.path_prefix),
    }
}
