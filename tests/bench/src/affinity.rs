//! On which core a process runs.

use std::fs;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Confines every thread of process `pid` to one core, so that a server and its client do not share one.
///
/// # Errors
/// When the process has ended or the machine has no such core.
pub fn pin(pid: u32, core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core).with_context(|| format!("core {core} is beyond what the system can name"))?;
    let threads = fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is not running"))?;
    for thread in threads {
        let thread: i32 = thread?.file_name().to_string_lossy().parse().context("a thread's folder is its number")?;
        sched_setaffinity(Pid::from_raw(thread), &cores).with_context(|| format!("cannot confine thread {thread} to core {core}"))?;
    }
    Ok(())
}
