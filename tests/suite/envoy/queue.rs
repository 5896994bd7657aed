//! The queue in the proxy: who waits, who goes first, who is refused, and what clients that leave leave behind.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::future::join_all;
use headgate_test_support::envoy::{Bootstrap, EnvoyOptions, HttpFilter, Upstream as To, WasmFilter};
use headgate_test_support::http_client::Response;
use headgate_test_support::{EnvoyProcess, EnvoyVersion, wait_until};
use headgate_tests::connection::Connection;
use headgate_tests::documents::{bounded_spec, inline, key_header};
use headgate_tests::mesh::PATIENCE;
use headgate_tests::upstream::Upstream;
use serde_json::json;
use tokio::task::JoinHandle;

/// Requests in flight, over both workers.
const BOUND: u32 = 4;

struct Site {
    upstream: Upstream,
    envoy: EnvoyProcess,
}

/// A response, and when it was there.
type Answered = JoinHandle<Result<(Response, Instant)>>;

impl Site {
    /// A queue of `requests`. Nothing else limits: permits alone make a request wait.
    async fn start(version: EnvoyVersion, workers: u32, requests: u32) -> Result<Self> {
        let upstream = Upstream::start().await?;
        let mut spec = bounded_spec(BOUND);
        spec["classes"][1]["maxQueueMs"] = json!(200);
        spec["overload"] = json!({"ttftSloMs": 600_000, "tpotSloMs": 10_000, "queue": {"maxRequests": requests}});
        let filter = WasmFilter::headgate(inline("test", &spec))?;
        let mut options = EnvoyOptions::new(Bootstrap::new(HttpFilter::Wasm(filter), To::Endpoint(upstream.address())));
        (options.version, options.workers) = (version, workers);
        let envoy = EnvoyProcess::start(options).await?;
        Ok(Self { upstream, envoy })
    }

    /// Sends one request on a connection of its own. To abort the task is to leave.
    fn send(&self, class: &'static str, delay_ms: u64) -> Answered {
        let address = self.envoy.address();
        tokio::spawn(async move {
            let delay = delay_ms.to_string();
            let response = Connection::open(address).await?.get("/v1/models", &[key_header(class), ("x-delay-ms", &delay)]).await?;
            Ok((response, Instant::now()))
        })
    }

    /// How often something happened to requests in the queue.
    async fn queue_events(&self, event: &str) -> Result<u64> {
        self.envoy.stat(&format!("headgate_queue.policy.test.event.{event}")).await
    }
}

async fn answers(requests: Vec<Answered>) -> Result<Vec<(Response, Instant)>> {
    join_all(requests).await.into_iter().map(|answer| answer?).collect()
}

fn reason(response: &Response) -> &str {
    response.header("x-headgate-reason").and_then(|reason| reason.split(';').next()).unwrap_or_default()
}

pub(crate) async fn who_finds_no_room_waits_and_the_important_go_first(version: EnvoyVersion) -> Result<()> {
    for workers in [1, 2] {
        let site = Site::start(version.clone(), workers, 200).await?;
        // The first requests take the permits up.
        answers((0..8).map(|_| site.send("high", 20)).collect()).await?;
        site.upstream.take_peak();
        let running: Vec<_> = (0..BOUND).map(|_| site.send("high", 400)).collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let low: Vec<_> = (0..24).map(|_| site.send("low", 30)).collect();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let high: Vec<_> = (0..24).map(|_| site.send("high", 30)).collect();
        let (running, low, high) = (answers(running).await?, answers(low).await?, answers(high).await?);
        let refused = running.iter().chain(&low).chain(&high).find(|(response, _)| response.status != 200);
        ensure!(refused.is_none(), "one was refused: {refused:?}");
        ensure!(site.upstream.take_peak() <= u64::from(BOUND), "more in flight than the bound");
        // Each worker has its own queue: the important pass all others of their own worker, and most of all.
        let served = |of: &[(Response, Instant)]| {
            let mut times: Vec<Instant> = of.iter().map(|(_, at)| *at).collect();
            times.sort_unstable();
            times
        };
        let (low, high) = (served(&low), served(&high));
        ensure!(high[12] < low[12], "{workers} workers: the important were not served before the others");
        let early = low.iter().filter(|at| **at < high[23]).count();
        ensure!(workers > 1 || early <= BOUND as usize, "{early} of 24 unimportant requests were served before the last important one");
    }
    Ok(())
}

pub(crate) async fn who_cannot_start_in_time_is_refused_in_time(version: EnvoyVersion) -> Result<()> {
    let site = Site::start(version, 2, 200).await?;
    let running: Vec<_> = (0..BOUND + 4).map(|_| site.send("high", 1200)).collect();
    wait_until("requests that run", PATIENCE, || async { Ok((site.upstream.total() >= u64::from(BOUND)).then_some(())) }).await?;
    let began = Instant::now();
    for (response, at) in answers((0..6).map(|_| site.send("medium", 0)).collect()).await? {
        let took = at - began;
        ensure!(response.status == 429 && reason(&response) == "expired", "{response:?}");
        ensure!(response.header("retry-after").is_some(), "it is not told when to come back");
        ensure!(took >= Duration::from_millis(190) && took < Duration::from_millis(900), "it was refused after {took:?}, not after 200 ms");
    }
    let answers = answers(running).await?;
    ensure!(answers.iter().all(|(response, _)| response.status == 200), "those that can wait are served");
    Ok(())
}

/// Opens `clients` at once; when nothing moves any more, those that neither run nor were refused.
async fn storm(site: &Site, clients: usize) -> Result<(Vec<Answered>, usize)> {
    let before = site.upstream.total();
    let storm: Vec<_> = (0..clients).map(|_| site.send("high", 60_000)).collect();
    let mut settled = (0, Instant::now());
    wait_until("storm that has settled", PATIENCE, || {
        let refused = storm.iter().filter(|request| request.is_finished()).count();
        if refused != settled.0 {
            settled = (refused, Instant::now());
        }
        let is_settled = site.upstream.total() >= before + u64::from(BOUND) && settled.1.elapsed() > Duration::from_millis(700);
        std::future::ready(Ok(is_settled.then_some(())))
    })
    .await?;
    Ok((storm, clients - settled.0 - BOUND as usize))
}

pub(crate) async fn clients_that_leave_the_queue_leave_nothing(version: EnvoyVersion) -> Result<()> {
    let site = Site::start(version, 2, 1000).await?;
    answers((0..8).map(|_| site.send("high", 20)).collect()).await?;
    let mut gone = 0;
    for round in 0..3 {
        let (storm, waiting) = storm(&site, 800).await?;
        ensure!(waiting >= 200, "round {round}: only {waiting} of 800 wait");
        storm.iter().for_each(JoinHandle::abort);
        gone += waiting as u64;
        wait_until("queue without the clients that left", PATIENCE, || async {
            let left = site.queue_events("abandoned").await? + site.queue_events("released").await?;
            Ok((left >= gone).then_some(()))
        })
        .await?;
        // Nothing is left of them: the next ones are served at once, whatever the workers' own cut-off still says.
        let began = Instant::now();
        for (response, at) in answers((0..BOUND).map(|_| site.send("high", 0)).collect()).await? {
            ensure!(response.status == 200 && at - began < Duration::from_secs(2), "round {round}: {response:?} after {:?}", at - began);
        }
    }
    Ok(())
}

pub(crate) async fn the_queue_is_never_longer_than_its_bound(version: EnvoyVersion) -> Result<()> {
    let site = Site::start(version, 2, 40).await?;
    answers((0..8).map(|_| site.send("high", 20)).collect()).await?;
    let (requests, waiting) = storm(&site, 200).await?;
    ensure!((20..=40).contains(&waiting), "{waiting} wait, allowed 40");
    requests.iter().for_each(JoinHandle::abort);
    Ok(())
}
