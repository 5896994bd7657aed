//! What the clients ask for.

use serde::Serialize;

/// One kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// A chat completion as the OpenAI SDK for Python sends it: what Headgate is there for.
    Chat,
    /// A list of models: few headers and no body, the least that a filter sees.
    Models,
}

/// About 500 bytes.
const CHAT_BODY: &str = r#"{"messages":[{"role":"system","content":"You are a helpful assistant. Answer in at most three sentences, and say so if you do not know."},{"role":"user","content":"Our gateway refuses one request in ten with status 429 whenever a nightly job starts, although the GPUs are at sixty percent. Which figures should I look at first, and what would tell a quota that is too small from a queue that is too short?"}],"model":"llama-3.1-8b-instruct","max_tokens":256,"temperature":0.2}"#;

impl Request {
    pub(crate) const ALL: [Self; 2] = [Self::Chat, Self::Models];

    /// The request over HTTP/1.1. The key is the tenant bronze's.
    pub(crate) fn bytes(self) -> Vec<u8> {
        let (line, headers, body) = match self {
            Self::Chat => ("POST /v1/chat/completions", CHAT_HEADERS, CHAT_BODY),
            Self::Models => ("GET /v1/models", MODELS_HEADERS, ""),
        };
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        format!("{line} HTTP/1.1\r\nHost: bench\r\n{headers}{length}\r\n{body}").into_bytes()
    }
}

/// Source: what openai 1.99.0 sends from Python 3.12 by httpx.
const CHAT_HEADERS: &str = "Accept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nAccept: application/json\r\n\
    Content-Type: application/json\r\nUser-Agent: OpenAI/Python 1.99.0\r\nX-Stainless-Lang: python\r\n\
    X-Stainless-Package-Version: 1.99.0\r\nX-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\n\
    X-Stainless-Runtime-Version: 3.12.4\r\nAuthorization: Bearer demo-key-bronze\r\nX-Stainless-Async: false\r\n\
    x-stainless-retry-count: 0\r\nx-stainless-read-timeout: 600\r\n";

const MODELS_HEADERS: &str = "user-agent: OpenAI/Python 1.99.0\r\naccept: application/json\r\naccept-encoding: gzip, deflate\r\n\
    x-stainless-lang: python\r\nx-request-tag: 7f1c\r\nauthorization: Bearer demo-key-bronze\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chat_request_is_whole_and_about_as_large_as_they_are() {
        let text = String::from_utf8(Request::Chat.bytes()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())) && (450..550).contains(&body.len()), "{text}");
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
        assert!(Request::Models.bytes().ends_with(b"\r\n\r\n"));
    }
}
