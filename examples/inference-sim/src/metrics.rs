//! `/metrics` in Prometheus' text format under vLLM's names or Triton's.

use std::fmt::{Display, Write};

use clap::ValueEnum;

use crate::engine::{Engine, Histogram};

/// The content type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whose names the metrics have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Names {
    /// vLLM's: queue, batch, KV cache, tokens and latencies.
    Vllm,
    /// Those of Triton with a backend that allocates as it goes: what waits, what was done, and nothing of memory.
    Triton,
}

/// Every metric of `engine` that has such a name, labelled with the model's name.
pub fn render(engine: &Engine, model: &str, names: Names) -> String {
    match names {
        Names::Vllm => vllm(engine, model),
        Names::Triton => triton(engine, model),
    }
}

fn triton(engine: &Engine, model: &str) -> String {
    let mut page = Page { text: String::new(), labels: format!(r#"model="{}",version="1""#, escape(model)) };
    let stats = engine.stats();
    let finished = stats.finished_stop + stats.finished_length;
    page.single("nv_inference_request_success", "counter", "Number of successful inference requests, all batch sizes", finished);
    page.single("nv_inference_request_failure", "counter", "Number of failed inference requests, all batch sizes", stats.rejections);
    page.single("nv_inference_count", "counter", "Number of inferences performed (does not include cached requests)", finished);
    page.single("nv_inference_pending_request_count", "gauge", "Instantaneous number of pending requests", engine.waiting());
    page.histogram_in(
        1000.0,
        "nv_inference_first_response_histogram_ms",
        "Duration from request to first response in milliseconds",
        &stats.time_to_first_token,
    );
    page.text
}

fn vllm(engine: &Engine, model: &str) -> String {
    let labels = format!(r#"model_name="{}",engine="0""#, escape(model));
    let mut page = Page { text: String::with_capacity(8192), labels };
    gauges(&mut page, engine);
    counters(&mut page, engine);
    let stats = engine.stats();
    page.histogram("vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", &stats.time_to_first_token);
    page.histogram("vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", &stats.inter_token_latency);
    page.histogram("vllm:request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", &stats.queue_time);
    page.histogram("vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", &stats.end_to_end);
    page.text
}

fn gauges(page: &mut Page, engine: &Engine) {
    page.single("vllm:num_requests_running", "gauge", "Number of requests in model execution batches.", engine.running());
    page.single("vllm:num_requests_waiting", "gauge", "Number of requests waiting to be processed.", engine.waiting());
    page.single("vllm:kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", engine.kv_usage());
    let name = "vllm:cache_config_info";
    page.head(name, "gauge", "Information of the LLMEngine CacheConfig");
    let (block, blocks) = (engine.pool().block_tokens(), engine.pool().capacity());
    page.sample(name, &format!(r#",block_size="{block}",num_gpu_blocks="{blocks}",enable_prefix_caching="False""#), 1);
}

fn counters(page: &mut Page, engine: &Engine) {
    let stats = engine.stats();
    page.single("vllm:num_preemptions_total", "counter", "Cumulative number of preemption from the engine.", stats.preemptions);
    page.single("vllm:prompt_tokens_total", "counter", "Number of prefill tokens processed.", stats.prompt_tokens);
    page.single("vllm:generation_tokens_total", "counter", "Number of generation tokens processed.", stats.generation_tokens);
    page.single("vllm:admission_rejections_total", "counter", "Requests refused because the queue was full.", stats.rejections);
    let name = "vllm:request_success_total";
    page.head(name, "counter", "Count of successfully processed requests.");
    page.sample(name, r#",finished_reason="stop""#, stats.finished_stop);
    page.sample(name, r#",finished_reason="length""#, stats.finished_length);
    page.sample(name, r#",finished_reason="abort""#, stats.finished_abort);
}

/// A label value with Prometheus' escapes.
fn escape(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

struct Page {
    text: String,
    labels: String,
}

// Writing to a `String` cannot fail, so results of `write!` are dropped here.
impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, more_labels: &str, value: impl Display) {
        let _ = writeln!(self.text, "{name}{{{}{more_labels}}} {value}", self.labels);
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(name, kind, help);
        self.sample(name, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.histogram_in(1.0, name, help, histogram);
    }

    /// A histogram in a unit of which a second has so many.
    fn histogram_in(&mut self, per_second: f64, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        for (bound, count) in histogram.cumulative() {
            self.sample(&bucket, &format!(r#",le="{:?}""#, bound * per_second), count);
        }
        self.sample(&bucket, r#",le="+Inf""#, histogram.count());
        self.sample(&format!("{name}_sum"), "", histogram.sum_seconds() * per_second);
        self.sample(&format!("{name}_count"), "", histogram.count());
    }
}
