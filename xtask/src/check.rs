//! `cargo xtask test`: everything that must hold before a change lands.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::layout::Layout;
use crate::step::{Steps, tail};
use crate::toolchain::WasmToolchain;
use crate::{setup, wasm};

/// Runs all checks, cheapest first, and stops at the first that fails.
///
/// # Errors
/// Names the check that failed and the command that repeats it.
pub(crate) fn run(layout: &Layout, steps: &mut Steps) -> Result<()> {
    let mut fmt = layout.cargo();
    steps.run("format", fmt.args(["fmt", "--all", "--check"]), "Fix: cargo fmt --all")?;
    let toolchain = setup(layout, steps)?;
    wasm::build(layout, &toolchain, steps)?;
    core_stands_alone(layout, &toolchain, steps)?;
    lints(layout, &toolchain, steps)?;
    let mut docs = layout.cargo();
    docs.env("RUSTDOCFLAGS", "-D warnings").args(["doc", "--quiet", "--workspace", "--no-deps"]);
    steps.run("rustdoc", &mut docs, "Repeat: RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps")?;
    // With the tests' own features, so that nothing is compiled twice; the tests start these programs by path.
    let mut programs = layout.cargo();
    programs.args(["build", "--quiet", "--workspace", "--all-targets"]);
    steps.run("build programs and tests", &mut programs, "The compiler's messages are above.")?;
    let mut doctests = layout.cargo();
    steps.run("doc tests", doctests.args(["test", "--quiet", "--workspace", "--doc"]), "Repeat: cargo test --workspace --doc")?;
    tests(layout, steps)
}

fn lints(layout: &Layout, toolchain: &WasmToolchain, steps: &Steps) -> Result<()> {
    let mut native = layout.cargo();
    native.args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    steps.run("clippy", &mut native, "Repeat: cargo clippy --workspace --all-targets -- -D warnings")?;
    // Debian's packages bring no clippy, so the code that only wasm compiles is then linted by the compiler alone.
    if let WasmToolchain::Installed = toolchain {
        let mut filter = layout.cargo();
        filter.args(["clippy", "--quiet", "--package", "headgate-filter"]);
        toolchain.apply(&mut filter);
        filter.args(["--", "-D", "warnings"]);
        steps.run(
            "clippy for wasm",
            &mut filter,
            "Repeat: cargo clippy -p headgate-filter --target wasm32-unknown-unknown -- -D warnings",
        )?;
    }
    Ok(())
}

/// The decision core must need no standard library: it declares so, no dependency of it asks for one, and it compiles for the filter.
fn core_stands_alone(layout: &Layout, toolchain: &WasmToolchain, steps: &Steps) -> Result<()> {
    let path = layout.root.join("filter/core/src/lib.rs");
    let source = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(source.contains("#![no_std]"), "filter/core/src/lib.rs does not say #![no_std]");
    let mut tree = layout.cargo();
    tree.args(["tree", "--package", "headgate-core", "--edges", "normal,no-proc-macro", "--format", "{p}|{f}", "--prefix", "none"]);
    let output = tree.output().context("cannot start cargo tree")?;
    ensure!(output.status.success(), "cargo tree: {}", tail(&output));
    let tree = String::from_utf8_lossy(&output.stdout);
    let needs_std =
        tree.lines().find(|line| line.split_once('|').is_some_and(|(_, on)| on.trim_end_matches(" (*)").split(',').any(|f| f == "std")));
    if let Some(line) = needs_std {
        bail!("headgate-core must need no std, but a dependency has its feature `std` on: {line}");
    }
    let mut check = layout.cargo();
    check.args(["check", "--quiet", "--package", "headgate-core"]);
    toolchain.apply(&mut check);
    steps.run("headgate-core without std", &mut check, "Repeat: cargo check -p headgate-core --target wasm32-unknown-unknown")
}

fn tests(layout: &Layout, steps: &Steps) -> Result<()> {
    let has_nextest = Command::new("cargo-nextest").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if has_nextest {
        let mut nextest = layout.cargo();
        nextest.args(["nextest", "run", "--workspace", "--no-fail-fast", "--status-level", "slow", "--final-status-level", "fail"]);
        return steps.run("tests", &mut nextest, "Repeat: cargo nextest run --workspace, or one test by its name after it");
    }
    steps.say("tests … (by cargo test; nextest is quicker: cargo install cargo-nextest)");
    let mut plain = layout.cargo();
    // One thread per test program: tests that run a real Envoy measure time and must not share the processors.
    plain
        .args(["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--tests", "--", "--test-threads", "1"])
        .stderr(Stdio::inherit());
    let output = plain.output().context("cannot start cargo test")?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    ensure!(output.status.success(), "tests: failed with {}; repeat: cargo test --workspace", output.status);
    steps.say(&format!("tests: {} passed", passed(&text)));
    Ok(())
}

/// Sums the `N passed` of every test program's result line.
fn passed(text: &str) -> u64 {
    let results = text.lines().filter_map(|line| line.strip_prefix("test result: ok. "));
    results.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_tests_of_all_programs_are_added_up() {
        let text = "test result: ok. 12 passed; 0 failed; 0 ignored\nnoise\ntest result: ok. 3 passed; 0 failed\n";
        assert_eq!(passed(text), 15);
    }
}
