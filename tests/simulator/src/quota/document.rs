//! From the document to a [`Scenario`]: one way, every problem at once.

use serde::Deserialize;

use super::{Cut, Network, Scenario};
use crate::scenarios::{Check, ScenarioError};

/// Names and documents of the standard ones.
pub const STANDARD: &[(&str, &str)] = &[
    ("quota-shifts", include_str!("../../scenarios/quota-shifts.yaml")),
    ("quota-faults", include_str!("../../scenarios/quota-faults.yaml")),
];

/// Part by which the fast mode may pass the capacity (`policy.proto`).
const FAST: f64 = 0.01;

/// Whether a document is a scenario of a quota rather than one of a pool of engines.
#[must_use]
pub fn is_document(text: &str) -> bool {
    #[derive(Deserialize)]
    struct OfKind {
        kind: Option<String>,
    }
    serde_yaml_ng::from_str::<OfKind>(text).is_ok_and(|of| of.kind.as_deref() == Some("quota"))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Raw {
    #[serde(rename = "kind")]
    _kind: String,
    name: String,
    #[serde(default)]
    summary: String,
    seconds: f64,
    proxies: u64,
    demand: RawDemand,
    quota: RawQuota,
    #[serde(default)]
    network: RawNetwork,
    #[serde(default)]
    faults: Vec<RawFault>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawDemand {
    per_proxy_per_second: f64,
    hot_proxies: u64,
    hot_factor: f64,
    #[serde(default)]
    shifts_at_seconds: Vec<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawQuota {
    of_demand: f64,
    burst_ms: f64,
    #[serde(default)]
    mode: RawMode,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
enum RawMode {
    #[default]
    Strict,
    Fast,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawNetwork {
    #[serde(default)]
    loss: f64,
    #[serde(default)]
    duplication: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", tag = "kind")]
enum RawFault {
    #[serde(rename_all = "camelCase")]
    Partition { at_seconds: f64, seconds: f64, proxies: u64 },
    #[serde(rename_all = "camelCase")]
    NewLeader { at_seconds: f64 },
}

impl Scenario {
    /// Reads a YAML or JSON document.
    ///
    /// # Errors
    /// When it has not the shape of a scenario, or with every field that is out of its range.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let raw: Raw = serde_yaml_ng::from_str(text).map_err(|error| ScenarioError::Syntax(error.to_string()))?;
        let mut check = Check::default();
        let scenario = scenario(&mut check, &raw);
        check.finish(scenario).map_err(ScenarioError::Invalid)
    }

    /// The standard one of this name.
    #[must_use]
    pub fn standard(name: &str) -> Option<Result<Self, ScenarioError>> {
        STANDARD.iter().find(|(known, _)| *known == name).map(|(_, document)| Self::parse(document))
    }
}

fn scenario(check: &mut Check, raw: &Raw) -> Scenario {
    let RawDemand { per_proxy_per_second, hot_proxies, hot_factor, shifts_at_seconds } = &raw.demand;
    check.name("name", &raw.name);
    let mut scenario = Scenario {
        name: raw.name.clone(),
        summary: raw.summary.clone(),
        duration: check.seconds("seconds", raw.seconds, 3.0, 600.0),
        proxies: check.count("proxies", raw.proxies, 1, 20_000) as usize,
        hot: check.count("demand.hotProxies", *hot_proxies, 1, raw.proxies.max(1)) as usize,
        base: check.number("demand.perProxyPerSecond", *per_proxy_per_second, 0.01, 10_000.0),
        factor: check.number("demand.hotFactor", *hot_factor, 1.0, 1000.0),
        shifts: Vec::new(),
        load: check.number("quota.ofDemand", raw.quota.of_demand, 0.01, 100.0),
        burst_s: check.millis("quota.burstMs", raw.quota.burst_ms, 100.0, 60_000.0).as_secs_f64(),
        overbook: match raw.quota.mode {
            RawMode::Strict => 0.0,
            RawMode::Fast => FAST,
        },
        network: Network {
            loss: check.number("network.loss", raw.network.loss, 0.0, 0.9),
            duplication: check.number("network.duplication", raw.network.duplication, 0.0, 1.0),
        },
        cuts: Vec::new(),
        new_leaders: Vec::new(),
    };
    let mut after = 0.0;
    for (at, seconds) in shifts_at_seconds.iter().enumerate() {
        scenario.shifts.push(check.seconds(&format!("demand.shiftsAtSeconds[{at}]"), *seconds, after, raw.seconds));
        after = *seconds;
    }
    for (index, fault) in raw.faults.iter().enumerate() {
        let field = |name: &str| format!("faults[{index}].{name}");
        match *fault {
            RawFault::Partition { at_seconds, seconds, proxies } => scenario.cuts.push(Cut {
                at: check.seconds(&field("atSeconds"), at_seconds, 0.0, raw.seconds),
                lasts: check.seconds(&field("seconds"), seconds, 0.0, raw.seconds),
                proxies: check.count(&field("proxies"), proxies, 1, raw.proxies.max(1)) as usize,
            }),
            RawFault::NewLeader { at_seconds } => {
                scenario.new_leaders.push(check.seconds(&field("atSeconds"), at_seconds, 0.0, raw.seconds));
            }
        }
    }
    scenario
}
