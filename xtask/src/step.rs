//! Progress lines with elapsed time, and child processes whose output is shown only when it matters.

use std::io::{self, Write as _};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// The clock of one `cargo xtask` command; prints one line per step.
pub(crate) struct Steps {
    started: Instant,
}

impl Steps {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// One line: total time so far, what was done and how it went.
    pub(crate) fn say(&self, line: &str) {
        println!("[{:>6.1}s] {line}", self.started.elapsed().as_secs_f64());
        let _ = io::stdout().flush();
    }

    /// Runs `command` with its output shown, and prints a line before and after it.
    ///
    /// # Errors
    /// When the program cannot be started or ends with a status other than 0; the message carries `fix`.
    pub(crate) fn run(&self, what: &str, command: &mut Command, fix: &str) -> Result<()> {
        self.say(&format!("{what} …"));
        let began = Instant::now();
        let status = command.status().with_context(|| format!("{what}: cannot start {}", command.get_program().display()))?;
        if !status.success() {
            bail!("{what}: failed with {status}. {fix}");
        }
        self.say(&format!("{what}: ok in {:.1} s", began.elapsed().as_secs_f64()));
        Ok(())
    }

    /// The closing line.
    pub(crate) fn done(&self) {
        self.say("done");
    }
}

/// How a child that may take too long ended.
pub(crate) enum Ended {
    /// It ended by itself.
    InTime(Output),
    /// It was killed at the limit.
    TooLate,
}

/// Runs `command` with its output collected, and kills it after `limit`.
///
/// # Errors
/// When the program cannot be started or waited for.
pub(crate) fn run_within(command: &mut Command, limit: Duration) -> Result<Ended> {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("cannot start {name}"))?;
    if !ends_within(&mut child, limit).with_context(|| format!("cannot wait for {name}"))? {
        // Killing can only fail because the child has just ended, which is as good.
        let _ = child.kill();
        let _ = child.wait();
        return Ok(Ended::TooLate);
    }
    Ok(Ended::InTime(child.wait_with_output()?))
}

/// Polls, because std has no wait with a deadline. The commands run here print less than a pipe holds (64 KiB).
fn ends_within(child: &mut Child, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        if child.try_wait()?.is_some() {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Standard output and error of an ended child, for an error message; at most the last 20 lines.
pub(crate) fn tail(output: &Output) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.iter().skip(lines.len().saturating_sub(20)).copied().collect::<Vec<_>>().join("\n")
}
