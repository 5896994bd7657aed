//! OpenAI's request and error formats: what a body means to the engine, and how a refusal is worded.

#[cfg(test)]
mod tests;

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::engine::{FinishReason, Rejected, Submission};

/// Request header that ends the answer after so many tokens, before `max_tokens`: the length that a real model chooses.
pub const OUTPUT_TOKENS_HEADER: &str = "x-sim-output-tokens";

/// OpenAI's most inputs in one embeddings request.
const MAX_INPUTS: usize = 2048;
/// Dimensions of an embedding when the request names none.
const DEFAULT_DIMENSIONS: u64 = 256;

/// What the server assumes where a request is silent.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// The one model that is served.
    pub model: String,
    /// `max_tokens` of a request that has none.
    pub max_tokens: u32,
}

/// How an answer is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// One JSON document at the end.
    Whole,
    /// Server-sent events as tokens come.
    Stream(Usage),
}

/// Whether a stream ends with a chunk of token counts (`stream_options.include_usage`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the enum says it")]
pub enum Usage {
    Included,
    Omitted,
}

/// A chat or text completion as the engine sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerationRequest {
    /// The work.
    pub submission: Submission,
    /// How the answer is delivered.
    pub delivery: Delivery,
}

/// An embeddings request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingRequest {
    /// Each input's text.
    pub inputs: Vec<String>,
    /// Length of each vector.
    pub dimensions: usize,
    /// How each vector is written.
    pub encoding: Encoding,
}

/// How a vector is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// An array of numbers.
    Float,
    /// Base64 of little-endian 32-bit floats; what OpenAI's own clients ask for.
    Base64,
}

/// A refusal in OpenAI's error format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// For people.
    pub message: String,
    /// OpenAI's `type`.
    pub kind: &'static str,
    /// The field or header at fault.
    pub param: Option<&'static str>,
    /// For programs.
    pub code: Option<&'static str>,
}

/// Tokens of a text: `ceil(chars / 4)`, the usual rule of thumb for English.
pub fn count_tokens(text: &str) -> u32 {
    u32::try_from(text.chars().count().div_ceil(4)).unwrap_or(u32::MAX)
}

/// Reads `POST /v1/chat/completions`.
///
/// # Errors
/// Status 400 with the field at fault, 404 for a model that is not served.
pub fn parse_chat(body: &[u8], headers: &HeaderMap, defaults: &Defaults) -> Result<GenerationRequest, ApiError> {
    let body = object(body)?;
    check_model(&body, defaults)?;
    let prompt_tokens = message_tokens(&body)?;
    let max_tokens = match positive(&body, "max_completion_tokens")? {
        Some(tokens) => Some(tokens),
        None => positive(&body, "max_tokens")?,
    };
    generation(&body, headers, prompt_tokens, max_tokens.unwrap_or(defaults.max_tokens))
}

/// Reads `POST /v1/completions`.
///
/// # Errors
/// As [`parse_chat`].
pub fn parse_completion(body: &[u8], headers: &HeaderMap, defaults: &Defaults) -> Result<GenerationRequest, ApiError> {
    let body = object(body)?;
    check_model(&body, defaults)?;
    let prompt_tokens = match body.get("prompt") {
        Some(Value::String(text)) => count_tokens(text),
        Some(Value::Array(items)) => match items.as_slice() {
            [Value::String(text)] => count_tokens(text),
            tokens if !tokens.is_empty() && tokens.iter().all(Value::is_u64) => u32::try_from(tokens.len()).unwrap_or(u32::MAX),
            _ => return Err(ApiError::invalid("prompt", "an array must hold one string or token ids")),
        },
        Some(_) => return Err(ApiError::invalid("prompt", "must be a string, an array of one string or an array of token ids")),
        None => return Err(ApiError::missing("prompt")),
    };
    let max_tokens = positive(&body, "max_tokens")?.unwrap_or(defaults.max_tokens);
    generation(&body, headers, prompt_tokens, max_tokens)
}

/// Reads `POST /v1/embeddings`.
///
/// # Errors
/// As [`parse_chat`].
pub fn parse_embedding(body: &[u8], defaults: &Defaults) -> Result<EmbeddingRequest, ApiError> {
    let body = object(body)?;
    check_model(&body, defaults)?;
    let expected = "must be a string or an array of 1..=2048 strings";
    let inputs: Vec<String> = match body.get("input") {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(items)) if (1..=MAX_INPUTS).contains(&items.len()) => {
            let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
            texts.collect::<Option<_>>().ok_or_else(|| ApiError::invalid("input", expected))?
        }
        Some(_) => return Err(ApiError::invalid("input", expected)),
        None => return Err(ApiError::missing("input")),
    };
    let dimensions = match body.get("dimensions").filter(|value| !value.is_null()) {
        None => DEFAULT_DIMENSIONS,
        Some(value) => value
            .as_u64()
            .filter(|dimensions| (1..=4096).contains(dimensions))
            .ok_or_else(|| ApiError::invalid("dimensions", &format!("{value} is outside 1..=4096")))?,
    };
    let encoding = match body.get("encoding_format").filter(|value| !value.is_null()) {
        None => Encoding::Float,
        Some(Value::String(name)) if name == "float" => Encoding::Float,
        Some(Value::String(name)) if name == "base64" => Encoding::Base64,
        Some(value) => return Err(ApiError::invalid("encoding_format", &format!("{value} is not \"float\" or \"base64\""))),
    };
    Ok(EmbeddingRequest { inputs, dimensions: dimensions as usize, encoding })
}

fn generation(body: &Map<String, Value>, headers: &HeaderMap, prompt_tokens: u32, max_tokens: u32) -> Result<GenerationRequest, ApiError> {
    if let Some(n) = body.get("n").filter(|n| !n.is_null() && n.as_u64() != Some(1)) {
        return Err(ApiError::invalid("n", &format!("{n} is not supported, only 1 is")));
    }
    let (output_tokens, finish) = match chosen_length(headers)? {
        Some(chosen) if chosen < max_tokens => (chosen, FinishReason::Stop),
        _ => (max_tokens, FinishReason::Length),
    };
    Ok(GenerationRequest { submission: Submission { prompt_tokens, output_tokens, finish }, delivery: delivery(body)? })
}

fn delivery(body: &Map<String, Value>) -> Result<Delivery, ApiError> {
    if !flag(body, "stream", "stream")? {
        return Ok(Delivery::Whole);
    }
    let is_included = match body.get("stream_options") {
        None | Some(Value::Null) => false,
        Some(Value::Object(options)) => flag(options, "include_usage", "stream_options.include_usage")?,
        Some(_) => return Err(ApiError::invalid("stream_options", "must be an object")),
    };
    Ok(Delivery::Stream(if is_included { Usage::Included } else { Usage::Omitted }))
}

fn chosen_length(headers: &HeaderMap) -> Result<Option<u32>, ApiError> {
    let Some(value) = headers.get(OUTPUT_TOKENS_HEADER) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.trim().parse().ok()).filter(|tokens| *tokens > 0);
    length.map(Some).ok_or_else(|| ApiError::invalid(OUTPUT_TOKENS_HEADER, "must be a whole number above 0"))
}

fn object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError {
        param: None,
        code: Some("invalid_json"),
        ..ApiError::bad_request(format!("the body is not a JSON object: {error}"))
    })
}

fn check_model(body: &Map<String, Value>, defaults: &Defaults) -> Result<(), ApiError> {
    match body.get("model") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(model)) if *model == defaults.model => Ok(()),
        Some(Value::String(model)) => Err(ApiError {
            status: StatusCode::NOT_FOUND,
            message: format!("The model `{model}` does not exist; this server has `{}`", defaults.model),
            kind: "invalid_request_error",
            param: Some("model"),
            code: Some("model_not_found"),
        }),
        Some(_) => Err(ApiError::invalid("model", "must be a string")),
    }
}

fn message_tokens(body: &Map<String, Value>) -> Result<u32, ApiError> {
    let expected = "must be an array of at least one message";
    let messages = body.get("messages").ok_or_else(|| ApiError::missing("messages"))?;
    let messages = messages.as_array().filter(|list| !list.is_empty()).ok_or_else(|| ApiError::invalid("messages", expected))?;
    let mut tokens = 0u32;
    for message in messages {
        if message.get("role").and_then(Value::as_str).is_none() {
            return Err(ApiError::invalid("messages", "each message must be an object with a role"));
        }
        tokens = tokens.saturating_add(content_tokens(message.get("content"))?);
    }
    Ok(tokens)
}

fn content_tokens(content: Option<&Value>) -> Result<u32, ApiError> {
    match content {
        None | Some(Value::Null) => Ok(0),
        Some(Value::String(text)) => Ok(count_tokens(text)),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().map(|part| part.get("text").and_then(Value::as_str));
            let tokens =
                texts.map(|text| text.map(count_tokens).ok_or_else(|| ApiError::invalid("messages", "only text parts are supported")));
            tokens.sum()
        }
        Some(_) => Err(ApiError::invalid("messages", "content must be a string or an array of text parts")),
    }
}

fn positive(body: &Map<String, Value>, field: &'static str) -> Result<Option<u32>, ApiError> {
    let Some(value) = body.get(field).filter(|value| !value.is_null()) else { return Ok(None) };
    let tokens = value.as_u64().and_then(|tokens| u32::try_from(tokens).ok()).filter(|tokens| *tokens > 0);
    tokens.map(Some).ok_or_else(|| ApiError::invalid(field, &format!("{value} is not a whole number above 0")))
}

fn flag(body: &Map<String, Value>, key: &str, field: &'static str) -> Result<bool, ApiError> {
    match body.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(value) => Err(ApiError::invalid(field, &format!("{value} is not true or false"))),
    }
}

// === impl ApiError ===

impl ApiError {
    /// A request that cannot be understood.
    pub fn bad_request(message: String) -> ApiError {
        ApiError { status: StatusCode::BAD_REQUEST, message, kind: "invalid_request_error", param: None, code: None }
    }

    fn invalid(param: &'static str, problem: &str) -> ApiError {
        ApiError { param: Some(param), code: Some("invalid_value"), ..ApiError::bad_request(format!("{param}: {problem}")) }
    }

    fn missing(param: &'static str) -> ApiError {
        ApiError { param: Some(param), code: Some("missing_required_parameter"), ..ApiError::bad_request(format!("{param}: is required")) }
    }

    /// The body, as OpenAI writes it.
    pub fn to_json(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

impl From<Rejected> for ApiError {
    fn from(rejected: Rejected) -> ApiError {
        match rejected {
            Rejected::QueueFull { waiting } => ApiError {
                status: StatusCode::SERVICE_UNAVAILABLE,
                message: format!("The engine is overloaded: {waiting} requests wait already"),
                kind: "server_error",
                param: None,
                code: Some("engine_overloaded"),
            },
            Rejected::TooLong { requested, limit } => ApiError {
                code: Some("context_length_exceeded"),
                ..ApiError::bad_request(format!(
                    "This model's maximum context length is {limit} tokens, but prompt and max_tokens together are {requested}"
                ))
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, [(header::CONTENT_TYPE, "application/json")], self.to_json().to_string()).into_response()
    }
}
