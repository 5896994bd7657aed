//! `headgate agent`: streams this node's GPUs to a control plane.

use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use super::CliError;
use super::credentials::CredentialArgs;
use crate::agent::{self, AgentConfig};
use crate::config::{DeviceOrigin, LogFormat};
use crate::device::wire::{MAX_POOLS, MAX_TEXT_BYTES};

/// Longest name of a node, in bytes: that of a Kubernetes object.
const MAX_NODE_BYTES: usize = 253;

/// Shown after the help.
pub(super) const EXAMPLES: &str = "Examples:\n  headgate agent --server http://headgate.headgate-system:18000\n  \
    headgate agent --node gpu-7 --pool chat --pool embed\n  \
    HEADGATE_NODE=gpu-7 HEADGATE_POOLS=chat,embed headgate agent\n\n\
    The policy's `levels.gpuMemory.devices`, a list of UUIDs, stands above --pool.";

/// Arguments of `headgate agent`.
#[derive(Args, Debug)]
pub(super) struct AgentArgs {
    /// Address of the control plane's gRPC listener
    #[arg(long, env = "HEADGATE_SERVER", value_name = "URL", default_value = "http://127.0.0.1:18000")]
    server: String,
    /// Name of this node; on Kubernetes the field spec.nodeName [default: the host's name]
    #[arg(long, env = "HEADGATE_NODE", value_name = "NAME")]
    node: Option<String>,
    /// Pool that this node's GPUs serve, once for each; without any they serve every pool
    #[arg(long = "pool", env = "HEADGATE_POOLS", value_name = "NAME", value_delimiter = ',')]
    pools: Vec<String>,
    /// NVML library: a path, or `auto` (the driver's)
    #[arg(long, env = "HEADGATE_NVML_LIB", value_name = "PATH|auto", default_value = "auto")]
    nvml_lib: String,
    /// Recording to play the GPUs of over and over instead of asking NVML
    #[arg(long, env = "HEADGATE_DEVICE_TAPE", value_name = "FILE")]
    device_tape: Option<PathBuf>,
    #[command(flatten)]
    credentials: CredentialArgs,
    /// Format of the log on stderr
    #[arg(long, env = "HEADGATE_LOG_FORMAT", value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    log_format: String,
}

/// Streams until SIGINT or SIGTERM.
pub(super) async fn run(args: AgentArgs) -> Result<(), CliError> {
    let log_format = if args.log_format == "json" { LogFormat::Json } else { LogFormat::Text };
    let config = args.config()?;
    crate::serve::start_log(log_format);
    let shutdown = CancellationToken::new();
    let failed = |source| CliError::Io { what: "cannot listen for signals".to_owned(), source };
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt()).map_err(failed)?, signal(SignalKind::terminate()).map_err(failed)?);
    let stop = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.cancel();
    });
    agent::run(config, shutdown).await.map_err(|error| CliError::Refused(error.to_string()))
}

// === impl AgentArgs ===

impl AgentArgs {
    /// A valid configuration, or everything that is wrong.
    fn config(self) -> Result<AgentConfig, CliError> {
        let mut problems = Vec::new();
        let node = self.node.filter(|name| !name.is_empty()).or_else(host_name).unwrap_or_default();
        if !(1..=MAX_NODE_BYTES).contains(&node.len()) {
            problems.push(format!("--node: `{node}` has {} bytes, allowed are 1..={MAX_NODE_BYTES}", node.len()));
        }
        if self.pools.len() > MAX_POOLS {
            problems.push(format!("--pool: {} pools, allowed are 0..={MAX_POOLS}", self.pools.len()));
        }
        if let Some(pool) = self.pools.iter().find(|pool| !(1..=MAX_TEXT_BYTES).contains(&pool.len())) {
            problems.push(format!("--pool: `{pool}` has {} bytes, allowed are 1..={MAX_TEXT_BYTES}", pool.len()));
        }
        let devices = match (self.device_tape, self.nvml_lib.as_str()) {
            (Some(tape), _) => DeviceOrigin::Tape(tape),
            (None, "auto") => DeviceOrigin::Driver,
            (None, path) => DeviceOrigin::Library(path.into()),
        };
        let address = self.credentials.with_scheme(&self.server);
        let connector = self.credentials.connector(&address).map_err(|error| problems.push(error.to_string())).ok();
        if let Err(error) = self.credentials.bearer() {
            problems.push(error.to_string());
        }
        let server = Endpoint::from_shared(address).ok();
        if server.is_none() {
            problems.insert(0, format!("--server: `{}` is no URL, for example http://127.0.0.1:18000", self.server));
        }
        match (server, connector) {
            (Some(server), Some(connector)) if problems.is_empty() => {
                // Read anew for every stream: whoever issues tokens replaces them in their file.
                let credentials = self.credentials;
                let token = Box::new(move || credentials.bearer().ok().and_then(|bearer| bearer.value()));
                Ok(AgentConfig { server, connector, token, node, pools: self.pools, devices })
            }
            _ => Err(CliError::Usage(problems.join("\n"))),
        }
    }
}

/// The host's name as the kernel has it.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned())
}
