//! Programs of Debian packages: the one that an environment variable names, or Debian's, unpacked under `target/`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::debian::{self, apt, write_launcher};
use crate::layout::Layout;
use crate::step::{Ended, Steps, run_within};

const START_LIMIT: Duration = Duration::from_secs(30);

/// A program that neither cargo nor rustup brings.
pub(crate) struct Program {
    name: &'static str,
    package: &'static str,
    /// Environment variable with the path of another one.
    variable: &'static str,
    /// Which others will do.
    needs: &'static str,
}

/// For the tests of several replicas.
pub(crate) const ETCD: Program = Program { name: "etcd", package: "etcd-server", variable: "ETCD", needs: "an etcd of 3.4 or newer" };

/// Makes wasm modules smaller.
pub(crate) const WASM_OPT: Program =
    Program { name: "wasm-opt", package: "binaryen", variable: "WASM_OPT", needs: "a wasm-opt of binaryen 108 or newer" };

impl Program {
    /// Puts the program at `target/<name>/<name>` and returns that path.
    ///
    /// # Errors
    /// When none can be had; the message names what to run by hand.
    pub(crate) fn provide(&self, layout: &Layout, steps: &Steps) -> Result<PathBuf> {
        let Self { name, package, variable, needs } = self;
        let folder = layout.installed.join(name);
        let program = folder.join(name);
        let named = env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
        let stamp = named.as_ref().map_or_else(|| (*package).to_owned(), |path| path.display().to_string());
        if fs::read_to_string(folder.join("source")).is_ok_and(|old| old == stamp) && runs(&program) {
            steps.say(&format!("{name}: already in {}", layout.shown(&folder)));
            return Ok(program);
        }
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot clear {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        match named {
            Some(path) => {
                let path = path.canonicalize().with_context(|| format!("{variable} names no file"))?;
                std::os::unix::fs::symlink(path, &program)?;
            }
            None => {
                steps.say(&format!("{name}: unpacking Debian's {package} …"));
                self.unpack(&folder, &program).with_context(|| format!("fix: give apt a Debian mirror, or set {variable} to {needs}"))?;
            }
        }
        ensure!(runs(&program), "{} does not run; fix: set {variable} to {needs}", program.display());
        fs::write(folder.join("source"), stamp)?;
        steps.say(&format!("{name}: ready in {}", layout.shown(&folder)));
        Ok(program)
    }

    fn unpack(&self, folder: &Path, program: &Path) -> Result<()> {
        let names = [self.package.to_owned()];
        let root = folder.join("root");
        if debian::unpack(&names, folder, &root).is_err() {
            // An image's package lists are as old as the image, and may name a version that is gone.
            apt("apt-get", &["update"]).context("fix: run `apt-get update` as root")?;
            debian::unpack(&names, folder, &root)?;
        }
        write_launcher(program, &root, &format!("usr/bin/{}", self.name))
    }
}

fn runs(program: &Path) -> bool {
    matches!(run_within(Command::new(program).arg("--version"), START_LIMIT), Ok(Ended::InTime(output)) if output.status.success())
}
