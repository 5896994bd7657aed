use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::policy::ErrorRateConfig;

fn config() -> BreakerConfig {
    BreakerConfig { ramp: Duration::ZERO, ..BreakerConfig::default() }
}

/// A breaker with its time and randomness.
struct Bench {
    config: BreakerConfig,
    breaker: Breaker,
    now: Timestamp,
    rng: Rng,
}

impl Bench {
    fn new(config: BreakerConfig) -> Self {
        Self { breaker: Breaker::new(&config), config, now: Timestamp::from_millis(1_000_000), rng: Rng::new(1) }
    }

    fn pass(&mut self) -> Option<Pass> {
        match self.breaker.admit(&self.config, self.now, &mut self.rng) {
            Gate::Open(pass) => Some(pass),
            Gate::Shut { .. } => None,
        }
    }

    fn settle(&mut self, pass: Pass, verdict: Verdict) {
        self.breaker.settle(&self.config, self.now, pass, verdict);
    }

    fn request(&mut self, verdict: Verdict) {
        let pass = self.pass().expect("the breaker lets it pass");
        self.settle(pass, verdict);
    }

    fn requests(&mut self, count: u32, verdict: Verdict) {
        for _ in 0..count {
            self.request(verdict);
        }
    }

    fn wait(&mut self, millis: u64) {
        self.now = self.now + Duration::from_millis(millis);
    }

    fn state(&self) -> v1::BreakerState {
        self.breaker.state()
    }
}

#[test]
fn the_fifth_failure_in_a_row_opens_it() {
    let mut bench = Bench::new(config());
    bench.requests(4, Verdict::Failure);
    bench.request(Verdict::Success);
    bench.requests(4, Verdict::Failure);
    assert_eq!(bench.state(), v1::BreakerState::Closed);
    bench.request(Verdict::Failure);
    assert_eq!(bench.state(), v1::BreakerState::Open);
    assert_eq!(bench.breaker.opened(), Opened { value: 5.0, threshold: 5.0 });
    bench.wait(12_000);
    assert_eq!(bench.breaker.admit(&bench.config, bench.now, &mut bench.rng), Gate::Shut { recovery: Duration::from_secs(18) });
}

#[test]
fn a_client_that_leaves_is_no_failure_and_no_success() {
    let mut bench = Bench::new(config());
    bench.requests(4, Verdict::Failure);
    bench.requests(100, Verdict::Unknown);
    assert_eq!(bench.state(), v1::BreakerState::Closed);
    bench.request(Verdict::Failure);
    assert_eq!(bench.state(), v1::BreakerState::Open, "leaving clients must not interrupt the row");
}

#[test]
fn half_of_thirty_seconds_failing_opens_it() {
    let mut bench = Bench::new(config());
    for _ in 0..9 {
        bench.request(Verdict::Failure);
        bench.request(Verdict::Success);
    }
    bench.request(Verdict::Failure);
    assert_eq!(bench.state(), v1::BreakerState::Closed, "19 requests are too few to judge");
    bench.request(Verdict::Failure);
    assert_eq!(bench.state(), v1::BreakerState::Open, "11 of 20");
    assert_eq!(bench.breaker.opened(), Opened { value: 55.0, threshold: 50.0 });
}

#[test]
fn a_fifth_of_five_minutes_failing_opens_it_though_thirty_seconds_look_well() {
    let mut bench = Bench::new(config());
    let mut failures = 0;
    // One in four fails, a request a second.
    while bench.state() == v1::BreakerState::Closed && failures < 50 {
        bench.requests(3, Verdict::Success);
        bench.request(Verdict::Failure);
        failures += 1;
        bench.wait(4000);
    }
    assert_eq!(failures, 5, "the twentieth request is the fifth failure: 25 %");
    assert_eq!(bench.breaker.opened(), Opened { value: 25.0, threshold: 20.0 });
}

#[test]
fn results_leave_the_window() {
    let rate = ErrorRateConfig { percent: 50, window: Duration::from_secs(30), min_requests: 20 };
    let mut bench = Bench::new(BreakerConfig { consecutive_failures: 10_000, error_rates: vec![rate], ..config() });
    bench.requests(19, Verdict::Failure);
    bench.wait(31_000);
    bench.requests(11, Verdict::Success);
    bench.requests(10, Verdict::Failure);
    assert_eq!(bench.state(), v1::BreakerState::Closed, "10 of 21 in the window");
    bench.requests(1, Verdict::Failure);
    assert_eq!(bench.state(), v1::BreakerState::Open, "11 of 22");
}

fn half_open() -> Bench {
    let mut bench = Bench::new(config());
    bench.requests(5, Verdict::Failure);
    bench.wait(29_999);
    assert!(bench.pass().is_none());
    bench.wait(1);
    bench
}

#[test]
fn five_probes_at_once_and_no_more() {
    let mut bench = half_open();
    let probes: Vec<Pass> = (0..5).map(|_| bench.pass().unwrap()).collect();
    assert_eq!(bench.state(), v1::BreakerState::HalfOpen);
    assert!(bench.pass().is_none());
    bench.settle(probes[0], Verdict::Success);
    assert!(bench.pass().is_some(), "a probe that came back makes room for the next");
    assert!(bench.pass().is_none());
}

#[test]
fn a_probe_whose_client_left_makes_room_and_decides_nothing() {
    let mut bench = half_open();
    for _ in 0..100 {
        bench.request(Verdict::Unknown);
    }
    assert_eq!(bench.state(), v1::BreakerState::HalfOpen);
}

#[test]
fn three_successes_close_it() {
    let mut bench = half_open();
    bench.requests(2, Verdict::Success);
    assert_eq!(bench.state(), v1::BreakerState::HalfOpen);
    bench.request(Verdict::Success);
    assert_eq!(bench.state(), v1::BreakerState::Closed);
    bench.requests(4, Verdict::Failure);
    assert_eq!(bench.state(), v1::BreakerState::Closed, "the row begins anew");
}

#[test]
fn one_failed_probe_opens_it_again_for_the_whole_time() {
    let mut bench = half_open();
    let (first, second) = (bench.pass().unwrap(), bench.pass().unwrap());
    bench.settle(first, Verdict::Failure);
    assert_eq!(bench.state(), v1::BreakerState::Open);
    bench.wait(30_000);
    let next = bench.pass().unwrap();
    bench.settle(second, Verdict::Success);
    bench.requests(2, Verdict::Success);
    assert_eq!(bench.state(), v1::BreakerState::HalfOpen, "a probe of the round before does not count in this one");
    bench.settle(next, Verdict::Success);
    assert_eq!(bench.state(), v1::BreakerState::Closed);
}

#[test]
fn results_from_before_the_opening_are_ignored() {
    let mut bench = Bench::new(config());
    let old: Vec<Pass> = (0..10).map(|_| bench.pass().unwrap()).collect();
    bench.requests(5, Verdict::Failure);
    bench.wait(30_000);
    let probe = bench.pass().unwrap();
    for pass in old {
        bench.settle(pass, Verdict::Failure);
    }
    assert_eq!(bench.state(), v1::BreakerState::HalfOpen);
    bench.settle(probe, Verdict::Success);
}

#[test]
fn traffic_grows_back_over_the_ramp() {
    let mut bench = Bench::new(BreakerConfig { ramp: Duration::from_secs(10), ..BreakerConfig::default() });
    bench.requests(5, Verdict::Failure);
    bench.wait(30_000);
    bench.requests(3, Verdict::Success);
    assert_eq!(bench.state(), v1::BreakerState::Ramping);
    let mut shares = Vec::new();
    for _ in 0..5 {
        let passed = (0..1000).filter(|_| bench.pass().is_some()).count();
        shares.push(passed);
        bench.wait(2000);
    }
    // 10 %, then 18 points more every two seconds.
    for (share, expected) in shares.iter().zip([100, 280, 460, 640, 820]) {
        assert!(share.abs_diff(expected) < 60, "{shares:?}");
    }
    assert_eq!((0..1000).filter(|_| bench.pass().is_some()).count(), 1000);
    assert_eq!(bench.state(), v1::BreakerState::Closed);
}

#[test]
fn failures_in_the_ramp_open_it_again() {
    let mut bench = Bench::new(BreakerConfig { ramp: Duration::from_secs(10), ..BreakerConfig::default() });
    bench.requests(5, Verdict::Failure);
    bench.wait(30_000);
    bench.requests(3, Verdict::Success);
    bench.wait(9_000);
    let passes: Vec<Pass> = (0..20).filter_map(|_| bench.pass()).take(5).collect();
    for pass in passes {
        bench.settle(pass, Verdict::Failure);
    }
    assert_eq!(bench.state(), v1::BreakerState::Open);
}

#[test]
fn an_endpoint_needs_no_permission_to_recover() {
    let (mut keyed, config, mut now) = (KeyedBreakers::default(), config(), Timestamp::from_millis(1));
    for _ in 0..5 {
        keyed.observe(&config, now, b"10.0.0.1:80", Verdict::Failure);
        keyed.observe(&config, now, b"10.0.0.2:80", Verdict::Success);
    }
    assert_eq!(keyed.not_closed().collect::<Vec<_>>(), [(&b"10.0.0.1:80"[..], v1::BreakerState::Open)]);
    now = now + config.open;
    keyed.on_tick(&config, now);
    assert_eq!(keyed.not_closed().next().map(|(_, state)| state), Some(v1::BreakerState::HalfOpen));
    for _ in 0..3 {
        keyed.observe(&config, now, b"10.0.0.1:80", Verdict::Success);
    }
    assert_eq!(keyed.not_closed().count(), 0);
}

#[test]
fn keys_are_bounded_and_open_ones_are_kept() {
    let (mut keyed, config, now) = (KeyedBreakers::default(), config(), Timestamp::from_millis(1));
    for _ in 0..5 {
        keyed.observe(&config, now, b"broken", Verdict::Failure);
    }
    for number in 0..10_000_u32 {
        keyed.observe(&config, now + Duration::from_millis(u64::from(number)), &number.to_le_bytes(), Verdict::Failure);
    }
    assert_eq!(keyed.len(), MAX_KEYS);
    assert_eq!(keyed.not_closed().map(|(key, _)| key).collect::<Vec<_>>(), [b"broken"]);
    keyed.observe(&config, now, &[b'x'; 4000], Verdict::Failure);
    assert!(!keyed.has(&[b'x'; 4000]), "a huge key has no breaker");
}

#[test]
fn a_dependency_is_probed_once_at_a_time_and_the_probe_comes_back() {
    let (mut keyed, mut config, mut now, mut rng) = (KeyedBreakers::default(), config(), Timestamp::from_millis(1), Rng::new(1));
    config.half_open_probes = 1;
    for key in [b"search", b"tokens"] {
        for _ in 0..5 {
            keyed.observe(&config, now, key, Verdict::Failure);
        }
    }
    assert!(matches!(keyed.admit(&config, now, &mut rng), KeyedGate::Shut { recovery, .. } if recovery == config.open));
    now = now + config.open;
    for _ in 0..3 {
        let KeyedGate::Open(Some(probe)) = keyed.admit(&config, now, &mut rng) else { panic!("no probe") };
        assert!(keyed.is_for(probe, b"search"));
        assert!(matches!(keyed.admit(&config, now, &mut rng), KeyedGate::Shut { .. }));
        keyed.settle(&config, now, probe, Verdict::Success);
    }
    let KeyedGate::Open(Some(probe)) = keyed.admit(&config, now, &mut rng) else { panic!("no probe") };
    assert!(keyed.is_for(probe, b"tokens"), "the second has its turn when the first is closed");
}
