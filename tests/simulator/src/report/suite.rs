//! The page of a suite: who did how well where, and where Headgate is not ahead.

use std::fmt::Write;

use super::page::{escape, key_figures, number, page, percent, table};
use crate::measure::Estimate;
use crate::suite::{ControllerResults, ScenarioResults, SuiteResults};

const OURS: &str = "headgate";
const ORACLE: &str = "oracle";

/// The page of a suite.
pub fn suite_page(results: &SuiteResults) -> String {
    let names = controllers(results);
    let mut body = format!(
        "<h1>Overload suite</h1>\n<p>{} scenarios, {} algorithms, {} seeds each. Every algorithm meets the same requests at the same times; \
         the oracle is a clairvoyant scheduler that knows each response's length and sees the engines without delay.</p>\n",
        results.scenarios.len(),
        names.len(),
        results.seeds.len()
    );
    body += &key_figures(&headline(results));
    body += "<h2>Goodput, as a part of the oracle's</h2>\n<p class=\"muted\">Work completed within its objectives. Bold: the best but the oracle.</p>\n";
    body += &heat(results, &names, |of| Some(of.goodput_vs_oracle));
    body += "<h2>Top class within its objectives</h2>\n";
    body += &heat(results, &names, |of| Some(of.top_class_slo));
    body += "<h2>Headgate in detail</h2>\n<p class=\"muted\">Mean over the seeds, with half the width of the 95 % interval.</p>\n";
    body += &details(results);
    body += "<h2>Where Headgate is not ahead</h2>\n";
    body += &not_ahead(results);
    page("Overload suite", &body)
}

/// Algorithms that took part, Headgate and the oracle first.
fn controllers(results: &SuiteResults) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = results.scenarios.iter().flat_map(|scenario| scenario.controllers.keys().copied()).collect();
    names.sort_by_key(|name| (*name != OURS, *name != ORACLE, *name));
    names.dedup();
    names
}

fn ours(results: &SuiteResults) -> impl Iterator<Item = (&ScenarioResults, &ControllerResults)> {
    results.scenarios.iter().filter_map(|scenario| Some((scenario, scenario.controllers.get(OURS)?)))
}

fn headline(results: &SuiteResults) -> Vec<(String, String)> {
    let least = |value: fn(&ControllerResults) -> f64| {
        ours(results).min_by(|a, b| value(a.1).total_cmp(&value(b.1))).map(|(scenario, of)| (percent(value(of)), escape(&scenario.name)))
    };
    let mut key = Vec::new();
    let ahead = ours(results).filter(|(scenario, _)| scenario.headgate_not_ahead_of.is_empty()).count();
    if ours(results).next().is_some() {
        key.push((format!("{ahead} of {}", results.scenarios.len()), "scenarios where Headgate is ahead of every other".to_owned()));
    }
    if let Some((value, name)) = least(|of| of.goodput_vs_oracle) {
        key.push((value, format!("of the oracle's goodput at worst ({name})")));
    }
    if let Some((value, name)) = least(|of| of.top_class_slo) {
        key.push((value, format!("of the top class at worst ({name})")));
    }
    if results.sim_requests_per_s_per_core > 0.0 {
        key.push((format!("{:.0}", results.sim_requests_per_s_per_core), "requests simulated per second on one core".to_owned()));
    }
    key
}

/// A table of scenarios by algorithms, coloured by value.
fn heat(results: &SuiteResults, names: &[&'static str], value: fn(&ControllerResults) -> Option<f64>) -> String {
    let head: Vec<String> = std::iter::once("scenario".to_owned()).chain(names.iter().map(|name| name.replace('_', "<br>"))).collect();
    let row = |scenario: &ScenarioResults| {
        let of = |name: &&'static str| scenario.controllers.get(name).and_then(value);
        let best = names.iter().filter(|name| **name != ORACLE).filter_map(of).fold(0.0, f64::max);
        let cell = |name: &&'static str| {
            let Some(value) = of(name) else { return "<td>–</td>".to_owned() };
            let text = if *name != ORACLE && value >= best - 5e-4 { format!("<b>{}</b>", percent(value)) } else { percent(value) };
            format!("<td style=\"background:rgba(var(--heat),{:.2})\">{text}</td>", 0.5 * value.clamp(0.0, 1.0) * value.clamp(0.0, 1.0))
        };
        std::iter::once(escape(&scenario.name)).chain(names.iter().map(cell)).collect::<Vec<_>>()
    };
    table(&head, &results.scenarios.iter().map(row).collect::<Vec<_>>())
}

fn details(results: &SuiteResults) -> String {
    let head = [
        "scenario",
        "goodput",
        "top class",
        "throughput",
        "Jain",
        "settles",
        "overshoot",
        "recovers",
        "least KV",
        "load after",
        "classes",
        "simulated",
    ];
    let rows: Vec<Vec<String>> = ours(results)
        .map(|(scenario, of)| {
            let shown = |name: &str, scale: f64, digits: usize, unit: &str| with_interval(of.confidence.get(name), scale, digits, unit);
            let classes: Vec<String> = of.slo_by_class.iter().map(|slo| percent(*slo)).collect();
            vec![
                escape(&scenario.name),
                shown("goodput_vs_oracle", 100.0, 1, " %"),
                shown("top_class_slo", 100.0, 2, " %"),
                shown("throughput_vs_none", 100.0, 1, " %"),
                shown("jain", 1.0, 3, ""),
                shown("settle_s", 1.0, 1, " s"),
                shown("overshoot", 100.0, 1, " %"),
                shown("recovery_s", 1.0, 1, " s"),
                shown("min_kv_use_while_queued", 100.0, 0, " %"),
                number(of.load_after_overload, 2, " ×"),
                classes.join(" · "),
                number(results.sim_requests_per_s_per_core_by_scenario.get(&scenario.name).copied(), 0, "/s"),
            ]
        })
        .collect();
    table(&head.map(str::to_owned), &rows)
}

fn with_interval(estimate: Option<&Estimate>, scale: f64, digits: usize, unit: &str) -> String {
    let Some(estimate) = estimate else { return "–".to_owned() };
    let half = (estimate.high - estimate.low) / 2.0 * scale;
    format!("{:.digits$}{unit} <span class=\"muted\">± {half:.digits$}</span>", estimate.mean * scale)
}

fn not_ahead(results: &SuiteResults) -> String {
    let mut text = String::new();
    for scenario in results.scenarios.iter().filter(|scenario| !scenario.headgate_not_ahead_of.is_empty()) {
        for name in &scenario.headgate_not_ahead_of {
            let Some(against) = scenario.headgate_against.get(name) else { continue };
            let _ = writeln!(
                text,
                "<li><b>{}</b>, {name}: goodput {:+.1} points ({:+.1} to {:+.1}), top class {:+.2} points ({:+.2} to {:+.2})</li>",
                escape(&scenario.name),
                against.goodput.difference.mean * 100.0,
                against.goodput.difference.low * 100.0,
                against.goodput.difference.high * 100.0,
                against.top_class_slo.difference.mean * 100.0,
                against.top_class_slo.difference.low * 100.0,
                against.top_class_slo.difference.high * 100.0,
            );
        }
    }
    if text.is_empty() { "<p>Nowhere.</p>\n".to_owned() } else { format!("<ul>\n{text}</ul>\n") }
}
