//! The world as a whole: repeatable, conserving, and with the cliff that makes admission worth while.

use std::fmt::Write as _;
use std::time::Duration;

use super::*;
use crate::baselines::no_control::NoControl;
use crate::controller::Arrival;
use crate::engine::{EngineConfig, LlmConfig};
use crate::setup::{Arrivals, Backoff, Fault, FaultAt, Lengths, Retries, Shape, Source, Tenants};

/// Refuses one of three, lets one of three wait for 50 ms.
struct Mixed;

impl Controller for Mixed {
    fn name(&self) -> &'static str {
        "mixed"
    }

    fn on_arrival(&mut self, ctx: &mut Ctx<'_>, arrival: &Arrival) -> Verdict {
        match ctx.rng().below(3) {
            0 => Verdict::Refuse { retry_after: Some(Duration::from_secs(1)) },
            1 => {
                ctx.schedule(Duration::from_millis(50), u64::from(arrival.id.0));
                Verdict::Wait
            }
            _ => Verdict::Admit,
        }
    }

    fn on_timer(&mut self, ctx: &mut Ctx<'_>, token: u64) {
        ctx.release(RequestId(token as u32));
    }
}

/// Writes down everything.
#[derive(Default)]
struct Tape {
    text: String,
    ttft_s: Vec<f64>,
}

impl Observer for Tape {
    fn on_over(&mut self, over: &Over) {
        let _ = writeln!(self.text, "{over:?}");
        if let Some(first) = over.first_token_at {
            self.ttft_s.push(first.since(over.sent_at).as_secs_f64());
        }
    }
}

fn source(rps: f64) -> Source {
    Source {
        class: 1,
        tenants: Tenants { first: 0, count: 100, zipf: 1.0 },
        arrivals: Arrivals::Open { rps, cv: 1.0, shape: Shape::Steady },
        prompt: Lengths::LogNormal { median: 400.0, sigma: 0.7, most: 4000 },
        output: Lengths::LogNormal { median: 200.0, sigma: 0.6, most: 2000 },
        patience: Patience::default(),
        from: Duration::ZERO,
        until: Duration::from_secs(3600),
    }
}

fn setup(rps: f64) -> Setup {
    Setup { name: "test".to_owned(), duration: Duration::from_secs(30), sources: vec![source(rps)], ..Setup::default() }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let mut setup = setup(60.0);
    setup.sources[0].patience =
        Patience { timeout: Duration::from_secs(5), retries: Retries::Honouring { attempts: 3, backoff: Backoff::default() } };
    setup.faults = vec![
        FaultAt { at: Duration::from_secs(10), fault: Fault::EngineLost { engine: 1, lasts: Duration::from_secs(5) } },
        FaultAt { at: Duration::from_secs(12), fault: Fault::Derate { engine: 0, factor: 1.5 } },
        FaultAt { at: Duration::from_secs(14), fault: Fault::WorkerRestart { site: crate::Site { proxy: 0, worker: 1 } } },
    ];
    let run = |seed| {
        let mut tape = Tape::default();
        World::new(&setup, seed).run(&mut Mixed, &mut tape).unwrap();
        tape.text
    };
    let first = run(1);
    assert_eq!(first, run(1));
    assert_ne!(first, run(2));
    for fate in ["Refused", "Completed", "Failed", "attempt: 3"] {
        assert!(first.contains(fate), "{fate} never happened");
    }
}

/// 99th percentile of the time to first token, in seconds, without control.
fn p99(blocks: u32) -> f64 {
    let mut setup = setup(7.5);
    setup.duration = Duration::from_secs(120);
    setup.engines = vec![EngineConfig::Llm(LlmConfig { kv_blocks: blocks, ..LlmConfig::default() })];
    let mut tape = Tape::default();
    World::new(&setup, 1).run(&mut NoControl, &mut tape).unwrap();
    tape.ttft_s.sort_by(f64::total_cmp);
    tape.ttft_s[tape.ttft_s.len() * 99 / 100]
}

#[test]
fn the_cache_is_a_cliff() {
    // 7 % fewer blocks under a load that fits just so.
    let (before, after) = (p99(3000), p99(2800));
    assert!(before < 0.5, "{before} s with room");
    assert!(after > 5.0 * before, "{after} s after, {before} s before");
}

#[test]
fn closed_clients_follow_their_number() {
    let mut setup = setup(1.0);
    setup.sources[0].arrivals = Arrivals::Closed {
        clients: 10,
        think: Duration::from_millis(100),
        shape: Shape::Step { at: Duration::from_secs(10), until: Duration::from_secs(20), factor: 10.0 },
    };
    #[derive(Default)]
    struct InFlight(Vec<u32>);
    impl Observer for InFlight {
        fn on_sample(&mut self, sample: &Sample<'_>) {
            self.0.push(sample.in_flight);
        }
    }
    let mut seen = InFlight::default();
    World::new(&setup, 3).run(&mut NoControl, &mut seen).unwrap();
    let most = |from: usize, to: usize| *seen.0[from * 10..to * 10].iter().max().unwrap();
    assert!(most(0, 10) <= 10 && most(11, 20) > 80 && most(11, 20) <= 100, "{} {}", most(0, 10), most(11, 20));
    assert!(most(28, 30) <= 10, "the others leave: {}", most(28, 30));
}
