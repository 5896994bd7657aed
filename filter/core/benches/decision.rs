//! What a decision costs natively, with 3 classes and 1,000 tenants: `cargo xtask bench decision`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use divan::{Bencher, black_box};
use headgate_core::stream::{Outcome, Stream, StreamEnd};

mod site;
use site::{Control, PLENTY, Site, read, serialized};

/// Time between two ticks of a worker with requests: what one costs depends on what the last tick left, such as the order of the tenants.
const TICK_EVERY_NS: Option<u64> = Some(20_000_000);

fn main() {
    divan::main();
}

fn named(control: &str) -> Control {
    match control {
        "work" => Control::Work,
        "picks" => Control::Picks,
        _ => Control::Levels,
    }
}

/// What comes before the decision: the host's bytes to what it reads.
#[divan::bench(sample_count = 500, sample_size = 200)]
fn read_headers(bencher: Bencher<'_, '_>) {
    let headers = serialized();
    bencher.bench_local(|| black_box(read(black_box(&headers), b"spiffe://cluster.local/ns/prod/sa/tenant-1")));
}

/// Headers to verdict, admitted.
#[divan::bench(args = ["levels", "work", "picks"], sample_count = 500, sample_size = 200)]
fn admit(bencher: Bencher<'_, '_>, control: &str) {
    let mut site = Site::new(named(control), PLENTY, TICK_EVERY_NS);
    let mut stream = Stream::new();
    bencher.bench_local(|| black_box(site.send_as(&mut stream)));
}

/// Headers to log: decision, first token, end.
#[divan::bench(args = ["levels", "work", "picks"], sample_count = 500, sample_size = 200)]
fn whole_request(bencher: Bencher<'_, '_>, control: &str) {
    let mut site = Site::new(named(control), PLENTY, TICK_EVERY_NS);
    let mut stream = Stream::new();
    bencher.bench_local(|| {
        let outcome = site.send_as(&mut stream);
        assert!(matches!(outcome, Outcome::Continue | Outcome::ContinueWith(_)));
        site.first_token(&mut stream);
        site.end(&mut stream, StreamEnd::Complete);
    });
}

/// Two whole requests of which the second waits for the first, while a thousand others wait behind both.
#[divan::bench(sample_count = 500, sample_size = 100)]
fn wait_and_release(bencher: Bencher<'_, '_>) {
    let mut site = Site::new(Control::Work, 1000, TICK_EVERY_NS);
    let (mut running, mut waiting) = (Vec::new(), Vec::new());
    for _ in 0..2000 {
        let (stream, _) = site.send();
        if stream.is_waiting() { waiting.push(stream) } else { running.push(stream) }
    }
    let mut by_id: std::collections::HashMap<u32, _> = waiting.into_iter().map(|stream| (stream.id(), stream)).collect();
    bencher.bench_local(|| {
        let mut over = running.pop().expect("a thousand run");
        site.end(&mut over, StreamEnd::Complete);
        while let Some(released) = site.worker.next_released() {
            let mut stream = by_id.remove(&released).expect("it waits");
            let now = site.now();
            assert_eq!(stream.release(&mut site.worker, now), Outcome::Continue);
            running.push(stream);
        }
        let (stream, _) = site.send();
        if stream.is_waiting() { drop(by_id.insert(stream.id(), stream)) } else { running.push(stream) }
    });
}
