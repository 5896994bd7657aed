//! The command line.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::engine::EngineConfig;
use crate::gpu::{Allocation, Device};
use crate::metrics::Names;
use crate::openai::Defaults;

const EXAMPLES: &str = "\
Examples:
  The demo pool, about 35 requests/s of 200-token prompts and 40-token answers:
    inference-sim --listen 127.0.0.1:8000 --nvml-state /tmp/nvml.json

  A port of its own choice, told through a file:
    inference-sim --listen 127.0.0.1:0 --port-file /tmp/sim.port

  Memory as vLLM takes it, all at start, so that NVML's figure says nothing:
    inference-sim --nvml-state /tmp/nvml.json --preallocate

  A cache so small that four requests make it preempt:
    inference-sim --kv-blocks 48 --max-queue 16";

/// An OpenAI-compatible server in front of a model of an inference engine: continuous batching, paged KV cache,
/// preemption, and the GPU memory that goes with it.
#[derive(Clone, Debug, Parser)]
#[command(name = "inference-sim", version, after_help = EXAMPLES)]
#[allow(missing_docs, reason = "each field's comment is its help text")]
pub struct Args {
    /// Where to listen; port 0 lets the system choose
    #[arg(long, default_value = "127.0.0.1:8000", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// Write the bound port here once requests are served
    #[arg(long, value_name = "FILE")]
    pub port_file: Option<PathBuf>,
    /// Name of the model that is served
    #[arg(long, default_value = "sim-8b")]
    pub model: String,

    /// Blocks of the KV cache
    #[arg(long, default_value = "700", value_name = "N")]
    pub kv_blocks: NonZeroU32,
    /// Tokens in one block
    #[arg(long, default_value = "16", value_name = "TOKENS")]
    pub block_size: NonZeroU32,
    /// Prompt tokens computed per second
    #[arg(long, default_value = "20000", value_name = "TOKENS_PER_S")]
    pub prefill_tps: NonZeroU32,
    /// What every step costs, however small its batch
    #[arg(long, default_value = "12", value_name = "MS", value_parser = milliseconds)]
    pub decode_base_ms: Duration,
    /// What each decoding sequence adds to a step
    #[arg(long, default_value = "200", value_name = "US")]
    pub decode_per_seq_us: u32,
    /// Most tokens in one step, prompt and decode together: the size of a prefill chunk
    #[arg(long, default_value = "512", value_name = "TOKENS")]
    pub step_tokens: NonZeroU32,
    /// Most sequences that run at once
    #[arg(long, default_value = "256", value_name = "N")]
    pub max_batch: NonZeroUsize,
    /// Most sequences that wait; beyond it a request gets 503
    #[arg(long, default_value = "512", value_name = "N")]
    pub max_queue: NonZeroUsize,
    /// Most tokens of one request, prompt and answer
    #[arg(long, default_value = "8192", value_name = "TOKENS")]
    pub max_model_len: NonZeroU32,
    /// max_tokens of a request that has none
    #[arg(long, default_value = "64", value_name = "TOKENS")]
    pub default_max_tokens: NonZeroU32,
    /// Tokens per streamed chunk after the first
    #[arg(long, default_value = "4", value_name = "TOKENS")]
    pub stream_interval: NonZeroU32,

    /// Whose names the metrics have
    #[arg(long, default_value = "vllm", value_name = "ENGINE")]
    pub metrics: Names,
    /// Memory of the simulated GPU
    #[arg(long, default_value = "85899345920", value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub gpu_memory_bytes: u64,
    /// Memory that the weights take; weights and a full KV cache together are 90 % of the GPU
    #[arg(long, default_value = "17179869184", value_name = "BYTES")]
    pub weights_bytes: u64,
    /// Take the KV cache's memory at start, as vLLM does, instead of block by block
    #[arg(long)]
    pub preallocate: bool,
    /// UUID of the simulated GPU
    #[arg(long, default_value = "GPU-5e1f6a7e-0000-4000-8000-000000000001")]
    pub gpu_uuid: String,
    /// Keep this file up to date with what the NVML shim shall show
    #[arg(long, value_name = "FILE")]
    pub nvml_state: Option<PathBuf>,

    /// After SIGTERM or SIGINT, how long running requests may take to end
    #[arg(long, default_value = "5000", value_name = "MS", value_parser = milliseconds)]
    pub drain_ms: Duration,
}

impl Args {
    /// The engine that the flags describe.
    pub fn engine(&self) -> EngineConfig {
        EngineConfig {
            kv_blocks: self.kv_blocks,
            block_tokens: self.block_size,
            prefill_tokens_per_s: self.prefill_tps,
            decode_base: self.decode_base_ms,
            decode_per_sequence: Duration::from_micros(self.decode_per_seq_us.into()),
            step_tokens: self.step_tokens,
            max_batch: self.max_batch,
            max_queue: self.max_queue,
            max_model_tokens: self.max_model_len,
        }
    }

    /// What requests get where they are silent.
    pub fn defaults(&self) -> Defaults {
        Defaults { model: self.model.clone(), max_tokens: self.default_max_tokens.get() }
    }

    /// The device that the flags describe.
    ///
    /// # Errors
    /// When the weights leave no room for a KV cache in 90 % of the memory.
    pub fn device(&self) -> anyhow::Result<Device> {
        let allocation = if self.preallocate { Allocation::Preallocated } else { Allocation::OnDemand };
        let device = Device {
            uuid: self.gpu_uuid.clone(),
            memory_total_bytes: self.gpu_memory_bytes,
            weights_bytes: self.weights_bytes,
            allocation,
        };
        anyhow::ensure!(
            device.cache_bytes() >= u64::from(self.kv_blocks.get()),
            "--weights-bytes: {} leaves no room for {} KV blocks in 90 % of --gpu-memory-bytes {}",
            self.weights_bytes,
            self.kv_blocks,
            self.gpu_memory_bytes
        );
        Ok(device)
    }
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=600_000.0).contains(&value) { Ok(Duration::from_secs_f64(value / 1e3)) } else { Err(format!("{text} is outside 0..=600000")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["inference-sim"], flags].concat())
    }

    #[test]
    fn defaults_describe_an_engine_and_a_device() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.engine().kv_blocks.get(), 700);
        // 90 % of 80 GiB less 16 GiB of weights.
        assert_eq!(args.device().unwrap().cache_bytes(), 56 << 30);
    }

    #[test]
    fn a_value_outside_its_range_is_refused_by_its_flag() {
        for (flag, value) in [("--kv-blocks", "0"), ("--decode-base-ms", "-1"), ("--decode-base-ms", "NaN"), ("--prefill-tps", "0")] {
            let error = parse(&[&format!("{flag}={value}")]).unwrap_err().to_string();
            assert!(error.contains(flag), "{error}");
        }
    }

    #[test]
    fn weights_that_leave_no_cache_are_refused() {
        let args = parse(&["--gpu-memory-bytes=1000", "--weights-bytes=900"]).unwrap();
        assert!(args.device().unwrap_err().to_string().starts_with("--weights-bytes: 900"));
    }
}
