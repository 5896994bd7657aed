//! CPU time and core affinity of another process, by its threads.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// CPU time that all threads of `pid` have used so far, in the kernel's nanosecond accounting (`schedstat`).
///
/// `/proc/PID/stat` counts ticks of 10 ms; a round of a benchmark is short enough for that to show.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let mut nanos = 0;
    for thread in threads(pid)? {
        // A thread may end between the listing and the reading; what it used is then lost, which no server thread does mid-round.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")) else { continue };
        let on_cpu = stat.split_whitespace().next().context("schedstat has a first field")?;
        nanos += on_cpu.parse::<u64>().context("the first field of schedstat is a number")?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Confines every thread of `pid` to one core, so that a server and its client do not share one.
pub fn pin(pid: u32, core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core).with_context(|| format!("core {core} exists"))?;
    for thread in threads(pid)? {
        sched_setaffinity(Pid::from_raw(thread), &cores).with_context(|| format!("cannot confine thread {thread} to core {core}"))?;
    }
    Ok(())
}

fn threads(pid: u32) -> Result<Vec<i32>> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is not running"))?;
    entries.map(|entry| entry?.file_name().to_string_lossy().parse().context("a thread's folder is its number")).collect()
}
