//! The audit log: every change of a policy and every refusal, who, when, what, from where.
//!
//! One JSON object a line, in a file of bounded size, and as an event of the program's log (target `headgate::audit`). An entry is written
//! before the call that it is about is answered. A disk that refuses it does not undo the change: the log says so.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use super::caller::Caller;
use crate::clock::unix_ms;

/// Files that are kept beside the one that is written: `audit.jsonl.1` is the youngest of them.
const OLD_FILES: usize = 7;
/// Entries of refusals in a second; further ones are counted, or a flood of them would push everything else out.
const REFUSALS_PER_S: u32 = 100;

/// The log. Cheap to clone; all clones are one log.
#[derive(Clone, Debug)]
pub struct Audit(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    file: Option<LogFile>,
    second_began_at: Instant,
    refusals_in_second: u32,
    left_out: u64,
}

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    max_bytes: u64,
}

/// What came of an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is done.
    #[default]
    Done,
    /// It was as wanted before.
    Unchanged,
    /// It was refused.
    Refused,
}

/// What is recorded of an attempt.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry<'a> {
    /// What was attempted: `policy.apply`, `policy.rollback`, `policy.delete`, `policy.promote`, `policy.abort`, `policy.advance`,
    /// `policy.complete`, `access`, `authentication`, `limit`, `message`.
    pub action: &'a str,
    /// What came of it.
    pub outcome: Outcome,
    /// The policy.
    pub policy: Option<&'a str>,
    /// Its version after a change.
    pub version: Option<&'a str>,
    /// Its version before.
    pub previous_version: Option<&'a str>,
    /// The method or page.
    pub call: Option<&'a str>,
    /// Why it was refused.
    pub reason: Option<&'a str>,
}

#[derive(Serialize)]
struct Line<'a> {
    time: &'a str,
    unix_ms: u64,
    action: &'a str,
    outcome: Outcome,
    who: &'a str,
    proof: &'a str,
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// Refusals that were left out since the line before.
    #[serde(skip_serializing_if = "is_zero")]
    left_out: u64,
}

// === impl Audit ===

impl Audit {
    /// A log in `path`, which begins anew at `max_bytes`.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path, max_bytes: u64) -> io::Result<Self> {
        Ok(Self::new(Some(LogFile::open(path, max_bytes)?)))
    }

    /// A log in the program's log alone.
    pub fn without_file() -> Self {
        Self::new(None)
    }

    fn new(file: Option<LogFile>) -> Self {
        Self(Arc::new(Mutex::new(State { file, second_began_at: Instant::now(), refusals_in_second: 0, left_out: 0 })))
    }

    /// Records what `caller` attempted.
    pub fn record(&self, caller: &Caller, entry: &Entry<'_>) {
        // A poisoned log is still a log.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(left_out) = state.admit(entry.outcome, Instant::now()) else { return };
        let mut time = String::new();
        // A clock that cannot be written leaves the milliseconds.
        let _ = SystemTime.format_time(&mut Writer::new(&mut time));
        let line = Line {
            time: &time,
            unix_ms: unix_ms(),
            action: entry.action,
            outcome: entry.outcome,
            who: caller.name(),
            proof: caller.proof().as_str(),
            from: caller.address().map(|address| address.to_string()),
            policy: entry.policy,
            version: entry.version,
            previous_version: entry.previous_version,
            call: entry.call,
            reason: entry.reason,
            left_out,
        };
        match serde_json::to_string(&line) {
            Ok(text) => state.write(&text),
            Err(error) => tracing::error!(%error, "an audit entry cannot be written"),
        }
    }
}

// === impl State ===

impl State {
    /// Whether an entry is written, and how many were not since the last one that was.
    fn admit(&mut self, outcome: Outcome, now: Instant) -> Option<u64> {
        if outcome == Outcome::Refused {
            if now.duration_since(self.second_began_at) >= Duration::from_secs(1) {
                (self.second_began_at, self.refusals_in_second) = (now, 0);
            }
            if self.refusals_in_second >= REFUSALS_PER_S {
                self.left_out += 1;
                return None;
            }
            self.refusals_in_second += 1;
        }
        Some(std::mem::take(&mut self.left_out))
    }

    fn write(&mut self, text: &str) {
        tracing::info!(target: "headgate::audit", "{text}");
        if let Some(file) = &mut self.file
            && let Err(error) = file.append(text)
        {
            tracing::error!(path = %file.path.display(), %error, "an audit entry is in this log only");
        }
    }
}

// === impl LogFile ===

impl LogFile {
    fn open(path: &Path, max_bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes, max_bytes })
    }

    fn append(&mut self, text: &str) -> io::Result<()> {
        let length = text.len() as u64 + 1;
        if self.bytes > 0 && self.bytes + length > self.max_bytes {
            self.rotate()?;
        }
        self.file.write_all(format!("{text}\n").as_bytes())?;
        self.bytes += length;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for n in (0..OLD_FILES).rev() {
            match fs::rename(self.numbered(n), self.numbered(n + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        *self = Self::open(&self.path, self.max_bytes)?;
        Ok(())
    }

    /// The path itself for 0.
    fn numbered(&self, n: usize) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        if n > 0 {
            path.push(format!(".{n}"));
        }
        path.into()
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::super::caller::Proof;
    use super::*;

    fn caller(audit: &Audit) -> Caller {
        let address = Some("10.0.0.7:4242".parse().unwrap());
        Caller::new("spiffe://headgate/person/ops".to_owned(), Proof::Certificate, address, None, audit.clone())
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn an_entry_says_who_when_what_and_from_where() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let audit = Audit::open(&path, 1 << 20).unwrap();
        let entry =
            Entry { action: "policy.apply", policy: Some("demo"), version: Some("2"), previous_version: Some("1"), ..Entry::default() };
        caller(&audit).audit(&entry);
        let line = &lines(&path)[0];
        let known =
            ["action", "outcome", "who", "proof", "from", "policy", "version", "previous_version"].map(|key| line[key].as_str().unwrap());
        assert_eq!(known, ["policy.apply", "done", "spiffe://headgate/person/ops", "certificate", "10.0.0.7:4242", "demo", "2", "1"]);
        assert!(line["time"].as_str().unwrap().starts_with("20") && line["unix_ms"].as_u64().unwrap() > 0);
        assert!(line.get("reason").is_none() && line.get("left_out").is_none());
    }

    #[test]
    fn a_full_file_begins_anew_and_the_oldest_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let audit = Audit::open(&path, 300).unwrap();
        for n in 0..40 {
            let version = n.to_string();
            caller(&audit).audit(&Entry { action: "policy.apply", version: Some(&version), ..Entry::default() });
        }
        assert_eq!(lines(&path).last().unwrap()["version"], "39");
        let mut files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap()).collect();
        files.sort_by_key(std::fs::DirEntry::file_name);
        assert_eq!(files.len(), 1 + OLD_FILES);
        assert!(files.iter().all(|file| file.metadata().unwrap().len() <= 300));
        drop(audit);
        let again = Audit::open(&path, 300).unwrap();
        caller(&again).audit(&Entry::default());
        assert!(fs::metadata(&path).unwrap().len() <= 300, "what is there counts");
    }

    #[test]
    fn a_flood_of_refusals_is_counted_and_hides_no_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let audit = Audit::open(&path, 1 << 20).unwrap();
        for _ in 0..1000 {
            caller(&audit).audit(&Entry { action: "authentication", outcome: Outcome::Refused, ..Entry::default() });
        }
        caller(&audit).audit(&Entry { action: "policy.apply", ..Entry::default() });
        let lines = lines(&path);
        let counted: u64 = lines.iter().map(|line| line["left_out"].as_u64().unwrap_or(0)).sum();
        assert_eq!(lines.len() as u64 + counted, 1001, "none is lost without being counted");
        assert_eq!(lines.last().unwrap()["action"], "policy.apply");
    }
}
