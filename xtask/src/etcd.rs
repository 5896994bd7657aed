//! etcd for the tests of several replicas: `$ETCD`, or Debian's `etcd-server` unpacked under `target/etcd`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::debian::{self, apt};
use crate::layout::Layout;
use crate::step::{Ended, Steps, run_within};

const PACKAGE: &str = "etcd-server";
const START_LIMIT: Duration = Duration::from_secs(30);

/// Puts an etcd at `target/etcd/etcd`.
///
/// # Errors
/// When none can be had; the message names what to run by hand.
pub(crate) fn provide(layout: &Layout, steps: &mut Steps) -> Result<()> {
    let folder = layout.installed.join("etcd");
    let program = folder.join("etcd");
    let named = env::var_os("ETCD").filter(|value| !value.is_empty()).map(PathBuf::from);
    let stamp = named.as_ref().map_or_else(|| PACKAGE.to_owned(), |path| path.display().to_string());
    if fs::read_to_string(folder.join("source")).is_ok_and(|old| old == stamp) && runs(&program) {
        steps.say(&format!("etcd: already in {}", layout.shown(&folder)));
        return Ok(());
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot clear {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    match named {
        Some(path) => std::os::unix::fs::symlink(path.canonicalize().context("ETCD names no file")?, &program)?,
        None => {
            steps.say("etcd: unpacking Debian's etcd-server …");
            unpack(&folder, &program).context("fix: give apt a Debian mirror, or set ETCD to an etcd of 3.4 or newer")?;
        }
    }
    ensure!(runs(&program), "{} does not run", program.display());
    fs::write(folder.join("source"), stamp)?;
    steps.say(&format!("etcd: ready in {}", layout.shown(&folder)));
    Ok(())
}

fn unpack(folder: &Path, program: &Path) -> Result<()> {
    let names = [PACKAGE.to_owned()];
    let root = folder.join("root");
    if debian::unpack(&names, folder, &root).is_err() {
        // An image's package lists are as old as the image, and may name a version that is gone.
        apt("apt-get", &["update"]).context("fix: run `apt-get update` as root")?;
        debian::unpack(&names, folder, &root)?;
    }
    fs::rename(root.join("usr/bin/etcd"), program).context("the package holds no usr/bin/etcd")?;
    fs::remove_dir_all(&root)?;
    Ok(())
}

fn runs(program: &Path) -> bool {
    matches!(run_within(Command::new(program).arg("--version"), START_LIMIT), Ok(Ended::InTime(output)) if output.status.success())
}
