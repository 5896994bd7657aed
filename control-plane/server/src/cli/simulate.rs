//! `headgate simulate`: one run, or the suite of all scenarios under all algorithms.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use headgate_protos::v1;
use headgate_sim::quota;
use headgate_sim::report::{run_page, suite_page};
use headgate_sim::scenarios::{STANDARD, Scenario, ScenarioError, document, parse_trace, standard};
use headgate_sim::suite::{Algorithm, ControllerResults, Outcome, PlayError, SuiteResults, compare_one};
use headgate_sim::suite::{Plan, Progress};

use super::table::{Align, Table};
use super::{CliError, print, print_json};
use crate::document::CheckedPolicy;

mod fleet_quota;

pub(super) const EXAMPLES: &str = "\
Examples:
  headgate simulate --list
  headgate simulate --scenario step-10x --html run.html
  headgate simulate --scenario step-10x --controller llm_d_gate --seed 7
  headgate simulate --scenario steady-5x --policy policy.yaml --json run.json
  headgate simulate --print-scenario step-10x > mine.yaml && headgate simulate --scenario mine.yaml
  headgate simulate --scenario quota-faults --json quota.json --html quota.html
  headgate simulate --scenario mine.yaml --trace load.csv    # time_s,tenant,class,prompt_tokens,output_tokens
  headgate simulate --suite overload --json suite.json --html suite.html
  headgate simulate --suite overload --scenarios step-10x,bursts --controllers dagor,llm_d_gate --seeds 3

The same scenario, policy and seed give the same run, to the last bit. Exit codes: 0 done; 1 an invariant is broken or a file cannot be
written; 2 wrong usage, or a scenario, policy or trace that is not valid (every error is printed); 3 no such scenario or controller";

/// Arguments of `headgate simulate`.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["scenario", "suite", "list", "print_scenario"]))]
pub(super) struct SimulateArgs {
    /// Scenario to play: a standard one, or a YAML or JSON file
    #[arg(long, value_name = "NAME|FILE")]
    scenario: Option<String>,
    /// Play the standard set under all algorithms: `overload`
    #[arg(long, value_name = "NAME", value_parser = ["overload"])]
    suite: Option<String>,
    /// List scenarios and controllers
    #[arg(long)]
    list: bool,
    /// Print the document of a standard scenario
    #[arg(long, value_name = "NAME")]
    print_scenario: Option<String>,
    /// Policy of Headgate; without one it gets the default policy for the scenario's classes
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Algorithm of a single run
    #[arg(long, value_name = "NAME", default_value = "headgate", conflicts_with = "suite")]
    controller: String,
    /// Seed of a single run
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "suite")]
    seed: u64,
    /// Recorded load instead of the scenario's traffic: CSV of time_s,tenant,class,prompt_tokens,output_tokens
    #[arg(long, value_name = "CSV", requires = "scenario")]
    trace: Option<PathBuf>,
    /// Write the results as JSON; `-`: to stdout, instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report for people: one self-contained page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Seeds of a suite
    #[arg(long, value_name = "N", default_value_t = 5, requires = "suite", value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Scenarios of a suite
    #[arg(long, value_name = "A,B,…", value_delimiter = ',', requires = "suite")]
    scenarios: Vec<String>,
    /// Algorithms of a suite, besides Headgate, the oracle and no control
    #[arg(long, value_name = "A,B,…", value_delimiter = ',', requires = "suite")]
    controllers: Vec<String>,
    /// Threads of a suite; default: one a core
    #[arg(long, value_name = "N", requires = "suite", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// Runs the command.
pub(super) fn run(args: &SimulateArgs) -> Result<(), CliError> {
    if args.list {
        return list();
    }
    if let Some(name) = &args.print_scenario {
        let of_quota = quota::STANDARD.iter().find(|(known, _)| known == name).map(|(_, document)| *document);
        return print(document(name).or(of_quota).ok_or_else(|| unknown_scenario(name))?.trim_end());
    }
    let policy = args.policy.as_deref().map(policy).transpose()?;
    match &args.scenario {
        Some(name) => match quota_scenario(name)? {
            Some(scenario) => fleet_quota::run(args, &scenario),
            None => single(args, name, policy.as_ref()),
        },
        None => suite(args, policy),
    }
}

fn list() -> Result<(), CliError> {
    let mut table = Table::new(&[("SCENARIO", Align::Left), ("LOAD", Align::Right), ("SECONDS", Align::Right), ("WHAT", Align::Left)]);
    for (name, _) in STANDARD {
        let scenario = standard_scenario(name)?;
        let seconds = scenario.setup.duration.as_secs_f64();
        table.row(vec![(*name).to_owned(), format!("{}x", scenario.judging.load), format!("{seconds:.0}"), scenario.summary]);
    }
    for (name, _) in quota::STANDARD {
        let Some(scenario) = quota_scenario(name)? else { continue };
        let seconds = scenario.duration.as_secs_f64();
        table.row(vec![(*name).to_owned(), format!("{:.2}x", 1.0 / scenario.load), format!("{seconds:.0}"), scenario.summary]);
    }
    let controllers: Vec<&str> = Algorithm::ALL.iter().map(|algorithm| algorithm.name()).collect();
    print(&format!("{}\n\nCONTROLLERS\n{}", table.render(), controllers.join("\n")))
}

// === one run ===

fn single(args: &SimulateArgs, name: &str, policy: Option<&v1::Policy>) -> Result<(), CliError> {
    let mut scenario = scenario(name)?;
    if let Some(path) = &args.trace {
        replay(&mut scenario, path)?;
    }
    let algorithm = algorithm(&args.controller)?;
    let (run, outcome) = compare_one(&scenario, algorithm, policy, args.seed).map_err(play_error)?;
    if let Some(path) = &args.html {
        write(path, &run_page(&scenario, algorithm.name(), args.seed, &run, &outcome))?;
    }
    let results = serde_json::json!({
        "scenario": scenario.name(),
        "load": scenario.judging.load,
        "controller": algorithm.name(),
        "seed": args.seed,
        "results": ControllerResults::of(&[&outcome]),
        "figures": outcome.figures,
    });
    match args.json.as_deref() {
        Some(path) if path == Path::new("-") => print_json(&results),
        path => {
            path.map(|path| write_json(path, &results)).transpose()?;
            print(&class_table(&scenario, &outcome))?;
            print(&format!("\n{}", figures_line(&outcome)))
        }
    }
}

/// Puts recorded load in the place of the scenario's own.
fn replay(scenario: &mut Scenario, path: &Path) -> Result<(), CliError> {
    let rows = parse_trace(&read(path)?, &scenario.setup.classes).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(|error| format!("{}: {error}", path.display())).collect();
        CliError::Usage(lines.join("\n"))
    })?;
    if let Some(source) = scenario.setup.sources.first() {
        scenario.setup.trace_patience = source.patience;
    }
    scenario.setup.sources.clear();
    scenario.setup.trace = rows;
    Ok(())
}

fn class_table(scenario: &Scenario, outcome: &Outcome) -> String {
    let columns =
        ["OFFERED", "IN TIME", "REFUSED", "LEFT", "FAILED", "TTFT P50", "TTFT P99", "TPOT P99"].map(|title| (title, Align::Right));
    let mut table = Table::new(&[&[("CLASS", Align::Left)], &columns[..]].concat());
    for (class, figures) in scenario.setup.classes.iter().zip(&outcome.figures.classes) {
        let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms"));
        table.row(vec![
            class.name.clone(),
            figures.offered.to_string(),
            percent(figures.slo),
            percent(figures.refused),
            percent(figures.left),
            percent(figures.failed),
            ms(figures.ttft_p50_ms),
            ms(figures.ttft_p99_ms),
            ms(figures.tpot_p99_ms),
        ]);
    }
    table.render()
}

fn figures_line(outcome: &Outcome) -> String {
    let figures = &outcome.figures;
    let mut parts = vec![
        format!("goodput {} of the oracle's", percent(outcome.goodput_vs_oracle)),
        format!("throughput {} of the engines' best", percent(outcome.throughput_vs_none)),
    ];
    parts.extend(figures.min_kv_use_while_queued.map(|use_| format!("least KV use while work waited {}", percent(use_))));
    parts.extend(figures.jain.map(|jain| format!("Jain {jain:.3}")));
    parts.extend(figures.settle_s.map(|seconds| format!("settled after {seconds:.1} s")));
    parts.extend(figures.recovery_s.map(|seconds| format!("recovered after {seconds:.0} s")));
    let rate = figures.attempts as f64 / outcome.took.as_secs_f64().max(1e-9);
    format!("{}\n{} requests simulated in {:.2} s ({rate:.0}/s)", parts.join(", "), figures.attempts, outcome.took.as_secs_f64())
}

// === the suite ===

fn suite(args: &SimulateArgs, policy: Option<v1::Policy>) -> Result<(), CliError> {
    let all = || STANDARD.iter().map(|(name, _)| (*name).to_owned()).collect();
    let names: Vec<String> = if args.scenarios.is_empty() { all() } else { args.scenarios.clone() };
    let mut algorithms = vec![Algorithm::Headgate];
    match args.controllers.is_empty() {
        true => algorithms.extend(Algorithm::ALL.iter().filter(|algorithm| algorithm.is_baseline())),
        false => algorithms.extend(args.controllers.iter().map(|name| algorithm(name)).collect::<Result<Vec<_>, _>>()?),
    }
    let cores = std::thread::available_parallelism().map_or(1, Into::into);
    let plan = Plan {
        scenarios: names.iter().map(|name| scenario(name)).collect::<Result<_, _>>()?,
        algorithms,
        seeds: (1..=args.seeds).collect(),
        policy,
        threads: args.threads.map_or(cores, usize::from),
    };
    let results = SuiteResults::of(&plan, &mut show_progress).map_err(play_error)?;
    if let Some(path) = &args.html {
        write(path, &suite_page(&results))?;
    }
    match args.json.as_deref() {
        Some(path) if path == Path::new("-") => print_json(&results),
        path => {
            path.map(|path| write_json(path, &results)).transpose()?;
            print(&suite_text(&results))
        }
    }
}

/// One line that is written over on a terminal, and a line for each scenario elsewhere.
fn show_progress(progress: &Progress) {
    let Progress { done, of, last } = progress;
    let mut out = io::stderr().lock();
    // Nobody is hurt when progress cannot be shown.
    let _ = if io::stderr().is_terminal() {
        let end = if done == of { "\n" } else { "" };
        write!(out, "\r\x1b[K{done}/{of} worlds, {last}{end}").and_then(|()| out.flush())
    } else {
        writeln!(out, "{done}/{of} worlds, {last}")
    };
}

/// For each scenario Headgate beside the best of the others.
fn suite_text(results: &SuiteResults) -> String {
    let mut table = Table::new(&[
        ("SCENARIO", Align::Left),
        ("GOODPUT", Align::Right),
        ("BEST OTHER", Align::Right),
        ("", Align::Left),
        ("TOP CLASS", Align::Right),
        ("THROUGHPUT", Align::Right),
        ("JAIN", Align::Right),
        ("SETTLES", Align::Right),
        ("RECOVERS", Align::Right),
        ("LEAST KV", Align::Right),
        ("SIMULATED", Align::Right),
        ("NOT AHEAD OF", Align::Left),
    ]);
    for scenario in &results.scenarios {
        let Some(ours) = scenario.controllers.get("headgate") else { continue };
        let others = scenario.controllers.iter().filter(|(name, _)| !matches!(**name, "headgate" | "oracle"));
        let best = others.max_by(|a, b| a.1.goodput_vs_oracle.total_cmp(&b.1.goodput_vs_oracle));
        let shown =
            |value: Option<f64>, digits: usize, unit: &str| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}{unit}"));
        table.row(vec![
            scenario.name.clone(),
            percent(ours.goodput_vs_oracle),
            best.map_or_else(|| "-".to_owned(), |(_, of)| percent(of.goodput_vs_oracle)),
            best.map_or_else(String::new, |(name, _)| (*name).to_owned()),
            format!("{:.2}%", ours.top_class_slo * 100.0),
            percent(ours.throughput_vs_none),
            shown(ours.jain, 3, ""),
            shown(ours.settle_s, 1, " s"),
            shown(ours.recovery_s, 1, " s"),
            ours.min_kv_use_while_queued.map_or_else(|| "-".to_owned(), percent),
            shown(results.sim_requests_per_s_per_core_by_scenario.get(&scenario.name).copied(), 0, "/s"),
            if scenario.headgate_not_ahead_of.is_empty() { "-".to_owned() } else { scenario.headgate_not_ahead_of.join(", ") },
        ]);
    }
    let ahead = results.scenarios.iter().filter(|scenario| scenario.headgate_not_ahead_of.is_empty()).count();
    format!(
        "{}\n\nahead of every other in {ahead} of {} scenarios over {} seeds; {:.0} requests/s simulated on one core with headgate",
        table.render(),
        results.scenarios.len(),
        results.seeds.len(),
        results.sim_requests_per_s_per_core
    )
}

fn percent(part: f64) -> String {
    format!("{:.1}%", part * 100.0)
}

// === inputs and outputs ===

/// A standard scenario, or one from a file: whatever has a dot or a slash in it is a path.
fn scenario(name: &str) -> Result<Scenario, CliError> {
    if !name.contains(['.', '/']) {
        return standard_scenario(name);
    }
    let path = Path::new(name);
    Scenario::parse(&read(path)?).map_err(|error| in_file(path, &error))
}

/// The scenario of a quota of this name or in this file, if it is one.
fn quota_scenario(name: &str) -> Result<Option<quota::Scenario>, CliError> {
    if let Some(standard) = quota::Scenario::standard(name) {
        return standard.map(Some).map_err(|error| CliError::Usage(error.to_string()));
    }
    if !name.contains(['.', '/']) {
        return Ok(None);
    }
    let path = Path::new(name);
    let text = read(path)?;
    quota::is_document(&text).then(|| quota::Scenario::parse(&text).map_err(|error| in_file(path, &error))).transpose()
}

/// Every error with the file's name before it.
fn in_file(path: &Path, error: &ScenarioError) -> CliError {
    let lines: Vec<String> = error.to_string().lines().map(|line| format!("{}: {line}", path.display())).collect();
    CliError::Usage(lines.join("\n"))
}

fn standard_scenario(name: &str) -> Result<Scenario, CliError> {
    standard(name).ok_or_else(|| unknown_scenario(name))?.map_err(|error| CliError::Usage(error.to_string()))
}

fn unknown_scenario(name: &str) -> CliError {
    CliError::NotFound(format!(
        "there is no scenario {name:?}: `headgate simulate --list` shows them; a file's name has a dot or a slash in it"
    ))
}

fn algorithm(name: &str) -> Result<Algorithm, CliError> {
    let known = || Algorithm::ALL.iter().map(|algorithm| algorithm.name()).collect::<Vec<_>>().join(", ");
    Algorithm::named(name).ok_or_else(|| CliError::NotFound(format!("there is no controller {name:?}; there are {}", known())))
}

fn policy(path: &Path) -> Result<v1::Policy, CliError> {
    let checked = CheckedPolicy::from_document(&read(path)?).map_err(|violations| {
        let lines: Vec<String> = violations.iter().map(|violation| format!("{}: {violation}", path.display())).collect();
        CliError::Usage(lines.join("\n"))
    })?;
    Ok(checked.wire().clone())
}

fn play_error(error: PlayError) -> CliError {
    match error {
        PlayError::Policy(error) => CliError::Usage(error.to_string()),
        PlayError::Violation(violation) => CliError::Refused(violation.to_string()),
    }
}

fn read(path: &Path) -> Result<String, CliError> {
    fs::read_to_string(path).map_err(|source| CliError::Io { what: format!("cannot read {}", path.display()), source })
}

fn write(path: &Path, text: &str) -> Result<(), CliError> {
    fs::write(path, text).map_err(|source| CliError::Io { what: format!("cannot write {}", path.display()), source })
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::Io { what: "cannot write JSON".to_owned(), source: io::Error::other(error) })?;
    write(path, &(text + "\n"))
}
