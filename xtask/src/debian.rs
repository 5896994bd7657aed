//! Debian's packages, downloaded and unpacked into a folder instead of installed. apt checks their signatures.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::step::{Ended, run_within, tail};

const APT_LIMIT: Duration = Duration::from_secs(300);

/// Unpacks `packages` (names, perhaps with `=version`) into `root`, by way of a folder beside it in `folder`.
///
/// # Errors
/// When a package cannot be downloaded or unpacked.
pub(crate) fn unpack(packages: &[String], folder: &Path, root: &Path) -> Result<()> {
    let downloads = folder.join("packages");
    fs::create_dir_all(&downloads).with_context(|| format!("cannot make {}", downloads.display()))?;
    for name in packages {
        let mut download = Command::new("apt-get");
        download.args(["download", name]).current_dir(&downloads);
        finish(run_within(&mut download, APT_LIMIT)?).with_context(|| format!("apt-get download {name}"))?;
    }
    for package in fs::read_dir(&downloads)?.flatten().filter(|entry| entry.path().extension().is_some_and(|e| e == "deb")) {
        let mut extract = Command::new("dpkg");
        extract.arg("-x").arg(package.path()).arg(root);
        finish(run_within(&mut extract, APT_LIMIT)?).with_context(|| format!("dpkg -x {}", package.path().display()))?;
    }
    fs::remove_dir_all(&downloads)?;
    Ok(())
}

/// Writes a script that starts `program`, a path in `root`, with the libraries unpacked next to it: cargo and tests want one file.
///
/// # Errors
/// When the package holds no such program, or the script cannot be written.
pub(crate) fn write_launcher(launcher: &Path, root: &Path, program: &str) -> Result<()> {
    let program = root.join(program);
    ensure!(program.exists(), "the package holds no {}", program.display());
    let folders = fs::read_dir(root.join("usr/lib")).into_iter().flatten().flatten().map(|entry| entry.path());
    let libraries = folders.filter(|path| path.to_string_lossy().ends_with("-linux-gnu")).map(|path| path.display().to_string());
    let libraries = libraries.collect::<Vec<_>>().join(":");
    let script = format!("#!/bin/sh\nLD_LIBRARY_PATH='{libraries}' exec '{}' \"$@\"\n", program.display());
    fs::write(launcher, script)?;
    fs::set_permissions(launcher, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Runs one of apt's programs and returns what it prints.
///
/// # Errors
/// When it fails or takes too long.
pub(crate) fn apt(program: &str, args: &[&str]) -> Result<String> {
    finish(run_within(Command::new(program).args(args), APT_LIMIT)?).with_context(|| format!("{program} {}", args.join(" ")))
}

fn finish(ended: Ended) -> Result<String> {
    match ended {
        Ended::InTime(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ended::InTime(output) => bail!("{}", tail(&output)),
        Ended::TooLate => bail!("no end after {} s", APT_LIMIT.as_secs()),
    }
}
