//! Tests of the request formats.

use super::*;

fn defaults() -> Defaults {
    Defaults { model: "sim".into(), max_tokens: 64 }
}

fn chat(body: &Value) -> Result<GenerationRequest, ApiError> {
    parse_chat(body.to_string().as_bytes(), &HeaderMap::new(), &defaults())
}

fn messages() -> Value {
    json!([{"role": "system", "content": "x".repeat(400)}, {"role": "user", "content": [{"type": "text", "text": "y".repeat(41)}]}])
}

#[test]
fn a_chat_request_counts_a_token_per_four_characters() {
    let request = chat(&json!({"messages": messages(), "max_tokens": 7})).unwrap();
    let submission = Submission { prompt_tokens: 100 + 11, output_tokens: 7, finish: FinishReason::Length };
    assert_eq!(request, GenerationRequest { submission, delivery: Delivery::Whole });
}

#[test]
fn max_completion_tokens_wins_over_its_old_name_and_both_may_be_absent() {
    let tokens = |more: Value| {
        let mut body = json!({"messages": messages()});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        chat(&body).unwrap().submission.output_tokens
    };
    assert_eq!(tokens(json!({"max_completion_tokens": 5, "max_tokens": 6})), 5);
    assert_eq!(tokens(json!({"max_tokens": null})), 64, "the server's default");
}

#[test]
fn the_chosen_length_stops_the_answer_before_max_tokens_and_never_after() {
    let parse = |header: &'static str| {
        let headers = HeaderMap::from_iter([(OUTPUT_TOKENS_HEADER.parse().unwrap(), header.parse().unwrap())]);
        let body = json!({"messages": messages(), "max_tokens": 30}).to_string();
        parse_chat(body.as_bytes(), &headers, &defaults()).map(|request| (request.submission.output_tokens, request.submission.finish))
    };
    assert_eq!(parse("12").unwrap(), (12, FinishReason::Stop));
    assert_eq!(parse("90").unwrap(), (30, FinishReason::Length));
    assert_eq!(parse("soon").unwrap_err().param, Some(OUTPUT_TOKENS_HEADER));
}

#[test]
fn a_bad_chat_request_names_the_field_at_fault() {
    let cases = [
        (json!({}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": ["hi"]}), "messages"),
        (json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "messages"),
        (json!({"messages": messages(), "max_tokens": 0}), "max_tokens"),
        (json!({"messages": messages(), "max_tokens": 2.5}), "max_tokens"),
        (json!({"messages": messages(), "max_completion_tokens": "9"}), "max_completion_tokens"),
        (json!({"messages": messages(), "n": 2}), "n"),
        (json!({"messages": messages(), "stream": "yes"}), "stream"),
        (json!({"messages": messages(), "stream": true, "stream_options": 1}), "stream_options"),
        (json!({"messages": messages(), "stream": true, "stream_options": {"include_usage": 1}}), "stream_options.include_usage"),
        (json!({"messages": messages(), "model": 3}), "model"),
    ];
    for (body, field) in cases {
        let error = chat(&body).unwrap_err();
        assert_eq!((error.status, error.param), (StatusCode::BAD_REQUEST, Some(field)), "{body}: {}", error.message);
        assert_eq!(error.to_json()["error"]["type"], "invalid_request_error");
    }
}

#[test]
fn a_body_that_is_no_json_object_is_refused() {
    for body in [&b""[..], b"{\"messages\": [", b"[]", b"\xff"] {
        assert_eq!(parse_chat(body, &HeaderMap::new(), &defaults()).unwrap_err().code, Some("invalid_json"));
    }
}

#[test]
fn a_model_that_is_not_served_is_not_found() {
    let error = chat(&json!({"messages": messages(), "model": "other"})).unwrap_err();
    assert_eq!((error.status, error.code), (StatusCode::NOT_FOUND, Some("model_not_found")));
}

#[test]
fn a_prompt_is_text_or_token_ids() {
    let tokens = |prompt: Value| {
        let body = json!({"prompt": prompt}).to_string();
        parse_completion(body.as_bytes(), &HeaderMap::new(), &defaults()).map(|request| request.submission.prompt_tokens)
    };
    assert_eq!(tokens(json!("x".repeat(9))).unwrap(), 3);
    assert_eq!(tokens(json!(["x".repeat(8)])).unwrap(), 2);
    assert_eq!(tokens(json!([5, 6, 7])).unwrap(), 3, "three ids");
    for wrong in [json!(["a", "b"]), json!([]), json!(1), json!([-1])] {
        assert_eq!(tokens(wrong).unwrap_err().param, Some("prompt"));
    }
}

#[test]
fn an_embedding_request_has_one_or_many_inputs() {
    let parse = |body: Value| parse_embedding(body.to_string().as_bytes(), &defaults());
    let many = parse(json!({"input": ["a", "b"], "dimensions": 8, "encoding_format": "base64"})).unwrap();
    assert_eq!(many, EmbeddingRequest { inputs: vec!["a".into(), "b".into()], dimensions: 8, encoding: Encoding::Base64 });
    for (body, field) in [
        (json!({}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": [1]}), "input"),
        (json!({"input": "a", "dimensions": 0}), "dimensions"),
        (json!({"input": "a", "encoding_format": "hex"}), "encoding_format"),
    ] {
        assert_eq!(parse(body).unwrap_err().param, Some(field));
    }
}
