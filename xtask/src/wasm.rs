//! Builds the filters for wasm and the programs that tests, demo and benchmarks start.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::layout::Layout;
use crate::program::WASM_OPT;
use crate::step::{Steps, tail};
use crate::toolchain::{TARGET, WasmToolchain};

/// Every proxy compiles the module at start and holds it once per configuration: 500 KiB.
const MAX_FILTER_BYTES: u64 = 500 * 1024;

/// What wasm-opt must know of the modules: the features that rustc's output uses. Each is in V8 since long before the oldest pinned Envoy.
const FEATURES: [&str; 4] = ["--enable-bulk-memory", "--enable-mutable-globals", "--enable-nontrapping-float-to-int", "--enable-sign-ext"];

/// Smaller, but no function that is called once goes into its caller: the loop over a request's headers needs every register, and what an
/// ordinary request does not need stays out of the code that it fetches.
const OPTIMISATION: [&str; 2] = ["-Oz", "--one-caller-inline-max-function-size=0"];

struct Filter {
    package: &'static str,
    /// The file that cargo leaves in the profile's folder.
    built: &'static str,
    features: &'static [&'static str],
    /// The name in `target/wasm`.
    name: &'static str,
    max_bytes: Option<u64>,
    /// Another opt-level than the profile's, and no wasm-opt: what ours is measured by is built as its authors would.
    plain: Option<&'static str>,
}

impl Filter {
    const fn of_headgate(name: &'static str, features: &'static [&'static str], max_bytes: Option<u64>) -> Self {
        Self { package: "headgate-filter", built: "headgate_filter.wasm", features, name, max_bytes, plain: None }
    }

    const fn of_floor(name: &'static str, features: &'static [&'static str]) -> Self {
        Self { package: "headgate-floor-filter", built: "headgate_floor_filter.wasm", features, name, max_bytes: None, plain: None }
    }
}

const FILTERS: [Filter; 7] = [
    Filter::of_headgate("headgate.wasm", &[], Some(MAX_FILTER_BYTES)),
    Filter::of_headgate("headgate-fault.wasm", &["fault-injection"], None),
    Filter {
        package: "headgate-empty-filter",
        built: "headgate_empty_filter.wasm",
        features: &[],
        name: "empty.wasm",
        max_bytes: None,
        plain: Some("s"),
    },
    Filter::of_floor("floor-context.wasm", &[]),
    Filter::of_floor("floor-callbacks.wasm", &["callbacks"]),
    Filter::of_floor("floor-header-map.wasm", &["header-map"]),
    Filter::of_floor("floor-clocks.wasm", &["clocks"]),
];

/// Builds all filters into `target/wasm` and prints their sizes.
///
/// # Errors
/// When one does not compile or the filter is larger than its budget.
pub(crate) fn build(layout: &Layout, toolchain: &WasmToolchain, steps: &mut Steps) -> Result<()> {
    fs::create_dir_all(layout.wasm_dir()).with_context(|| format!("cannot make {}", layout.wasm_dir().display()))?;
    let optimiser = WASM_OPT.provide(layout, steps)?;
    for filter in &FILTERS {
        let mut command = layout.cargo();
        command.args(["build", "--quiet", "--profile", "wasm", "--package", filter.package]);
        if !filter.features.is_empty() {
            command.arg("--features").arg(filter.features.join(","));
        }
        if let Some(level) = filter.plain {
            command.arg("--config").arg(format!("profile.wasm.opt-level=\"{level}\""));
        }
        toolchain.apply(&mut command);
        steps.run(&format!("build {}", filter.name), &mut command, "The compiler's messages are above.")?;
        place(layout, filter, &optimiser, steps)?;
    }
    Ok(())
}

/// Brings what cargo built, made smaller, to its place; the next filter may be built from the same package into the same file.
fn place(layout: &Layout, filter: &Filter, optimiser: &Path, steps: &Steps) -> Result<()> {
    let built = layout.built.join(TARGET).join("wasm").join(filter.built);
    let module = if filter.plain.is_none() { optimised(&built, optimiser)? } else { read(&built)? };
    let placed = layout.wasm_dir().join(filter.name);
    // Envoys that are running may have the old file open: replace it, never write into it.
    if fs::read(&placed).ok().as_deref() != Some(&module[..]) {
        let fresh = placed.with_extension("wasm.new");
        fs::write(&fresh, &module).with_context(|| format!("cannot write {}", fresh.display()))?;
        fs::rename(&fresh, &placed)?;
    }
    let bytes = module.len() as u64;
    steps.say(&format!("{}: {:.1} KiB", layout.shown(&placed), bytes as f64 / 1024.0));
    if let Some(max) = filter.max_bytes {
        ensure!(bytes <= max, "{} is {bytes} bytes, its budget is {max}; fix: find the growth, e.g. `twiggy top` on the file", filter.name);
    }
    Ok(())
}

/// What cargo left, after wasm-opt.
fn optimised(built: &Path, optimiser: &Path) -> Result<Vec<u8>> {
    let result = built.with_extension("opt.wasm");
    let mut command = Command::new(optimiser);
    command.args(FEATURES).args(OPTIMISATION).arg(built).arg("--output").arg(&result);
    let output = command.output().with_context(|| format!("cannot start {}", optimiser.display()))?;
    ensure!(output.status.success(), "wasm-opt: {}", tail(&output));
    read(&result)
}

fn read(module: &Path) -> Result<Vec<u8>> {
    fs::read(module).with_context(|| format!("there is no {}", module.display()))
}

/// Builds the programs and the library that demo and benchmarks start by path. With an empty `profile` unoptimised, which is enough where
/// a benchmark measures Envoy.
///
/// # Errors
/// When one does not compile.
pub(crate) fn build_programs(layout: &Layout, steps: &mut Steps, profile: &[&str]) -> Result<()> {
    let mut command = layout.cargo();
    command.args(["build", "--quiet"]).args(profile);
    for package in ["headgate", "inference-sim", "headgate-nvml-shim"] {
        command.args(["--package", package]);
    }
    steps.run("build control plane, inference-sim, NVML shim", &mut command, "The compiler's messages are above.")
}
