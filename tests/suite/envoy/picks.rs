//! Requests that name the endpoint that they are to go to, as somebody in front of the balancing has picked it.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use headgate_core::envoy::DESTINATION_ENDPOINT;
use headgate_test_support::ports::free_address;
use headgate_test_support::{EnvoyVersion, NvmlDevice, NvmlState, http_client, wait_until};
use headgate_tests::documents;
use headgate_tests::mesh::PATIENCE;
use headgate_tests::upstream::Upstream;
use http::Request;
use serde_json::{Value, json};

use crate::balancing::balanced;
use crate::gateway::{Gateway, endpoint, healthy};

/// Of two workers one gets six of them at the least: twice round three endpoints.
const REQUESTS: u64 = 12;

/// How many requests that name `pick` each upstream gets; each has to be answered.
async fn spread<const N: usize>(gateway: &Gateway, upstreams: [&Upstream; N], pick: Option<&str>) -> Result<[u64; N]> {
    let before = upstreams.map(Upstream::total);
    for n in 0..REQUESTS {
        let mut request = Request::get("/v1/models");
        if let Some(pick) = pick {
            request = request.header(DESTINATION_ENDPOINT, pick);
        }
        let status = http_client::send(gateway.envoy.address(), request.body(Bytes::new())?).await?.status;
        ensure!(status == 200, "request {n} that names {pick:?}: {status}");
    }
    let after = upstreams.map(Upstream::total);
    Ok(std::array::from_fn(|index| after[index] - before[index]))
}

fn following() -> Value {
    json!({"algorithm": "round_robin", "slowStartMs": 0, "followPicks": true})
}

pub(crate) async fn requests_go_to_the_endpoint_that_they_name_and_the_others_by_the_algorithm(version: EnvoyVersion) -> Result<()> {
    let upstreams = [Upstream::start().await?, Upstream::start().await?, Upstream::start().await?];
    let all = upstreams.each_ref();
    let gateway = Gateway::start(version, None, &balanced(&all, following())?).await?;
    gateway.wait_for_endpoints("three endpoints", |page| healthy(page, "llm", 3)).await?;
    let unknown = free_address()?.to_string();
    for (index, upstream) in all.iter().enumerate() {
        let named = upstream.address().to_string();
        for pick in [named.clone(), format!("{unknown},{named}")] {
            let got = spread(&gateway, all, Some(&pick)).await?;
            ensure!(got[index] == REQUESTS, "{pick:?} is endpoint {index}, and they went to {got:?}");
        }
    }
    let no_port = all[0].address().ip().to_string();
    let long = "1".repeat(4000);
    for pick in [None, Some(""), Some(&*unknown), Some("gpu-1"), Some(&*no_port), Some("127.0.0.1:99999"), Some(",,"), Some(&*long)] {
        let got = spread(&gateway, all, pick).await?;
        ensure!(got.iter().all(|requests| *requests >= 2), "{pick:?} is no endpoint, and they went to {got:?}");
    }
    Ok(())
}

pub(crate) async fn a_request_that_names_an_endpoint_that_is_dead_or_out_goes_elsewhere(version: EnvoyVersion) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [sound, breaks] = [0, 1].map(|index| NvmlDevice::with_memory_used(index, 10.0));
    let gpus = NvmlState::create(&folder.path().join("nvml.json"), &[sound.clone(), breaks.clone()])?;
    let [one, other] = [Upstream::start().await?, Upstream::start().await?];
    let dead = free_address()?;
    let mut parts = balanced(&[&other, &one], following())?;
    let endpoints = &mut parts[0]["spec"]["endpoints"];
    (endpoints[0]["gpus"], endpoints[1]["gpus"]) = (json!([breaks.uuid]), json!([sound.uuid]));
    // The other endpoint is alone in the tier that is used first.
    endpoints[1]["tier"] = json!(1);
    let mut third = endpoint(dead);
    third["tier"] = json!(1);
    endpoints.as_array_mut().context("endpoints")?.push(third);
    let gateway = Gateway::start(version, Some(&gpus), &parts).await?;
    gateway.wait_for_endpoints("three endpoints", |page| healthy(page, "llm", 3)).await?;
    let [one_at, other_at, dead_at] = [one.address(), other.address(), dead].map(|address| address.to_string());
    let of = async |pick: &str| spread(&gateway, [&one, &other], Some(pick)).await;
    let (at_one, at_other) = (of(&one_at).await?, of(&other_at).await?);
    ensure!((at_one, at_other) == ([REQUESTS, 0], [0, REQUESTS]), "in any tier: {at_one:?} and {at_other:?}");
    let got = of(&dead_at).await?;
    ensure!(got.iter().sum::<u64>() == REQUESTS, "who finds nobody is sent on: {got:?}");
    gpus.set(&[sound, NvmlDevice { xid_errors: vec![79], ..breaks }])?;
    gateway.wait_for_endpoints("an endpoint fewer", |page| !page.contains(&format!("llm::{other_at}::"))).await?;
    let got = of(&other_at).await?;
    ensure!(got == [REQUESTS, 0], "nobody is sent to a GPU that computes wrong: {got:?}");
    Ok(())
}

/// The filter picks and the cluster follows: every request comes to the engine that the filter named, whatever the client names, both engines
/// have their part, and one that is gone is named no more.
pub(crate) async fn the_filter_names_the_engine_and_envoy_follows(version: EnvoyVersion) -> Result<()> {
    let [one, other] = [Upstream::start().await?, Upstream::start().await?];
    let gateway = Gateway::start(version, None, &balanced(&[&one, &other], following())?).await?;
    gateway.wait_for_endpoints("both engines", |page| healthy(page, "llm", 2)).await?;
    let mut spec = documents::spec();
    spec["engines"] = json!([&one, &other].map(|engine| json!({"metricsUrl": format!("http://{}/metrics", engine.address())})));
    spec["overload"] = json!({"picksEndpoint": true});
    gateway.control.apply(&documents::document("llm", &spec))?;
    let ask = async || {
        let body = json!({"messages": [{"role": "user", "content": "x".repeat(400)}]});
        // What the client names is dead.
        let headers = [(DESTINATION_ENDPOINT, "127.0.0.1:1")];
        anyhow::Ok(http_client::post_json(gateway.envoy.address(), "/v1/chat/completions", &headers, &body).await?.status)
    };
    let seen = || [&one, &other].map(Upstream::named_and_misled);
    // A worker knows the engines from its first tick after its first request on, and its own cluster a moment after the main thread does.
    let (got, misled) = wait_until("a hundred requests that the filter has sent somewhere", PATIENCE, || async {
        let before = seen();
        for _ in 0..100 {
            let status = ask().await?;
            ensure!(status == 200, "{status}");
        }
        let [(one, one_misled), (other, other_misled)] =
            std::array::from_fn(|index| (seen()[index].0 - before[index].0, seen()[index].1 - before[index].1));
        Ok((one + other + one_misled + other_misled == 100).then_some(([one, other], one_misled + other_misled)))
    })
    .await?;
    ensure!(misled == 0, "{misled} came to the engine that the filter had not named");
    // Two workers share the ring as connections happen to meet them; one that has next to none of it still has an engine.
    ensure!(got.iter().all(|requests| *requests >= 5), "both have their part: {got:?}");
    drop(other);
    wait_until("notice that an engine is gone", PATIENCE, || async {
        let was = one.named_and_misled().0;
        let mut answered = 0;
        for _ in 0..20 {
            // One that was sent when the engine's connection ended is lost with it: nobody knows whether it had begun.
            answered += u32::from(ask().await? == 200);
        }
        Ok((answered == 20 && one.named_and_misled().0 - was == 20).then_some(()))
    })
    .await
}
