//! Routes.

use std::collections::BTreeMap;
use std::time::Duration;

use headgate_core::policy::Problem;
use headgate_core::policy::check::{Checker, join};
use headgate_protos::v1;

use super::{HOST, LINE, NAME, malformed};

const MAX_GATEWAYS: usize = 16;
const MAX_HOSTS: usize = 32;
const MAX_RULES: usize = 64;
const MAX_MODELS: usize = 32;
const MAX_BACKENDS: usize = 16;
/// The host that every other one is an example of.
const ANY_HOST: &str = "*";

/// Which requests go to which pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Name.
    pub name: String,
    /// Gateways that serve it; empty: all.
    pub gateways: Vec<String>,
    /// Hosts; at least one.
    pub hosts: Vec<String>,
    /// Rules; at least one.
    pub rules: Vec<Rule>,
}

/// One rule: all criteria must match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Prefix of the path.
    pub path_prefix: String,
    /// Models; empty: all.
    pub models: Vec<ModelMatch>,
    /// Versions; empty: all.
    pub versions: Vec<String>,
    /// Length of the input in bytes, from and to, both included.
    pub input_bytes: Option<(u64, u64)>,
    /// Who gets the requests; at least one has a weight above 0.
    pub backends: Vec<Backend>,
    /// Longest answer.
    pub timeout: Option<Duration>,
    /// Longest silence.
    pub idle_timeout: Duration,
}

/// Which models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelMatch {
    /// This one.
    Exact(String),
    /// All that begin so.
    Prefix(String),
}

/// A pool that gets a part of the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its name.
    pub pool: String,
    /// Its part against the others.
    pub weight: u32,
}

pub(super) fn check(check: &mut Checker, name: &str, wire: &v1::RouteSpec) -> Route {
    let v1::RouteSpec { gateways, hosts, rules } = wire;
    names(check, "gateways", gateways);
    let hosts = self::hosts(check, hosts);
    let checked = check.count("", "rules", rules.len(), 1..=MAX_RULES);
    let rules = rules.iter().take(checked).enumerate().map(|(index, wire)| rule(check, &format!("rules[{index}]"), wire)).collect();
    Route { name: name.to_owned(), gateways: gateways.clone(), hosts, rules }
}

fn names(check: &mut Checker, field: &str, names: &[String]) {
    let checked = check.count("", field, names.len(), 0..=MAX_GATEWAYS);
    let mut seen = BTreeMap::new();
    for (index, name) in names.iter().take(checked).enumerate() {
        let at = format!("{field}[{index}]");
        check.text("", &at, name, &NAME);
        check.unique(at, name, &mut seen);
    }
}

fn hosts(check: &mut Checker, wire: &[String]) -> Vec<String> {
    let checked = check.count("", "hosts", wire.len(), 0..=MAX_HOSTS);
    let mut seen = BTreeMap::new();
    for (index, host) in wire.iter().take(checked).enumerate() {
        let at = format!("hosts[{index}]");
        if host != ANY_HOST {
            check.text("", &at, host.strip_prefix("*.").unwrap_or(host), &HOST);
        }
        check.unique(at, host, &mut seen);
    }
    if wire.is_empty() { vec![ANY_HOST.to_owned()] } else { wire.to_vec() }
}

fn rule(check: &mut Checker, at: &str, wire: &v1::RouteRule) -> Rule {
    let v1::RouteRule { path_prefix, models, model_versions, min_input_bytes, max_input_bytes, backends, timeout_ms, idle_timeout_ms } =
        wire;
    if !path_prefix.is_empty() && !path_prefix.starts_with('/') {
        check.report(join(at, "pathPrefix"), malformed(path_prefix, "a path that starts with '/'"));
    }
    check.length(at, "pathPrefix", path_prefix, 256);
    let timeout = check.millis(at, "timeoutMs", *timeout_ms, Duration::ZERO, 0..=3_600_000);
    Rule {
        path_prefix: if path_prefix.is_empty() { "/".to_owned() } else { path_prefix.clone() },
        models: self::models(check, at, models),
        versions: versions(check, at, model_versions),
        input_bytes: input_bytes(check, at, *min_input_bytes, *max_input_bytes),
        backends: self::backends(check, at, backends),
        timeout: Some(timeout).filter(|timeout| !timeout.is_zero()),
        idle_timeout: check.millis(at, "idleTimeoutMs", *idle_timeout_ms, Duration::from_secs(300), 1000..=3_600_000),
    }
}

fn models(check: &mut Checker, at: &str, wire: &[String]) -> Vec<ModelMatch> {
    let checked = check.count(at, "models", wire.len(), 0..=MAX_MODELS);
    let mut models = Vec::with_capacity(checked);
    for (index, model) in wire.iter().take(checked).enumerate() {
        check.text(at, &format!("models[{index}]"), model, &LINE);
        models.push(match model.strip_suffix('*') {
            Some(prefix) => ModelMatch::Prefix(prefix.to_owned()),
            None => ModelMatch::Exact(model.clone()),
        });
        if model == "*" {
            check.report(join(at, &format!("models[{index}]")), malformed(model, "a name or a prefix; leave `models` out for every model"));
        }
    }
    models
}

fn versions(check: &mut Checker, at: &str, wire: &[String]) -> Vec<String> {
    let checked = check.count(at, "modelVersions", wire.len(), 0..=MAX_MODELS);
    for (index, version) in wire.iter().take(checked).enumerate() {
        check.text(at, &format!("modelVersions[{index}]"), version, &LINE);
    }
    wire.iter().take(checked).cloned().collect()
}

fn input_bytes(check: &mut Checker, at: &str, min: Option<u64>, max: Option<u64>) -> Option<(u64, u64)> {
    // Envoy compares signed 64-bit numbers, the end of the range excluded.
    let greatest = i64::MAX as u64 - 1;
    let (from, to) = (min.unwrap_or(0), max.unwrap_or(greatest));
    if from > greatest || to > greatest || from > to {
        let rule = "minInputBytes is at most maxInputBytes, and both are below 2^63 - 1";
        check.report(join(at, "minInputBytes"), Problem::Conflict { got: format!("{from}..={to}"), rule });
    }
    (min.is_some() || max.is_some()).then_some((from, to))
}

fn backends(check: &mut Checker, at: &str, wire: &[v1::RouteBackend]) -> Vec<Backend> {
    let checked = check.count(at, "backends", wire.len(), 1..=MAX_BACKENDS);
    let mut seen = BTreeMap::new();
    let mut backends = Vec::with_capacity(checked);
    for (index, v1::RouteBackend { pool, weight }) in wire.iter().take(checked).enumerate() {
        let at = format!("{at}.backends[{index}]");
        check.text(&at, "pool", pool, &NAME);
        check.unique(join(&at, "pool"), pool, &mut seen);
        backends.push(Backend { pool: pool.clone(), weight: check.whole(&at, "weight", *weight, 1, 0..=10_000) });
    }
    if !backends.is_empty() && backends.iter().all(|backend| backend.weight == 0) {
        check
            .report(join(at, "backends"), Problem::Conflict { got: "every weight 0".to_owned(), rule: "somebody has to get the requests" });
    }
    backends
}
