//! `headgate status`: what the control plane sees and does.

use std::time::Duration;

use clap::Args;

use super::connect::HttpArgs;
use super::table::{Align, Table};
use super::{CliError, Format, gpu, print};
use crate::status::{AlarmStatus, ClassStatus, EngineStatus, LevelView, PoolStatus, StatusDocument};

mod overload;
mod quotas;
mod rollouts;

/// Arguments of `headgate status`.
#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    http: HttpArgs,
    /// Show it again and again until interrupted
    #[arg(long)]
    watch: bool,
    /// Time between two looks, in milliseconds; with --watch
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    interval_ms: u64,
}

/// Prints the status once, or until interrupted.
pub(super) async fn run(args: StatusArgs, format: Format) -> Result<(), CliError> {
    loop {
        let body = args.http.get("/throttle/status").await?;
        let text = match format {
            Format::Json => String::from_utf8_lossy(&body).into_owned(),
            Format::Text => {
                let document: StatusDocument = serde_json::from_slice(&body)
                    .map_err(|error| CliError::Refused(format!("/throttle/status is not what this version expects: {error}")))?;
                render(&document)
            }
        };
        if !args.watch {
            return print(&text);
        }
        // Cursor home and clear below: the table stays in place.
        print(&if format == Format::Text { format!("\x1b[H\x1b[2J{text}") } else { text })?;
        tokio::time::sleep(Duration::from_millis(args.interval_ms)).await;
    }
}

fn render(document: &StatusDocument) -> String {
    let mut parts: Vec<String> = document.alarms.iter().map(AlarmStatus::line).collect();
    parts.extend(document.rollouts.iter().map(rollouts::render));
    parts.extend(document.pools.iter().map(pool));
    if document.pools.is_empty() {
        parts.push("no policy is applied; `headgate policy apply -f FILE` applies one".to_owned());
    }
    parts.push(format!("GPUs ({})", document.gpu_source));
    if !document.gpus.is_empty() {
        parts.push(gpu::table(&document.gpus).render());
    }
    parts.push(proxies(document));
    parts.extend(document.replica.line());
    parts.join("\n\n")
}

fn pool(pool: &PoolStatus) -> String {
    let head =
        format!("Pool {}, policy {}@{}, {} proxies, drain {:.1}/s", pool.pool, pool.policy, pool.version, pool.proxies, pool.drain_rps);
    let mut levels = Table::new(&[
        ("LEVEL", Align::Left),
        ("STATE", Align::Left),
        ("VALUE", Align::Right),
        ("THRESHOLD", Align::Right),
        ("RECOVERS IN", Align::Right),
        ("LAST TRIP", Align::Left),
        ("SOURCE", Align::Left),
    ]);
    pool.levels.iter().for_each(|level| levels.row(level_row(level)));
    let mut classes = Table::new(&[
        ("CLASS", Align::Left),
        ("ACTION", Align::Left),
        ("RATE/S", Align::Right),
        ("OFFERED", Align::Right),
        ("ADMITTED", Align::Right),
        ("COMPLETED", Align::Right),
        ("FAILED", Align::Right),
        ("IN FLIGHT", Align::Right),
        ("TTFT P50", Align::Right),
        ("TTFT P99", Align::Right),
        ("REFUSED", Align::Left),
    ]);
    pool.classes.iter().for_each(|class| classes.row(class_row(class)));
    let mut parts = vec![head];
    parts.extend(pool.overload.as_ref().map(overload::render));
    parts.push(levels.render());
    parts.extend(pool.levels.iter().filter_map(source_reason));
    parts.push(classes.render());
    if !pool.quotas.is_empty() {
        parts.push(quotas::render(&pool.quotas));
    }
    if !pool.engines.is_empty() {
        parts.push(engines(&pool.engines).render());
    }
    parts.join("\n\n")
}

/// The address of an engine's page, and the engine's own where a name stands for it.
fn name(engine: &EngineStatus) -> String {
    let is_told = engine.address.is_empty() || engine.url.contains(&engine.address);
    if is_told { engine.url.clone() } else { format!("{} ({})", engine.url, engine.address) }
}

fn engines(engines: &[EngineStatus]) -> Table {
    let mut table = Table::new(&[
        ("ENGINE", Align::Left),
        ("KIND", Align::Left),
        ("STATE", Align::Left),
        ("AGE", Align::Right),
        ("RUNNING", Align::Right),
        ("WAITING", Align::Right),
        ("KV USED", Align::Right),
        ("KV TOKENS", Align::Right),
        ("PREEMPTIONS", Align::Right),
        ("PROBLEM", Align::Left),
    ]);
    let count = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    for engine in engines {
        table.row(vec![
            name(engine),
            if engine.engine.is_empty() { "-".to_owned() } else { engine.engine.clone() },
            if engine.is_worst && engines.len() > 1 { format!("{}, worst", engine.state) } else { engine.state.clone() },
            engine.age_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms")),
            count(engine.running),
            count(engine.waiting),
            engine.kv_used_percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.0} %")),
            count(engine.kv_total_tokens),
            engine.preemptions.to_string(),
            if engine.problem.is_empty() { "-".to_owned() } else { engine.problem.clone() },
        ]);
    }
    table
}

/// Why a level watches what it watches, where there is a choice.
fn source_reason(level: &LevelView) -> Option<String> {
    let is_told = !level.source_reason.is_empty() && level.state != "disabled";
    is_told.then(|| format!("{} source: {}", level.kind, level.source_reason))
}

fn level_row(level: &LevelView) -> Vec<String> {
    let trip = |trip: &crate::status::TripView| format!("{:.1} > {:.1}", trip.value, trip.threshold);
    vec![
        level.kind.clone(),
        level.state.clone(),
        format!("{:.1}", level.value),
        format!("{:.1}", level.threshold),
        level.recovery_remaining_ms.map_or_else(|| "-".to_owned(), |ms| format!("{:.1} s", f64::from(ms) / 1000.0)),
        level.last_trip.as_ref().map_or_else(|| "-".to_owned(), trip),
        level.source.clone(),
    ]
}

fn class_row(class: &ClassStatus) -> Vec<String> {
    let millis = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms"));
    let action = if class.because.is_empty() { class.action.clone() } else { format!("{} ({})", class.action, class.because) };
    let refused: Vec<String> = class.refused.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    vec![
        class.class.clone(),
        action,
        if class.action == "throttle" { format!("{:.1}", class.rate_rps) } else { "-".to_owned() },
        class.offered.to_string(),
        class.admitted.to_string(),
        class.completed.to_string(),
        class.failed.to_string(),
        class.in_flight.to_string(),
        millis(class.ttft_p50_ms),
        millis(class.ttft_p99_ms),
        if refused.is_empty() { "-".to_owned() } else { refused.join(", ") },
    ]
}

fn proxies(document: &StatusDocument) -> String {
    if document.proxies.is_empty() {
        return "no proxy is connected".to_owned();
    }
    let mut table = Table::new(&[
        ("PROXY", Align::Left),
        ("WORKERS", Align::Right),
        ("LAST REPORT", Align::Right),
        ("POLICIES", Align::Left),
        ("REFUSED POLICIES", Align::Left),
    ]);
    for proxy in &document.proxies {
        let policies: Vec<String> = proxy.policies.iter().map(|policy| format!("{}@{}", policy.name, policy.version)).collect();
        let rejected: Vec<String> = proxy.rejected.iter().map(|policy| format!("{}: {}", policy.name, policy.error)).collect();
        table.row(vec![
            proxy.node_id.clone(),
            proxy.workers.to_string(),
            format!("{} ms", proxy.last_report_age_ms),
            policies.join(", "),
            if rejected.is_empty() { "-".to_owned() } else { rejected.join("; ") },
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_policies_says_how_to_apply_one() {
        let text = render(&StatusDocument { gpu_source: "no device: off".to_owned(), ..StatusDocument::default() });
        assert!(text.contains("headgate policy apply -f FILE"), "{text}");
        assert!(text.contains("no proxy is connected"), "{text}");
    }

    #[test]
    fn an_engine_that_fails_says_why() {
        let (url, problem) = ("http://10.0.0.7:8000/metrics".to_owned(), "no whole answer within 250 ms".to_owned());
        let engine = EngineStatus { url, state: "failing".to_owned(), problem, ..EngineStatus::default() };
        let text = pool(&PoolStatus { engines: vec![engine], ..PoolStatus::default() });
        assert!(
            text.contains("http://10.0.0.7:8000/metrics  -     failing    -        -        -        -          -            0  no whole"),
            "{text}"
        );
    }

    #[test]
    fn of_several_engines_the_worst_is_named_and_each_by_its_address() {
        let engine = |address: &str, is_worst| EngineStatus {
            url: "http://engines:8000/metrics".to_owned(),
            address: address.to_owned(),
            engine: "vllm".to_owned(),
            state: "ok".to_owned(),
            is_worst,
            ..EngineStatus::default()
        };
        let text =
            pool(&PoolStatus { engines: vec![engine("10.0.0.7:8000", false), engine("10.0.0.8:8000", true)], ..PoolStatus::default() });
        assert!(text.contains("http://engines:8000/metrics (10.0.0.7:8000)  vllm  ok   "), "{text}");
        assert!(text.contains("http://engines:8000/metrics (10.0.0.8:8000)  vllm  ok, worst"), "{text}");
    }

    #[test]
    fn a_tripped_level_shows_value_threshold_and_countdown() {
        let level = LevelView {
            kind: "gpu_memory".to_owned(),
            state: "tripped".to_owned(),
            value: 81.25,
            threshold: 75.0,
            recovery_remaining_ms: Some(4200),
            ..LevelView::default()
        };
        let text = pool(&PoolStatus { levels: vec![level], ..PoolStatus::default() });
        assert!(text.contains("gpu_memory  tripped   81.2       75.0        4.2 s"), "{text}");
    }
}
