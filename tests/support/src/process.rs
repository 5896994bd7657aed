//! Child processes that end with their owner and whose output is kept.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::wait_until;

/// Lines of a log that are shown when its owner fails.
const TAIL_LINES: usize = 40;

/// A running program. Dropping it kills the program and waits for it; when a test is failing it prints the end of the log.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// Processor time of all threads of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuTime {
    /// Time that they ran.
    pub ran: Duration,
    /// Time that they could have run while something else did.
    pub waited: Duration,
}

impl Process {
    /// Starts `command` with its standard output and error in the file `log`, which may have lines of an earlier run.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let out = File::options().create(true).append(true).open(log).with_context(|| format!("cannot open {}", log.display()))?;
        let errors = out.try_clone()?;
        let child = command.stdin(Stdio::null()).stdout(out).stderr(errors).spawn();
        let child = child.with_context(|| format!("cannot start {name}: {}", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The log so far.
    #[must_use]
    pub fn log(&self) -> String {
        // Envoy may write request bytes, which need not be UTF-8.
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// How the program ended, when it has.
    ///
    /// # Errors
    /// When the system refuses to say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// The condition "it still runs", to give up early in a wait.
    ///
    /// # Errors
    /// When it has ended, with the end of its log.
    pub fn still_runs(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}; its last lines:\n{}", self.name, self.tail()),
        }
    }

    /// Kills it at once, as `kill -9` does, and waits for its end.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill_9(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits for that.
    ///
    /// # Errors
    /// When it has not ended after `within`.
    pub async fn terminate(&mut self, within: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        kill(self.pid()?, Signal::SIGTERM).with_context(|| format!("cannot signal {}", self.name))?;
        let what = format!("end of {}", self.name);
        wait_until(&what, within, || std::future::ready(self.child.try_wait().map_err(anyhow::Error::from))).await
    }

    /// Stops (SIGSTOP) the program where it is, as a machine that hangs does.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn freeze(&self) -> Result<()> {
        Ok(kill(self.pid()?, Signal::SIGSTOP)?)
    }

    /// Lets a frozen program go on (SIGCONT).
    ///
    /// # Errors
    /// When the system refuses.
    pub fn thaw(&self) -> Result<()> {
        Ok(kill(self.pid()?, Signal::SIGCONT)?)
    }

    /// What its threads have had of the processors so far.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_time(&self) -> Result<CpuTime> {
        cpu_time(self.id()).with_context(|| format!("{} has ended", self.name))
    }

    /// Its memory that is in RAM, in bytes.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident_bytes(&self) -> Result<u64> {
        resident_bytes(self.id()).with_context(|| format!("{} has ended", self.name))
    }

    /// The last lines of the log.
    #[must_use]
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    fn pid(&self) -> Result<Pid> {
        i32::try_from(self.id()).map(Pid::from_raw).map_err(|_| anyhow!("{} has no usable process id", self.name))
    }
}

/// What the threads of process `pid` have had of the processors so far.
///
/// # Errors
/// When there is no such process.
pub fn cpu_time(pid: u32) -> Result<CpuTime> {
    let mut sum = CpuTime::default();
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        // "<ns on cpu> <ns waiting> <slices>"; a thread may end between the listing and the reading.
        let Ok(line) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        let mut nanos = line.split_whitespace().map(|word| word.parse().map_or(Duration::ZERO, Duration::from_nanos));
        sum.ran += nanos.next().unwrap_or_default();
        sum.waited += nanos.next().unwrap_or_default();
    }
    Ok(sum)
}

/// The memory of process `pid` that is in RAM (`VmRSS`), in bytes.
///
/// # Errors
/// When there is no such process.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process without VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- last lines of {} ({}) ---\n{}\n---", self.name, self.log.display(), self.tail());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(folder: &Path) -> Process {
        Process::spawn("sleeper", Command::new("sh").args(["-c", "echo started; exec sleep 60"]), &folder.join("log")).unwrap()
    }

    #[test]
    fn dropped_process_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let process = sleeper(folder.path());
        let pid = process.pid().unwrap();
        drop(process);
        assert_eq!(kill(pid, None), Err(nix::errno::Errno::ESRCH));
    }

    #[tokio::test]
    async fn terminated_process_reports_its_signal_and_keeps_its_log() {
        use std::os::unix::process::ExitStatusExt as _;
        let folder = tempfile::tempdir().unwrap();
        let mut process = sleeper(folder.path());
        wait_until("first line", Duration::from_secs(10), || std::future::ready(Ok(process.log().contains("started").then_some(()))))
            .await
            .unwrap();
        let status = process.terminate(Duration::from_secs(10)).await.unwrap();
        assert_eq!(status.signal(), Some(15));
        assert!(process.still_runs().unwrap_err().to_string().contains("started"));
    }
}
