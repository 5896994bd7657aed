//! The one validator: a policy from the wire becomes a [`Policy`] or the list of all its errors, in the order of the fields.
//!
//! Every message is destructured in full, so a field that is added to the wire fails to compile until it is checked here.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use headgate_protos::v1;

use super::check::{Checker, Form, join};
use super::config::{ConcurrencyConfig, ThrottleConfig};
use super::error::Problem;
use super::stage::books_name;
use super::{
    Policy, PolicyErrors, Route, validate_breaker, validate_classes, validate_levels, validate_overload, validate_quotas, validate_stage,
    version_of,
};

const MAX_ROUTES: usize = 32;
const MAX_PATH_BYTES: usize = 256;

/// Name of a policy or a pool.
pub(super) const DNS_LABEL: Form = Form {
    max_bytes: 63,
    allows: |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-',
    ends_allow: |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit(),
    expected: "1 to 63 characters of a-z, 0-9 and '-' that begin and end with a letter or digit",
};
/// Name of a pool.
pub(super) const POOL: Form =
    Form { max_bytes: 63, allows: DNS_LABEL.allows, ends_allow: DNS_LABEL.allows, expected: "1 to 63 characters of a-z, 0-9 and '-'" };
const HOST: Form = Form {
    max_bytes: 253,
    allows: |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']'),
    ends_allow: |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'[' | b']'),
    expected: "a host name of at most 253 characters without port",
};
const VERSION: Form = Form {
    max_bytes: 64,
    allows: |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'),
    ends_allow: |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'),
    expected: "1 to 64 characters of A-Z, a-z, 0-9, '.', '-' and '_'",
};

/// See [`Policy::try_from_wire`].
pub(super) fn policy(wire: &v1::Policy) -> Result<Policy, PolicyErrors> {
    let v1::Policy { name, spec, version } = wire;
    let mut check = Checker::default();
    check.text("metadata", "name", name, &DNS_LABEL);
    // Absent and empty are one on the wire for the parts of a spec, and so are the errors they give.
    let empty = v1::PolicySpec::default();
    if spec.is_none() {
        check.report(String::from("spec"), Problem::Missing);
    }
    let spec_or_empty = spec.as_ref().unwrap_or(&empty);
    let v1::PolicySpec {
        pool,
        routes,
        classes,
        classification,
        levels,
        throttle,
        concurrency,
        breaker,
        refusal,
        overload,
        engines,
        enforcement,
        candidate,
        orca,
        quotas,
    } = spec_or_empty;
    if spec.is_some() {
        check.text("", "pool", pool, &POOL);
    }
    let routes = self::routes(&mut check, routes);
    let classes = if spec.is_some() { validate_classes::classes(&mut check, classes) } else { Vec::new() };
    let classified = validate_classes::classification(&mut check, classification.as_ref(), &classes);
    let levels = validate_levels::levels(&mut check, levels.as_ref());
    let throttle = self::throttle(&mut check, throttle.as_ref());
    let concurrency = concurrency.as_ref().map(|wire| self::concurrency(&mut check, *wire));
    let breaker = breaker.as_ref().map(|wire| validate_breaker::breaker(&mut check, wire, pool));
    let reveal_numbers = refusal.as_ref().is_none_or(|v1::Refusal { reveal_numbers }| reveal_numbers.unwrap_or(true));
    let overload = overload.as_ref().map(|wire| validate_overload::overload(&mut check, wire, &classes, pool));
    if overload.is_none() {
        validate_classes::without_overload(&mut check, &classes);
    }
    let engines = validate_overload::engines(&mut check, engines, overload.as_ref(), *orca);
    let quotas = validate_quotas::quotas(&mut check, quotas, (&classes, &classified.tenants), overload.is_some());
    let stage = validate_stage::stage(&mut check, name, *enforcement, candidate.as_ref());
    check.optional_text("", "version", version, &VERSION);
    match check.finish() {
        Some(errors) => Err(errors),
        None => Ok(Policy {
            name: name.clone(),
            version: version_of(wire),
            pool: books_name(spec_or_empty).into_owned(),
            routes,
            classes,
            tenants: classified.tenants,
            identities: classified.identities,
            classification: classified.classification,
            levels,
            throttle,
            concurrency,
            breaker,
            overload,
            engines,
            orca: *orca,
            quotas,
            reveal_numbers,
            stage,
        }),
    }
}

fn routes(check: &mut Checker, wire: &[v1::RouteMatch]) -> Vec<Route> {
    let checked = check.count("", "routes", wire.len(), 0..=MAX_ROUTES);
    if wire.is_empty() {
        return alloc::vec![Route { path_prefix: String::from("/"), host: None }];
    }
    let mut seen = BTreeMap::new();
    let mut routes = Vec::with_capacity(checked);
    for (index, v1::RouteMatch { path_prefix, host }) in wire.iter().take(checked).enumerate() {
        let at = format!("routes[{index}]");
        let path_prefix = path(check, &at, path_prefix).unwrap_or_else(|| String::from("/"));
        check.optional_text(&at, "host", host, &HOST);
        if has_port(host) {
            check.report(join(&at, "host"), Problem::Malformed { got: host.clone(), expected: HOST.expected });
        }
        let host = host.to_ascii_lowercase();
        check.unique(at, &format!("{host}{path_prefix}"), &mut seen);
        routes.push(Route { path_prefix, host: if host.is_empty() { None } else { Some(host) } });
    }
    routes
}

/// A path prefix; `None` when empty.
pub(super) fn path(check: &mut Checker, at: &str, prefix: &str) -> Option<String> {
    if prefix.is_empty() {
        return None;
    }
    if !prefix.starts_with('/') {
        let got = super::check::quoted(prefix);
        check.report(join(at, "pathPrefix"), Problem::Malformed { got, expected: "a path that starts with '/'" });
    }
    check.length(at, "pathPrefix", prefix, MAX_PATH_BYTES);
    Some(String::from(prefix))
}

/// Whether a host of the right characters ends in a port; a colon is otherwise only inside the brackets of an IPv6 address.
fn has_port(host: &str) -> bool {
    host.rsplit(']').next().is_some_and(|after| after.contains(':'))
}

fn throttle(check: &mut Checker, wire: Option<&v1::GradientThrottle>) -> ThrottleConfig {
    let defaults = ThrottleConfig::default();
    let Some(v1::GradientThrottle { interval_ms, shrink_percent, recover_percent, floor_percent, burst_ms }) = wire else {
        return defaults;
    };
    let at = "throttle";
    ThrottleConfig {
        interval: check.millis(at, "intervalMs", *interval_ms, defaults.interval, 50..=60_000),
        shrink_percent: check.whole(at, "shrinkPercent", *shrink_percent, defaults.shrink_percent, 1..=90),
        recover_percent: check.whole(at, "recoverPercent", *recover_percent, defaults.recover_percent, 1..=100),
        floor_percent: check.whole(at, "floorPercent", *floor_percent, defaults.floor_percent, 0..=100),
        burst: check.millis(at, "burstMs", *burst_ms, defaults.burst, 10..=60_000),
    }
}

fn concurrency(check: &mut Checker, wire: v1::Concurrency) -> ConcurrencyConfig {
    let v1::Concurrency { max_in_flight } = wire;
    ConcurrencyConfig { max_in_flight: check.whole("concurrency", "maxInFlight", Some(max_in_flight), 1, 1..=1_000_000) }
}
