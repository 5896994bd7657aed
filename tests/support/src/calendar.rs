//! The calendar of programs that a test steps: the clock shim, preloaded.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::artefact;

/// The variable by which the shim finds its file.
const FILE_VARIABLE: &str = "HEADGATE_CLOCK_SHIM_FILE";

/// The calendar of every program that was started with [`Calendar::preload`].
#[derive(Debug)]
pub struct Calendar {
    file: File,
    folder: TempDir,
}

// === impl Calendar ===

impl Calendar {
    /// The true one.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("offset"), 0_i64.to_ne_bytes())?;
        let file = File::options().write(true).open(folder.path().join("offset"))?;
        Ok(Self { file, folder })
    }

    /// Steps it to `ahead_s` seconds ahead of the truth, at once for every program that has it. Monotonic clocks go on.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn step_to(&self, ahead_s: i64) -> Result<()> {
        // In place: the programs have the file mapped, and would end if it were shorter for a moment.
        self.file.write_all_at(&(ahead_s * 1_000_000_000).to_ne_bytes(), 0).context("cannot step the calendar")
    }

    /// The variables with which a program has this calendar.
    ///
    /// # Errors
    /// When the shim is not built.
    pub fn preload(&self) -> Result<Vec<(OsString, OsString)>> {
        let file = self.folder.path().join("offset").into_os_string();
        Ok(vec![("LD_PRELOAD".into(), artefact::clock_shim()?.into()), (FILE_VARIABLE.into(), file)])
    }
}
