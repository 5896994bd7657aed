//! The calendar steps under this very program, and under one that has the library preloaded.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use headgate_clock_shim::{FILE_VARIABLE, clock_gettime, follow, gettimeofday, time};

const HOUR: i64 = 3600;

fn set(file: &Path, seconds: i64) {
    // In place: whoever has it mapped would end if it were shorter for a moment.
    let file = fs::File::options().create(true).write(true).truncate(false).open(file).unwrap();
    file.write_all_at(&(seconds * 1_000_000_000).to_ne_bytes(), 0).unwrap();
}

/// Seconds since the epoch by each of the three functions.
fn calendars() -> [i64; 3] {
    let mut spec = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut val = libc::timeval { tv_sec: 0, tv_usec: 0 };
    // SAFETY: variables of ours, and null, which `time` allows.
    unsafe {
        assert_eq!((clock_gettime(libc::CLOCK_REALTIME, &raw mut spec), gettimeofday(&raw mut val, std::ptr::null_mut())), (0, 0));
        [spec.tv_sec, val.tv_sec, time(std::ptr::null_mut())]
    }
}

/// The library, beside this program.
fn library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.ancestors().map(|folder| folder.join("libheadgate_clock_shim.so")).find(|path| path.is_file()).unwrap()
}

#[test]
fn the_calendar_steps_and_monotonic_time_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("offset");
    set(&file, 0);
    follow(&file);
    let (truth, began) = (calendars()[0], Instant::now());
    for (step, shown) in [(HOUR, HOUR), (-HOUR, -HOUR), (0, 0)] {
        set(&file, step);
        for calendar in calendars() {
            assert!((shown..=shown + 10).contains(&(calendar - truth)), "{calendar} for {truth} and {step}");
        }
        let by_std = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        assert!((shown..=shown + 10).contains(&(by_std - truth)), "what std asks for, too: {by_std}");
    }
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_program_that_has_it_preloaded_has_that_calendar() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("offset");
    let shown = || {
        let date = Command::new("date").arg("+%s").env("LD_PRELOAD", library()).env(FILE_VARIABLE, &file).output().unwrap();
        String::from_utf8(date.stdout).unwrap().trim().parse::<i64>().unwrap()
    };
    let truth = shown();
    set(&file, -HOUR);
    assert!((-HOUR..=10 - HOUR).contains(&(shown() - truth)), "{} for {truth}", shown());
    fs::write(&file, [1, 2, 3]).unwrap();
    assert!((0..=10).contains(&(shown() - truth)), "a file that is no offset is none");
}
