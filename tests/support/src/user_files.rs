//! The Envoy files that users copy: found, and checked by a real Envoy.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::artefact::{EnvoyVersion, Module, workspace_root};
use crate::authority::Authority;

/// Where the files say that the filter lies.
pub const MODULE_IN_FILES: &str = "/etc/envoy/headgate.wasm";

/// Where the files say that the proxy's certificate, its key and the authority lie.
const CERTIFICATES_IN_FILES: &str = "/etc/envoy/tls";

/// Every Envoy bootstrap of `envoy/` and `examples/`, relative to the workspace root.
///
/// # Errors
/// When a folder cannot be read.
pub fn bootstraps() -> Result<Vec<PathBuf>> {
    let root = workspace_root();
    let mut found = Vec::new();
    for folder in ["envoy", "examples/compose"] {
        let entries = fs::read_dir(root.join(folder)).with_context(|| format!("cannot list {folder}"))?;
        for entry in entries.flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            if text.contains("static_resources:") {
                found.push(Path::new(folder).join(entry.file_name()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Has `version` check one of [`bootstraps`] with the built filter and new certificates in place of the installed ones.
///
/// # Errors
/// With Envoy's messages when it refuses the file, or when a file that loads a filter does not name ours.
pub fn validate(version: &EnvoyVersion, bootstrap: &Path) -> Result<()> {
    let text = fs::read_to_string(workspace_root().join(bootstrap)).with_context(|| format!("cannot read {}", bootstrap.display()))?;
    let loads_filter = text.contains("envoy.extensions.filters.http.wasm");
    ensure!(!loads_filter || text.contains(MODULE_IN_FILES), "{} does not load {MODULE_IN_FILES}", bootstrap.display());
    let module = Module::Headgate.path()?;
    let folder = tempfile::tempdir()?;
    let rewritten = folder.path().join("bootstrap.yaml");
    let authority = Authority::new("authority");
    fs::write(folder.path().join("ca.pem"), &authority.pem)?;
    authority.client("spiffe://headgate/proxy/envoy-1").write(folder.path(), "proxy");
    let text = text.replace(MODULE_IN_FILES, &module.to_string_lossy());
    fs::write(&rewritten, text.replace(CERTIFICATES_IN_FILES, &folder.path().to_string_lossy()))?;
    version.validate(&rewritten).with_context(|| bootstrap.display().to_string())
}
