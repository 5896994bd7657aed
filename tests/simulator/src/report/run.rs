//! The page of one run.

use super::chart::{Chart, Line, Stroke};
use super::page::{escape, key_figures, millis, number, page, percent, table};
use crate::measure::{Figures, Run, Second, Series};
use crate::scenarios::Scenario;
use crate::suite::Outcome;

/// Seconds over which the latency percentiles of a point are taken.
const LATENCY_SPAN: usize = 2;

/// The page of one run of `controller` in `scenario`.
pub fn run_page(scenario: &Scenario, controller: &str, seed: u64, run: &Run, outcome: &Outcome) -> String {
    let name = escape(scenario.name());
    let figures = &outcome.figures;
    let mut body = format!(
        "<h1>{name} · {}</h1>\n<p>{}</p>\n<p class=\"muted\">Load {} × capacity at its height, {} of virtual time, seed {seed}. A request is \
         good when its first token and its mean time between tokens are within the class's objectives.</p>\n",
        escape(controller),
        escape(&scenario.summary),
        scenario.judging.load,
        format_args!("{:.0} s", scenario.setup.duration.as_secs_f64()),
    );
    body += &key_figures(&headline(outcome));
    body += "<h2>Classes</h2>\n";
    body += &classes(scenario, figures);
    body += "<h2>Over time</h2>\n<div class=\"charts\">\n";
    for chart in charts(scenario, run) {
        body += &chart.figure();
    }
    body += "</div>\n";
    if scenario.judging.overload.is_some() {
        body += "<p class=\"muted\">Shaded: the span of the overload, by which settling and recovery are judged.</p>\n";
    }
    page(&format!("{} · {controller}", scenario.name()), &body)
}

fn headline(outcome: &Outcome) -> Vec<(String, String)> {
    let figures = &outcome.figures;
    let mut key = vec![
        (percent(outcome.goodput_vs_oracle), "of the clairvoyant scheduler's goodput".to_owned()),
        (percent(figures.top_class_slo), "of the top class within its objectives".to_owned()),
        (percent(outcome.throughput_vs_none), "of the engines' throughput at their best".to_owned()),
    ];
    let mut optional = |value: Option<f64>, digits: usize, unit: &str, what: &str| {
        if value.is_some() {
            key.push((number(value, digits, unit), what.to_owned()));
        }
    };
    optional(figures.min_kv_use_while_queued.map(|use_| use_ * 100.0), 0, " %", "least KV use while work waited, of what could be had");
    optional(figures.jain, 3, "", "Jain's index over tenants that were short");
    optional(figures.settle_s, 1, " s", "to settle after the step");
    optional(figures.overshoot.map(|part| part * 100.0), 1, " %", "overshoot after the step");
    optional(figures.recovery_s, 0, " s", "to recover after the overload");
    optional(figures.load_after_overload, 2, " ×", "load afterwards, over that before");
    key
}

fn classes(scenario: &Scenario, figures: &Figures) -> String {
    let head = ["class", "offered", "within objectives", "refused", "left", "failed", "TTFT p50", "TTFT p99", "TTFT objective", "TPOT p99"];
    let rows: Vec<Vec<String>> = scenario
        .setup
        .classes
        .iter()
        .zip(&figures.classes)
        .map(|(class, of)| {
            vec![
                escape(&class.name),
                of.offered.to_string(),
                percent(of.slo),
                percent(of.refused),
                percent(of.left),
                percent(of.failed),
                millis(of.ttft_p50_ms),
                millis(of.ttft_p99_ms),
                millis(Some(class.ttft.as_secs_f64() * 1e3)),
                millis(of.tpot_p99_ms),
            ]
        })
        .collect();
    table(&head.map(str::to_owned), &rows)
}

fn charts(scenario: &Scenario, run: &Run) -> Vec<Chart> {
    let base = Chart {
        shade: scenario.judging.overload.map(|span| (span.from.as_secs_f64(), span.to.as_secs_f64())),
        seconds: scenario.setup.duration.as_secs_f64(),
        ..Chart::default()
    };
    let mut charts: Vec<Chart> = (0..scenario.setup.classes.len()).map(|class| work_chart(scenario, run, class, &base)).collect();
    charts.push(latency_chart(scenario, run, &base));
    let kv_lines = vec![series_line("in use", 0, &run.kv_use)];
    let what = if scenario.setup.engines.iter().all(|engine| matches!(engine, crate::engine::EngineConfig::Plain(_))) {
        ("Places in use", "part of the servers' places")
    } else {
        ("KV cache in use", "part of the blocks of all engines")
    };
    charts.push(Chart {
        title: what.0.to_owned(),
        note: what.1.to_owned(),
        lines: kv_lines,
        mark: Some((run.kv_target, "target".to_owned())),
        top: 1.0,
        ..base.clone()
    });
    charts.push(Chart {
        title: "Requests that wait".to_owned(),
        note: "in the proxies, and with those in the engines' own queues".to_owned(),
        lines: vec![series_line("in proxies", 0, &run.queued), with_stroke(series_line("in all", 7, &run.waiting), Stroke::Thin)],
        ..base.clone()
    });
    if run.cut_off.values.iter().any(|value| value.is_finite()) {
        charts.push(Chart {
            title: "Cut-off".to_owned(),
            note: "levels that are admitted, as a part of all: 8 classes of 128 cohorts, the most important at the bottom".to_owned(),
            lines: vec![series_line("admitted", 0, &run.cut_off)],
            top: 1.0,
            ..base.clone()
        });
    }
    if run.saturation.values.iter().any(|value| value.is_finite()) {
        charts.push(Chart {
            title: "Saturation".to_owned(),
            note: "as the controller sees it; 1 is full, the scale ends at 3".to_owned(),
            lines: vec![series_line("saturation", 0, &run.saturation)],
            mark: Some((1.0, "full".to_owned())),
            top: 3.0,
            ..base
        });
    }
    charts
}

fn work_chart(scenario: &Scenario, run: &Run, class: usize, base: &Chart) -> Chart {
    let of = |label: &str, stroke: Stroke, value: fn(&Second) -> f64| Line {
        label: label.to_owned(),
        colour: class,
        stroke,
        points: (0..seconds(scenario, run)).map(|second| (second as f64 + 0.5, value(&run.seconds[second][class]))).collect(),
    };
    Chart {
        title: format!("Class {}", scenario.setup.classes[class].name),
        note: "work tokens per second".to_owned(),
        lines: vec![
            of("offered", Stroke::Dashed, |second| second.offered_work),
            of("admitted", Stroke::Thin, |second| second.admitted_work),
            of("completed within objectives", Stroke::Bold, |second| second.good_work),
        ],
        ..base.clone()
    }
}

fn latency_chart(scenario: &Scenario, run: &Run, base: &Chart) -> Chart {
    let mut lines = Vec::new();
    for (class, spec) in scenario.setup.classes.iter().enumerate() {
        for (label, at, stroke) in [("p99", 0.99, Stroke::Bold), ("p50", 0.5, Stroke::Thin)] {
            let point = |second: usize| {
                let ttft: Vec<f32> = run.seconds[second..(second + LATENCY_SPAN).min(run.seconds.len())]
                    .iter()
                    .flat_map(|classes| classes[class].ttft_ms.iter().copied())
                    .collect();
                (second as f64 + 1.0, crate::measure::percentile(&ttft, at).unwrap_or(f64::NAN))
            };
            let points = (0..seconds(scenario, run)).step_by(LATENCY_SPAN).map(point).collect();
            lines.push(Line { label: format!("{} {label}", spec.name), colour: class, stroke, points });
        }
    }
    let objective = scenario.setup.classes.first().map(|class| class.ttft.as_secs_f64() * 1e3);
    Chart {
        title: "Time to first token".to_owned(),
        note: "milliseconds, queueing in the proxy included; by 2 s".to_owned(),
        lines,
        mark: objective.map(|objective| (objective, "objective".to_owned())),
        ..base.clone()
    }
}

fn seconds(scenario: &Scenario, run: &Run) -> usize {
    run.seconds.len().min(scenario.setup.duration.as_secs() as usize)
}

/// The mean of each fifth of a second: more points than a screen has columns say nothing.
fn series_line(label: &str, colour: usize, series: &Series) -> Line {
    let period_s = series.period.as_secs_f64().max(1e-9);
    let width = ((0.2 / period_s) as usize).max(1);
    let points = series.values.chunks(width).enumerate().map(|(at, values)| {
        let second = (at * width) as f64 * period_s;
        (second, values.iter().sum::<f64>() / values.len() as f64)
    });
    Line { label: label.to_owned(), colour, stroke: Stroke::Bold, points: points.collect() }
}

fn with_stroke(line: Line, stroke: Stroke) -> Line {
    Line { stroke, ..line }
}
