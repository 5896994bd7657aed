//! Where things are: the workspace, cargo, what is installed and what is built.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

/// Paths of one checkout.
pub(crate) struct Layout {
    /// The workspace root.
    pub(crate) root: PathBuf,
    /// What `setup` installs: always `<root>/target`, so that a second build folder does not download again.
    pub(crate) installed: PathBuf,
    /// What cargo builds: `CARGO_TARGET_DIR`, otherwise `<root>/target`.
    pub(crate) built: PathBuf,
    cargo: OsString,
}

impl Layout {
    /// Finds the workspace that this xtask was built in.
    ///
    /// # Errors
    /// When the manifest directory compiled into this program no longer exists (a moved checkout).
    pub(crate) fn discover() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest.parent().context("xtask lies outside a workspace")?;
        let root = root.canonicalize().with_context(|| format!("{} is gone: run `cargo xtask` inside the checkout", root.display()))?;
        let installed = root.join("target");
        let built = env::var_os("CARGO_TARGET_DIR").map_or_else(|| installed.clone(), |dir| root.join(dir));
        let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        Ok(Self { root, installed, built, cargo })
    }

    /// Cargo, in the workspace root, as if called by hand: the variables that `cargo run` gave xtask are taken away.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(&self.root);
        for (name, _) in env::vars_os() {
            if name
                .to_str()
                .is_some_and(|name| name == "CARGO_MANIFEST_DIR" || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_BIN_"))
            {
                command.env_remove(&name);
            }
        }
        command
    }

    /// `<built>/wasm`, where the finished filters lie.
    pub(crate) fn wasm_dir(&self) -> PathBuf {
        self.built.join("wasm")
    }

    /// `path` relative to the workspace when it lies in it, for messages.
    pub(crate) fn shown<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }
}
