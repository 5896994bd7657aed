//! A compiler for `wasm32-unknown-unknown`: rustup's own target where it can be had, otherwise Debian's packages.
//!
//! The first two ways need nothing but rustup. The third is for machines that reach a Debian mirror but not the servers of Rust: the
//! packages of `rustc-web` are unpacked under `target/wasm-toolchain` (installed they would conflict with rustup's commands), and the
//! standard library is built from `rust-web-src` by `-Zbuild-std`. apt checks the signatures of the packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::debian::{self, apt, write_launcher};
use crate::layout::Layout;
use crate::step::{Ended, Steps, run_within, tail};

/// The target that Envoy loads: it imports nothing but proxy-wasm's host calls.
pub(crate) const TARGET: &str = "wasm32-unknown-unknown";

/// Without a network `rustup` hangs instead of failing.
const RUSTUP_LIMIT: Duration = Duration::from_secs(20);
/// The lowest `rust-version` among the filter's dependencies that an older Debian compiler could fail on.
const OLDEST_USABLE: (u32, u32) = (1, 95);

/// A way to compile for [`TARGET`].
pub(crate) enum WasmToolchain {
    /// The compiler in use has the target's standard library.
    Installed,
    /// Debian's compiler with a standard library built from source.
    Unpacked {
        /// A script that starts the unpacked compiler with its own libraries.
        rustc: PathBuf,
        /// rustup's `rust-lld`.
        linker: PathBuf,
    },
}

impl WasmToolchain {
    /// Adds the target and what this toolchain needs to a `cargo build` or `cargo check`.
    pub(crate) fn apply(&self, command: &mut Command) {
        command.args(["--target", TARGET]);
        if let Self::Unpacked { rustc, linker } = self {
            // -Zbuild-std is unstable; RUSTC_BOOTSTRAP lets this release's own compiler and cargo accept it.
            command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
            command.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
            command.arg("-Zbuild-std=std,panic_abort");
        }
    }
}

/// Returns a working toolchain, installing one when there is none.
///
/// # Errors
/// When neither rustup nor apt can give one; the message names what to run by hand.
pub(crate) fn provide(layout: &Layout, steps: &mut Steps) -> Result<WasmToolchain> {
    if has_target() {
        steps.say(&format!("wasm target: {TARGET} is installed"));
        return Ok(WasmToolchain::Installed);
    }
    let folder = layout.installed.join("wasm-toolchain");
    if let Some(unpacked) = unpacked(&folder) {
        steps.say(&format!("wasm target: Debian's compiler in {}", layout.shown(&folder)));
        return Ok(unpacked);
    }
    steps.say(&format!("wasm target: rustup target add {TARGET} (at most {} s) …", RUSTUP_LIMIT.as_secs()));
    match rustup_add() {
        Ok(()) if has_target() => {
            steps.say("wasm target: installed by rustup");
            return Ok(WasmToolchain::Installed);
        }
        Ok(()) => steps.say("wasm target: rustup serves another toolchain than the one in use"),
        Err(error) => steps.say(&format!("wasm target: rustup could not add it ({error:#})")),
    }
    steps.say("wasm target: unpacking Debian's rustc-web …");
    unpack_debian(&folder).with_context(|| format!("fix: run `rustup target add {TARGET}` with a network, or give apt a Debian mirror"))?;
    let toolchain = unpacked(&folder).context("rustc-web was unpacked but does not run; remove target/wasm-toolchain and try again")?;
    steps.say(&format!("wasm target: Debian's compiler unpacked in {}", layout.shown(&folder)));
    Ok(toolchain)
}

fn rustc_prints(args: &[&str]) -> Option<PathBuf> {
    let output = Command::new("rustc").args(args).output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Whether the compiler in use has the core library of [`TARGET`]: asking it is more honest than asking rustup, which may not be there.
fn has_target() -> bool {
    let Some(libraries) = rustc_prints(&["--print", "target-libdir", "--target", TARGET]) else { return false };
    let Ok(entries) = fs::read_dir(libraries) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

fn rustup_add() -> Result<()> {
    match run_within(Command::new("rustup").args(["target", "add", TARGET]), RUSTUP_LIMIT)? {
        Ended::TooLate => bail!("no answer in {} s", RUSTUP_LIMIT.as_secs()),
        Ended::InTime(output) if output.status.success() => Ok(()),
        Ended::InTime(output) => bail!("{}", tail(&output)),
    }
}

/// The unpacked compiler, when its folder is complete and it starts.
fn unpacked(folder: &Path) -> Option<WasmToolchain> {
    let rustc = folder.join("rustc");
    let output = Command::new(&rustc).arg("--version").output().ok()?;
    if !output.status.success() || !folder.join("complete").exists() {
        return None;
    }
    let linker = rustc_prints(&["--print", "target-libdir"])?.parent()?.join("bin/rust-lld");
    linker.exists().then_some(WasmToolchain::Unpacked { rustc, linker })
}

fn unpack_debian(folder: &Path) -> Result<()> {
    let version = match usable_version()? {
        Some(version) => version,
        None => {
            // An image's package lists are as old as the image, and may know only a compiler that is too old.
            apt("apt-get", &["update"]).context("fix: run `apt-get update` as root")?;
            let (major, minor) = OLDEST_USABLE;
            usable_version()?.with_context(|| format!("apt offers no rustc-web of {major}.{minor} or newer"))?
        }
    };
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot clear {}", folder.display()))?;
    }
    let root = folder.join("root");
    debian::unpack(&package_names(&version)?, folder, &root)?;
    write_launcher(&folder.join("rustc"), &root, "usr/bin/rustc")?;
    fs::write(folder.join("complete"), format!("rustc-web {version}\n"))?;
    Ok(())
}

/// The candidate version of rustc-web, when it is new enough.
fn usable_version() -> Result<Option<String>> {
    let policy = apt("apt-cache", &["policy", "rustc-web"])?;
    let Some(candidate) = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: ")) else { return Ok(None) };
    Ok(parse_version(candidate).is_some_and(|found| found >= OLDEST_USABLE).then(|| candidate.to_owned()))
}

/// `1.96.0+dfsg1-1` → `(1, 96)`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The five packages, with `=version` on the four that are built together; LLVM has a version of its own.
fn package_names(version: &str) -> Result<Vec<String>> {
    let libstd_dev = format!("libstd-rust-web-dev={version}");
    let libstd = dependency(&libstd_dev, "libstd-rust-web-")?;
    let libstd = format!("{libstd}={version}");
    let llvm = dependency(&libstd, "libllvm")?;
    Ok(vec![format!("rustc-web={version}"), libstd_dev, libstd, format!("rust-web-src={version}"), llvm])
}

/// The dependency of `package` whose name starts with `prefix`.
fn dependency(package: &str, prefix: &str) -> Result<String> {
    let shown = apt("apt-cache", &["show", package])?;
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: ")).with_context(|| format!("{package} has no Depends"))?;
    let name = depends.split(',').filter_map(|one| one.split_whitespace().next()).find(|name| name.starts_with(prefix));
    name.map(str::to_owned).ok_or_else(|| anyhow!("{package} does not depend on {prefix}*"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_version_is_read_up_to_the_minor_number() {
        assert_eq!(parse_version("1.96.0+dfsg1-1~deb12u2"), Some((1, 96)));
        assert_eq!(parse_version("(none)"), None);
    }
}
