//! The metrics page of an engine: any page is read or refused, and no figure that is read is absurd.

use headgate::engine::page::read;

use crate::input::fingerprint;

pub(super) const WORDS: &[&str] = &[
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "vllm:cache_config_info",
    "vllm:num_preemptions_total",
    "sglang:token_usage",
    "sglang:max_total_num_tokens",
    "{engine=\"1\"}",
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
    vec![page.as_bytes().to_vec(), other.as_bytes().to_vec()]
}

pub(super) fn run(input: &[u8]) -> u64 {
    match read(input) {
        Ok(reading) => {
            for part in [reading.kv_use, reading.kv_fullest].into_iter().flatten() {
                assert!((0.0..=1.0).contains(&part), "use of the cache: {part}");
            }
            let has = |figure: bool| if figure { "1" } else { "0" };
            let parts = [
                has(reading.running.is_some()),
                has(reading.waiting.is_some()),
                has(reading.kv_use.is_some()),
                has(reading.kv_total_tokens.is_some()),
                has(reading.kv_total_tokens.unwrap_or(0) > u64::from(u32::MAX)),
                has(reading.preemptions.is_some()),
                has(reading.kv_use != reading.kv_fullest),
            ];
            fingerprint(parts)
        }
        // The text without its numbers tells errors apart.
        Err(error) => fingerprint([error.to_string().chars().filter(|char| !char.is_ascii_digit()).collect::<String>()]),
    }
}
