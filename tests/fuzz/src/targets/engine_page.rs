//! The metrics page of an engine: any page is read or refused, no figure that is read is absurd, and it makes no difference in which
//! pieces the page comes.

use headgate::engine::page::{PageReader, read};

use crate::input::fingerprint;

pub(super) const WORDS: &[&str] = &[
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "vllm:cache_config_info",
    "vllm:num_preemptions_total",
    "vllm:generation_tokens_total",
    "sglang:num_running_reqs",
    "sglang:num_pages",
    "sglang_page_size",
    "sglang:token_usage",
    "sglang:max_total_num_tokens",
    "trtllm_kv_cache_utilization",
    "trtllm_num_requests_waiting",
    "nv_trt_llm_request_metrics{request_type=\"scheduled\"}",
    "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"max\"}",
    "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"used\"}",
    "nv_inference_pending_request_count",
    "tgi_queue_size",
    "tgi_batch_current_size",
    "llamacpp:requests_deferred",
    "llamacpp:kv_cache_usage_ratio",
    "vllm:time_to_first_token_seconds_bucket{le=\"0.1\"} 3",
    "vllm:request_time_per_output_token_seconds_bucket",
    "nv_inference_first_response_histogram_ms_bucket",
    "le=\"+Inf\"",
    "{engine=\"1\"}",
    "dp_rank=\"1\"",
    "tp_rank=\"0\"",
    "priority=\"\"",
    "pid=\"7\"",
    "block_size=\"16\"",
    "num_gpu_blocks=\"100\"",
    "NaN",
    "+Inf",
    "1e308",
    "\n",
];

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let page = "# HELP vllm:num_requests_running Running.\n# TYPE vllm:num_requests_running gauge\n\
                vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 4.0\nvllm:num_requests_waiting{engine=\"0\"} 7\n\
                vllm:kv_cache_usage_perc{engine=\"0\"} 0.5\nvllm:num_preemptions_total{engine=\"0\"} 3\n\
                vllm:cache_config_info{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"100\",x=\"a\\\"b\"} 1 1700000000\n";
    let other = "sglang:num_running_reqs{tp_rank=\"0\"} 3\nsglang:token_usage{dp_rank=\"1\"} 0.1\nsglang:max_total_num_tokens 5000\n";
    let triton = "nv_inference_pending_request_count{model=\"a\",version=\"1\"} 3\n\
                  nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"used\",model=\"a\",version=\"1\"} 10\n\
                  nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"max\",model=\"a\",version=\"1\"} 20\n\
                  nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"tokens_per\",model=\"a\",version=\"1\"} 64\n";
    let small = "tgi_queue_size 3\ntgi_batch_current_size 4\nllamacpp:requests_processing 4\nllamacpp:requests_deferred 4\n";
    let trtllm = "trtllm_num_requests_running{model_name=\"m\"} 2\ntrtllm_kv_cache_utilization{model_name=\"m\"} 0.5\n\
                  trtllm_kv_cache_max_blocks 10\ntrtllm_kv_cache_tokens_per_block 32\n";
    [page, other, triton, small, trtllm].map(|page| page.as_bytes().to_vec()).into()
}

/// The page in pieces whose lengths its own bytes decide.
fn in_pieces(input: &[u8]) -> Result<headgate::engine::page::Reading, headgate::engine::page::PageError> {
    let (mut reader, mut rest) = (PageReader::default(), input);
    while let Some(first) = rest.first() {
        let (piece, after) = rest.split_at((usize::from(*first) + 1).min(rest.len()));
        reader.feed(piece)?;
        rest = after;
    }
    reader.finish()
}

pub(super) fn run(input: &[u8]) -> u64 {
    let whole = read(input);
    assert_eq!(format!("{whole:?}"), format!("{:?}", in_pieces(input)), "in pieces");
    match whole {
        Ok(reading) => {
            for part in [reading.kv_use, reading.kv_fullest].into_iter().flatten() {
                assert!((0.0..=1.0).contains(&part), "use of the cache: {part}");
            }
            for durations in [&reading.ttft, &reading.tpot].into_iter().flatten() {
                assert!(durations.buckets.iter().all(|(lower, upper, samples)| lower <= upper && *samples > 0), "{durations:?}");
                let placed = durations.places().map(|(_, count)| count).fold(0, u64::saturating_add);
                let samples = durations.buckets.iter().fold(0, |sum, (_, _, samples)| u64::saturating_add(sum, *samples));
                assert!(placed == samples && durations.since(durations).buckets.is_empty(), "{durations:?}");
            }
            let has = |figure: bool| if figure { "1" } else { "0" };
            let parts = [
                has(reading.running.is_some()),
                has(reading.waiting.is_some()),
                has(reading.kv_use.is_some()),
                has(reading.kv_total_tokens.is_some()),
                has(reading.kv_total_tokens.unwrap_or(0) > u64::from(u32::MAX)),
                has(reading.preemptions.is_some()),
                has(reading.output_tokens.is_some()),
                has(reading.progress > 0.0),
                reading.engine.map_or("", headgate::engine::EngineKind::as_str),
                has(reading.kv_use != reading.kv_fullest),
            ];
            fingerprint(parts)
        }
        // The text without its numbers tells errors apart.
        Err(error) => fingerprint([error.to_string().chars().filter(|char| !char.is_ascii_digit()).collect::<String>()]),
    }
}
