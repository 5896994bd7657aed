//! `cargo xtask`: the few commands that set the project up, build it, show it and test it.
//!
//! Each command does the set-up that it needs, so on a fresh machine any of them can be the first one.

mod check;
mod debian;
mod envoy;
mod layout;
mod program;
mod step;
mod toolchain;
mod wasm;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::layout::Layout;
use crate::program::{ETCD, WASM_OPT};
use crate::step::Steps;

/// Benchmarks of the control plane alone.
const CONTROL_PLANE_BENCHES: [&str; 2] = ["fanout", "telemetry"];

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Sets Headgate up, builds it, shows it and tests it")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Installs the wasm target, the pinned Envoys, etcd and wasm-opt under target/
    Setup,
    /// Builds the filters into target/wasm/
    Wasm,
    /// Runs the whole thing on a real Envoy: overload, refusals, recovery
    Demo {
        /// Passed to the demo as they are
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Format, lints, docs and every test of the workspace
    Test,
    /// Mutates the corpus of every fuzz target for a while
    Fuzz {
        /// Passed to the fuzzer as they are
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Runs one benchmark: `decision` times the core alone, `quota` simulates, `fanout` and `telemetry` time the control plane, the others run
    /// against real proxies
    Bench {
        /// `decision`, or the NAME of a binary `bench-NAME` of headgate-bench
        name: String,
        /// Passed to the benchmark as they are
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    let layout = Layout::discover()?;
    let mut steps = Steps::start();
    match task {
        Task::Setup => {
            setup(&layout, &mut steps)?;
        }
        Task::Wasm => build_filters(&layout, &mut steps)?,
        Task::Test => check::run(&layout, &mut steps)?,
        Task::Demo { args } => return show(&layout, &mut steps, "demo", &[], &args),
        Task::Fuzz { args } => return become_parent(&layout, "headgate-fuzz", "fuzz", &["--profile", "fuzz"], &args),
        Task::Bench { name, args } if name == "decision" => return decision(&layout, &args),
        Task::Bench { name, args } if name == "quota" => {
            return become_parent(&layout, "headgate-bench", "bench-quota", &["--release"], &args);
        }
        Task::Bench { name, args } if CONTROL_PLANE_BENCHES.contains(&name.as_str()) => {
            return control_plane(&layout, &mut steps, &name, &args);
        }
        Task::Bench { name, args } => return show(&layout, &mut steps, &format!("bench-{name}"), &["--release"], &args),
    }
    steps.done();
    Ok(ExitCode::SUCCESS)
}

fn setup(layout: &Layout, steps: &mut Steps) -> Result<toolchain::WasmToolchain> {
    let toolchain = toolchain::provide(layout, steps).context("the wasm target is not set up")?;
    envoy::provide(layout, steps).context("the pinned Envoys are not set up")?;
    ETCD.provide(layout, steps).context("etcd is not set up")?;
    WASM_OPT.provide(layout, steps).context("wasm-opt is not set up")?;
    Ok(toolchain)
}

fn build_filters(layout: &Layout, steps: &mut Steps) -> Result<()> {
    // The filters need no Envoy, so building them does not wait for one to be downloaded.
    let toolchain = toolchain::provide(layout, steps).context("the wasm target is not set up")?;
    wasm::build(layout, &toolchain, steps)
}

/// What a decision costs natively; needs neither an Envoy nor the filters.
fn decision(layout: &Layout, args: &[String]) -> Result<ExitCode> {
    let mut command = layout.cargo();
    command.args(["bench", "--quiet", "--package", "headgate-core", "--bench", "decision", "--"]).args(args);
    let status = command.status().context("cannot start cargo to run the benchmark")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the control plane alone costs; needs neither an Envoy nor the filters, but an optimised control plane.
fn control_plane(layout: &Layout, steps: &mut Steps, name: &str, args: &[String]) -> Result<ExitCode> {
    wasm::build_programs(layout, steps, &["--release"])?;
    become_parent(layout, "headgate-bench", &format!("bench-{name}"), &["--release"], args)
}

/// Builds everything that a program of headgate-bench starts, then becomes that program's parent until it ends.
fn show(layout: &Layout, steps: &mut Steps, bin: &str, profile: &[&str], args: &[String]) -> Result<ExitCode> {
    let toolchain = setup(layout, steps)?;
    wasm::build(layout, &toolchain, steps)?;
    wasm::build_programs(layout, steps, &[])?;
    become_parent(layout, "headgate-bench", bin, profile, args)
}

/// Builds a program of the workspace and runs it to its end.
fn become_parent(layout: &Layout, package: &str, bin: &str, profile: &[&str], args: &[String]) -> Result<ExitCode> {
    let mut command = layout.cargo();
    command.args(["run", "--quiet", "--package", package, "--bin", bin]).args(profile);
    let status = command.arg("--").args(args).status().with_context(|| format!("cannot start cargo to run {bin}"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
