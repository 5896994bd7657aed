//! Candidates that govern a part of the requests, over gRPC: eight proxies with the core's session and worker against a whole control plane.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headgate::serve::Running;
use headgate_core::request::{HeaderView, RequestInfo, VerifiedIdentity};
use headgate_core::stream::{Event, Outcome, Stream, StreamEnd};
use headgate_protos::v1;
use headgate_protos::v1::policy_life_client::PolicyLifeClient;
use headgate_protos::v1::policy_service_client::PolicyServiceClient;
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;

use running::proxy::Proxy;
use running::{apply, connect, status_with};

#[allow(dead_code, unreachable_pub, reason = "shared with other tests")]
mod running;

const PROXIES: usize = 8;
const TICK: Duration = Duration::from_millis(10);
/// Requests of each proxy per second, each of which takes so long: ten in flight.
const RATE: f64 = 50.0;
const SERVICE: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(40);

/// What became of the requests of all proxies: when each came, and whether it was served.
struct World {
    began: Instant,
    fates: Mutex<Vec<(Duration, bool)>>,
    over: AtomicBool,
}

/// One proxy, and its requests.
struct Demand {
    index: usize,
    world: Arc<World>,
    proxy: Proxy,
    due: f64,
    asked: u64,
    in_flight: VecDeque<(Instant, Stream)>,
}

impl Demand {
    async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        let mut last = Instant::now();
        while !self.world.over.load(Ordering::SeqCst) {
            tokio::select! {
                _ = tick.tick() => {
                    self.proxy.on_tick().await;
                    self.finish();
                    self.ask(last.elapsed());
                    last = Instant::now();
                }
                message = self.proxy.message() => self.proxy.on_message(&message).await,
            }
        }
    }

    /// Answers what has been served long enough.
    fn finish(&mut self) {
        let now = self.proxy.now();
        while self.in_flight.front().is_some_and(|(at, _)| at.elapsed() >= SERVICE) {
            let Some((_, mut stream)) = self.in_flight.pop_front() else { return };
            stream.handle(&mut self.proxy.worker, now, Event::ResponseHeaders { status: 200, failed_dependency: None });
            stream.handle(&mut self.proxy.worker, now, Event::ResponseBody { len: 9, end_of_stream: true });
            stream.handle(&mut self.proxy.worker, now, Event::Log { endpoint: None, end: StreamEnd::Complete });
        }
    }

    fn ask(&mut self, elapsed: Duration) {
        // Nobody asks before there is a policy.
        if self.proxy.worker.policies().next().is_none() {
            return;
        }
        self.due += elapsed.as_secs_f64() * RATE;
        while self.due >= 1.0 {
            (self.due, self.asked) = (self.due - 1.0, self.asked + 1);
            let id = format!("{}-{}", self.index, self.asked);
            let headers: [(&[u8], &[u8]); 2] = [(b":path", b"/v1/chat/completions"), (b"x-request-id", id.as_bytes())];
            let request = RequestInfo::new(HeaderView::from_pairs(&headers), VerifiedIdentity { spiffe: None, jwt_claims: &[] });
            let (mut stream, now) = (Stream::new(), self.proxy.now());
            let is_served = stream.handle(&mut self.proxy.worker, now, Event::RequestHeaders(&request)) == Outcome::Continue;
            self.world.fates.lock().unwrap().push((self.world.began.elapsed(), is_served));
            if is_served {
                self.in_flight.push_back((Instant::now(), stream));
            } else {
                stream.handle(&mut self.proxy.worker, now, Event::Log { endpoint: None, end: StreamEnd::Complete });
            }
        }
    }
}

/// A control plane with proxies that are asked for requests.
struct Bench {
    running: Running,
    world: Arc<World>,
    demands: JoinSet<()>,
    channel: Channel,
}

impl Bench {
    async fn new(data_dir: &Path) -> Self {
        let running = running::serve(running::flags(data_dir)).await;
        let channel = connect(&running).await;
        apply(channel.clone(), &document("demo", "concurrency: {maxInFlight: 40}")).await;
        let world = Arc::new(World { began: Instant::now(), fates: Mutex::default(), over: AtomicBool::new(false) });
        let mut demands = JoinSet::new();
        for index in 0..PROXIES {
            let proxy = Proxy::new(index, world.began, connect(&running).await);
            let demand = Demand { index, world: world.clone(), proxy, due: 0.0, asked: 0, in_flight: VecDeque::new() };
            demands.spawn(demand.run());
        }
        let bench = Self { running, world, demands, channel };
        bench.wait(|status| status["pools"][0]["classes"][0]["completed"].as_u64().unwrap_or(0) > 100).await;
        bench
    }

    /// The status, as soon as `wanted` holds.
    async fn wait(&self, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        status_with(&self.running, PATIENCE, wanted).await
    }

    /// Requests since `from`, and those of them that were refused.
    fn fates(&self, from: Duration) -> (usize, usize) {
        let fates = self.world.fates.lock().unwrap();
        let since = || fates.iter().filter(|(at, _)| *at >= from);
        (since().count(), since().filter(|(_, is_served)| !is_served).count())
    }

    async fn get(&self, name: &str) -> Result<v1::PolicyStatus, tonic::Status> {
        let request = v1::GetPolicyRequest { name: name.to_owned() };
        Ok(PolicyServiceClient::new(self.channel.clone()).get_policy(request).await?.into_inner())
    }

    async fn history(&self, name: &str) -> Vec<v1::PolicyRevision> {
        let request = v1::ListPolicyRevisionsRequest { name: name.to_owned() };
        PolicyLifeClient::new(self.channel.clone()).list_policy_revisions(request).await.unwrap().into_inner().revisions
    }

    async fn end(mut self) {
        self.world.over.store(true, Ordering::SeqCst);
        while let Some(ended) = self.demands.join_next().await {
            ended.unwrap();
        }
        self.running.stop().await;
    }
}

fn document(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: headgate.dev/v1\nkind: AdmissionPolicy\nmetadata: {{name: {name}}}\nspec:\n  pool: demo\n  \
         classes: [{{name: all, whenTripped: reserved_lane}}]\n  {rest}\n"
    )
}

fn phase(status: &serde_json::Value) -> &str {
    status["rollouts"][0]["phase"].as_str().unwrap_or_default()
}

fn audit(data_dir: &Path, action: &str) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(data_dir.join("audit.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter(|line| line["action"] == action).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_candidate_is_aborted_by_itself_and_no_more_than_its_part_was_hurt() {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new(directory.path()).await;
    // Room for one request in place of ten: most of what it governs is refused.
    let bad = document("next", "concurrency: {maxInFlight: 1}\n  candidate: {of: demo, requestsPercent: 20, rollout: {minSamples: 100}}");
    let began = bench.world.began.elapsed();
    let applied = apply(bench.channel.clone(), &bad).await;
    let status = bench.wait(|status| phase(status) == "aborted").await;
    let took = bench.world.began.elapsed() - began;
    let alarm = |status: &serde_json::Value| status["alarms"].as_array().unwrap().iter().any(|alarm| alarm["alarm"] == "candidate_aborted");
    bench.wait(alarm).await;
    let reason = status["rollouts"][0]["halted"].as_str().unwrap();
    assert!(reason.contains("requests not served within their objective"), "{reason}");

    // What is on its way when the push leaves may still be refused; nothing half a second later.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (asked, refused) = bench.fates(began);
    let after = bench.world.began.elapsed();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (asked_after, refused_after) = bench.fates(after);
    println!(
        "aborted after {:.1} s; {refused} of {asked} requests refused until then; {refused_after} of {asked_after} after it",
        took.as_secs_f64()
    );
    assert!(refused > 20 && refused_after == 0 && asked_after > 100, "{refused} {refused_after} {asked_after}");
    // A fifth of them was its part: with 1000 requests five standard deviations are six points.
    assert!((refused as f64) < 0.27 * asked as f64, "{refused} of {asked}");

    let now = bench.get("next").await.unwrap();
    assert_eq!(now.policy.as_ref().unwrap().spec.as_ref().unwrap().candidate.as_ref().unwrap().halted, reason);
    let again = apply(bench.channel.clone(), &bad).await;
    assert_eq!(Some(&again), now.policy.as_ref(), "what was aborted is not begun anew by a job that applies it again");
    let history = bench.history("next").await;
    let authors: Vec<&str> = history.iter().map(|revision| revision.author.as_str()).collect();
    assert_eq!((authors, history[1].version.as_str()), (vec!["headgate", "anonymous"], applied.version.as_str()));
    let recorded = audit(directory.path(), "policy.abort");
    assert_eq!((&recorded[0]["who"], &recorded[0]["reason"]), (&"headgate".into(), &reason.into()), "{recorded:?}");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_candidate_goes_from_percentage_to_percentage_of_the_proxies_and_is_promoted() {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new(directory.path()).await;
    let rollout = "rollout: {steps: [80], holdMs: 1000, minSamples: 100}";
    let good = document("next", &format!("concurrency: {{maxInFlight: 50}}\n  candidate: {{of: demo, proxiesPercent: 40, {rollout}}}"));
    apply(bench.channel.clone(), &good).await;
    let mut life = PolicyLifeClient::new(bench.channel.clone());
    let delete = v1::DeletePolicyRequest { name: "demo".to_owned(), ..Default::default() };
    let refused = PolicyServiceClient::new(bench.channel.clone()).delete_policy(delete).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "name: policy `next` is its candidate; delete or promote that one first")
    );
    let status = bench.wait(|status| phase(status) == "complete").await;
    assert_eq!(status["rollouts"][0]["percents"], serde_json::json!([80]));
    assert_eq!(audit(directory.path(), "policy.advance").len(), 1);
    let told = bench.get("next").await.unwrap();
    let n_with = told.proxies_current + told.proxies_behind;
    assert!((1..PROXIES as u32).contains(&n_with), "a part of the proxies has it: {n_with}");

    let request = v1::PromotePolicyRequest { name: "next".to_owned(), ..Default::default() };
    let promoted = life.promote_policy(request).await.unwrap().into_inner();
    assert_eq!(promoted.changed, ["concurrency.maxInFlight: 40 -> 50"]);
    let version = promoted.policy.unwrap().version;
    let all = PROXIES as u32;
    let began = Instant::now();
    while bench.get("demo").await.unwrap().proxies_current != all {
        assert!(began.elapsed() < PATIENCE, "{:?}", bench.get("demo").await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let history = bench.history("demo").await;
    assert_eq!(
        (history[0].version.as_str(), history[0].changed.as_slice()),
        (version.as_str(), ["concurrency.maxInFlight".to_owned()].as_slice())
    );
    assert_eq!(bench.get("next").await.unwrap_err().code(), Code::NotFound, "the candidate has become the policy");
    let (asked, refused) = bench.fates(Duration::ZERO);
    assert_eq!(refused, 0, "of {asked}");
    bench.end().await;
}
