//! `/metrics`: the status document as OpenMetrics text.
//!
//! Labels are bounded by what operators write (pools, classes, policies) and by enums (levels, states, reasons); no label names a proxy
//! or a tenant, and of the models that requests name a bounded number has one. `METRICS.md` lists all names.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use headgate_protos::v1;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::Observatory;
use crate::fleet::PolicyReach;
use crate::gateway::EndpointView;
use crate::status::{ClassStatus, LevelView, PoolStatus, StatusDocument};

mod access_log;
mod alarms;
mod connections;
mod engines;
mod gateway;
mod gpus;
mod latency;
mod overload;
mod quotas;
mod replica;
#[cfg(test)]
mod tests;

/// Type of the text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const LEVEL_STATES: [&str; 6] = ["disabled", "learning", "ok", "tripped", "recovering", "stale"];
const CLASS_ACTIONS: [&str; 3] = ["admit", "throttle", "refuse"];

/// One scrape.
#[derive(Debug)]
struct Scrape {
    status: StatusDocument,
    policies: Vec<(String, PolicyReach)>,
    filters: v1::WorkerCounters,
    unaccounted_reports: u64,
    unreadable_reports: u64,
    step_seconds: f64,
    steps: u64,
    access_logs: access_log::AccessLogCounts,
    connections: connections::ConnectionCounts,
    endpoints: Arc<Vec<EndpointView>>,
    refusals: usize,
    gpu_telemetry_up: bool,
    gpu_ages: Histogram,
    gpu_report_bytes: u64,
    ready: bool,
}

/// The text of one scrape.
pub(super) fn encode(status: &StatusDocument, observatory: &Observatory) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape::of(status, observatory)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

// === impl Scrape ===

impl Scrape {
    fn of(status: &StatusDocument, observatory: &Observatory) -> Self {
        let control = observatory.control.borrow().clone();
        let ledger = observatory.ledger.lock();
        let policies = observatory.fleet.policies().borrow().clone();
        let proxies = observatory.fleet.proxies();
        Self {
            status: status.clone(),
            policies: policies.policies.iter().map(|(name, stored)| (name.clone(), proxies.reach(&stored.policy))).collect(),
            filters: *ledger.worker_counters(),
            unaccounted_reports: ledger.unaccounted(),
            unreadable_reports: ledger.unreadable(),
            step_seconds: control.step.as_secs_f64(),
            steps: control.steps,
            endpoints: observatory.fleet.endpoints(),
            refusals: observatory.fleet.refusals().list().len(),
            gpu_telemetry_up: observatory.devices.view(observatory.clock.now()).is_up(),
            gpu_ages: observatory.devices.ages(),
            gpu_report_bytes: observatory.devices.report_bytes(),
            access_logs: access_log::AccessLogCounts {
                outcomes: observatory.access_logs.outcomes().collect(),
                refused_streams: observatory.access_logs.refused_streams(),
            },
            connections: connections::ConnectionCounts {
                open: observatory.connections.open(),
                ended: observatory.connections.by_cause().to_vec(),
            },
            ready: observatory.ready.load(Ordering::Acquire),
        }
    }

    fn levels(&self) -> impl Iterator<Item = (&PoolStatus, &LevelView)> {
        self.status.pools.iter().flat_map(|pool| pool.levels.iter().map(move |level| (pool, level)))
    }

    fn classes(&self) -> impl Iterator<Item = (&PoolStatus, &ClassStatus)> {
        self.status.pools.iter().flat_map(|pool| pool.classes.iter().map(move |class| (pool, class)))
    }

    fn encode_levels(&self, out: &mut Out<'_>) -> fmt::Result {
        let of = |pool: &PoolStatus, level: &LevelView| vec![("pool", pool.pool.clone()), ("level", level.kind.clone())];
        let states = self.levels().flat_map(|(pool, level)| {
            LEVEL_STATES.map(|state| {
                let labels = [of(pool, level), vec![("state", state.to_owned())]].concat();
                (labels, f64::from(u8::from(level.state == state)))
            })
        });
        out.gauges("headgate_level_state", "State of a level: 1 for the state that it is in", states)?;
        let value = self.levels().map(|(pool, level)| (of(pool, level), level.value));
        out.gauges("headgate_level_value", "Last value of a level: requests/s, percent or ms", value)?;
        let threshold = self.levels().map(|(pool, level)| (of(pool, level), level.threshold));
        out.gauges("headgate_level_threshold", "Threshold of a level; 0 while learning", threshold)?;
        let age = self.levels().map(|(pool, level)| (of(pool, level), f64::from(level.age_ms) / 1000.0));
        out.gauges("headgate_level_age_seconds", "Age of the value of a level", age)
    }

    fn encode_classes(&self, out: &mut Out<'_>) -> fmt::Result {
        let of = |pool: &PoolStatus, class: &ClassStatus| vec![("pool", pool.pool.clone()), ("class", class.class.clone())];
        let with = |mut labels: Labels, key: &'static str, value: &str| {
            labels.push((key, value.to_owned()));
            labels
        };
        let actions = self.classes().flat_map(|(pool, class)| {
            CLASS_ACTIONS.map(|action| (with(of(pool, class), "action", action), f64::from(u8::from(class.action == action))))
        });
        out.gauges("headgate_class_action", "What a class may do: 1 for the action in force", actions)?;
        let rates = self.classes().map(|(pool, class)| (of(pool, class), class.rate_rps));
        out.gauges("headgate_class_rate_rps", "Rate of a throttled class over all proxies; 0 when it is not throttled", rates)?;
        let outcomes = self.classes().flat_map(|(pool, class)| {
            let counts = [
                ("offered", class.offered),
                ("admitted", class.admitted),
                ("completed", class.completed),
                ("failed", class.failed),
                ("cancelled", class.cancelled),
            ];
            counts.map(|(outcome, count)| (with(of(pool, class), "outcome", outcome), count))
        });
        out.counters("headgate_requests", "Requests by outcome, since the control plane began", outcomes)?;
        let refused = self
            .classes()
            .flat_map(|(pool, class)| class.refused.iter().map(move |(reason, count)| (with(of(pool, class), "reason", reason), *count)));
        out.counters("headgate_refused_requests", "Refused requests by reason, since the control plane began", refused)?;
        let in_flight = self.classes().map(|(pool, class)| (of(pool, class), class.in_flight as f64));
        out.gauges("headgate_in_flight_requests", "Requests in flight", in_flight)?;
        let waiting = self.classes().map(|(pool, class)| (of(pool, class), class.waiting as f64));
        out.gauges("headgate_waiting_requests", "Requests in flight whose first token has not come", waiting)?;
        let ttft = self.classes().flat_map(|(pool, class)| {
            let quantiles = [("0.5", class.ttft_p50_ms), ("0.99", class.ttft_p99_ms)];
            quantiles.into_iter().filter_map(move |(q, ms)| ms.map(|ms| (with(of(pool, class), "quantile", q), ms / 1000.0)))
        });
        out.gauges("headgate_ttft_seconds", "Time to first token over the last 10 s", ttft)
    }

    fn encode_pools(&self, out: &mut Out<'_>) -> fmt::Result {
        let of = |pool: &PoolStatus| vec![("pool", pool.pool.clone())];
        let pools = || self.status.pools.iter();
        out.gauges("headgate_pool_drain_rps", "Requests/s that a busy pool completes", pools().map(|pool| (of(pool), pool.drain_rps)))?;
        out.gauges("headgate_pool_proxies", "Proxies that report a pool", pools().map(|pool| (of(pool), pool.proxies as f64)))?;
        out.gauges("headgate_limits_epoch", "Epoch of the newest pushed limits", pools().map(|pool| (of(pool), pool.epoch as f64)))
    }

    fn encode_fleet(&self, out: &mut Out<'_>) -> fmt::Result {
        out.gauge("headgate_proxies", "Proxies that report", self.status.proxies.len() as f64)?;
        let reach = self.policies.iter().flat_map(|(name, reach)| {
            let counts = [("current", reach.proxies_current), ("behind", reach.proxies_behind)];
            counts.map(|(state, count)| (vec![("policy", name.clone()), ("state", state.to_owned())], f64::from(count)))
        });
        out.gauges("headgate_policy_proxies", "Proxies by whether they have the policy's version in force", reach)?;
        let rejections = self.policies.iter().map(|(name, reach)| (vec![("policy", name.clone())], reach.rejections.len() as f64));
        out.gauges("headgate_policy_rejections", "Proxies that refuse a version of the policy, at most 64", rejections)?;
        let events = [
            ("unmatched", self.filters.unmatched),
            ("host_errors", self.filters.host_errors),
            ("unreadable", self.filters.unreadable),
            ("denied_claims", self.filters.denied_claims),
            ("untracked", self.filters.untracked),
        ];
        let events = events.map(|(event, count)| (vec![("event", event.to_owned())], count));
        out.counters("headgate_filter_events", "What the filters count besides policies", events.into_iter())?;
        let unaccounted = [(Labels::new(), self.unaccounted_reports)];
        out.counters("headgate_unaccounted_reports", "Load reports of proxies beyond the bound", unaccounted.into_iter())?;
        let unreadable = [(Labels::new(), self.unreadable_reports)];
        out.counters("headgate_unreadable_reports", "Overload reports of workers that could not be read", unreadable.into_iter())?;
        out.gauge("headgate_control_step_seconds", "Duration of the last control step", self.step_seconds)?;
        out.counters("headgate_control_steps", "Control steps", [(Labels::new(), self.steps)].into_iter())?;
        out.gauge("headgate_ready", "Whether policies are open and gRPC is served", f64::from(u8::from(self.ready)))
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out { encoder };
        self.encode_levels(&mut out)?;
        self.encode_classes(&mut out)?;
        self.encode_pools(&mut out)?;
        latency::encode(&self.status.pools, &mut out)?;
        access_log::encode(&self.access_logs, &mut out)?;
        connections::encode(&self.connections, &mut out)?;
        overload::encode(&self.status.pools, &mut out)?;
        quotas::encode(&self.status.pools, &mut out)?;
        engines::encode(&self.status.pools, &mut out)?;
        gateway::encode(&self.endpoints, self.refusals, &mut out)?;
        gpus::encode(&self.status, self.gpu_telemetry_up, &mut out)?;
        out.histogram("headgate_gpu_sample_age_seconds", "Age of a sample when it first reached a decision", &self.gpu_ages)?;
        out.counters("headgate_gpu_report_bytes", "Bytes that agents have sent", [(Labels::new(), self.gpu_report_bytes)].into_iter())?;
        alarms::encode(&self.status, &mut out)?;
        replica::encode(&self.status.replica, &mut out)?;
        self.encode_fleet(&mut out)
    }
}

type Labels = Vec<(&'static str, String)>;

/// Writes whole families.
struct Out<'a> {
    encoder: DescriptorEncoder<'a>,
}

// === impl Out ===

impl Out<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.gauges(name, help, [(Labels::new(), value)].into_iter())
    }

    fn gauges(&mut self, name: &str, help: &str, rows: impl Iterator<Item = (Labels, f64)>) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in rows {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) -> fmt::Result {
        histogram.encode(self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?)
    }

    fn counters(&mut self, name: &str, help: &str, rows: impl Iterator<Item = (Labels, u64)>) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in rows {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
