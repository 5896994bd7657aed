//! Pools.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use headgate_core::policy::Problem;
use headgate_core::policy::check::{Checker, join};
use headgate_protos::v1;

use super::{FILE, HEADER, HOST, LINE, address, malformed, non_empty, port};

const MAX_ENDPOINTS: usize = 256;
const MAX_GPUS: usize = 64;
/// A weight that no document gives.
const DEFAULT_WEIGHT: u32 = 100;

/// Upstream endpoints that serve one model set.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// Name, which is that of the Envoy cluster.
    pub name: String,
    /// At least one.
    pub endpoints: Vec<Endpoint>,
    /// How requests are spread.
    pub balancing: Balancing,
    /// Whether a request that names its endpoint goes there, and only the others by `balancing`.
    pub follows_picks: bool,
    /// Active health checks.
    pub health_check: Option<HealthCheck>,
    /// Passive health checks.
    pub outliers: Option<Outliers>,
    /// Retries of what no endpoint has begun.
    pub retries: Option<Retries>,
    /// TLS to the endpoints.
    pub tls: Option<Tls>,
    /// Whether the endpoints speak HTTP/2, else HTTP/1.1.
    pub is_http2: bool,
    /// Longest time to connect.
    pub connect_timeout: Duration,
    /// Most requests at once.
    pub max_requests: u32,
    /// How much more than its part a tier is trusted with, in percent.
    pub overprovisioning_percent: u32,
}

/// One server of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its part against the others of its tier.
    pub weight: u32,
    /// 0 is used first.
    pub tier: u32,
    /// Where it stands.
    pub zone: String,
    /// UUIDs of its GPUs.
    pub gpus: BTreeSet<String>,
    /// Node whose agent speaks for its GPUs.
    pub node: Option<String>,
}

/// How requests are spread; an absent slow start gives a new endpoint its full part at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balancing {
    /// One after the other.
    RoundRobin {
        /// Time to the full part.
        slow_start: Option<Duration>,
    },
    /// One after the other, by weight.
    Weighted {
        /// Where weights come from.
        weights: Weights,
        /// Time to the full part.
        slow_start: Option<Duration>,
    },
    /// The less busy of two.
    LeastRequest {
        /// Where weights come from.
        weights: Weights,
        /// Time to the full part.
        slow_start: Option<Duration>,
    },
    /// By the load that endpoints tell.
    LatencyAware {
        /// Time to the full part.
        slow_start: Option<Duration>,
    },
    /// By a header's value.
    ConsistentHash {
        /// Where weights come from.
        weights: Weights,
        /// The header.
        header: String,
    },
}

/// Where the weights of endpoints come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    /// From the document.
    #[default]
    Given,
    /// From the GPUs' utilisation and the latency.
    Telemetry,
    /// From the engine's queue and KV cache.
    Saturation,
}

/// Active health checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked for.
    pub path: String,
    /// Between checks of an able endpoint.
    pub interval: Duration,
    /// For one answer.
    pub timeout: Duration,
    /// After which an endpoint leaves.
    pub failures: u32,
    /// Between probes of one that has left.
    pub probe: Duration,
}

/// Passive health checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outliers {
    /// Errors that are one too many, in percent of a window's answers.
    pub error_percent: u32,
    /// The window.
    pub window: Duration,
    /// Answers below which a window says nothing.
    pub min_requests: u32,
    /// Errors in a row that do not wait for the window's end.
    pub consecutive_errors: u32,
    /// How long an endpoint stays away.
    pub ejection: Duration,
    /// Most endpoints that are away, in percent.
    pub max_ejected_percent: u32,
}

/// Retries of what no endpoint has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Of one request.
    pub attempts: u32,
    /// Of the requests in flight, in percent.
    pub budget_percent: u32,
    /// At once, however few requests are in flight.
    pub min_concurrency: u32,
}

/// TLS to the endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Name in the certificate.
    pub server_name: String,
    /// Authorities.
    pub ca_file: String,
    /// Certificate and key that are shown.
    pub certificate: Option<(String, String)>,
}

// === impl Balancing ===

impl Balancing {
    /// Where the endpoints' weights come from; `None` where they do not count.
    pub fn weights(&self) -> Option<Weights> {
        match self {
            Self::RoundRobin { .. } | Self::LatencyAware { .. } => None,
            Self::Weighted { weights, .. } | Self::LeastRequest { weights, .. } | Self::ConsistentHash { weights, .. } => Some(*weights),
        }
    }

    /// Time in which an endpoint that has come back reaches its full weight; `None`: at once, or weights do not count.
    pub fn ramp(&self) -> Option<Duration> {
        match self {
            Self::Weighted { slow_start, .. } | Self::LeastRequest { slow_start, .. } => *slow_start,
            Self::RoundRobin { .. } | Self::LatencyAware { .. } | Self::ConsistentHash { .. } => None,
        }
    }
}

pub(super) fn check(check: &mut Checker, name: &str, wire: &v1::PoolSpec) -> Pool {
    let v1::PoolSpec {
        endpoints,
        balancing,
        health_check,
        outliers,
        retries,
        tls,
        protocol: _,
        connect_timeout_ms,
        max_requests,
        overprovisioning_percent,
    } = wire;
    Pool {
        name: name.to_owned(),
        endpoints: self::endpoints(check, endpoints),
        balancing: self::balancing(check, balancing.as_ref().unwrap_or(&v1::PoolBalancing::default())),
        follows_picks: balancing.as_ref().is_some_and(|wire| wire.follow_picks),
        health_check: self::health_check(check, health_check.as_ref().unwrap_or(&v1::PoolHealthCheck::default())),
        outliers: self::outliers(check, outliers.as_ref().unwrap_or(&v1::PoolOutliers::default())),
        retries: self::retries(check, retries.as_ref().unwrap_or(&v1::PoolRetries::default())),
        tls: tls.as_ref().map(|wire| self::tls(check, wire)),
        is_http2: wire.protocol() == v1::PoolProtocol::Http2,
        connect_timeout: check.millis("", "connectTimeoutMs", *connect_timeout_ms, Duration::from_secs(1), 50..=60_000),
        max_requests: check.whole("", "maxRequests", *max_requests, 65_536, 1..=1_000_000),
        overprovisioning_percent: check.whole("", "overprovisioningPercent", *overprovisioning_percent, 140, 100..=1000),
    }
}

fn endpoints(check: &mut Checker, wire: &[v1::PoolEndpoint]) -> Vec<Endpoint> {
    let checked = check.count("", "endpoints", wire.len(), 1..=MAX_ENDPOINTS);
    let mut seen = BTreeMap::new();
    let mut endpoints = Vec::with_capacity(checked);
    for (index, wire) in wire.iter().take(checked).enumerate() {
        let at = format!("endpoints[{index}]");
        let endpoint = endpoint(check, &at, wire);
        check.unique(at, &endpoint.address.to_string(), &mut seen);
        endpoints.push(endpoint);
    }
    let tiers: BTreeSet<u32> = endpoints.iter().map(|endpoint| endpoint.tier).collect();
    if let Some((expected, got)) = (0..).zip(&tiers).find(|(expected, got)| expected != *got) {
        let rule = "tiers begin with 0 and have no gaps";
        check.report("endpoints".to_owned(), Problem::Conflict { got: format!("tier {got} without tier {expected}"), rule });
    }
    endpoints
}

fn endpoint(check: &mut Checker, at: &str, wire: &v1::PoolEndpoint) -> Endpoint {
    let v1::PoolEndpoint { address, port, weight, tier, zone, gpus, node } = wire;
    let ip: IpAddr = self::address(check, at, address, None);
    if address.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
        check.report(join(at, "address"), malformed(address, "an address that can be connected to"));
    }
    check.length(at, "zone", zone, 63);
    check.optional_text(at, "zone", zone, &LINE);
    check.optional_text(at, "node", node, &HOST);
    let n_gpus = check.count(at, "gpus", gpus.len(), 0..=MAX_GPUS);
    for (index, gpu) in gpus.iter().take(n_gpus).enumerate() {
        check.text(at, &format!("gpus[{index}]"), gpu, &LINE);
    }
    if !gpus.is_empty() && !node.is_empty() {
        check.report(join(at, "node"), Problem::Conflict { got: node.clone(), rule: "gpus names the endpoint's GPUs already" });
    }
    Endpoint {
        address: SocketAddr::new(ip, self::port(check, at, *port)),
        weight: check.whole(at, "weight", *weight, DEFAULT_WEIGHT, 1..=1000),
        tier: check.whole(at, "tier", *tier, 0, 0..=7),
        zone: zone.clone(),
        gpus: gpus.iter().take(n_gpus).cloned().collect(),
        node: non_empty(node),
    }
}

fn balancing(check: &mut Checker, wire: &v1::PoolBalancing) -> Balancing {
    use v1::BalancingAlgorithm as Algorithm;
    let v1::PoolBalancing { algorithm: _, weights: _, hash_header, slow_start_ms, follow_picks: _ } = wire;
    let at = "balancing";
    let algorithm = wire.algorithm();
    let (weights, moved_by) = match wire.weights() {
        v1::WeightSource::Unspecified | v1::WeightSource::Given => (Weights::Given, None),
        v1::WeightSource::Telemetry => (Weights::Telemetry, Some("telemetry")),
        v1::WeightSource::Saturation => (Weights::Saturation, Some("saturation")),
    };
    if let Some(moved_by) = moved_by
        && matches!(algorithm, Algorithm::RoundRobin | Algorithm::LatencyAware)
    {
        let rule = "with this algorithm the weights of endpoints do not count; weighted or least_request use them";
        check.report(join(at, "weights"), Problem::Conflict { got: moved_by.to_owned(), rule });
    }
    if algorithm == Algorithm::ConsistentHash {
        check.text(at, "hashHeader", hash_header, &HEADER);
        if slow_start_ms.is_some() {
            let rule = "consistent_hash has no slow start";
            check.report(join(at, "slowStartMs"), Problem::Conflict { got: slow_start_ms.unwrap_or_default().to_string(), rule });
        }
        return Balancing::ConsistentHash { weights, header: hash_header.clone() };
    }
    if !hash_header.is_empty() {
        let rule = "only consistent_hash chooses by a header";
        check.report(join(at, "hashHeader"), Problem::Conflict { got: hash_header.clone(), rule });
    }
    let slow_start = check.millis(at, "slowStartMs", *slow_start_ms, Duration::from_secs(30), 0..=600_000);
    let slow_start = Some(slow_start).filter(|window| !window.is_zero());
    match algorithm {
        Algorithm::RoundRobin => Balancing::RoundRobin { slow_start },
        Algorithm::Weighted => Balancing::Weighted { weights, slow_start },
        Algorithm::LatencyAware => Balancing::LatencyAware { slow_start },
        Algorithm::Unspecified | Algorithm::LeastRequest | Algorithm::ConsistentHash => Balancing::LeastRequest { weights, slow_start },
    }
}

fn health_check(check: &mut Checker, wire: &v1::PoolHealthCheck) -> Option<HealthCheck> {
    let v1::PoolHealthCheck { enabled, path, interval_ms, timeout_ms, failures, probe_ms } = wire;
    let at = "healthCheck";
    if !path.is_empty() && !path.starts_with('/') {
        check.report(join(at, "path"), malformed(path, "a path that starts with '/'"));
    }
    check.length(at, "path", path, 256);
    let health_check = HealthCheck {
        path: non_empty(path).unwrap_or_else(|| "/health".to_owned()),
        interval: check.millis(at, "intervalMs", *interval_ms, Duration::from_secs(10), 100..=600_000),
        timeout: check.millis(at, "timeoutMs", *timeout_ms, Duration::from_secs(2), 50..=60_000),
        failures: check.whole(at, "failures", *failures, 3, 1..=100),
        probe: check.millis(at, "probeMs", *probe_ms, Duration::from_secs(30), 100..=600_000),
    };
    enabled.unwrap_or(true).then_some(health_check)
}

fn outliers(check: &mut Checker, wire: &v1::PoolOutliers) -> Option<Outliers> {
    let v1::PoolOutliers { enabled, error_percent, window_ms, min_requests, consecutive_errors, ejection_ms, max_ejected_percent } = wire;
    let at = "outliers";
    let outliers = Outliers {
        error_percent: check.whole(at, "errorPercent", *error_percent, 20, 1..=100),
        window: check.millis(at, "windowMs", *window_ms, Duration::from_secs(300), 1000..=600_000),
        min_requests: check.whole(at, "minRequests", *min_requests, 20, 1..=100_000),
        consecutive_errors: check.whole(at, "consecutiveErrors", *consecutive_errors, 5, 1..=1000),
        ejection: check.millis(at, "ejectionMs", *ejection_ms, Duration::from_secs(30), 1000..=600_000),
        max_ejected_percent: check.whole(at, "maxEjectedPercent", *max_ejected_percent, 50, 1..=100),
    };
    enabled.unwrap_or(true).then_some(outliers)
}

fn retries(check: &mut Checker, wire: &v1::PoolRetries) -> Option<Retries> {
    let v1::PoolRetries { enabled, attempts, budget_percent, min_concurrency } = wire;
    let at = "retries";
    let retries = Retries {
        attempts: check.whole(at, "attempts", *attempts, 2, 1..=10),
        budget_percent: check.whole(at, "budgetPercent", *budget_percent, 20, 1..=100),
        min_concurrency: check.whole(at, "minConcurrency", *min_concurrency, 3, 1..=1000),
    };
    enabled.unwrap_or(true).then_some(retries)
}

fn tls(check: &mut Checker, wire: &v1::PoolTls) -> Tls {
    let v1::PoolTls { server_name, ca_file, certificate_file, key_file } = wire;
    let at = "tls";
    check.text(at, "serverName", server_name, &HOST);
    check.text(at, "caFile", ca_file, &FILE);
    check.optional_text(at, "certificateFile", certificate_file, &FILE);
    check.optional_text(at, "keyFile", key_file, &FILE);
    if certificate_file.is_empty() != key_file.is_empty() {
        let missing = if key_file.is_empty() { "keyFile" } else { "certificateFile" };
        check.report(join(at, missing), Problem::Missing);
    }
    let certificate = (!certificate_file.is_empty()).then(|| (certificate_file.clone(), key_file.clone()));
    Tls { server_name: server_name.clone(), ca_file: ca_file.clone(), certificate }
}
