//! Pages in the engines' own format, and pages that mean harm.

use proptest::prelude::*;

use super::*;

const VLLM: &str = include_str!("fixtures/vllm.txt");
const VLLM_OLD: &str = include_str!("fixtures/vllm-0.6.txt");
const VLLM_DP: &str = include_str!("fixtures/vllm-dp.txt");
const SGLANG: &str = include_str!("fixtures/sglang.txt");
const SGLANG_DP: &str = include_str!("fixtures/sglang-dp.txt");
const TGI: &str = include_str!("fixtures/tgi.txt");
const TRITON: &str = include_str!("fixtures/triton-trtllm.txt");
const TENSORRT_LLM: &str = include_str!("fixtures/trtllm-serve.txt");
const LLAMA_CPP: &str = include_str!("fixtures/llama-cpp.txt");
const PAGES: [&str; 9] = [VLLM, VLLM_OLD, VLLM_DP, SGLANG, SGLANG_DP, TGI, TRITON, TENSORRT_LLM, LLAMA_CPP];

fn of(text: &str) -> Result<Reading, PageError> {
    read(text.as_bytes())
}

/// What every engine says: itself, running, waiting, KV use, KV size, preemptions, output tokens.
type Said = (Option<EngineKind>, Option<u64>, Option<u64>, Option<f64>, Option<u64>, Option<u64>, Option<u64>);

fn said(page: &str) -> Said {
    let Reading { engine, running, waiting, kv_use, kv_total_tokens, preemptions, output_tokens, .. } = of(page).unwrap();
    (engine, running, waiting, kv_use, kv_total_tokens, preemptions, output_tokens)
}

#[test]
fn the_page_of_vllm_is_read() {
    let vllm = Some(EngineKind::Vllm);
    assert_eq!(said(VLLM), (vllm, Some(42), Some(7), Some(0.8125), Some(16 * 27_885), Some(3), None));
    assert_eq!(said(VLLM_OLD), (vllm, Some(2), Some(0), Some(0.05), Some(16_000), Some(9), None), "under its old names");
}

#[test]
fn the_parallel_engines_of_vllm_are_added_and_its_processes_are_not() {
    // 0.9375 * 6000 + 0.3125 * 2000 of 8000 blocks.
    let expected = (Some(EngineKind::Vllm), Some(40), Some(6), Some(0.78125), Some(128_000), Some(11), Some(99_000));
    assert_eq!(said(VLLM_DP), expected);
    assert_eq!(of(VLLM_DP).unwrap().kv_fullest, Some(0.9375));
}

#[test]
fn the_page_of_sglang_is_read_and_its_second_rank_says_nothing_new() {
    let sglang = Some(EngineKind::Sglang);
    assert_eq!(said(SGLANG), (sglang, Some(12), Some(5), Some(0.25), Some(20_000), None, None));
    assert_eq!(said(&SGLANG.replace("sglang:", "sglang_")), said(SGLANG), "under the names without a colon");
    let only_tokens = "sglang:num_running_reqs 1\nsglang:token_usage 0.5\nsglang:max_total_num_tokens 5000\n";
    assert_eq!(said(only_tokens), (sglang, Some(1), None, Some(0.5), Some(5000), None, None));
}

#[test]
fn the_parallel_engines_of_sglang_are_added_and_its_priorities_are_parts_of_their_total() {
    let expected = (Some(EngineKind::Sglang), Some(17), Some(8), Some(0.5), Some(128_000), Some(21), Some(5700));
    assert_eq!(said(SGLANG_DP), expected);
    assert_eq!(of(SGLANG_DP).unwrap().kv_fullest, Some(0.75));
}

#[test]
fn the_page_of_tgi_is_read_and_tells_no_kv_use() {
    assert_eq!(said(TGI), (Some(EngineKind::Tgi), Some(48), Some(23), None, None, None, None));
}

#[test]
fn the_page_of_triton_is_read_with_the_backend_it_has() {
    let triton = Some(EngineKind::Triton);
    assert_eq!(said(TRITON), (triton, Some(64), Some(12), Some(0.625), Some(256_000), None, None));
    let older: String = TRITON
        .lines()
        .filter(|line| !line.contains("fraction") && !line.contains("waiting"))
        .fold(String::new(), |all, line| all + line + "\n");
    assert_eq!(said(&older), (triton, Some(64), Some(4), Some(0.625), Some(256_000), None, None), "used of max, and what pends");
    let plain: String = TRITON.lines().filter(|line| !line.contains("trt_llm")).fold(String::new(), |all, line| all + line + "\n");
    assert_eq!(said(&plain), (triton, None, Some(4), None, None, None, None));
    let vllm_backend = format!("{plain}{}", "vllm:num_requests_running{model=\"llama\",version=\"1\"} 3\n");
    assert_eq!(said(&vllm_backend).0, Some(EngineKind::Vllm), "the engine inside says more than the server around it");
}

#[test]
fn the_page_of_tensorrt_llm_is_read() {
    assert_eq!(said(TENSORRT_LLM), (Some(EngineKind::TensorRtLlm), Some(20), Some(4), Some(0.5), Some(160_000), None, None));
}

#[test]
fn the_page_of_llama_cpp_is_read_and_its_nan_about_something_else_does_no_harm() {
    assert_eq!(said(LLAMA_CPP), (Some(EngineKind::LlamaCpp), Some(4), Some(46), None, None, None, None));
    let with_kv = format!("{LLAMA_CPP}llamacpp:kv_cache_usage_ratio 0.5\n");
    assert_eq!(said(&with_kv).3, Some(0.5));
}

/// Samples of time to first token and of time between tokens, and the edges, in ms, of the bucket with the last of each.
fn latencies(page: &str) -> [Option<(u64, u64, u64)>; 2] {
    let Reading { ttft, tpot, .. } = of(page).unwrap();
    [ttft, tpot].map(|durations| {
        let buckets = durations?.buckets;
        let (lower, upper, _) = *buckets.last()?;
        Some((buckets.iter().map(|(_, _, samples)| samples).sum(), lower / 1000, upper / 1000))
    })
}

#[test]
fn each_engine_tells_its_latencies_in_its_own_words() {
    assert_eq!(latencies(VLLM), [Some((811, 750, 1000)), Some((811, 25, 50))], "of requests, not between any two tokens");
    let older = VLLM.replace("request_time_per_output_token", "request_time_of_something");
    assert_eq!(latencies(&older)[1], Some((171_904, 75, 100)), "between any two, where there are none of requests");
    assert_eq!(latencies(VLLM_OLD), [None, Some((330, 25, 50))]);
    assert_eq!(latencies(SGLANG), [Some((100, 100, 200)), Some((1000, 10, 15))]);
    assert_eq!(latencies(TENSORRT_LLM), [Some((811, 100, 250)), Some((811, 10, 25))]);
    assert_eq!(latencies(TRITON), [Some((500, 500, 2000)), None], "in milliseconds");
    assert_eq!(latencies(TGI), [None, Some((1204, 33, 33))], "four are beyond its last edge");
    assert_eq!(latencies(LLAMA_CPP), [None, None]);
}

#[test]
fn counters_that_move_make_a_reading_differ() {
    for (page, before, after) in
        [(TGI, "sum 331877", "sum 331878"), (LLAMA_CPP, "total 12077", "total 12078"), (TENSORRT_LLM, "208110", "208111")]
    {
        assert_ne!(of(page), of(&page.replace(before, after)));
    }
}

#[test]
fn a_page_says_the_same_in_whatever_pieces_it_comes() {
    for page in PAGES {
        for piece in [1, 7, 4096] {
            let mut reader = PageReader::default();
            page.as_bytes().chunks(piece).for_each(|piece| reader.feed(piece).unwrap());
            assert_eq!(reader.finish(), of(page));
        }
    }
}

#[test]
fn the_new_name_wins_where_a_page_has_both() {
    let reading = of("vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.25\n").unwrap();
    assert_eq!(reading.kv_use, Some(0.25));
}

#[test]
fn parallel_engines_are_added_and_the_fullest_is_kept() {
    let page = "vllm:num_requests_waiting{engine=\"0\"} 3\nvllm:num_requests_waiting{engine=\"1\"} 4\n\
                vllm:kv_cache_usage_perc{engine=\"0\"} 0.2\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.8\n\
                vllm:cache_config_info{engine=\"0\",block_size=\"16\",num_gpu_blocks=\"300\"} 1\n\
                vllm:cache_config_info{engine=\"1\",block_size=\"16\",num_gpu_blocks=\"100\"} 1\n";
    let reading = of(page).unwrap();
    assert_eq!((reading.waiting, reading.kv_total_tokens, reading.kv_fullest), (Some(7), Some(6400), Some(0.8)));
    assert!((reading.kv_use.unwrap() - 0.35).abs() < 1e-12, "weighted by size: (0.2 * 300 + 0.8 * 100) / 400");
}

#[test]
fn one_configuration_for_two_engines_is_that_of_each() {
    let page = "vllm:kv_cache_usage_perc{engine=\"0\"} 0.2\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.4\n\
                vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"100\"} 1\n";
    assert_eq!(of(page).unwrap().kv_total_tokens, Some(3200));
}

#[test]
fn a_size_that_the_engine_does_not_know_yet_is_unknown() {
    let page = "vllm:num_requests_running 0\nvllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"None\"} 1\n";
    assert_eq!(of(page).unwrap().kv_total_tokens, None);
}

#[test]
fn labels_may_hold_any_escape_brace_and_comma() {
    let page = "vllm:num_requests_running{model_name=\"a\\\"}, b\\\\\\n\", engine=\"0\",} 5 1700000000000\n";
    assert_eq!(of(page).unwrap().running, Some(5));
}

#[test]
fn a_figure_that_cannot_be_is_refused() {
    for (text, problem) in [
        ("vllm:num_requests_running NaN", "num_requests_running: NaN is outside 0..=2^53"),
        ("vllm:num_requests_running -1", "num_requests_running: -1 is outside 0..=2^53"),
        ("vllm:num_requests_waiting +Inf", "num_requests_waiting: inf is outside 0..=2^53"),
        ("vllm:kv_cache_usage_perc 87", "kv_cache_usage_perc: 87 is outside 0..=1"),
        ("\nvllm:num_requests_running", "no figure of a known engine (vLLM, SGLang, TensorRT-LLM, Triton, TGI, llama.cpp)"),
        ("\nvllm:num_requests_running ", "line 2: has no number for a value"),
        ("vllm:num_requests_running{a=\"1\"", "line 1: has malformed labels"),
        ("vllm:num_requests_running{a=\"1\",a=\"2\"} 1", "line 1: has a label twice"),
        ("vllm:num_requests_running 1\nvllm:num_requests_running 1", "line 2: num_requests_running comes twice with the same labels"),
        ("<html>vllm:num_requests_running</html>", "no figure of a known engine (vLLM, SGLang, TensorRT-LLM, Triton, TGI, llama.cpp)"),
        ("", "no figure of a known engine (vLLM, SGLang, TensorRT-LLM, Triton, TGI, llama.cpp)"),
    ] {
        assert_eq!(of(text).unwrap_err().to_string(), problem, "{text:?}");
    }
}

#[test]
fn series_labels_lines_and_pages_are_bounded() {
    let series: String = (0..=MAX_SERIES).map(|n| format!("vllm:num_requests_running{{engine=\"{n}\"}} 1\n")).collect();
    assert_eq!(of(&series), Err(PageError::TooManySeries { figure: "num_requests_running" }));
    let labels: String = (0..65).map(|n| format!("l{n}=\"\",")).collect();
    let problem = SampleError::TooManyLabels;
    assert_eq!(of(&format!("vllm:num_requests_running{{{labels}}} 1")), Err(PageError::Malformed { line: 1, problem }));
    let line = format!("\nvllm:num_requests_running{{a=\"{}\"}} 1", "x".repeat(20_000));
    assert_eq!(of(&line), Err(PageError::Malformed { line: 2, problem: SampleError::TooLong }));
    let mut endless = PageReader::default();
    let fed = (0..MAX_PAGE_BYTES / 4096 + 1).map(|_| endless.feed(&[b'#'; 4096])).find(Result::is_err);
    assert_eq!(fed, Some(Err(PageError::TooLong)));
}

#[test]
fn a_long_line_about_something_else_is_skipped_and_not_kept() {
    let mut reader = PageReader::default();
    reader.feed(b"vllm:num_requests_running 1\nvllm:lora_requests_info{a=\"").unwrap();
    for _ in 0..100 {
        reader.feed(&[b'x'; 4096]).unwrap();
        assert!(reader.partial.capacity() <= 2 * (MAX_LINE_BYTES + 4096), "{}", reader.partial.capacity());
    }
    reader.feed(b"\"} 1\nvllm:num_requests_waiting 2").unwrap();
    assert_eq!((reader.lines, reader.finish().unwrap().waiting), (2, Some(2)));
}

fn is_sane(reading: &Reading) -> bool {
    [reading.kv_use, reading.kv_fullest].iter().flatten().all(|part| (0.0..=1.0).contains(part))
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = read(&bytes);
    }

    #[test]
    fn no_damage_to_a_page_panics_or_makes_a_figure_absurd(
        which in 0..PAGES.len(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut page = PAGES[which].as_bytes().to_vec();
        for (at, byte) in edits {
            let at = at.index(page.len());
            page[at] = byte;
        }
        page.truncate(cut.index(page.len()) + 1);
        if let Ok(reading) = read(&page) {
            prop_assert!(is_sane(&reading), "{reading:?}");
        }
    }

    #[test]
    fn known_names_with_any_rest_never_panic(rest in ".{0,200}", dialect in 0..DIALECT_COUNT, series in any::<prop::sample::Index>()) {
        let dialect = &DIALECTS[dialect];
        let series = &dialect.series[series.index(dialect.series.len())];
        if let Ok(reading) = of(&format!("{}{}{rest}", dialect.prefixes[0], series.name)) {
            prop_assert!(is_sane(&reading), "{reading:?}");
        }
    }
}
