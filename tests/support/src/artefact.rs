//! Where the things lie that `cargo xtask` builds and installs.
//!
//! Looked for in `HEADGATE_TARGET_DIR`, next to the running program, in `CARGO_TARGET_DIR`, and in `<workspace>/target`; first found wins.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

const VERSIONS: &str = include_str!("../../../envoy/VERSIONS");

/// The workspace root.
#[must_use]
pub fn workspace_root() -> PathBuf {
    // tests/support is two levels below it.
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// A filter that `cargo xtask wasm` builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// The filter as users load it.
    Headgate,
    /// The filter that traps on demand.
    HeadgateWithFaults,
    /// A filter that does nothing.
    Empty,
    /// A filter that does nothing but what Headgate must ask of its host, up to this step.
    Floor(FloorStep),
}

/// What a filter that decides by headers and measures time must ask of its host for an admitted request: each step does what the one before
/// it does, and something more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloorStep {
    /// Nothing: the host makes a context for each request.
    Context,
    /// The callbacks for the request's headers, a piece of the response's body, and the log.
    Callbacks,
    /// The request's headers.
    HeaderMap,
    /// The time, twice.
    Clocks,
}

impl FloorStep {
    /// All of them, in their order.
    pub const ALL: [Self; 4] = [Self::Context, Self::Callbacks, Self::HeaderMap, Self::Clocks];

    /// The step's name in benchmarks.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Context => "context",
            Self::Callbacks => "callbacks",
            Self::HeaderMap => "header_map",
            Self::Clocks => "clocks",
        }
    }
}

impl Module {
    /// The module's file.
    ///
    /// # Errors
    /// When it is not built; the message names the command.
    pub fn path(self) -> Result<PathBuf> {
        let name = match self {
            Self::Headgate => "headgate.wasm",
            Self::HeadgateWithFaults => "headgate-fault.wasm",
            Self::Empty => "empty.wasm",
            Self::Floor(FloorStep::Context) => "floor-context.wasm",
            Self::Floor(FloorStep::Callbacks) => "floor-callbacks.wasm",
            Self::Floor(FloorStep::HeaderMap) => "floor-header-map.wasm",
            Self::Floor(FloorStep::Clocks) => "floor-clocks.wasm",
        };
        find(&Path::new("wasm").join(name)).with_context(|| format!("{name} is not built: run `cargo xtask wasm`"))
    }
}

/// A native program or library of the workspace, from the profile of the running program when it is there.
///
/// # Errors
/// When it is not built; the message names the command.
pub fn program(name: &str) -> Result<PathBuf> {
    let beside = own_profile_dir().map(|dir| dir.join(name)).filter(|path| path.is_file());
    let found = beside.or_else(|| find(&Path::new("debug").join(name)).ok()).or_else(|| find(&Path::new("release").join(name)).ok());
    found.with_context(|| format!("{name} is not built: run `cargo build --workspace`, or `cargo xtask test` for everything"))
}

/// The library with NVML's C ABI and values from a file.
///
/// # Errors
/// When it is not built.
pub fn nvml_shim() -> Result<PathBuf> {
    program("libheadgate_nvml_shim.so")
}

/// The library with a calendar that a test steps.
///
/// # Errors
/// When it is not built.
pub fn clock_shim() -> Result<PathBuf> {
    program("libheadgate_clock_shim.so")
}

/// The etcd that `cargo xtask setup` installs.
///
/// # Errors
/// When it is not installed; the message names the command.
pub fn etcd() -> Result<PathBuf> {
    find(Path::new("etcd/etcd")).context("etcd is not installed: run `cargo xtask setup`")
}

/// One of the Envoys of `envoy/VERSIONS`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EnvoyVersion(String);

impl EnvoyVersion {
    /// Every pinned version, oldest first.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut versions: Vec<Self> = pins().map(|pin| Self(pin.0.to_owned())).collect();
        versions.dedup();
        versions
    }

    /// The default among them.
    #[must_use]
    pub fn pinned_default() -> Self {
        let default = pins().find(|pin| pin.1 == "default").or_else(|| pins().last());
        Self(default.map_or_else(String::new, |pin| pin.0.to_owned()))
    }

    /// The pinned version of that name.
    ///
    /// # Errors
    /// When it is not pinned.
    pub fn named(version: &str) -> Result<Self> {
        Self::all().into_iter().find(|known| known.0 == version).with_context(|| format!("{version} is not in envoy/VERSIONS"))
    }

    /// Envoy's program file.
    ///
    /// # Errors
    /// When it is not installed; the message names the command.
    pub fn path(&self) -> Result<PathBuf> {
        find(&Path::new("envoy").join(&self.0).join("envoy"))
            .with_context(|| format!("Envoy {self} is not installed: run `cargo xtask setup`"))
    }

    /// Has this Envoy check a bootstrap, wasm included: it creates a VM and configures it.
    ///
    /// # Errors
    /// With Envoy's messages when it refuses the file.
    pub fn validate(&self, bootstrap: &Path) -> Result<()> {
        let mut envoy = Command::new(self.path()?);
        envoy.args(["--mode", "validate", "--log-level", "warning", "--config-path"]).arg(bootstrap);
        let output = envoy.output().with_context(|| format!("cannot start Envoy {self}"))?;
        ensure!(output.status.success(), "Envoy {self} refuses {}:\n{}", bootstrap.display(), String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl fmt::Display for EnvoyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Version and "default" or "-" of each pin.
fn pins() -> impl Iterator<Item = (&'static str, &'static str)> {
    VERSIONS.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?, words.next()?))
    })
}

fn find(relative: &Path) -> Result<PathBuf> {
    let places = target_dirs();
    match places.iter().map(|dir| dir.join(relative)).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("{} is in none of {places:?}", relative.display()),
    }
}

fn target_dirs() -> Vec<PathBuf> {
    let root = workspace_root();
    let named = env::var_os("HEADGATE_TARGET_DIR").map(|dir| root.join(dir));
    let beside = own_profile_dir().and_then(|dir| dir.parent().map(Path::to_owned));
    let cargo = env::var_os("CARGO_TARGET_DIR").map(|dir| root.join(dir));
    named.into_iter().chain(beside).chain(cargo).chain([root.join("target")]).collect()
}

/// `target/debug` of a program in `target/debug` or of a test in `target/debug/deps`.
fn own_profile_dir() -> Option<PathBuf> {
    let program = env::current_exe().ok()?;
    let folder = program.parent()?;
    let profile = if folder.ends_with("deps") { folder.parent()? } else { folder };
    Some(profile.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pinned_envoy_is_listed_once_and_one_is_the_default() {
        let all = EnvoyVersion::all();
        assert!(all.len() >= 3, "{all:?}");
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "{all:?}");
        assert!(all.contains(&EnvoyVersion::pinned_default()));
    }

    #[test]
    fn missing_artefact_names_the_command_that_builds_it() {
        let error = program("no-such-program").unwrap_err().to_string();
        assert!(error.contains("cargo xtask test"), "{error}");
    }
}
