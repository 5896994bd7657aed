//! Requests that the filter sends to an engine.

use super::*;
use crate::aperture::Extent;
use crate::envoy::DESTINATION_ENDPOINT;

const CHAT: (&[u8], &[u8]) = (b":path", b"/v1/chat/completions");

/// A worker that picks, and knows two engines of its proxy's.
fn picking(picks: bool) -> Bench {
    let overload = v1::Overload { queue: Some(v1::AdmissionQueue::default()), picks_endpoint: Some(picks), ..Default::default() };
    let mut bench = Bench::new(|spec| {
        spec.overload = Some(overload);
        spec.engines = vec![v1::Engine { metrics_url: "http://engines/metrics".into() }];
    });
    bench.limits(1, u64::MAX);
    bench
}

impl Bench {
    fn limits(&mut self, epoch: u64, streams: u64) {
        let overload = v1::OverloadLimits {
            budgets: Some(v1::Work { streams, ..Default::default() }),
            cut_level: 1024,
            engines: vec!["10.0.0.1:8000".into(), "10.0.0.2:8000".into()],
            engine_bounds: vec![0.0, 0.5, 1.0],
            ..Default::default()
        };
        let limits = v1::Limits { pool: "llm".into(), epoch, ttl_ms: 1000, decay_ms: 500, overload: Some(overload), ..Default::default() };
        self.worker.set_limits(self.now, &limits);
    }
}

/// Where an outcome sends its request.
fn destination(outcome: &Outcome) -> Option<String> {
    let Outcome::ContinueWith(ops) = outcome else { return None };
    ops.iter().find_map(|op| match op {
        HeaderOp::Set { name: DESTINATION_ENDPOINT, value } => Some(value.to_string()),
        HeaderOp::Set { .. } | HeaderOp::Remove { .. } => None,
    })
}

#[test]
fn an_admitted_request_goes_to_the_engine_that_computes_fewest_prompts_of_this_worker() {
    let mut bench = picking(true);
    let (mut first, outcome) = bench.send(NOBODY);
    assert_eq!(destination(&outcome).as_deref(), Some("10.0.0.1:8000"));
    for _ in 0..3 {
        let (mut other, outcome) = bench.send(NOBODY);
        assert_eq!(destination(&outcome).as_deref(), Some("10.0.0.2:8000"));
        bench.log(&mut other, StreamEnd::ByClient);
    }
    let (_second, _) = bench.send(NOBODY);
    bench.respond(&mut first, 200, None);
    bench.body(&mut first, 10);
    assert_eq!(destination(&bench.send(NOBODY).1).as_deref(), Some("10.0.0.1:8000"), "its prompt is computed");
}

#[test]
fn a_worker_sends_to_its_own_part_of_the_proxys_engines_and_nowhere_once_nobody_says_which_live() {
    let mut bench = picking(true);
    bench.worker.set_aperture(0, Extent { from: 0.5, to: 1.0 });
    bench.wait(20);
    for _ in 0..5 {
        assert_eq!(destination(&bench.send(NOBODY).1).as_deref(), Some("10.0.0.2:8000"));
    }
    bench.wait(1600);
    assert_eq!(bench.send(NOBODY).1, Outcome::Continue);
    assert_eq!(picking(false).limits_in_force(), Outcome::Continue, "the policy leaves it to Envoy");
}

impl Bench {
    /// What becomes of a request under limits that name engines.
    fn limits_in_force(mut self) -> Outcome {
        self.send(NOBODY).1
    }
}

#[test]
fn a_request_that_has_waited_is_sent_somewhere_too() {
    let mut bench = picking(true);
    bench.limits(2, 1);
    let (mut first, _) = bench.send(NOBODY);
    let (mut second, outcome) = bench.send(NOBODY);
    assert_eq!(outcome, Outcome::Wait(HeaderOps::default()));
    bench.log(&mut first, StreamEnd::Complete);
    let now = bench.now;
    assert!(destination(&second.release(&mut bench.worker, now)).is_some());
}

#[test]
fn a_client_cannot_choose_the_engine() {
    let forged = (DESTINATION_ENDPOINT.as_bytes(), &b"10.9.9.9:1"[..]);
    let ops = |mut bench: Bench| match bench.send_with(NOBODY, &[CHAT, forged]).1 {
        Outcome::ContinueWith(ops) => ops.to_vec(),
        outcome => panic!("{outcome:?}"),
    };
    let (removal, pick) = (
        HeaderOp::Remove { name: DESTINATION_ENDPOINT.into() },
        HeaderOp::Set { name: DESTINATION_ENDPOINT, value: "10.0.0.1:8000".into() },
    );
    assert_eq!(ops(picking(true)), [removal.clone(), pick]);
    let mut alone = picking(true);
    alone.wait(1600);
    assert_eq!(ops(alone), [removal], "nor where nobody picks");
    assert_eq!(picking(false).send_with(NOBODY, &[CHAT, forged]).1, Outcome::Continue, "another's picks are left alone");
}
