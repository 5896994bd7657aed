//! The HTTP face: OpenAI's endpoints, `/health` and `/metrics`.

mod embedding;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::openai::{self, ApiError, Defaults, Delivery, GenerationRequest};
use crate::serving::{Generation, Serving};
use crate::sse::{self, ChunkFormat, ChunkKind};
use crate::{metrics, orca};

/// Largest request body, as in vLLM's own front: far above any prompt that fits the context.
const MAX_BODY_BYTES: usize = 8 << 20;

type Shared = State<Arc<App>>;
type ReceivedBody = Result<Bytes, BytesRejection>;

/// What every handler needs.
#[derive(Debug)]
pub struct App {
    serving: Arc<Serving>,
    defaults: Defaults,
    stream_interval: u32,
    names: metrics::Names,
    requests: AtomicU64,
    is_draining: AtomicBool,
}

impl App {
    /// Serves `serving`'s engine, with its metrics under these names. `stream_interval` is the number of tokens per chunk after the first,
    /// at least 1.
    pub fn new(serving: Arc<Serving>, defaults: Defaults, stream_interval: u32, names: metrics::Names) -> Arc<App> {
        Arc::new(App { serving, defaults, stream_interval, names, requests: AtomicU64::new(0), is_draining: AtomicBool::new(false) })
    }

    /// From now on `/health` says 503, so that balancers look elsewhere; requests are still served.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// Fields that begin every answer of one request: id, object, created, model.
    fn head(&self, prefix: &str, object: &str) -> Value {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        json!({"id": format!("{prefix}-{number:016x}"), "object": object, "created": unix_seconds(), "model": self.defaults.model})
    }

    fn add_load_report(&self, asked: &HeaderMap, response: &mut Response) {
        if let Some(format) = orca::Format::requested(asked) {
            let (header, report) = self.serving.read(|engine| orca::report(format, engine));
            response.headers_mut().insert(header, report);
        }
    }
}

/// Every route.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .route("/v1/embeddings", post(embed))
        .route("/v1/models", get(models))
        .route("/health", get(health))
        .route("/metrics", get(scrape))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(app)
}

async fn chat(State(app): Shared, headers: HeaderMap, body: ReceivedBody) -> Result<Response, ApiError> {
    let request = openai::parse_chat(&received(body)?, &headers, &app.defaults)?;
    generate(app, ChunkKind::Chat, request, &headers).await
}

async fn completion(State(app): Shared, headers: HeaderMap, body: ReceivedBody) -> Result<Response, ApiError> {
    let request = openai::parse_completion(&received(body)?, &headers, &app.defaults)?;
    generate(app, ChunkKind::Text, request, &headers).await
}

async fn embed(State(app): Shared, headers: HeaderMap, body: ReceivedBody) -> Result<Response, ApiError> {
    let request = openai::parse_embedding(&received(body)?, &app.defaults)?;
    let answer = embedding::run(&app.serving, &app.defaults.model, request).await?;
    let mut response = Json(answer).into_response();
    app.add_load_report(&headers, &mut response);
    Ok(response)
}

async fn generate(app: Arc<App>, kind: ChunkKind, request: GenerationRequest, headers: &HeaderMap) -> Result<Response, ApiError> {
    let generation = app.serving.submit(request.submission)?;
    let prompt_tokens = request.submission.prompt_tokens;
    let mut response = match request.delivery {
        Delivery::Whole => Json(whole(&app, kind, prompt_tokens, generation).await).into_response(),
        Delivery::Stream(usage) => {
            let object = match kind {
                ChunkKind::Chat => "chat.completion.chunk",
                ChunkKind::Text => "text_completion",
            };
            let mut head = app.head(id_prefix(kind), object).to_string();
            head.pop();
            let format = ChunkFormat { kind, head, usage, prompt_tokens, interval: app.stream_interval };
            event_stream(Body::from_stream(sse::stream(generation, format)))
        }
    };
    app.add_load_report(headers, &mut response);
    Ok(response)
}

async fn whole(app: &App, kind: ChunkKind, prompt_tokens: u32, generation: Generation) -> Value {
    let (tokens, finish) = generation.finish().await;
    let text = sse::text(0, tokens);
    let (object, mut choice) = match kind {
        ChunkKind::Chat => ("chat.completion", json!({"message": {"role": "assistant", "content": text}})),
        ChunkKind::Text => ("text_completion", json!({"text": text})),
    };
    choice["index"] = 0.into();
    choice["logprobs"] = Value::Null;
    choice["finish_reason"] = finish.as_str().into();
    let mut answer = app.head(id_prefix(kind), object);
    answer["choices"] = json!([choice]);
    answer["usage"] = json!({"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens});
    answer
}

async fn models(State(app): Shared) -> Json<Value> {
    let limit = app.serving.read(|engine| engine.config().context_tokens());
    let model = json!({"id": app.defaults.model, "object": "model", "created": unix_seconds(), "owned_by": "inference-sim", "max_model_len": limit});
    Json(json!({"object": "list", "data": [model]}))
}

async fn health(State(app): Shared) -> StatusCode {
    if app.is_draining.load(Ordering::Relaxed) { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
}

async fn scrape(State(app): Shared) -> Response {
    let text = app.serving.read(|engine| metrics::render(engine, &app.defaults.model, app.names));
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

async fn unknown_path(method: Method, uri: Uri) -> ApiError {
    let message = format!("Invalid URL ({method} {})", uri.path());
    ApiError { status: StatusCode::NOT_FOUND, code: Some("unknown_url"), ..ApiError::bad_request(message) }
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("Not allowed to {method} on {}", uri.path());
    ApiError { status: StatusCode::METHOD_NOT_ALLOWED, code: Some("method_not_supported"), ..ApiError::bad_request(message) }
}

fn received(body: ReceivedBody) -> Result<Bytes, ApiError> {
    body.map_err(|rejection| ApiError { status: rejection.status(), ..ApiError::bad_request(rejection.body_text()) })
}

fn event_stream(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn id_prefix(kind: ChunkKind) -> &'static str {
    match kind {
        ChunkKind::Chat => "chatcmpl",
        ChunkKind::Text => "cmpl",
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
