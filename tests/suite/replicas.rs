//! Several replicas over real etcds, with a real Envoy, while things go wrong; and one replica that is killed while it writes.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use headgate_test_support::artefact;
use headgate_test_support::chaos::writer::kill_and_look;
use headgate_test_support::chaos::{self, Findings, Plan};
use headgate_test_support::control_plane::ControlPlaneOptions;
use headgate_test_support::envoy::{EnvoyOptions, Upstream, WasmFilter};
use headgate_test_support::http_client;
use headgate_test_support::nvml::STATE_VARIABLE;
use headgate_test_support::replicas::Standing;
use headgate_test_support::{
    Bootstrap, ControlPlaneProcess, EnvoyProcess, HttpFilter, NvmlDevice, NvmlState, Process, Replicas, wait_until,
};
use headgate_tests::connection::Connection;
use headgate_tests::documents::{document, key_header, spec};
use rand::SeedableRng as _;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);
/// Longest time without a leader after the leader was lost.
const NEW_LEADER_LIMIT_MS: f64 = 3000.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_goes_wrong_nothing_acknowledged_is_lost_no_request_fails_and_one_leads() -> Result<()> {
    let seed = rand::random();
    println!("seed {seed}");
    let Findings {
        writes_lost,
        requests,
        requests_failed,
        first_failures,
        worst_new_leader_ms,
        violations,
        limits_seen,
        writes_acknowledged,
        ..
    } = chaos::run(Plan { seed, faults: 6 }, |line| println!("{line}")).await?;
    ensure!(writes_lost.is_empty(), "acknowledged writes are lost: {writes_lost:?}");
    ensure!(requests_failed == 0, "{requests_failed} of {requests} requests failed: {first_failures:?}");
    ensure!(violations.is_empty(), "{violations:?}");
    ensure!(worst_new_leader_ms <= NEW_LEADER_LIMIT_MS, "another replica led only after {worst_new_leader_ms} ms");
    ensure!(writes_acknowledged > 50 && limits_seen > 50, "{writes_acknowledged} writes and {limits_seen} limits prove nothing");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_to_any_replica_is_read_from_all_and_refused_clearly_while_the_store_is_gone() -> Result<()> {
    let mut replicas = Replicas::start(2, &ControlPlaneOptions::new(None)?).await?;
    replicas.control[0].apply(&document("a", &spec()))?;
    wait_until("policy on the other replica", PATIENCE, || async {
        Ok(replicas.control[1].command(&["policy", "get", "a"])?.status.success().then_some(()))
    })
    .await?;
    for member in 0..replicas.etcd.len() {
        replicas.etcd.process(member).kill_9()?;
    }
    let mut other = spec();
    other["pool"] = "other".into();
    other["routes"] = serde_json::json!([{"pathPrefix": "/other/"}]);
    let error = replicas.control[1].apply(&document("b", &other)).unwrap_err().to_string();
    ensure!(error.contains("the store cannot be reached"), "{error}");
    let ready = replicas.control[1].get("/readyz").await?;
    ensure!(ready.status.is_success(), "what is in force is served on: {}", ready.text());
    ensure!(replicas.control[1].command(&["policy", "get", "a"])?.status.success(), "what is in force can be read");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_cut_off_for_longer_than_etcd_remembers_reads_everything_anew() -> Result<()> {
    let replicas = Replicas::start(2, &ControlPlaneOptions::new(None)?).await?;
    let of_pool = |pool: &str| {
        let mut spec = spec();
        spec["pool"] = pool.into();
        document("kept", &spec)
    };
    replicas.control[0].apply(&of_pool("first"))?;
    replicas.control[0].apply(&document(
        "gone",
        &serde_json::json!({"pool": "gone", "routes": [{"pathPrefix": "/gone/"}], "classes": [{"name": "low", "whenTripped": "refuse"}]}),
    ))?;
    let shown = |name: &str| {
        replicas.control[1].command(&["policy", "get", name]).map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    wait_until("both policies", PATIENCE, || std::future::ready(shown("gone").map(|text| text.contains("/gone/").then_some(())))).await?;
    let problem = async || anyhow::Ok(replicas.control[1].status().await?["replica"]["store_problem"].as_str().unwrap_or("").to_owned());
    replicas.to_etcd[1].iter().for_each(|link| link.cut());
    wait_until("a replica that knows that it is cut off", PATIENCE, || async { Ok((!problem().await?.is_empty()).then_some(())) }).await?;
    replicas.control[0].apply(&of_pool("second"))?;
    ensure!(replicas.control[0].command(&["policy", "delete", "gone"])?.status.success(), "the deletion is refused");
    let etcd = replicas.etcd.client(0);
    let ask = async |path: &str, body: serde_json::Value| {
        let request = http::Request::post(path).body(bytes::Bytes::from(body.to_string()))?;
        http_client::send(etcd, request).await?.json()
    };
    let revision = ask("/v3/kv/range", serde_json::json!({"key": "AA=="})).await?["header"]["revision"].clone();
    let compacted = ask("/v3/kv/compaction", serde_json::json!({"revision": revision, "physical": true})).await?;
    ensure!(compacted["header"].is_object(), "etcd compacts nothing: {compacted}");
    replicas.to_etcd[1].iter().for_each(|link| link.mend());
    wait_until("what was changed meanwhile", PATIENCE, || {
        std::future::ready(shown("kept").map(|text| text.contains("second").then_some(())))
    })
    .await?;
    ensure!(shown("gone")?.is_empty(), "a deletion that etcd has forgotten is one all the same");
    // From there on it follows again.
    replicas.control[0].apply(&of_pool("third"))?;
    wait_until("what was changed then", PATIENCE, || std::future::ready(shown("kept").map(|text| text.contains("third").then_some(()))))
        .await
}

/// A replica that does not lead, and is none of `others`.
async fn follower(replicas: &Replicas, others: &[usize]) -> Result<usize> {
    let leader = replicas.leader().await?.index;
    let found = (0..replicas.control.len()).find(|index| *index != leader && !others.contains(index));
    found.context("no follower")
}

/// Waits until low is refused, or let in, at an Envoy.
async fn low_gets(envoy: &EnvoyProcess, status: u16) -> Result<()> {
    wait_until(&format!("answer {status}"), PATIENCE, || async {
        let response = Connection::open(envoy.address()).await?.get("/v1/models", &[key_header("low")]).await?;
        Ok((response.status == status).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_replica_hears_of_a_gpu_is_in_force_at_the_proxy_of_another_whoever_leads() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let gpu = NvmlState::create(&folder.path().join("nvml.json"), &[NvmlDevice::with_memory_used(0, 10.0)])?;
    let mut replicas = Replicas::start(3, &ControlPlaneOptions::new(None)?).await?;
    replicas.control[0].apply(&document("test", &spec()))?;
    let heard = follower(&replicas, &[]).await?;
    let pushes = follower(&replicas, &[heard]).await?;
    let mut agent = Command::new(artefact::program("headgate")?);
    agent.args(["agent", "--node", "gpu-node", "--server", &format!("http://{}", replicas.control[heard].grpc())]);
    agent.env("HEADGATE_NVML_LIB", artefact::nvml_shim()?).env(STATE_VARIABLE, gpu.path());
    let _agent = Process::spawn("agent", &mut agent, &folder.path().join("log"))?;
    let filter = HttpFilter::Wasm(WasmFilter::headgate_controlled()?);
    let bootstrap = Bootstrap::new(filter, Upstream::Direct).with_control_plane(replicas.control[pushes].grpc());
    let envoy = EnvoyProcess::start(EnvoyOptions::new(bootstrap)).await?;
    low_gets(&envoy, 200).await?;
    gpu.set_memory_used(90.0)?;
    low_gets(&envoy, 429).await?;
    // Another one leads: that the GPU has room again is known from it alone.
    let before = replicas.leader().await?;
    replicas.control[before.index].kill_9()?;
    wait_until("another leader", PATIENCE, || async {
        Ok(replicas.standings().await.into_iter().find(|standing| standing.is_acting && standing.term > before.term))
    })
    .await?;
    gpu.set_memory_used(10.0)?;
    low_gets(&envoy, 200).await?;
    gpu.set_memory_used(90.0)?;
    low_gets(&envoy, 429).await
}

/// What became of requests of the class `low` that were sent one after another.
#[derive(Debug, Default)]
struct Fates {
    asked: AtomicU64,
    refused: AtomicU64,
}

impl Fates {
    /// Asks until `over`. Whatever is neither served nor refused is an error.
    async fn ask(&self, envoy: SocketAddr, over: &AtomicBool) -> Result<()> {
        let mut connection = Connection::open(envoy).await?;
        while !over.load(Ordering::SeqCst) {
            let status = connection.get("/v1/models", &[key_header("low")]).await?.status.as_u16();
            ensure!(matches!(status, 200 | 429), "a request is answered {status}");
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.refused.fetch_add(u64::from(status == 429), Ordering::SeqCst);
        }
        Ok(())
    }
}

/// The rollout as the replica that leads in a term after `term` tells it, once `wanted` holds of it.
async fn rollout(replicas: &Replicas, term: u64, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<(Standing, Value)> {
    wait_until(what, 3 * PATIENCE, || async {
        let standings = replicas.standings().await;
        let Some(leader) = standings.into_iter().find(|standing| standing.is_acting && standing.term > term) else { return Ok(None) };
        let rollout = replicas.control[leader.index].status().await?["rollouts"][0].clone();
        Ok(wanted(&rollout).then_some((leader, rollout)))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_goes_on_with_the_same_part_under_another_leader_and_comes_to_its_verdict() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let gpu = NvmlState::create(&folder.path().join("nvml.json"), &[NvmlDevice::with_memory_used(0, 60.0)])?;
    let mut replicas = Replicas::start(3, &ControlPlaneOptions::new(Some(gpu.path()))?).await?;
    let proxies_at = follower(&replicas, &[]).await?;
    replicas.control[proxies_at].apply(&document("test", &spec()))?;
    let filter = HttpFilter::Wasm(WasmFilter::headgate_controlled()?);
    let bootstrap = Bootstrap::new(filter, Upstream::Direct).with_control_plane(replicas.control[proxies_at].grpc());
    let envoy = EnvoyProcess::start(EnvoyOptions::new(bootstrap)).await?;
    low_gets(&envoy, 200).await?;
    // It refuses at 50 %, the policy in force at 75 %. What is compared only after so many requests outlasts the first leader.
    let mut candidate = spec();
    candidate["levels"]["gpuMemory"]["tripPercent"] = json!(50);
    candidate["candidate"] = json!({"of": "test", "requestsPercent": 30, "rollout": {"minSamples": 2000}});
    replicas.control[proxies_at].apply(&document("test-next", &candidate))?;
    let (fates, over) = (Arc::new(Fates::default()), Arc::new(AtomicBool::new(false)));
    let asking = tokio::spawn({
        let (fates, over, envoy) = (fates.clone(), over.clone(), envoy.address());
        async move { fates.ask(envoy, &over).await }
    });
    let counted = |rollout: &Value| rollout["classes"][2]["candidate"]["requests"].as_u64().unwrap_or(0);
    let (first, before) = rollout(&replicas, 0, "a rollout that is counted", |rollout| counted(rollout) > 50).await?;
    ensure!(before["phase"] == "running", "{before:#}");
    replicas.control[first.index].kill_9()?;
    let (second, after) = rollout(&replicas, first.term, "the rollout under another leader", |rollout| counted(rollout) > 50).await?;
    for same in ["candidate", "of", "percents", "part_of", "began_at_unix_ms", "step_at_unix_ms"] {
        ensure!(before[same] == after[same], "{same}: {before:#} became {after:#}");
    }
    let (_, aborted) = rollout(&replicas, first.term, "the verdict", |rollout| rollout["phase"] == "aborted").await?;
    let (asked, refused) = (fates.asked.load(Ordering::SeqCst), fates.refused.load(Ordering::SeqCst));
    over.store(true, Ordering::SeqCst);
    asking.await??;
    // Its part is 30 %, whoever leads; five standard deviations of that many requests, and those before the candidate came.
    let most = 0.3 + 5.0 * (0.3 * 0.7 / asked as f64).sqrt();
    ensure!(refused as f64 <= most * asked as f64 && refused > 300, "{refused} of {asked} were refused");
    ensure!(second.index != first.index && aborted["halted"].as_str().is_some_and(|why| why.starts_with("class low: ")), "{aborted:#}");
    println!("{refused} of {asked} refused until {} aborted it: {}", second.index, aborted["halted"]);
    low_gets(&envoy, 200).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_killed_while_it_writes_has_every_acknowledged_policy_when_it_is_back() -> Result<()> {
    let mut control = ControlPlaneProcess::start(ControlPlaneOptions::new(None)?).await?;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let acknowledged = kill_and_look(&mut control, 20, &mut rand::rngs::StdRng::seed_from_u64(seed)).await?;
    ensure!(acknowledged >= 20, "{acknowledged} writes prove nothing");
    Ok(())
}
