//! The engine to protect, as a process.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
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
    _folder: TempDir,
}

impl InferenceSimProcess {
    /// Starts it on a free port with `args` in addition; its device state goes to `nvml_state`, or to a file of its own.
    ///
    /// # Errors
    /// When it does not serve within 20 s.
    pub async fn start(nvml_state: Option<&Path>, args: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let port_file = folder.path().join("port");
        let state = nvml_state.map_or_else(|| folder.path().join("nvml.json"), Path::to_owned);
        let mut command = Command::new(artefact::program("inference-sim")?);
        command.args(["--listen", "127.0.0.1:0", "--port-file"]).arg(&port_file).arg("--nvml-state").arg(&state).args(args);
        let mut process = Process::spawn("inference-sim", &mut command, &folder.path().join("log"))?;
        let port = wait_until("port of inference-sim", START_LIMIT, || {
            let look = process.still_runs().map(|()| fs::read_to_string(&port_file).ok()?.trim().parse::<u16>().ok());
            std::future::ready(look)
        });
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.await?));
        let nvml = NvmlState::written_by_another(&state);
        Ok(Self { process, address, nvml, _folder: folder })
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
