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
    Ok(serde_json::from_str(include_str!("../../../envoy/response-headers.json"))?)
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

/// Tokens of each answer, and how many the engine puts into one piece of the stream after the first.
const ANSWER_TOKENS: u32 = 48;
const TOKENS_PER_PIECE: u32 = 8;
/// A step of the engine, in milliseconds: the time between tokens of a client alone. Between pieces it is eight times that.
const STEP_MS: u32 = 10;
/// Between the two.
const TPOT_SLO_MS: u32 = 40;
/// What a token of output counts by default, and the most that the prompt of 400 letters can have, in tokens.
const OUTPUT_WEIGHT: f64 = 2.0;
const MOST_PROMPT: f64 = 400.0;
/// More than the first that are all looked at, so that some are settled by what those have taught.
const ANSWERS: u64 = 32;

/// What the books have of `ANSWERS` streams that end with their `usage`: their end, and the overload's figures. Where no `usage` is read
/// they look slow, so that of those some may be refused in the end.
async fn books_of_streams(version: EnvoyVersion, reads_usage: bool) -> Result<Value> {
    let mut spec = spec();
    spec["overload"] = json!({"ttftSloMs": 5000, "tpotSloMs": TPOT_SLO_MS, "usage": reads_usage});
    let engine = ["--stream-interval", &TOKENS_PER_PIECE.to_string(), "--decode-base-ms", &STEP_MS.to_string()].map(str::to_owned);
    let engine: Vec<&str> = engine.iter().map(String::as_str).collect();
    let pool = Pool::start(version, &spec, &engine, Vec::new()).await?;
    let body = json!({
        "messages": [{"role": "user", "content": "x".repeat(400)}],
        "max_tokens": ANSWER_TOKENS,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    let ask = |_| http_client::post_json(pool.envoy.address(), "/v1/chat/completions", &[], &body);
    let mut answers = 0;
    for _ in 0..ANSWERS / 4 {
        for response in futures::future::try_join_all((0..4).map(ask)).await? {
            let is_whole = response.status == 200 && response.text().contains("\"completion_tokens\":48");
            ensure!(is_whole || (response.status == 429 && !reads_usage), "{}", response.text());
            answers += u64::from(is_whole);
        }
    }
    ensure!(answers > 0, "none was answered");
    wait_until("every response in the books", PATIENCE, || async {
        let status = pool.control.status().await?;
        let seen = status["pools"][0].clone();
        let classes = seen["classes"].as_array().cloned().unwrap_or_default();
        let sum = |field: &str| classes.iter().filter_map(|class| class[field].as_u64()).sum::<u64>();
        let over = sum("completed") == answers && sum("in_flight") == 0;
        Ok(over.then_some(seen))
    })
    .await
}

/// Goodput, in work tokens, and the median time between tokens, in milliseconds.
fn goodput(books: &Value) -> (f64, f64) {
    let stream = &books["latencies"]["streams"][0]["metrics"]["tpot"];
    (books["overload"]["good_work"].as_f64().unwrap_or(-1.0), stream["p50_ms"].as_f64().unwrap_or(-1.0))
}

pub(crate) async fn usage_settles_tokens_and_goodput_of_streams_with_several_tokens_a_piece(version: EnvoyVersion) -> Result<()> {
    let (read, unread) = (books_of_streams(version.clone(), true).await?, books_of_streams(version, false).await?);
    let (work, tpot) = goodput(&read);
    // Every answer is within its objectives, and counts with all of its tokens; of prompts, those not looked at are estimated.
    let output = OUTPUT_WEIGHT * f64::from(ANSWER_TOKENS) * ANSWERS as f64;
    ensure!(work >= output && work <= output + MOST_PROMPT * ANSWERS as f64, "{work} work tokens for {output} of output: {read}");
    ensure!((f64::from(STEP_MS) * 0.7..f64::from(TPOT_SLO_MS)).contains(&tpot), "{tpot} ms between tokens");
    // Where a piece counts for a token, the same answers look eight times as slow as they are, and none is good.
    let (work, tpot) = goodput(&unread);
    ensure!(work < 0.5 && tpot > f64::from(TPOT_SLO_MS), "{work} work tokens, {tpot} ms: {unread}");
    Ok(())
}
