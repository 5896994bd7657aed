//! How requests are spread by the algorithms whose spread a user can see: by hash, by load told in answers, by saturation.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use headgate_test_support::http_client;
use headgate_test_support::inference_sim::InferenceSimProcess;
use headgate_test_support::{EnvoyVersion, wait_until};
use headgate_tests::documents;
use headgate_tests::mesh::PATIENCE;
use headgate_tests::upstream::Upstream;
use http::Request;
use serde_json::{Value, json};

use crate::gateway::{Gateway, document, endpoint, entry, healthy, pool};

/// Envoy believes no load before it has been told for ten seconds.
const BLACKOUT: Duration = Duration::from_secs(10);

pub(crate) fn balanced(upstreams: &[&Upstream], balancing: Value) -> Result<[Value; 3]> {
    let endpoints: Vec<Value> = upstreams.iter().map(|upstream| endpoint(upstream.address())).collect();
    let mut llm = pool("llm", &endpoints);
    // Without health checks nothing but the requests of a test is counted.
    llm["spec"]["healthCheck"] = json!({"enabled": false});
    llm["spec"]["balancing"] = balancing;
    Ok([llm, document("Route", "all", &json!({"rules": [{"backends": [{"pool": "llm"}]}]})), entry(json!({}))?])
}

pub(crate) async fn equal_hash_values_meet_the_same_endpoint_and_most_stay_when_one_leaves(version: EnvoyVersion) -> Result<()> {
    users_stay(version, &json!({"algorithm": "consistent_hash", "hashHeader": "x-user"})).await
}

pub(crate) async fn consistent_hash_works_beside_picks(version: EnvoyVersion) -> Result<()> {
    users_stay(version, &json!({"algorithm": "consistent_hash", "hashHeader": "x-user", "followPicks": true})).await
}

async fn users_stay(version: EnvoyVersion, by_user: &Value) -> Result<()> {
    let upstreams = [Upstream::start().await?, Upstream::start().await?, Upstream::start().await?];
    let [one, two, three] = &upstreams;
    let gateway = Gateway::start(version, None, &balanced(&[one, two, three], by_user.clone())?).await?;
    gateway.wait_for_endpoints("three endpoints", |page| healthy(page, "llm", 3)).await?;
    // Who serves each of 90 users.
    let homes = async || {
        let mut homes = BTreeMap::new();
        for user in 0..90 {
            let before = upstreams.each_ref().map(Upstream::total);
            let request = Request::get("/v1/models").header("x-user", format!("user-{user}")).body(Bytes::new())?;
            let status = http_client::send(gateway.envoy.address(), request).await?.status;
            ensure!(status == 200, "{status}");
            let after = upstreams.each_ref().map(Upstream::total);
            homes.insert(user, (0..3).find(|index| after[*index] > before[*index]));
        }
        Ok(homes)
    };
    let at_first = homes().await?;
    ensure!(at_first == homes().await?, "the same users at the same endpoints");
    for index in 0..3 {
        let users = at_first.values().filter(|home| **home == Some(index)).count();
        // 30 in the mean; the ring has 1,024 points at the least, and binomial chance is 4.5.
        ensure!((10..=50).contains(&users), "endpoint {index} has {users} of 90 users");
    }
    gateway.apply(&balanced(&[one, two], by_user.clone())?[..1])?;
    gateway.wait_for_endpoints("two endpoints", |page| healthy(page, "llm", 2)).await?;
    let then = homes().await?;
    let others: Vec<_> = at_first.iter().filter(|(_, home)| **home != Some(2)).collect();
    let stay = others.iter().filter(|(user, home)| then[*user] == **home).count();
    // Envoy gives the endpoints that are left more points on the ring, of which every third is new and half of those are the other
    // one's: five of six stay. Were everybody spread anew, half would.
    ensure!(3 * stay >= 2 * others.len(), "{stay} of {} users of the other endpoints stay", others.len());
    ensure!(then.values().all(|home| matches!(home, Some(0 | 1))), "{then:?}");
    Ok(())
}

pub(crate) async fn latency_aware_balancing_follows_what_endpoints_tell_of_their_load(version: EnvoyVersion) -> Result<()> {
    the_idle_endpoint_gets_more(version, json!({"algorithm": "latency_aware", "slowStartMs": 0})).await
}

pub(crate) async fn latency_aware_balancing_works_beside_picks(version: EnvoyVersion) -> Result<()> {
    the_idle_endpoint_gets_more(version, json!({"algorithm": "latency_aware", "slowStartMs": 0, "followPicks": true})).await
}

async fn the_idle_endpoint_gets_more(version: EnvoyVersion, aware: Value) -> Result<()> {
    let [idle, busy] = [
        Upstream::telling("TEXT application_utilization=0.2,rps_fractional=100").await?,
        Upstream::telling("TEXT application_utilization=0.8,rps_fractional=100").await?,
    ];
    let gateway = Gateway::start(version, None, &balanced(&[&idle, &busy], aware)?).await?;
    gateway.wait_for_endpoints("both endpoints", |page| healthy(page, "llm", 2)).await?;
    let share = async || {
        let before = [idle.total(), busy.total()];
        for _ in 0..50 {
            let status = http_client::get(gateway.envoy.address(), "/v1/models").await?.status;
            ensure!(status == 200, "{status}");
        }
        Ok([idle.total() - before[0], busy.total() - before[1]])
    };
    let [first, second] = share().await?;
    ensure!(first.abs_diff(second) <= 10, "before the loads are believed: {first} and {second}");
    // 100 / 0.2 against 100 / 0.8.
    let wanted = |[idle, busy]: [u64; 2]| (36..=44).contains(&idle) && idle + busy == 50;
    wait_until("four of five requests at the idle endpoint", BLACKOUT + PATIENCE, || async {
        let share = share().await?;
        Ok(wanted(share).then_some(()))
    })
    .await?;
    let then = share().await?;
    ensure!(wanted(then), "it stays so: {then:?}");
    Ok(())
}

pub(crate) async fn a_saturated_engine_gets_the_least_part(version: EnvoyVersion) -> Result<()> {
    let [full, idle] = [InferenceSimProcess::start(None, &["--max-batch", "1"]).await?, InferenceSimProcess::start(None, &[]).await?];
    let [full_at, idle_at] = [full.address(), idle.address()];
    let mut llm = pool("llm", &[endpoint(full_at), endpoint(idle_at)]);
    llm["spec"]["balancing"] = json!({"algorithm": "weighted", "weights": "saturation", "slowStartMs": 0});
    let parts = [llm, document("Route", "all", &json!({"rules": [{"backends": [{"pool": "llm"}]}]})), entry(json!({}))?];
    let gateway = Gateway::start(version, None, &parts).await?;
    let mut spec = documents::spec();
    spec["engines"] = json!([full_at, idle_at].map(|at| json!({"metricsUrl": format!("http://{at}/metrics")})));
    gateway.control.apply(&documents::document("llm", &spec))?;
    // A tenth more or less is not told.
    let weigh = |full: RangeInclusive<u32>| {
        move |page: &str| weight(page, full_at).is_some_and(|told| full.contains(&told)) && weight(page, idle_at) == Some(100)
    };
    gateway.wait_for_endpoints("equal weights", weigh(100..=100)).await?;
    // One runs for minutes and eight wait behind it; clients that are dropped end their requests.
    let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 8000});
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..9 {
        let body = body.clone();
        waiting.spawn(async move { http_client::post_json(full_at, "/v1/chat/completions", &[], &body).await });
    }
    gateway.wait_for_endpoints("the full engine's least weight", weigh(10..=11)).await?;
    waiting.shutdown().await;
    gateway.wait_for_endpoints("its whole weight again", weigh(90..=100)).await
}

/// What Envoy's page of clusters says that an endpoint weighs.
fn weight(page: &str, at: SocketAddr) -> Option<u32> {
    page.lines().find_map(|line| line.strip_prefix(&format!("llm::{at}::weight::")))?.parse().ok()
}
