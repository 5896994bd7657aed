//! Tests through the router, in paused time.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use axum::http::Request;
use futures::StreamExt;
use http_body_util::BodyExt;
use tokio::time::Instant;
use tower::ServiceExt;

use super::*;
use crate::engine::EngineConfig;

struct Server {
    serving: Arc<Serving>,
    app: Arc<App>,
    router: Router,
}

fn server(kv_blocks: u32, max_batch: usize, max_queue: usize) -> Server {
    let serving = Serving::new(EngineConfig {
        kv_blocks: NonZeroU32::new(kv_blocks).unwrap(),
        block_tokens: NonZeroU32::new(16).unwrap(),
        prefill_tokens_per_s: NonZeroU32::new(10_000).unwrap(),
        decode_base: Duration::from_millis(10),
        decode_per_sequence: Duration::ZERO,
        step_tokens: NonZeroU32::new(512).unwrap(),
        max_batch: NonZeroUsize::new(max_batch).unwrap(),
        max_queue: NonZeroUsize::new(max_queue).unwrap(),
        max_model_tokens: NonZeroU32::new(4096).unwrap(),
    });
    tokio::spawn(Arc::clone(&serving).run());
    let app = App::new(Arc::clone(&serving), Defaults { model: "sim".into(), max_tokens: 8 }, 4, metrics::Names::Vllm);
    Server { serving, app: Arc::clone(&app), router: router(app) }
}

impl Server {
    async fn send(&self, method: &str, path: &str, body: Value) -> Response {
        let request = Request::builder().method(method).uri(path).header(orca::FORMAT_HEADER, "text");
        self.router.clone().oneshot(request.body(Body::from(body.to_string())).unwrap()).await.unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> Response {
        self.send("POST", path, body).await
    }

    fn blocks_in_use(&self) -> u32 {
        self.serving.read(|engine| engine.pool().in_use())
    }
}

fn chat_body(max_tokens: u32) -> Value {
    json!({"model": "sim", "messages": [{"role": "user", "content": "x".repeat(400)}], "max_tokens": max_tokens})
}

fn streamed(mut body: Value) -> Value {
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    body
}

async fn text(response: Response) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn json_of(response: Response) -> Value {
    serde_json::from_str(&text(response).await).unwrap()
}

/// The JSON of every event; the last must be `[DONE]`.
fn events(text: &str) -> Vec<Value> {
    let mut data: Vec<&str> = text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap()).collect();
    assert_eq!(data.pop(), Some("[DONE]"));
    data.into_iter().map(|data| serde_json::from_str(data).unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_chat_answer_has_the_tokens_asked_for_and_their_usage() {
    let response = server(100, 8, 8).post("/v1/chat/completions", chat_body(10)).await;
    assert_eq!(response.status(), StatusCode::OK);
    let answer = json_of(response).await;
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["choices"][0]["message"]["content"].as_str().unwrap().split(' ').count(), 10);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"], json!({"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}));
}

#[tokio::test(start_paused = true)]
async fn a_stream_begins_with_the_first_token_and_ends_with_usage_and_done() {
    let server = server(100, 8, 8);
    let start = Instant::now();
    let response = server.post("/v1/chat/completions", streamed(chat_body(10))).await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream; charset=utf-8");
    assert_eq!(start.elapsed(), Duration::ZERO, "headers do not wait for tokens");
    let mut body = response.into_body().into_data_stream();
    let first = body.next().await.unwrap().unwrap();
    // 10 ms and 100 prompt tokens at 10 per ms; tokio's timer rounds up to the next millisecond.
    assert!((20..=21).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    let mut all = first.to_vec();
    while let Some(chunk) = body.next().await {
        all.extend_from_slice(&chunk.unwrap());
    }
    let events = events(std::str::from_utf8(&all).unwrap());
    let content: String = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(content, sse::text(0, 10));
    assert_eq!(events.len(), 5, "one token, then four, four, one, and usage");
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(events[3]["choices"][0]["finish_reason"], "length");
    assert_eq!(events[4]["usage"]["completion_tokens"], 10);
}

#[tokio::test(start_paused = true)]
async fn a_text_completion_streams_text() {
    let response = server(100, 8, 8).post("/v1/completions", json!({"prompt": "hello", "max_tokens": 3, "stream": true})).await;
    let events = events(&text(response).await);
    let content: String = events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(content, "the gate opens");
    assert!(events.iter().all(|event| event.get("usage").is_none()), "not asked for");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_a_stream_gives_its_blocks_back() {
    let server = server(100, 8, 8);
    let mut body = server.post("/v1/chat/completions", streamed(chat_body(1000))).await.into_body().into_data_stream();
    body.next().await.unwrap().unwrap();
    assert_eq!(server.blocks_in_use(), 7, "ceil(101 / 16)");
    drop(body);
    assert_eq!(server.blocks_in_use(), 0);
    assert_eq!(server.serving.read(|engine| engine.stats().finished_abort), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_while_waiting_for_json_gives_its_blocks_back() {
    let server = server(100, 8, 8);
    let waiting = server.post("/v1/chat/completions", chat_body(1000));
    assert!(tokio::time::timeout(Duration::from_millis(100), waiting).await.is_err());
    assert_eq!(server.blocks_in_use(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_is_503_in_openai_format() {
    let server = server(100, 1, 1);
    let _running = server.post("/v1/chat/completions", streamed(chat_body(100))).await;
    tokio::task::yield_now().await;
    let _waiting = server.post("/v1/chat/completions", streamed(chat_body(100))).await;
    let response = server.post("/v1/chat/completions", chat_body(100)).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(json_of(response).await["error"]["code"], "engine_overloaded");
}

#[tokio::test(start_paused = true)]
async fn a_request_beyond_the_context_is_a_bad_request() {
    let response = server(10, 8, 8).post("/v1/chat/completions", chat_body(61)).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let error = json_of(response).await["error"].clone();
    assert_eq!(error["code"], "context_length_exceeded");
    assert!(error["message"].as_str().unwrap().contains("160 tokens"), "ten blocks of 16: {error}");
}

#[tokio::test(start_paused = true)]
async fn embeddings_are_unit_vectors_that_depend_on_the_text_alone() {
    let server = server(100, 8, 8);
    let answer = json_of(server.post("/v1/embeddings", json!({"input": ["abcd", "efgh", "abcd"], "dimensions": 16})).await).await;
    let vectors: Vec<Vec<f64>> = (0..3).map(|i| serde_json::from_value(answer["data"][i]["embedding"].clone()).unwrap()).collect();
    assert!(vectors.iter().all(|v| v.len() == 16 && (v.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-6));
    assert!(vectors[0] == vectors[2] && vectors[0] != vectors[1]);
    assert_eq!(answer["usage"]["prompt_tokens"], 3);
    let encoded =
        json_of(server.post("/v1/embeddings", json!({"input": "abcd", "dimensions": 16, "encoding_format": "base64"})).await).await;
    // 16 floats of 4 bytes: 64 bytes, 88 characters.
    assert_eq!(encoded["data"][0]["embedding"].as_str().unwrap().len(), 88);
}

#[tokio::test(start_paused = true)]
async fn the_load_report_comes_only_when_asked_for_and_in_the_format_asked_for() {
    let server = server(100, 8, 8);
    let response = server.post("/v1/chat/completions", streamed(chat_body(100))).await;
    let report = response.headers()[orca::REPORT_HEADER].to_str().unwrap().to_owned();
    assert!(report.starts_with("TEXT named_metrics.kv_cache_usage_perc=0."), "{report}");
    let report_for = async |format: Option<&str>| {
        let mut request = Request::builder().method("POST").uri("/v1/completions");
        if let Some(format) = format {
            request = request.header(orca::FORMAT_HEADER, format);
        }
        let response = server.router.clone().oneshot(request.body(Body::from(r#"{"prompt": "hi"}"#)).unwrap()).await.unwrap();
        response.headers().get(orca::REPORT_HEADER).map(|value| value.to_str().unwrap().to_owned())
    };
    let json = report_for(Some("JSON")).await.unwrap();
    let json: Value = serde_json::from_str(json.strip_prefix("JSON ").unwrap()).unwrap();
    assert_eq!(json["named_metrics"]["num_requests_running"], 1, "the stream above");
    assert_eq!((report_for(None).await, report_for(Some("xml")).await), (None, None));
}

#[tokio::test(start_paused = true)]
async fn metrics_have_vllms_names_and_tell_the_load() {
    let server = server(100, 8, 8);
    text(server.post("/v1/chat/completions", chat_body(10)).await).await;
    let _running = server.post("/v1/chat/completions", streamed(chat_body(100))).await;
    tokio::task::yield_now().await;
    let page = text(server.send("GET", "/metrics", Value::Null).await).await;
    for line in [
        r#"vllm:num_requests_running{model_name="sim",engine="0"} 1"#,
        r#"vllm:num_requests_waiting{model_name="sim",engine="0"} 0"#,
        r#"vllm:kv_cache_usage_perc{model_name="sim",engine="0"} 0.07"#,
        r#"vllm:num_preemptions_total{model_name="sim",engine="0"} 0"#,
        r#"vllm:prompt_tokens_total{model_name="sim",engine="0"} 100"#,
        r#"vllm:generation_tokens_total{model_name="sim",engine="0"} 10"#,
        r#"vllm:request_success_total{model_name="sim",engine="0",finished_reason="length"} 1"#,
        r#"vllm:cache_config_info{model_name="sim",engine="0",block_size="16",num_gpu_blocks="100",enable_prefix_caching="False"} 1"#,
        r#"vllm:time_to_first_token_seconds_bucket{model_name="sim",engine="0",le="0.01"} 0"#,
        r#"vllm:time_to_first_token_seconds_bucket{model_name="sim",engine="0",le="+Inf"} 1"#,
        r#"vllm:inter_token_latency_seconds_count{model_name="sim",engine="0"} 9"#,
        r#"vllm:request_queue_time_seconds_count{model_name="sim",engine="0"} 2"#,
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
}

#[tokio::test(start_paused = true)]
async fn models_health_and_unknown_paths() {
    let server = server(100, 8, 8);
    let models = json_of(server.send("GET", "/v1/models", Value::Null).await).await;
    assert_eq!((&models["data"][0]["id"], &models["data"][0]["max_model_len"]), (&json!("sim"), &json!(1600)));
    assert_eq!(server.send("GET", "/health", Value::Null).await.status(), StatusCode::OK);
    server.app.drain();
    assert_eq!(server.send("GET", "/health", Value::Null).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    for (method, path, status) in [("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405)] {
        let response = server.send(method, path, Value::Null).await;
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(json_of(response).await["error"]["type"], "invalid_request_error");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_too_large_is_413() {
    let body = Body::from(vec![b' '; MAX_BODY_BYTES + 1]);
    let request = Request::builder().method("POST").uri("/v1/completions").body(body).unwrap();
    let response = server(100, 8, 8).router.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(json_of(response).await["error"]["type"], "invalid_request_error");
}
