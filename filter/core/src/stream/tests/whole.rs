use std::string::String;
use std::vec::Vec;

use super::*;

fn counted(histogram: Option<&v1::Histogram>) -> u64 {
    histogram.map_or(0, |histogram| histogram.buckets().map(|(_, count)| count).sum())
}

/// A worker's report after requests whose whole, good responses came in one piece, and what the log said of them: `end` is how they end.
fn after_whole_responses(
    change: impl FnOnce(&mut v1::PolicySpec),
    end: impl Fn(&mut Bench, &mut Stream),
) -> (v1::WorkerReport, Vec<String>) {
    let mut bench = Bench::new(change);
    let mut lines = Vec::new();
    for request in 0..200_u64 {
        let (mut stream, _) = bench.send_with(if request % 3 == 0 { VIP } else { NOBODY }, &[(b":path", b"/v1/chat"), (b"x-model", b"m")]);
        bench.now = bench.now + Duration::from_micros(37 * request);
        end(&mut bench, &mut stream);
        let mut line = String::new();
        stream.write_line(&mut line);
        lines.push(line);
        assert!(!stream.is_open());
    }
    (bench.worker.report(bench.now, 0), lines)
}

fn by_steps(bench: &mut Bench, stream: &mut Stream) {
    stream.observe(&mut bench.worker, bench.now, Event::ResponseBody { len: 300, end_of_stream: true });
    stream.observe(&mut bench.worker, bench.now, Event::ResponseHeaders { status: 200, failed_dependency: None });
    stream.observe(&mut bench.worker, bench.now, Event::Log { endpoint: None, end: StreamEnd::Complete });
}

#[test]
fn a_whole_response_at_once_is_the_same_as_its_steps() {
    let plain = |spec: &mut v1::PolicySpec| spec.breaker = None;
    let at_once = |bench: &mut Bench, stream: &mut Stream| assert!(stream.end_whole(&mut bench.worker, bench.now));
    let (report, lines) = after_whole_responses(plain, at_once);
    let stepwise = after_whole_responses(plain, by_steps);
    assert_eq!((&report, &lines), (&stepwise.0, &stepwise.1));
    let streams = &report.pools[0].latency.as_ref().unwrap().streams;
    assert_eq!(streams.iter().map(|stream| counted(stream.total_us.as_ref())).sum::<u64>(), 200);
}

#[test]
fn a_response_of_which_somebody_hears_is_not_ended_at_once() {
    let with_breaker =
        |spec: &mut v1::PolicySpec| spec.breaker = Some(v1::CircuitBreaker { consecutive_failures: Some(3), ..Default::default() });
    let asking = |spec: &mut v1::PolicySpec| (spec.breaker, spec.orca) = (None, true);
    let refuses = |bench: &mut Bench, stream: &mut Stream| {
        assert!(!stream.end_whole(&mut bench.worker, bench.now));
        by_steps(bench, stream);
    };
    after_whole_responses(with_breaker, refuses);
    after_whole_responses(asking, refuses);
}

#[test]
fn what_was_written_down_counts_for_the_class_that_it_was_of() {
    let mut bench = Bench::new(|_| {});
    bench.request(200);
    assert_eq!(bench.class("low").completed, 1);
    bench.request(200);
    // The class goes, and another takes its place in memory.
    let renamed = fixture::policy(|spec| {
        spec.classes[2].name = "other".into();
        spec.classification.iter_mut().for_each(|rules| rules.tenants.truncate(2));
    });
    bench.worker.set_policies(bench.now, vec![renamed]);
    assert_eq!(bench.class("other").ttft_us, None);
}
