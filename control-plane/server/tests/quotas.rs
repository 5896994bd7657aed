//! Quotas over the fleet: 20 proxies, each the core's session and worker on streams of its own, against a whole control plane.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headgate::config::RawConfig;
use headgate_core::request::{HeaderView, RequestInfo, VerifiedIdentity};
use headgate_core::stream::{Event, Outcome, Stream, StreamEnd};

use running::proxy::Proxy;
use running::{apply, connect, get};

#[allow(dead_code, unreachable_pub, reason = "shared with other tests")]
mod running;

const PROXIES: usize = 20;
const RATE: f64 = 1000.0;
/// Requests that each proxy is asked for per second; a hundred times as many where the demand is.
const BASE: f64 = 10.0;
const TICK: Duration = Duration::from_millis(20);
const PHASE: Duration = Duration::from_secs(6);

const POLICY: &str = "\
apiVersion: headgate.dev/v1
kind: AdmissionPolicy
metadata: {name: demo}
spec:
  pool: demo
  classes: [{name: all, whenTripped: reserved_lane}]
  quotas: [{name: everybody, unit: requests, amount: 1000}]
";

/// What all proxies know of each other: nothing but this test's books.
struct World {
    began: Instant,
    /// When requests passed, over all proxies.
    passed: Mutex<Vec<Duration>>,
    over: AtomicBool,
    /// Whether no proxy reaches the control plane.
    cut: AtomicBool,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), passed: Mutex::default(), over: AtomicBool::new(false), cut: AtomicBool::new(false) })
    }
}

/// One proxy, and what it is asked for.
struct Demand {
    index: usize,
    world: Arc<World>,
    proxy: Proxy,
    /// Requests that are due, with fractions.
    due: f64,
}

impl Demand {
    async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        let mut last = Instant::now();
        while !self.world.over.load(Ordering::SeqCst) {
            tokio::select! {
                _ = tick.tick() => {
                    // One proxy loses its streams in the second phase, and finds them again in the third.
                    let elapsed = self.world.began.elapsed();
                    let is_cut = self.world.cut.load(Ordering::SeqCst) || (self.index == 9 && (PHASE..2 * PHASE).contains(&elapsed));
                    if is_cut { self.proxy.cut() } else { self.proxy.on_tick().await }
                    let elapsed = last.elapsed();
                    last = Instant::now();
                    self.serve(elapsed);
                }
                message = self.proxy.message() => self.proxy.on_message(&message).await,
            }
        }
    }

    /// Asks for what is due after `elapsed`.
    fn serve(&mut self, elapsed: Duration) {
        let phase = self.world.began.elapsed().as_secs() / PHASE.as_secs();
        let is_hot = self.index as u64 / 2 == phase * 3 % 10;
        self.due += elapsed.as_secs_f64() * if is_hot { 100.0 * BASE } else { BASE };
        let headers: [(&[u8], &[u8]); 2] = [(b":path", b"/v1/chat/completions"), (b"content-length", b"400")];
        while self.due >= 1.0 {
            self.due -= 1.0;
            let request = RequestInfo::new(HeaderView::from_pairs(&headers), VerifiedIdentity { spiffe: None, jwt_claims: &[] });
            let (mut stream, now) = (Stream::new(), self.proxy.now());
            if stream.handle(&mut self.proxy.worker, now, Event::RequestHeaders(&request)) == Outcome::Continue
                && self.proxy.worker.policies().next().is_some()
            {
                self.world.passed.lock().unwrap().push(self.world.began.elapsed());
            }
            stream.handle(&mut self.proxy.worker, now, Event::Log { endpoint: None, end: StreamEnd::Complete });
        }
    }
}

/// Requests that passed between two times.
fn between(passed: &[Duration], from: Duration, to: Duration) -> f64 {
    passed.iter().filter(|at| (from..to).contains(*at)).count() as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_proxies_use_a_strict_quota_wherever_demand_goes_and_never_pass_it() {
    let directory = tempfile::tempdir().unwrap();
    let running = running::serve(running::flags(directory.path())).await;
    apply(connect(&running).await, POLICY).await;
    let world = World::new();
    let mut proxies = tokio::task::JoinSet::new();
    for index in 0..PROXIES {
        let proxy = Proxy::new(index, world.began, connect(&running).await);
        proxies.spawn(Demand { index, world: world.clone(), proxy, due: 0.0 }.run());
    }
    tokio::time::sleep(3 * PHASE).await;
    world.over.store(true, Ordering::SeqCst);
    while let Some(ended) = proxies.join_next().await {
        ended.unwrap();
    }
    let mut passed = world.passed.lock().unwrap().clone();
    passed.sort_unstable();
    // In any time t at most RATE × (t + 1 s): the balance never rises by more than a second's worth above its least.
    let (mut least, mut most) = (0.0_f64, 0.0_f64);
    for (count, at) in passed.iter().enumerate() {
        let balance = count as f64 - RATE * at.as_secs_f64();
        least = least.min(balance);
        most = most.max(balance + 1.0 - least);
    }
    let windows: Vec<f64> = (0..3)
        .map(|phase| {
            let from = PHASE * phase + Duration::from_secs(2);
            between(&passed, from, PHASE * (phase + 1)) / (RATE * (PHASE.as_secs_f64() - 2.0))
        })
        .collect();
    println!("{} passed; the most at once was {most:.0} of {RATE}; used from 2 s after each shift: {windows:.3?}", passed.len());
    assert!(most <= RATE, "{most} at once");
    assert!(windows.iter().all(|part| *part >= 0.9), "{windows:?}");
    let status = get(&running, "/throttle/status").await;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let quota = &status["pools"][0]["quotas"][0];
    assert_eq!((&quota["name"], &quota["unit"], &quota["mode"]), (&"everybody".into(), &"requests".into(), &"strict".into()), "{status}");
    assert!(quota["committed"].as_f64().unwrap() <= RATE && quota["used_total"].as_f64().unwrap() > 10_000.0, "{quota}");
    assert_eq!(quota["largest"].as_array().unwrap().len(), PROXIES, "{quota}");
    let metrics = get(&running, "/metrics").await;
    assert!(metrics.contains("headgate_quota_capacity_per_second{pool=\"demo\",quota=\"everybody\",unit=\"requests\"} 1000"), "{metrics}");
    running.stop().await;
}

/// Waits until so many requests have passed.
async fn passes(world: &World, count: usize) {
    let began = Instant::now();
    while world.passed.lock().unwrap().len() < count {
        assert!(began.elapsed() < PHASE, "{count} requests have not passed within {PHASE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A proxy of which nobody has heard before has a lease soon after a restart, while others still hold what an earlier control plane gave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_proxy_waits_for_no_lease_to_end_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let running = running::serve(running::flags(directory.path())).await;
    apply(connect(&running).await, POLICY).await;
    let address = running.grpc.to_string();
    let (old, new) = (World::new(), World::new());
    let mut proxies = tokio::task::JoinSet::new();
    for index in 0..4 {
        let proxy = Proxy::new(index, old.began, connect(&running).await);
        proxies.spawn(Demand { index, world: old.clone(), proxy, due: 0.0 }.run());
    }
    let holders = |status: &serde_json::Value| status["pools"][0]["quotas"][0]["largest"].as_array().map_or(0, Vec::len);
    running::status_with(&running, PHASE, |status| holders(status) == 4).await;
    passes(&old, 80).await;
    old.cut.store(true, Ordering::SeqCst);
    running.stop().await;
    let running = running::serve(RawConfig { grpc: Some(address), ..running::flags(directory.path()) }).await;
    old.cut.store(false, Ordering::SeqCst);
    let began = Instant::now();
    let proxy = Proxy::new(19, began, connect(&running).await);
    proxies.spawn(Demand { index: 19, world: new.clone(), proxy, due: 0.0 }.run());
    passes(&new, 1).await;
    println!("its first request passed {:?} after the restart", began.elapsed());
    // The others come back within 1.5 s, and say then what they hold.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    [&old, &new].iter().for_each(|world| world.over.store(true, Ordering::SeqCst));
    while let Some(ended) = proxies.join_next().await {
        ended.unwrap();
    }
    running.stop().await;
}
