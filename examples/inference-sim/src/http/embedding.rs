//! Embeddings: a prefill per input, then a vector that depends on the text alone.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::engine::{FinishReason, Submission};
use crate::openai::{ApiError, EmbeddingRequest, Encoding, count_tokens};
use crate::serving::Serving;

/// Runs every input through the engine. An input that the engine refuses refuses the request, and aborts the others.
pub(super) async fn run(serving: &Arc<Serving>, model: &str, request: EmbeddingRequest) -> Result<Value, ApiError> {
    let mut generations = Vec::with_capacity(request.inputs.len());
    let mut prompt_tokens = 0u32;
    for input in &request.inputs {
        let tokens = count_tokens(input);
        prompt_tokens = prompt_tokens.saturating_add(tokens);
        let submission = Submission { prompt_tokens: tokens, output_tokens: 0, finish: FinishReason::Stop };
        generations.push(serving.submit(submission)?);
    }
    for generation in generations {
        generation.finish().await;
    }
    let data: Vec<Value> = request
        .inputs
        .iter()
        .enumerate()
        .map(|(index, input)| json!({"object": "embedding", "index": index, "embedding": write(&vector(input, request.dimensions), request.encoding)}))
        .collect();
    Ok(json!({"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}}))
}

/// A unit vector that is the same for the same text: xorshift64 seeded with the text's FNV-1a hash.
fn vector(text: &str, dimensions: usize) -> Vec<f32> {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mut state = hash | 1;
    let raw: Vec<f32> = (0..dimensions)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        })
        .collect();
    let norm = raw.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    raw.into_iter().map(|x| x / norm).collect()
}

fn write(vector: &[f32], encoding: Encoding) -> Value {
    match encoding {
        Encoding::Float => json!(vector),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            STANDARD.encode(bytes).into()
        }
    }
}
