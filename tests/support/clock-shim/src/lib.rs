//! A calendar that a test steps under a running program: preloaded (`LD_PRELOAD`), it answers `clock_gettime`, `gettimeofday` and `time`
//! with the machine's time plus an offset, which it reads from a mapped file at every call.
//!
//! Stepped are the clocks that a person, NTP or a virtual machine's host may step: `CLOCK_REALTIME` and its coarse form. All others say the
//! truth. What it cannot do: a wait whose end is a calendar time is the kernel's, which knows the true time only.
//!
//! | file | offset |
//! |---|---|
//! | variable not set, file missing or shorter than eight bytes | none |
//! | eight bytes | nanoseconds, signed, in the machine's byte order |

use std::ffi::{c_int, c_long, c_void};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI64, AtomicPtr, Ordering};

use libc::{clockid_t, time_t, timespec, timeval};

/// Environment variable that names the file.
pub const FILE_VARIABLE: &str = "HEADGATE_CLOCK_SHIM_FILE";
/// Bytes of the file.
pub const FILE_BYTES: usize = size_of::<i64>();

const NANOS_PER_S: i64 = 1_000_000_000;

/// The mapped file; null: no offset.
static OFFSET: AtomicPtr<AtomicI64> = AtomicPtr::new(null_mut());

/// The loader calls it before the program's `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = follow_the_variable;

extern "C" fn follow_the_variable() {
    if let Some(path) = std::env::var_os(FILE_VARIABLE) {
        follow(Path::new(&path));
    }
}

/// Follows the offset in the file at `path` from now on. A file that cannot be mapped is left out: it is not the shim's to end a program.
pub fn follow(path: &Path) {
    let Ok(file) = File::open(path) else { return };
    if !file.metadata().is_ok_and(|metadata| metadata.len() >= FILE_BYTES as u64) {
        return;
    }
    // SAFETY: a shared mapping of an open file, at an address that the system chooses; it is never unmapped.
    let mapped = unsafe { libc::mmap(null_mut(), FILE_BYTES, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if mapped != libc::MAP_FAILED {
        OFFSET.store(mapped.cast(), Ordering::Release);
    }
}

/// Nanoseconds by which the calendar is ahead.
fn offset() -> i64 {
    let mapped = OFFSET.load(Ordering::Acquire);
    // SAFETY: null or a mapping of eight bytes, aligned to a page, that stays as long as the program.
    unsafe { mapped.as_ref() }.map_or(0, |offset| offset.load(Ordering::Relaxed))
}

/// `clock_gettime`: as libc's, and later by the offset for the clocks that can be stepped.
///
/// # Safety
/// `time` is valid for a write of a `timespec`, or an address that the kernel refuses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    // SAFETY: the kernel checks the pointer. Not by libc: its `clock_gettime` is the one that this stands in for.
    let status = unsafe { libc::syscall(libc::SYS_clock_gettime, clock as c_long, time) } as c_int;
    if status == 0 && matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE) {
        // SAFETY: the kernel has just written to it.
        unsafe { *time = later(*time, offset()) };
    }
    status
}

/// `gettimeofday`: as libc's, and later by the offset.
///
/// # Safety
/// `time` is null or valid for a write of a `timeval`; `zone` is not looked at, as glibc has it on this platform.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gettimeofday(time: *mut timeval, _zone: *mut c_void) -> c_int {
    let now = calendar();
    if !time.is_null() {
        // SAFETY: as the caller says.
        unsafe { *time = timeval { tv_sec: now.tv_sec, tv_usec: now.tv_nsec / 1000 } };
    }
    0
}

/// `time`: as libc's, and later by the offset.
///
/// # Safety
/// `seconds` is null or valid for a write of a `time_t`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn time(seconds: *mut time_t) -> time_t {
    let now = calendar().tv_sec;
    if !seconds.is_null() {
        // SAFETY: as the caller says.
        unsafe { *seconds = now };
    }
    now
}

/// The stepped calendar.
fn calendar() -> timespec {
    let mut now = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a variable of ours.
    unsafe { clock_gettime(libc::CLOCK_REALTIME, &raw mut now) };
    now
}

/// `time` and `nanos` more, the nanoseconds of the result in `0..10^9`.
fn later(time: timespec, nanos: i64) -> timespec {
    let below_a_second = time.tv_nsec + nanos.rem_euclid(NANOS_PER_S);
    let seconds = nanos.div_euclid(NANOS_PER_S) + below_a_second.div_euclid(NANOS_PER_S);
    timespec { tv_sec: time.tv_sec + seconds, tv_nsec: below_a_second.rem_euclid(NANOS_PER_S) }
}
