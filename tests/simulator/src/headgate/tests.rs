//! Headgate end to end in the world.

use std::fmt::Write as _;

use super::*;
use crate::observe::{Fate, Observer, Over};
use crate::setup::{Arrivals, FaultAt, Lengths, Patience, Shape, Source, Tenants};
use crate::world::World;

/// Writes down every end, and counts.
#[derive(Default)]
struct Tape {
    text: String,
    fates: std::collections::BTreeMap<String, u32>,
}

impl Observer for Tape {
    fn on_over(&mut self, over: &Over) {
        let _ = writeln!(self.text, "{over:?}");
        *self.fates.entry(format!("{:?}", over.fate)).or_default() += 1;
    }
}

impl Tape {
    fn count(&self, fate: Fate) -> u32 {
        self.fates.get(&format!("{fate:?}")).copied().unwrap_or(0)
    }
}

fn setup(rps: f64) -> Setup {
    let source = |class: u8| Source {
        class,
        tenants: Tenants { first: 0, count: 20, zipf: 1.0 },
        arrivals: Arrivals::Open { rps: rps / 3.0, cv: 1.0, shape: Shape::Steady },
        prompt: Lengths::LogNormal { median: 400.0, sigma: 0.5, most: 4000 },
        output: Lengths::LogNormal { median: 150.0, sigma: 0.5, most: 2000 },
        patience: Patience { timeout: Duration::from_secs(10), ..Patience::default() },
        from: Duration::ZERO,
        until: Duration::from_secs(3600),
    };
    Setup {
        name: "test".to_owned(),
        duration: Duration::from_secs(8),
        drain: Duration::from_secs(15),
        engines: vec![crate::engine::EngineConfig::default(); 2],
        sources: (0..3).map(source).collect(),
        ..Setup::default()
    }
}

fn play(setup: &Setup, seed: u64) -> Tape {
    let mut tape = Tape::default();
    let mut headgate = Headgate::new(setup, &default_policy(setup)).unwrap();
    World::new(setup, seed).run(&mut headgate, &mut tape).unwrap();
    for proxy in &mut headgate.proxies {
        for worker in 0..setup.workers {
            let report = proxy.vm_mut(worker).worker.report(Timestamp::ZERO, 0);
            for load in report.pools.iter().filter_map(|pool| pool.overload.as_ref()) {
                assert_eq!(load.in_flight, Some(v1::Work::default()), "work of requests that are over");
                assert_eq!(load.queue.as_ref().map(|queue| (queue.requests, queue.bytes)), Some((0, 0)), "ghosts in the queue");
            }
        }
    }
    assert!(headgate.exchanges.iter().all(Option::is_none), "a request is over but its worker still has it");
    tape
}

#[test]
fn under_light_load_everything_is_served() {
    let tape = play(&setup(6.0), 1);
    assert!(tape.count(Fate::Ended(Ending::Completed)) > 30);
    assert_eq!(tape.fates.len(), 1, "{:?}", tape.fates);
}

#[test]
fn the_same_seed_gives_the_same_bytes_under_overload() {
    let setup = setup(80.0);
    let first = play(&setup, 7);
    assert!(first.count(Fate::Refused) > 100 && first.count(Fate::Ended(Ending::Completed)) > 100, "{:?}", first.fates);
    assert_eq!(first.text, play(&setup, 7).text);
}

#[test]
fn losing_the_control_plane_fails_no_request() {
    let mut setup = setup(30.0);
    let lasts = Duration::from_secs(4);
    setup.faults = vec![FaultAt { at: Duration::from_secs(3), fault: Fault::ControlCut { proxies: u16::MAX, lasts } }];
    let tape = play(&setup, 3);
    assert_eq!(tape.count(Fate::Ended(Ending::Failed)), 0);
    assert!(tape.count(Fate::Ended(Ending::Completed)) > 100, "{:?}", tape.fates);
}

#[test]
fn a_pool_that_begins_under_overload_serves_its_first_class_at_once() {
    #[derive(Default)]
    struct First(u32, u32);
    impl Observer for First {
        fn on_over(&mut self, over: &Over) {
            let of_first = over.arrival.class == 0;
            self.0 += u32::from(of_first);
            self.1 += u32::from(of_first && over.fate == Fate::Refused);
        }
    }
    let mut scenario = crate::scenarios::standard("steady-5x").unwrap().unwrap();
    scenario.setup.duration = Duration::from_secs(6);
    let mut first = First::default();
    for seed in 1..=3 {
        let mut headgate = Headgate::new(&scenario.setup, &default_policy(&scenario.setup)).unwrap();
        World::new(&scenario.setup, seed).run(&mut headgate, &mut first).unwrap();
    }
    let First(sent, refused) = first;
    assert!(sent > 200 && 100 * refused <= sent, "{refused} of {sent}");
}

/// The world stops at the first engine that idles while work waits.
#[test]
fn an_engine_that_is_back_has_work_at_once_while_others_wait() {
    let mut scenario = crate::scenarios::standard("engine-lost").unwrap().unwrap();
    scenario.setup.duration = Duration::from_secs(50);
    scenario.setup.drain = Duration::ZERO;
    for seed in 1..=3 {
        let mut headgate = Headgate::new(&scenario.setup, &default_policy(&scenario.setup)).unwrap();
        World::new(&scenario.setup, seed).run(&mut headgate, &mut ()).unwrap();
    }
}

#[test]
fn a_restarted_leader_is_followed_by_another() {
    let mut setup = setup(30.0);
    let restart = |worker, at| FaultAt { at: Duration::from_secs(at), fault: Fault::WorkerRestart { site: Site { proxy: 0, worker } } };
    setup.faults = (0..4).map(|worker| restart(worker, 4)).collect();
    let mut headgate = Headgate::new(&setup, &default_policy(&setup)).unwrap();
    World::new(&setup, 3).run(&mut headgate, &mut ()).unwrap();
    let epochs = headgate.proxies.iter_mut().map(|proxy| proxy.vm_mut(2).worker.limits_epoch(0)).collect::<Vec<_>>();
    assert!(epochs.iter().all(|epoch| *epoch > 0), "limits reach every proxy again: {epochs:?}");
}

#[test]
fn a_policy_that_is_not_valid_is_refused_with_its_field() {
    let setup = setup(1.0);
    let mut policy = default_policy(&setup);
    policy.spec.as_mut().unwrap().overload.as_mut().unwrap().ttft_slo_ms = Some(1);
    let error = Headgate::new(&setup, &policy).err().unwrap().to_string();
    assert!(error.contains("overload.ttftSloMs"), "{error}");
}
