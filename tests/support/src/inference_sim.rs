//! The engine to protect, as a process.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::artefact;
use crate::http_client::{self, Response};
use crate::nvml::NvmlState;
use crate::process::Process;
use crate::wait::wait_until;

const START_LIMIT: Duration = Duration::from_secs(20);

/// A running `inference-sim`.
#[derive(Debug)]
pub struct InferenceSimProcess {
    process: Process,
    address: SocketAddr,
    nvml: NvmlState,
    args: Vec<String>,
    folder: TempDir,
}

impl InferenceSimProcess {
    /// Starts it on a free port with `args` in addition; its device state goes to `nvml_state`, or to a file of its own.
    ///
    /// # Errors
    /// When it does not serve within 20 s.
    pub async fn start(nvml_state: Option<&Path>, args: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let state = nvml_state.map_or_else(|| folder.path().join("nvml.json"), Path::to_owned);
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let (process, address) = serve(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &folder, &state, &args).await?;
        Ok(Self { process, address, nvml: NvmlState::written_by_another(&state), args, folder })
    }

    /// Kills it at once.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill_9(&mut self) -> Result<()> {
        self.process.kill_9()
    }

    /// Starts it again after its end, on the same port: its counters begin anew.
    ///
    /// # Errors
    /// When it does not serve within 20 s.
    pub async fn restart(&mut self) -> Result<()> {
        ensure!(self.process.ended()?.is_some(), "the engine still runs");
        (self.process, self.address) = serve(self.address, &self.folder, self.nvml.path(), &self.args).await?;
        Ok(())
    }

    /// Where it serves HTTP.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The device state that it writes.
    #[must_use]
    pub fn nvml(&self) -> &NvmlState {
        &self.nvml
    }

    /// The process itself.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// `GET path`, for example `/metrics`.
    ///
    /// # Errors
    /// When no response comes.
    pub async fn get(&self, path: &str) -> Result<Response> {
        http_client::get(self.address, path).await
    }
}

/// Starts it and waits until it serves.
async fn serve(listen: SocketAddr, folder: &TempDir, state: &Path, args: &[String]) -> Result<(Process, SocketAddr)> {
    let port_file = folder.path().join("port");
    if port_file.exists() {
        fs::remove_file(&port_file)?;
    }
    let mut command = Command::new(artefact::program("inference-sim")?);
    command.args(["--listen", &listen.to_string(), "--port-file"]).arg(&port_file).arg("--nvml-state").arg(state).args(args);
    let mut process = Process::spawn("inference-sim", &mut command, &folder.path().join("log"))?;
    let port = wait_until("port of inference-sim", START_LIMIT, || {
        let look = process.still_runs().map(|()| fs::read_to_string(&port_file).ok()?.trim().parse::<u16>().ok());
        std::future::ready(look)
    });
    let port = port.await?;
    Ok((process, SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
}
