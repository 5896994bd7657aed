//! What `/metrics` promises: names and labels that stay, and no more of them than there are pools and classes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use headgate_core::fleet::{MAX_MODELS, PolicySet, StoredPolicy};
use headgate_core::latency::Metric;
use tokio::sync::watch;

use super::*;
use crate::alarms::AlarmKind;
use crate::clock::Clock;
use crate::control_loop::{ControlView, SharedLedger};
use crate::device::DeviceBoard;
use crate::fleet::Fleet;
use crate::identity::listener::Ends;
use crate::status::{
    AlarmStatus, BudgetStatus, ClassShed, CutOffStatus, EngineStatus, GpuStatus, LatencyFigures, LatencyStatus, LatencyStream,
    OverloadStatus, QueueStatus, QuotaStatus, RungStatus,
};

/// A family: its type, its help, its labels.
type Families = BTreeMap<String, (String, String, BTreeSet<String>)>;

/// A scrape in which every family has a row.
fn full() -> Scrape {
    let figures = LatencyFigures { count: 1, p50_ms: Some(1.0), p99_ms: Some(2.0), ewma_ms: Some(1.0), ..LatencyFigures::default() };
    let stream = LatencyStream { metrics: [("ttft".to_owned(), figures)].into(), ..LatencyStream::default() };
    let by_engines = LatencyStream { source: "engines".to_owned(), ..stream.clone() };
    let class =
        ClassStatus { refused: [("qps".to_owned(), 1)].into(), ttft_p50_ms: Some(1.0), ttft_p99_ms: Some(2.0), ..ClassStatus::default() };
    let overload = OverloadStatus {
        terms: [("kv".to_owned(), 0.5)].into(),
        budgets: BudgetStatus { prefill_tokens: Some(1), kv_tokens: Some(1), streams: Some(1) },
        safe_budgets: BudgetStatus { prefill_tokens: Some(1), kv_tokens: Some(1), streams: Some(1) },
        cut_off: CutOffStatus { shed: vec![ClassShed::default()], ..CutOffStatus::default() },
        queue: Some(QueueStatus::default()),
        rungs: vec![RungStatus::default()],
        ..OverloadStatus::default()
    };
    let engine = EngineStatus {
        age_ms: Some(1),
        running: Some(1),
        waiting: Some(1),
        kv_used_percent: Some(1.0),
        kv_total_tokens: Some(1),
        ..EngineStatus::default()
    };
    let mut gpu = GpuStatus { state: "ok".to_owned(), ..GpuStatus::default() };
    gpu.activity.sm_clock_mhz = Some(1);
    gpu.activity.xid_events = Some(1);
    gpu.activity.kernel_active_percent = Some(1);
    gpu.activity.temperature_celsius = Some(1);
    gpu.activity.power_milliwatts = Some(1);
    gpu.detail.ecc_uncorrected = Some(1);
    let pool = PoolStatus {
        levels: vec![LevelView::default()],
        classes: vec![class],
        overload: Some(overload),
        engines: vec![engine],
        quotas: vec![QuotaStatus::default()],
        latencies: LatencyStatus { streams: vec![stream, by_engines], ..LatencyStatus::default() },
        ..PoolStatus::default()
    };
    let status = StatusDocument { pools: vec![pool], gpus: vec![gpu], ..StatusDocument::default() };
    let mut scrape = Scrape::of(&status, &observatory(&SharedLedger::default(), &Fleet::new()));
    let address = std::net::SocketAddr::from(([10, 0, 0, 1], 8000));
    let endpoint = EndpointView { pool: "p".to_owned(), address, weight: 1, out_because: String::new() };
    scrape.endpoints = Arc::new(vec![endpoint]);
    scrape.policies = vec![("p".to_owned(), PolicyReach::default())];
    scrape
}

fn observatory(ledger: &SharedLedger, fleet: &Fleet) -> Observatory {
    Observatory {
        fleet: fleet.clone(),
        ledger: ledger.clone(),
        devices: DeviceBoard::default(),
        control: watch::channel(Arc::new(ControlView::default())).1,
        clock: Clock::start(),
        ready: Arc::new(AtomicBool::new(true)),
        connections: Ends::default(),
        access_logs: Arc::default(),
        helm: crate::replica::Helm::alone(),
        store: watch::channel(crate::records::StoreHealth::Ok).1,
    }
}

fn text_of(scrape: Scrape) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

fn families(text: &str) -> Families {
    let mut families = Families::new();
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, help] => families.entry(name.to_owned()).or_default().1 = help.to_owned(),
            ["#", "TYPE", name, kind] => families.entry(name.to_owned()).or_default().0 = kind.to_owned(),
            ["#", ..] => {}
            _ => {
                let (name, labels) = line.split_once('{').map_or((words[0], ""), |(name, rest)| (name, rest.split('}').next().unwrap()));
                let suffixes = ["_total", "_bucket", "_sum", "_count"];
                let bare = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix).filter(|name| families.contains_key(*name)));
                let name = bare.unwrap_or(name);
                let keys = labels.split(',').filter_map(|label| label.split_once('=')).map(|(key, _)| key.to_owned());
                families.get_mut(name).unwrap_or_else(|| panic!("{line}")).2.extend(keys);
            }
        }
    }
    families
}

fn reference(families: &Families) -> String {
    let mut text = "# Metrics of the control plane\n\n`GET /metrics` on the HTTP listener, as OpenMetrics text. Names and labels are an interface: they \
                    change with a major version only.\nLabels take what operators write (pools, classes, policies, engines), what is installed \
                    (GPUs) and closed sets; of models at most 32\na class have a name, the others are `other`. No label names a tenant, a client \
                    or a proxy. Counters end in `_total`.\n\nThis page is what the server writes: \
                    `HEADGATE_BLESS=1 cargo test -p headgate --lib metrics` writes it anew.\n\n| name | type | labels | says |\n|---|---|---|---|\n"
        .to_owned();
    for (name, (kind, help, labels)) in families {
        let name = if kind == "counter" { format!("{name}_total") } else { name.clone() };
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let _ = writeln!(text, "| `{name}` | {kind} | {} | {} |", labels.join(", "), help.trim_end_matches('.'));
    }
    text
}

#[test]
fn the_reference_lists_every_name_with_its_labels() {
    let expected = reference(&families(&text_of(full())));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("METRICS.md");
    if std::env::var_os("HEADGATE_BLESS").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(written, expected, "METRICS.md is not what the server writes; HEADGATE_BLESS=1 writes it anew");
}

/// A policy for the pool `chat` with the classes `high` and `low`.
fn policies() -> PolicySet {
    let classes = ["high", "low"].map(|name| v1::PriorityClass { name: name.to_owned(), ..v1::PriorityClass::default() }).to_vec();
    let spec = v1::PolicySpec { pool: "chat".to_owned(), classes, ..v1::PolicySpec::default() };
    let policy = v1::Policy { name: "demo".to_owned(), version: "1".to_owned(), spec: Some(spec) };
    PolicySet { policies: [("demo".to_owned(), Arc::new(StoredPolicy { policy, changed_at_unix_ms: 0 }))].into() }
}

/// A report in which everything that a proxy names itself has a name of its own.
fn hostile(index: u32) -> v1::LoadReport {
    let class = |name: String| v1::ClassReport {
        class: name,
        offered: 1,
        refused: vec![v1::ReasonCount { reason: format!("reason-{index}"), count: 1 }],
        ..v1::ClassReport::default()
    };
    let pool = v1::PoolReport {
        policy: format!("policy-{index}"),
        pool: "chat".to_owned(),
        classes: vec![class(format!("tenant-{index}")), class("high".to_owned())],
        ..v1::PoolReport::default()
    };
    let worker = v1::WorkerReport { slot: 0, vm_epoch: u64::from(index), at_ns: 1, pools: vec![pool], counters: None };
    v1::LoadReport { node_id: format!("node-{}", index % 100), workers: vec![worker], ..v1::LoadReport::default() }
}

#[test]
fn ten_thousand_models_tenants_and_names_of_proxies_make_no_more_series_than_the_bound() {
    let (ledger, fleet) = (SharedLedger::default(), Fleet::new());
    fleet.publish_policies(policies());
    ledger.lock().set_policies(&policies());
    let observatory = observatory(&ledger, &fleet);
    let now = observatory.clock.now();
    for index in 0..10_000 {
        ledger.lock().record(now, &hostile(index));
        for metric in Metric::ALL {
            ledger.lock().record_latencies(now, "chat", "high", &format!("model-{index}"), &[(metric, 1000)]);
        }
    }
    let latencies = LatencyStatus::of(&ledger.lock().latencies(now, "chat"), None);
    let pool = PoolStatus { pool: "chat".to_owned(), latencies, ..PoolStatus::default() };
    let status = StatusDocument { pools: vec![pool], ..StatusDocument::default() };
    let text = encode(&status, &observatory).unwrap();
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    // Samples, sum, two percentiles and the average of five metrics for each model and `other`; the rest does not grow.
    let bound = 5 * 5 * (MAX_MODELS + 1) + 100;
    assert!(series <= bound, "{series} series, allowed {bound}");
    assert!(text.contains("model=\"other\"") && !text.contains("tenant-") && !text.contains("node-"), "{text}");
}

#[test]
fn an_alarm_rises_in_its_own_gauge_and_clears() {
    let (fleet, ledger) = (Fleet::new(), SharedLedger::default());
    let pool = PoolStatus { pool: "llm".to_owned(), policy: "demo".to_owned(), ..PoolStatus::default() };
    let line = |alarm: &str, value: u8| format!("headgate_alarm{{alarm=\"{alarm}\",policy=\"demo\",pool=\"llm\"}} {value}.0\n");
    for kind in AlarmKind::ALL {
        let alarm = AlarmStatus { alarm: kind.as_str().to_owned(), policy: "demo".to_owned(), ..AlarmStatus::default() };
        for raised in [vec![alarm], Vec::new()] {
            let value = u8::try_from(raised.len()).unwrap();
            let status = StatusDocument { pools: vec![pool.clone()], alarms: raised, ..StatusDocument::default() };
            let text = text_of(Scrape::of(&status, &observatory(&ledger, &fleet)));
            for other in AlarmKind::ALL {
                let expected = if other == kind { value } else { 0 };
                assert!(text.contains(&line(other.as_str(), expected)), "{} {expected}: {text}", other.as_str());
            }
        }
    }
}

#[test]
fn the_rules_of_the_example_name_metrics_and_alarms_that_there_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/compose/alerts.yml");
    let rules: serde_json::Value = serde_yaml_ng::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let known = families(&text_of(full()));
    let mut watched = BTreeSet::new();
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        let expression = rule["expr"].as_str().unwrap();
        for word in expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|word| word.starts_with("headgate_")) {
            assert!(known.contains_key(word), "{word} in {expression}");
        }
        let alarm = expression.split_once("alarm=\"").and_then(|(_, rest)| rest.split_once('"')).map(|(alarm, _)| alarm.to_owned());
        watched.extend(alarm);
    }
    assert_eq!(watched, AlarmKind::ALL.map(|kind| kind.as_str().to_owned()).into(), "every alarm has a rule, and every rule an alarm");
}
