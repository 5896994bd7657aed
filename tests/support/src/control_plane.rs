//! The control plane, as a process that can be killed and started again in the same place.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use tempfile::TempDir;

use crate::artefact::{self, Module};
use crate::http_client::{self, Response};
use crate::nvml::STATE_VARIABLE;
use crate::process::Process;
use crate::wait::wait_until;

const START_LIMIT: Duration = Duration::from_secs(20);

/// How a control plane is started.
#[derive(Clone, Debug, Default)]
pub struct ControlPlaneOptions {
    /// State file of the NVML shim; without one the control plane has no GPU.
    pub nvml_state: Option<PathBuf>,
    /// The filter that it hands out by ECDS.
    pub filter: PathBuf,
    /// More flags of `headgate serve`.
    pub args: Vec<String>,
    /// More variables of its environment.
    pub env: Vec<(OsString, OsString)>,
}

impl ControlPlaneOptions {
    /// Devices from `nvml_state`, and the built filter.
    ///
    /// # Errors
    /// When the filter is not built.
    pub fn new(nvml_state: Option<&Path>) -> Result<Self> {
        Ok(Self { nvml_state: nvml_state.map(Path::to_owned), filter: Module::Headgate.path()?, ..Self::default() })
    }
}

/// A running `headgate serve`.
#[derive(Debug)]
pub struct ControlPlaneProcess {
    process: Process,
    options: ControlPlaneOptions,
    grpc: SocketAddr,
    http: SocketAddr,
    folder: TempDir,
}

#[derive(Deserialize)]
struct Ports {
    grpc: u16,
    http: u16,
}

impl ControlPlaneProcess {
    /// Starts one on free ports with an empty policy store and waits until it is ready.
    ///
    /// # Errors
    /// When it is not ready within 20 s.
    pub async fn start(options: ControlPlaneOptions) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (process, ports) = serve(&options, folder.path(), any, any).await?;
        let [grpc, http] = [ports.grpc, ports.http].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let mut started = Self { process, options, grpc, http, folder };
        started.wait_ready().await?;
        Ok(started)
    }

    /// Where it serves gRPC.
    #[must_use]
    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// Where it serves HTTP.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// The process itself.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Kills it at once.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill_9(&mut self) -> Result<()> {
        self.process.kill_9()
    }

    /// Starts it again after its end: the same ports, the same policy store.
    ///
    /// # Errors
    /// When it is not ready within 20 s.
    pub async fn restart(&mut self) -> Result<()> {
        ensure!(self.process.ended()?.is_some(), "the control plane still runs");
        let (process, _) = serve(&self.options, self.folder.path(), self.grpc, self.http).await?;
        self.process = process;
        self.wait_ready().await
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let http = self.http;
        let process = &mut self.process;
        wait_until("ready control plane", START_LIMIT, || {
            let runs = process.still_runs();
            async move {
                runs?;
                Ok(http_client::get(http, "/readyz").await.is_ok_and(|page| page.status.is_success()).then_some(()))
            }
        })
        .await
    }

    /// `GET path`, for example `/metrics`.
    ///
    /// # Errors
    /// When no response comes.
    pub async fn get(&self, path: &str) -> Result<Response> {
        http_client::get(self.http, path).await
    }

    /// The status page as JSON.
    ///
    /// # Errors
    /// When it does not answer 200.
    pub async fn status(&self) -> Result<serde_json::Value> {
        let page = self.get("/throttle/status").await?;
        ensure!(page.status.is_success(), "/throttle/status answers {}: {}", page.status, page.text());
        page.json()
    }

    /// Applies a policy document by the command line.
    ///
    /// # Errors
    /// When it is refused, with what the command printed.
    pub fn apply(&self, document: &str) -> Result<()> {
        let file = self.folder.path().join("policy.yaml");
        fs::write(&file, document)?;
        let output = self.command(&["policy", "apply", "-f", &file.to_string_lossy()])?;
        ensure!(output.status.success(), "policy apply: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Runs `headgate ARGS` against this control plane; it learns the addresses and the NVML library from its environment.
    ///
    /// # Errors
    /// When the program cannot be started. Its exit status is in the output.
    pub fn command(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(artefact::program("headgate")?);
        command.env("HEADGATE_SERVER", format!("http://{}", self.grpc)).env("HEADGATE_STATUS_URL", format!("http://{}", self.http));
        if let Some(state) = &self.options.nvml_state {
            command.env("HEADGATE_NVML_LIB", artefact::nvml_shim()?).env(STATE_VARIABLE, state);
        }
        command.args(args).output().context("cannot start headgate")
    }
}

async fn serve(options: &ControlPlaneOptions, folder: &Path, grpc: SocketAddr, http: SocketAddr) -> Result<(Process, Ports)> {
    let ports_file = folder.join("ports.json");
    if ports_file.exists() {
        fs::remove_file(&ports_file)?;
    }
    let nvml: OsString = if options.nvml_state.is_some() { artefact::nvml_shim()?.into() } else { "off".into() };
    let mut command = Command::new(artefact::program("headgate")?);
    command.args(["serve", "--grpc", &grpc.to_string(), "--http", &http.to_string(), "--data-dir"]).arg(folder.join("data"));
    command.arg("--nvml-lib").arg(nvml).arg("--filter-wasm").arg(&options.filter).arg("--ports-file").arg(&ports_file).args(&options.args);
    command.envs(options.env.iter().cloned());
    if let Some(state) = &options.nvml_state {
        command.env(STATE_VARIABLE, state);
    }
    let mut process = Process::spawn("headgate", &mut command, &folder.join("log"))?;
    let ports = wait_until("ports of the control plane", START_LIMIT, || {
        let look = process.still_runs().map(|()| serde_json::from_str::<Ports>(&fs::read_to_string(&ports_file).ok()?).ok());
        std::future::ready(look)
    });
    let ports = ports.await?;
    Ok((process, ports))
}
