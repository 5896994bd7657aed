//! Files that are read again when they change.
//!
//! A change that can be used takes the place of what was there; one that cannot changes nothing, and the log says why.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the files are looked at. Mounted secrets are exchanged by renaming a directory, which watches of single files miss.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest file: a bundle of authorities, a set of keys.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// All that is wrong with some files, each with its flag. `Display` gives one error a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileErrors(pub Vec<String>);

/// Something that is made of the contents of files.
pub(super) trait Source: Send + Sync + 'static {
    /// What the files hold; equal contents mean no change.
    type Contents: PartialEq + Send;
    /// What is made of it.
    type Value: Send + Sync + 'static;
    /// Its name in the log.
    const NAME: &'static str;

    fn read(&self) -> impl Future<Output = Result<Self::Contents, FileErrors>> + Send;
    fn parse(&self, contents: &Self::Contents) -> Result<Self::Value, FileErrors>;
}

// === impl FileErrors ===

impl fmt::Display for FileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for FileErrors {}

/// Reads `source` once, then again whenever a file changes, until `shutdown`.
pub(super) async fn watch<S: Source>(source: S, shutdown: CancellationToken) -> Result<watch::Receiver<S::Value>, FileErrors> {
    let contents = source.read().await?;
    let (sender, receiver) = watch::channel(source.parse(&contents)?);
    tokio::spawn(reload(source, contents, sender, shutdown));
    Ok(receiver)
}

async fn reload<S: Source>(source: S, mut seen: S::Contents, sender: watch::Sender<S::Value>, shutdown: CancellationToken) {
    let mut last_problem = None;
    while shutdown.run_until_cancelled(tokio::time::sleep(LOOK_INTERVAL)).await.is_some() {
        let changed = match source.read().await {
            Ok(contents) if contents == seen => {
                last_problem = None;
                continue;
            }
            Ok(contents) => source.parse(&contents).map(|value| (value, contents)),
            Err(errors) => Err(errors),
        };
        match changed {
            Ok((value, contents)) => {
                tracing::info!("{}: the files have changed and are in use", S::NAME);
                (seen, last_problem) = (contents, None);
                sender.send_replace(value);
            }
            // Said once: files that stay broken would fill the log.
            Err(errors) if last_problem.as_ref() != Some(&errors) => {
                tracing::error!(%errors, "{}: the changed files cannot be used; the last good ones stay in use", S::NAME);
                last_problem = Some(errors);
            }
            Err(_) => {}
        }
    }
}

/// Reads the file that `--flag` names.
pub(super) async fn read(flag: &str, path: &Path) -> Result<Vec<u8>, String> {
    let fail = |problem: String| format!("--{flag}: {}: {problem}", path.display());
    let length = tokio::fs::metadata(path).await.map_err(|error| fail(error.to_string()))?.len();
    if length > MAX_FILE_BYTES {
        return Err(fail(format!("{length} bytes is more than {MAX_FILE_BYTES}")));
    }
    tokio::fs::read(path).await.map_err(|error| fail(error.to_string()))
}
