//! In the steady state a decision allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use headgate_core::stream::{HeaderOps, Outcome, StreamEnd};

#[path = "../../filter/core/benches/site/mod.rs"]
mod site;
use site::{Control, PLENTY, Site};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator as it is; counting touches no memory that it manages.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, data: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(data, layout) }
    }

    unsafe fn realloc(&self, data: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(data, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread in `work`.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

fn goes_on(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Continue | Outcome::ContinueWith(_))
}

fn admitted(site: &mut Site, requests: usize) {
    for _ in 0..requests {
        let (mut stream, outcome) = site.send();
        assert!(goes_on(&outcome), "{outcome:?}");
        site.first_token(&mut stream);
        stream.count_pieces(99, 20_000);
        site.end(&mut stream, StreamEnd::Complete);
    }
}

/// Requests that wait, of which one half is released and the other leaves.
fn queued(site: &mut Site, requests: usize) {
    for number in 0..requests {
        let (mut first, outcome) = site.send();
        assert!(goes_on(&outcome), "{outcome:?}");
        let (mut second, outcome) = site.send();
        assert_eq!(outcome, Outcome::Wait(HeaderOps::default()));
        if number % 2 == 0 {
            site.end(&mut first, StreamEnd::Complete);
            assert!(site.worker.next_released().is_some());
            let now = site.now();
            let outcome = second.release(&mut site.worker, now);
            assert!(goes_on(&outcome), "{outcome:?}");
            site.end(&mut second, StreamEnd::Complete);
        } else {
            site.end(&mut second, StreamEnd::ByClient);
            site.end(&mut first, StreamEnd::Complete);
        }
    }
}

#[test]
fn an_admitted_request_allocates_nothing() {
    for control in [Control::Levels, Control::Work, Control::Picks] {
        let mut site = Site::new(control, PLENTY, None);
        admitted(&mut site, 3000);
        assert_eq!(allocations(|| admitted(&mut site, 3000)), 0);
    }
}

#[test]
fn a_request_that_waits_allocates_nothing() {
    for control in [Control::Work, Control::Picks] {
        let mut site = Site::new(control, 1, None);
        queued(&mut site, 3000);
        assert_eq!(allocations(|| queued(&mut site, 3000)), 0);
    }
}
