//! What engines say in their responses, and no page is read.

use anyhow::{Result, ensure};
use headgate_test_support::control_plane::ControlPlaneOptions;
use headgate_test_support::envoy::{Bootstrap, EnvoyOptions, HttpFilter, Upstream as To, WasmFilter};
use headgate_test_support::http_client::{self, Response};
use headgate_test_support::inference_sim::InferenceSimProcess;
use headgate_test_support::{ControlPlaneProcess, EnvoyProcess, EnvoyVersion, wait_until};
use headgate_tests::documents::{document, spec};
use headgate_tests::mesh::PATIENCE;
use serde_json::{Value, json};

/// Four sequences at a time, and a cache that they fill to a good part: the fifth waits in the engine.
const SMALL_ENGINE: [&str; 4] = ["--max-batch", "4", "--kv-blocks", "100"];

/// An engine, a control plane without GPU, and an Envoy.
struct Pool {
    engine: InferenceSimProcess,
    control: ControlPlaneProcess,
    envoy: EnvoyProcess,
}

impl Pool {
    async fn start(version: EnvoyVersion, spec: &Value, engine: &[&str], inner_filters: Vec<Value>) -> Result<Self> {
        let engine = InferenceSimProcess::start(None, engine).await?;
        let control = ControlPlaneProcess::start(ControlPlaneOptions::new(None)?).await?;
        control.apply(&document("test", spec))?;
        let filter = HttpFilter::Wasm(WasmFilter::headgate_controlled()?);
        let mut bootstrap = Bootstrap::new(filter, To::Endpoint(engine.address())).with_control_plane(control.grpc());
        bootstrap.inner_filters = inner_filters;
        let mut options = EnvoyOptions::new(bootstrap);
        options.version = version;
        let envoy = EnvoyProcess::start(options).await?;
        let pool = Self { engine, control, envoy };
        wait_until("the policy in force", PATIENCE, || async {
            Ok((pool.control.status().await?["proxies"][0]["policies"][0]["name"] == "test").then_some(()))
        })
        .await?;
        Ok(pool)
    }

    async fn ask(&self, headers: &[(&str, &str)], tokens: u32, is_stream: bool) -> Result<Response> {
        let body = json!({"messages": [{"role": "user", "content": "x".repeat(400)}], "max_tokens": tokens, "stream": is_stream});
        http_client::post_json(self.envoy.address(), "/v1/chat/completions", headers, &body).await
    }

    /// Waits until the status shows the engine as `wanted`, and returns it with its pool.
    async fn engine_that(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<(Value, Value)> {
        wait_until(what, PATIENCE, || async {
            let status = self.control.status().await?;
            let pool = status["pools"][0].clone();
            let engine = pool["engines"][0].clone();
            Ok(wanted(&engine).then_some((engine, pool)))
        })
        .await
    }
}

/// Envoy's own filter that keeps the header where ours can read it before the response ends, and from the client, as users have it.
fn keeps_load_header() -> Result<Value> {
    Ok(serde_json::from_str(include_str!("../../../envoy/load-header.json"))?)
}

/// Whether the answer tells nothing of the engine's load.
fn is_silent(response: &Response) -> bool {
    response.header("endpoint-load-metrics").or(response.header("endpoint-load-metrics-bin")).is_none()
}

pub(crate) async fn engines_tell_their_load_in_their_responses_without_any_page(version: EnvoyVersion) -> Result<()> {
    let mut asking = spec();
    asking["orca"] = json!(true);
    let pool = Pool::start(version, &asking, &SMALL_ENGINE, vec![keeps_load_header()?]).await?;
    let address = pool.engine.address().to_string();

    // The filter asks; the whole answer brings the load with it, as far as Envoy. A worker that takes the policy up after its leader did
    // asks from then on.
    wait_until("the load of a whole answer", PATIENCE, || async {
        ensure!(is_silent(&pool.ask(&[], 4, false).await?), "the client was told");
        Ok((pool.control.status().await?["pools"][0]["engines"][0]["readings"].as_u64() > Some(0)).then_some(()))
    })
    .await?;
    let (first, _) = pool.engine_that("the load of a whole answer", |engine| engine["readings"].as_u64() > Some(0)).await?;
    ensure!(first["source"] == "orca" && first["url"] == "orca" && first["address"] == address.as_str(), "{first}");

    // What a client asks for itself stays as it is, and is read in any form.
    for form in ["json", "bin"] {
        let (before, _) = pool.engine_that("an engine", |engine| engine["readings"].as_u64() > Some(0)).await?;
        let response = pool.ask(&[("endpoint-load-metrics-format", form)], 4, false).await?;
        ensure!(is_silent(&response), "the client was told in {form}: {:?}", response.headers);
        pool.engine_that(form, |engine| engine["epoch"].as_u64() > before["epoch"].as_u64()).await?;
    }

    // Eight clients in a place for four.
    let client = |_| async {
        loop {
            let response = pool.ask(&[], 20, true).await?;
            ensure!(response.status == 200 && is_silent(&response), "{:?} {}", response.headers, response.text());
        }
    };
    let streams = futures::future::try_join_all((0..8).map(client));
    let watch = async {
        let is_loaded = |engine: &Value| {
            engine["state"] == "ok" && engine["kv_used_percent"].as_f64() > Some(10.0) && engine["waiting"].as_u64() > Some(0)
        };
        let (engine, pool) = pool.engine_that("a full engine with requests that wait in it", is_loaded).await?;
        ensure!(engine["age_ms"].as_u64() <= Some(1000), "older than is believed: {engine}");
        let level = pool["levels"].as_array().and_then(|levels| levels.iter().find(|level| level["kind"] == "gpu_memory"));
        ensure!(level.is_some_and(|level| level["source"] == "kv_cache"), "{level:?}");
        Ok(())
    };
    tokio::select! {
        failed = streams => failed.map(|never: Vec<()>| drop(never))?,
        watched = watch => watched?,
    }

    // An engine that answers nobody says nothing.
    pool.engine_that("a stale load", |engine| engine["state"] == "stale").await?;
    ensure!(pool.envoy.stat("host_error").await? == 0, "a host call failed");
    Ok(())
}

/// Without Envoy's filter the load of whole answers is read all the same, but the client gets it too: a filter that looked at the headers
/// of every response to take one off would cost every response a call.
pub(crate) async fn without_its_filter_envoy_leaves_the_load_in_the_answer(version: EnvoyVersion) -> Result<()> {
    let mut asking = spec();
    asking["orca"] = json!(true);
    let pool = Pool::start(version, &asking, &SMALL_ENGINE, Vec::new()).await?;
    wait_until("an answer with its load", PATIENCE, || async {
        let response = pool.ask(&[], 4, false).await?;
        Ok(response.header("endpoint-load-metrics").is_some_and(|value| value.starts_with("TEXT ")).then_some(()))
    })
    .await?;
    pool.engine_that("the load of a whole answer", |engine| engine["readings"].as_u64() > Some(0)).await?;
    Ok(())
}

pub(crate) async fn a_policy_that_does_not_ask_changes_and_reads_nothing(version: EnvoyVersion) -> Result<()> {
    let pool = Pool::start(version, &spec(), &SMALL_ENGINE, Vec::new()).await?;
    let response = pool.ask(&[], 4, false).await?;
    ensure!(response.status == 200 && response.header("endpoint-load-metrics").is_none(), "the engine was asked: {:?}", response.headers);
    // The client asks: the header passes, and nobody reads it.
    let response = pool.ask(&[("endpoint-load-metrics-format", "text")], 4, false).await?;
    ensure!(response.header("endpoint-load-metrics").is_some(), "{:?}", response.headers);
    wait_until("both responses in the books", PATIENCE, || async {
        let status = pool.control.status().await?;
        let classes = status["pools"][0]["classes"].as_array().cloned().unwrap_or_default();
        let completed: u64 = classes.iter().filter_map(|class| class["completed"].as_u64()).sum();
        Ok((completed >= 2).then_some(()))
    })
    .await?;
    // The report that brought the responses would have brought their load.
    let status = pool.control.status().await?;
    ensure!(status["pools"][0]["engines"].as_array().is_none_or(Vec::is_empty), "{}", status["pools"][0]["engines"]);
    Ok(())
}
