//! What responses say of the engine.

use super::*;
use crate::in_band::{EngineLoad, FORMAT_HEADER, LoadHeader, LoadSeen};

const KV: &[u8] = b"TEXT named_metrics.kv_cache_usage_perc=0.5,named_metrics.num_requests_waiting=3";

fn asking() -> Bench {
    Bench::new(|spec| spec.orca = true)
}

fn loads(bench: &mut Bench) -> Vec<v1::EndpointLoad> {
    bench.worker.report(bench.now, 0).pools[0].endpoint_loads.clone()
}

fn hear(bench: &mut Bench, stream: &Stream, seen: LoadSeen) -> bool {
    let wants = stream.wants_load(&mut bench.worker, bench.now, seen);
    stream.note_load(&mut bench.worker, bench.now, seen, b"10.0.0.1:80", (LoadHeader::Text, KV));
    wants
}

#[test]
fn an_admitted_request_asks_the_engine_unless_its_client_does() {
    let mut bench = asking();
    let ask = HeaderOp::Set { name: FORMAT_HEADER, value: "text".into() };
    assert_eq!(bench.send(NOBODY).1, Outcome::ContinueWith(vec![ask].into()));
    let (_, outcome) = bench.send_with(NOBODY, &[(b":path", b"/v1/x"), (FORMAT_HEADER.as_bytes(), b"json")]);
    assert_eq!(outcome, Outcome::Continue);
}

#[test]
fn a_policy_that_does_not_ask_sets_and_takes_nothing() {
    let mut bench = Bench::new(|_| {});
    let (stream, outcome) = bench.send(NOBODY);
    assert_eq!(outcome, Outcome::Continue);
    assert!(!hear(&mut bench, &stream, LoadSeen::AtFirstByte) && !stream.looks_at_pieces() && loads(&mut bench).is_empty());
}

#[test]
fn a_streams_load_is_as_old_as_the_request_and_a_whole_answers_as_the_answer() {
    let mut bench = asking();
    let (mut stream, _) = bench.send(NOBODY);
    bench.wait(400);
    bench.body(&mut stream, 100);
    assert!(hear(&mut bench, &stream, LoadSeen::AtFirstByte));
    let [load] = loads(&mut bench).try_into().unwrap();
    assert_eq!((load.made_after_ns, load.kv_cache_use, load.waiting), (1_000_000_000, Some(0.5), Some(3)), "it may have left at once");
    bench.wait(2);
    assert!(hear(&mut bench, &stream, LoadSeen::AtEnd));
    assert_eq!(loads(&mut bench)[0].made_after_ns, 1_400_000_000, "body and headers came together");
}

#[test]
fn a_load_that_is_too_old_to_say_anything_is_not_asked_for() {
    let mut bench = asking();
    let (mut stream, _) = bench.send(NOBODY);
    bench.wait(10);
    bench.body(&mut stream, 100);
    bench.wait(991);
    assert!(!hear(&mut bench, &stream, LoadSeen::AtEnd) && loads(&mut bench).is_empty(), "the headers of a stream came 1001 ms ago");
    bench.log(&mut stream, StreamEnd::Complete);
    assert!(!hear(&mut bench, &stream, LoadSeen::AtEnd), "it is over");
    assert_eq!(EngineLoad::read(LoadHeader::Text, KV).unwrap().kv_use, Some(0.5));
}

/// Responses of 64 tokens, one every 20 ms, `per_piece` in a piece; what they did within objectives of 30 ms a token, and the tokens that
/// were counted.
fn goodput(per_piece: usize, reads_usage: bool, says_usage: impl Fn(usize) -> bool) -> (u64, u64) {
    let overload = v1::Overload { usage: Some(reads_usage), tpot_slo_ms: Some(30), ttft_slo_ms: Some(1000), ..Default::default() };
    let mut bench = Bench::new(|spec| {
        spec.overload = Some(overload);
        spec.breaker = None;
    });
    for number in 0..100 {
        let (mut stream, outcome) = bench.send(NOBODY);
        assert_eq!(outcome, Outcome::Continue);
        bench.respond(&mut stream, 200, None);
        for piece in 0..64 / per_piece {
            bench.wait(20 * per_piece as u64);
            if stream.looks_at_pieces() {
                let is_last = piece + 1 == 64 / per_piece && says_usage(number);
                stream.note_tail(if is_last {
                    b"{\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":64}}\n\n"
                } else {
                    b"data: x\n\n"
                });
            }
            if piece == 0 { bench.body(&mut stream, 300) } else { stream.count_pieces(1, 300) }
        }
        bench.log(&mut stream, StreamEnd::Complete);
    }
    let report = bench.worker.report(bench.now, 0);
    let overload = report.pools[0].overload.as_ref().unwrap();
    (overload.good_work, overload.output_tokens)
}

#[test]
fn an_engine_that_sends_four_tokens_in_a_piece_has_the_goodput_of_one_that_sends_one() {
    let one = goodput(1, true, |_| true);
    // 100 responses of 100 prompt tokens and 64 of output, which count twice.
    assert_eq!(one, (22_800, 6400));
    assert_eq!(goodput(4, true, |_| true), one);
    assert_eq!(goodput(1, false, |_| false), one);
    assert_eq!(goodput(4, false, |_| true), (0, 1600), "pieces alone: four times slower, and a quarter as long");
}

#[test]
fn where_few_responses_say_their_tokens_the_others_count_by_what_those_have_taught() {
    let (good, tokens) = goodput(4, true, |number| number % 5 == 0);
    // Nobody knows before the first has spoken, which is the first of all.
    assert_eq!((good, tokens), (22_800, 6400));
}
