//! The command line.
//!
//! Exit codes: 0 done; 1 refused or invalid; 2 wrong usage or configuration; 3 not found; 4 the server cannot be reached; 5 another
//! version is in force.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigErrors, FileError, RawConfig};

mod agent;
mod connect;
mod credentials;
mod dry_run;
mod gateway;
mod gpu;
mod policy;
mod simulate;
mod status;
mod table;
mod top;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 refused or invalid, 2 wrong usage or configuration, 3 not found, 4 server unreachable, \
                          5 another version is in force";

/// Adaptive, priority-aware admission control for GPU inference behind Envoy.
#[derive(Parser, Debug)]
#[command(name = "headgate", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// A command that prints its result. `simulate` writes files, its `--json` takes a path.
#[derive(Args, Debug)]
struct Printing<T: Args> {
    #[command(flatten)]
    args: T,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the control plane
    #[command(after_help = "Examples:\n  headgate serve\n  headgate serve --grpc 0.0.0.0:18000 --tls-cert tls.crt \
                            --tls-key tls.key --client-ca ca.crt\n  \
                            headgate serve --config headgate.yaml    # keys are the flags: `data-dir: /var/lib/headgate`\n\n\
                            Flags win over the environment (HEADGATE_*), the environment over the file.")]
    Serve(Box<Printing<ServeArgs>>),
    /// Stream this node's GPUs to a control plane
    #[command(after_help = agent::EXAMPLES)]
    Agent(Box<agent::AgentArgs>),
    /// Apply, check, read, compare, roll back, delete and watch policies
    #[command(after_help = EXIT_CODES)]
    Policy(Printing<policy::PolicyArgs>),
    /// Apply, check, render, read and delete the pools, routes and gateways of which Envoys are configured
    #[command(after_help = gateway::EXAMPLES)]
    Gateway(Printing<gateway::GatewayArgs>),
    /// Show levels, classes, GPUs and proxies of a running control plane
    #[command(after_help = "Examples:\n  headgate status\n  headgate status --watch\n  headgate status --json | jq '.pools[].levels'")]
    Status(Printing<status::StatusArgs>),
    /// Watch pools, classes, levels, GPUs, engines and proxies of a running control plane in a terminal
    #[command(after_help = top::EXAMPLES)]
    Top(Printing<top::TopArgs>),
    /// Show or record this machine's GPUs as the control plane would see them; no GPU is an answer, not an error
    #[command(
        after_help = "Examples:\n  headgate gpu\n  headgate gpu --json\n  headgate gpu --watch\n  headgate gpu --nvml-lib /usr/lib/libnvidia-ml.so.1\n  \
                            headgate gpu --record day.jsonl --seconds 600 --period-ms 100\n  \
                            headgate gpu --record day.jsonl --engine http://127.0.0.1:8000/metrics"
    )]
    Gpu(Printing<gpu::GpuArgs>),
    /// Play a load against Headgate or another algorithm in a simulated fleet, and judge it
    #[command(after_help = simulate::EXAMPLES)]
    Simulate(simulate::SimulateArgs),
}

#[derive(Args, Debug)]
struct ServeArgs {
    /// YAML file with settings, named like the flags
    #[arg(long, env = "HEADGATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// No GPU telemetry: the same as --nvml-lib off
    #[arg(long, conflicts_with_all = ["nvml_lib", "device_tape"])]
    no_nvml: bool,
    #[command(flatten)]
    settings: RawConfig,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// Why a command failed. `Display` says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The input was refused; one problem a line.
    #[error("{0}")]
    Refused(String),
    /// An input is not usable; one problem a line.
    #[error("{0}")]
    Usage(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// The server does not answer.
    #[error("cannot reach the control plane at {address}: {problem}\nis `headgate serve` running there? {flag} names another address")]
    Unreachable {
        /// Its address.
        address: String,
        /// What went wrong.
        problem: String,
        /// The flag that names the address.
        flag: &'static str,
    },
    /// Another version is in force.
    #[error("{0}")]
    VersionConflict(String),
    /// The server could not start or had to stop.
    #[error("{0}")]
    Serve(#[from] crate::serve::ServeError),
    /// Who read the output has had enough, for example `head`: no error to anyone.
    #[error("the output was closed")]
    OutputClosed,
    /// A file or stream cannot be read or written.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

// === impl Cli ===

impl Cli {
    /// Runs the command to its end; an error is printed and becomes its exit code.
    pub async fn run(self) -> ExitCode {
        let format = self.command.format();
        match self.command.run(format).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                error.print(format);
                ExitCode::from(error.exit_code())
            }
        }
    }
}

// === impl Command ===

impl Command {
    fn format(&self) -> Format {
        let is_json = match self {
            Self::Serve(command) => command.json,
            Self::Policy(command) => command.json,
            Self::Gateway(command) => command.json,
            Self::Status(command) => command.json,
            Self::Top(command) => command.json,
            Self::Gpu(command) => command.json,
            Self::Simulate(_) | Self::Agent(_) => false,
        };
        if is_json { Format::Json } else { Format::Text }
    }

    async fn run(self, format: Format) -> Result<(), CliError> {
        match self {
            Self::Serve(serve) => Ok(crate::serve::run(serve.args.config()?).await?),
            Self::Agent(args) => agent::run(*args).await,
            Self::Policy(policy) => policy::run(policy.args, format).await,
            Self::Gateway(gateway) => gateway::run(gateway.args, format).await,
            Self::Status(status) => status::run(status.args, format).await,
            Self::Top(top) => top::run(top.args, format).await,
            Self::Gpu(gpu) => gpu::run(&gpu.args, format).await,
            Self::Simulate(args) => simulate::run(&args),
        }
    }
}

// === impl ServeArgs ===

impl ServeArgs {
    fn config(self) -> Result<Config, CliError> {
        let mut raw = self.settings;
        if self.no_nvml {
            raw.nvml_lib = Some("off".to_owned());
        }
        let file = self.config.as_deref().map(RawConfig::read).transpose()?.unwrap_or_default();
        Ok(Config::try_from(raw.or(file))?)
    }
}

// === impl CliError ===

impl CliError {
    /// The exit code that stands for this error; see the module's documentation.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Refused(_) | Self::Serve(_) | Self::Io { .. } => 1,
            Self::File(_) | Self::Config(_) | Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::Unreachable { .. } => 4,
            Self::VersionConflict(_) => 5,
        }
    }

    /// Prints the error on stderr as `--json` asks for, or for a person.
    fn print(&self, format: Format) {
        match (self, format) {
            (Self::OutputClosed, _) => {}
            (_, Format::Text) => eprintln!("error: {self}"),
            (_, Format::Json) => {
                let problems: Vec<String> = self.to_string().lines().map(str::to_owned).collect();
                eprintln!("{}", serde_json::json!({ "exit_code": self.exit_code(), "problems": problems }));
            }
        }
    }
}

/// Prints a line on stdout. A closed pipe ends the output, not the command with an error.
fn print(text: &str) -> Result<(), CliError> {
    use io::Write;
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(CliError::OutputClosed),
        Err(source) => Err(CliError::Io { what: "cannot write to stdout".to_owned(), source }),
        Ok(()) => Ok(()),
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::Io { what: "cannot write JSON".to_owned(), source: io::Error::other(error) })?;
    print(&text)
}
