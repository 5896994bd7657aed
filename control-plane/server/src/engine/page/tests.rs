//! Pages in the engines' own format, and pages that mean harm.

use proptest::prelude::*;

use super::*;

const VLLM: &str = include_str!("fixtures/vllm.txt");
const VLLM_OLD: &str = include_str!("fixtures/vllm-0.6.txt");
const SGLANG: &str = include_str!("fixtures/sglang.txt");

fn of(text: &str) -> Result<Reading, PageError> {
    read(text.as_bytes())
}

#[test]
fn the_page_of_vllm_is_read() {
    let expected = Reading {
        running: Some(42),
        waiting: Some(7),
        kv_use: Some(0.8125),
        kv_fullest: Some(0.8125),
        kv_total_tokens: Some(16 * 27_885),
        preemptions: Some(3),
    };
    assert_eq!(of(VLLM), Ok(expected));
}

#[test]
fn the_names_of_old_vllm_are_read() {
    let reading = of(VLLM_OLD).unwrap();
    assert_eq!((reading.running, reading.waiting, reading.kv_use), (Some(2), Some(0), Some(0.05)));
    assert_eq!((reading.kv_total_tokens, reading.preemptions), (Some(16_000), Some(9)));
}

#[test]
fn the_page_of_sglang_is_read_and_its_second_rank_says_nothing_new() {
    let reading = of(SGLANG).unwrap();
    assert_eq!((reading.running, reading.waiting, reading.kv_use, reading.kv_total_tokens), (Some(12), Some(5), Some(0.25), Some(20_000)));
    assert_eq!(reading.preemptions, None);
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
        ("vllm:num_requests_running NaN", "vllm:num_requests_running: NaN is outside 0..=2^53"),
        ("vllm:num_requests_running -1", "vllm:num_requests_running: -1 is outside 0..=2^53"),
        ("vllm:num_requests_waiting +Inf", "vllm:num_requests_waiting: inf is outside 0..=2^53"),
        ("vllm:kv_cache_usage_perc 87", "vllm:kv_cache_usage_perc: 87 is outside 0..=1"),
        ("\nvllm:num_requests_running", "no figure of a known engine (vLLM, SGLang)"),
        ("\nvllm:num_requests_running ", "line 2: has no number for a value"),
        ("vllm:num_requests_running{a=\"1\"", "line 1: has malformed labels"),
        ("vllm:num_requests_running{a=\"1\",a=\"2\"} 1", "line 1: has a label twice"),
        ("vllm:num_requests_running 1\nvllm:num_requests_running 1", "line 2: vllm:num_requests_running comes twice with the same labels"),
        ("<html>vllm:num_requests_running</html>", "no figure of a known engine (vLLM, SGLang)"),
        ("", "no figure of a known engine (vLLM, SGLang)"),
    ] {
        assert_eq!(of(text).unwrap_err().to_string(), problem, "{text:?}");
    }
}

#[test]
fn series_labels_and_lines_are_bounded() {
    let series: String = (0..65).map(|n| format!("vllm:num_requests_running{{engine=\"{n}\"}} 1\n")).collect();
    assert_eq!(of(&series), Err(PageError::TooManySeries { figure: "vllm:num_requests_running" }));
    let labels: String = (0..65).map(|n| format!("l{n}=\"\",")).collect();
    let problem = SampleError::TooManyLabels;
    assert_eq!(of(&format!("vllm:num_requests_running{{{labels}}} 1")), Err(PageError::Malformed { line: 1, problem }));
    let line = format!("vllm:num_requests_running{{a=\"{}\"}} 1", "x".repeat(20_000));
    assert_eq!(of(&line), Err(PageError::Malformed { line: 1, problem: SampleError::TooLong }));
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
        which in 0..3_usize,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut page = [VLLM, VLLM_OLD, SGLANG][which].as_bytes().to_vec();
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
    fn known_names_with_any_rest_never_panic(rest in ".{0,200}", name in 0..FIGURES.len()) {
        if let Ok(reading) = of(&format!("{}{rest}", FIGURES[name].0)) {
            prop_assert!(is_sane(&reading), "{reading:?}");
        }
    }
}
