//! Builds the filters for wasm and the programs that tests, demo and benchmarks start.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use crate::layout::Layout;
use crate::step::Steps;
use crate::toolchain::{TARGET, WasmToolchain};

/// Every proxy compiles the module at start and holds it once per configuration: 500 KiB.
const MAX_FILTER_BYTES: u64 = 500 * 1024;

struct Filter {
    package: &'static str,
    /// The file that cargo leaves in the profile's folder.
    built: &'static str,
    features: &'static [&'static str],
    /// The name in `target/wasm`.
    name: &'static str,
    max_bytes: Option<u64>,
    /// Instead of the profile's: what others are measured by does not change with how small ours must be.
    opt_level: Option<&'static str>,
}

const FILTERS: [Filter; 3] = [
    Filter {
        package: "headgate-filter",
        built: "headgate_filter.wasm",
        features: &[],
        name: "headgate.wasm",
        max_bytes: Some(MAX_FILTER_BYTES),
        opt_level: None,
    },
    Filter {
        package: "headgate-filter",
        built: "headgate_filter.wasm",
        features: &["fault-injection"],
        name: "headgate-fault.wasm",
        max_bytes: None,
        opt_level: None,
    },
    Filter {
        package: "headgate-empty-filter",
        built: "headgate_empty_filter.wasm",
        features: &[],
        name: "empty.wasm",
        max_bytes: None,
        opt_level: Some("s"),
    },
];

/// Builds all filters into `target/wasm` and prints their sizes.
///
/// # Errors
/// When one does not compile or the filter is larger than its budget.
pub(crate) fn build(layout: &Layout, toolchain: &WasmToolchain, steps: &mut Steps) -> Result<()> {
    fs::create_dir_all(layout.wasm_dir()).with_context(|| format!("cannot make {}", layout.wasm_dir().display()))?;
    for filter in &FILTERS {
        let mut command = layout.cargo();
        command.args(["build", "--quiet", "--profile", "wasm", "--package", filter.package]);
        if !filter.features.is_empty() {
            command.arg("--features").arg(filter.features.join(","));
        }
        if let Some(level) = filter.opt_level {
            command.arg("--config").arg(format!("profile.wasm.opt-level=\"{level}\""));
        }
        toolchain.apply(&mut command);
        steps.run(&format!("build {}", filter.name), &mut command, "The compiler's messages are above.")?;
        place(layout, filter, steps)?;
    }
    Ok(())
}

/// Copies what cargo built, because the next filter may be built from the same package into the same file.
fn place(layout: &Layout, filter: &Filter, steps: &Steps) -> Result<()> {
    let built = layout.built.join(TARGET).join("wasm").join(filter.built);
    let module = fs::read(&built).with_context(|| format!("cargo left no {}", built.display()))?;
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
