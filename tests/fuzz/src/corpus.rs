//! The corpus: inputs from which fuzzing starts and that are replayed for ever.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::Target;

/// `corpus/<target>`.
pub fn folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// The inputs of a target: its own seeds, then the files of its folder by name.
///
/// # Errors
/// When a file cannot be read.
pub fn load(target: &Target) -> Result<Vec<(String, Vec<u8>)>> {
    let seeds = (target.seeds)().into_iter().enumerate();
    let mut inputs: Vec<(String, Vec<u8>)> = seeds.map(|(index, seed)| (format!("seed {index}"), seed)).collect();
    let folder = folder(target);
    let mut files: Vec<PathBuf> = match fs::read_dir(&folder) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?,
        Err(_) => Vec::new(),
    };
    files.sort();
    for file in files {
        let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        inputs.push((file.file_name().unwrap_or_default().to_string_lossy().into_owned(), bytes));
    }
    Ok(inputs)
}

/// Adds an input to the folder of a target, named by its content; returns where it lies.
///
/// # Errors
/// When it cannot be written.
pub fn save(target: &Target, kind: &str, input: &[u8]) -> Result<PathBuf> {
    let folder = folder(target);
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{kind}-{:016x}", crate::input::fingerprint([input])));
    fs::write(&path, input).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
