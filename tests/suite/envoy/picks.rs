//! Requests that name the endpoint that they are to go to, as somebody in front of the balancing has picked it.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use headgate_core::envoy::DESTINATION_ENDPOINT;
use headgate_test_support::ports::free_address;
use headgate_test_support::{EnvoyVersion, NvmlDevice, NvmlState, http_client};
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
