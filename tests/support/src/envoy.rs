//! A real Envoy: its bootstrap, its process and its admin interface.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::Request;
use tempfile::TempDir;

use crate::artefact::EnvoyVersion;
use crate::http_client::{self, Response};
use crate::process::Process;
use crate::wait::wait_until;

mod bootstrap;
mod filters;

pub use self::bootstrap::{AccessLog, Bootstrap, CONTROL_AUTHORITY, CONTROL_CLUSTER, ConnectionBalance, ControlTls, Upstream};
pub use self::filters::{Capabilities, Gradient, HttpFilter, WasmFilter};

/// V8 compiles the filter without a quick first tier, so a busy machine needs seconds to be ready.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How an Envoy is started.
#[derive(Clone, Debug)]
pub struct EnvoyOptions {
    /// Which Envoy.
    pub version: EnvoyVersion,
    /// Worker threads.
    pub workers: u32,
    /// What it does.
    pub bootstrap: Bootstrap,
    /// `--log-level`.
    pub log_level: &'static str,
    /// More variables of its environment.
    pub env: Vec<(OsString, OsString)>,
}

impl EnvoyOptions {
    /// The default Envoy with two workers.
    #[must_use]
    pub fn new(bootstrap: Bootstrap) -> Self {
        Self { version: EnvoyVersion::pinned_default(), workers: 2, bootstrap, log_level: "warning", env: Vec::new() }
    }
}

/// A running Envoy on free ports.
#[derive(Debug)]
pub struct EnvoyProcess {
    process: Process,
    version: EnvoyVersion,
    admin: SocketAddr,
    listener: SocketAddr,
    access_log: PathBuf,
    _folder: TempDir,
}

impl EnvoyProcess {
    /// Starts Envoy and waits until its listener takes connections.
    ///
    /// # Errors
    /// When it ends or is not ready within 60 s, with the end of its log.
    pub async fn start(options: EnvoyOptions) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let access_log = folder.path().join("access.log");
        let config = folder.path().join("bootstrap.json");
        fs::write(&config, serde_json::to_vec_pretty(&options.bootstrap.render(&access_log)?)?)?;
        Self::launch(options.version, options.workers, options.log_level, &options.env, (folder, &config)).await
    }

    /// Starts Envoy with a bootstrap that is given as YAML, and waits until its first listener takes connections, wherever that comes
    /// from.
    ///
    /// # Errors
    /// Those of [`start`](Self::start).
    pub async fn start_yaml(version: EnvoyVersion, workers: u32, bootstrap: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("bootstrap.yaml");
        fs::write(&config, bootstrap)?;
        Self::launch(version, workers, "warning", &[], (folder, &config)).await
    }

    async fn launch(
        version: EnvoyVersion,
        workers: u32,
        log_level: &str,
        env: &[(OsString, OsString)],
        (folder, config): (TempDir, &Path),
    ) -> Result<Self> {
        let access_log = folder.path().join("access.log");
        let admin_file = folder.path().join("admin");
        let mut command = Command::new(version.path()?);
        command.envs(env.iter().cloned());
        command.arg("--config-path").arg(config).arg("--admin-address-path").arg(&admin_file);
        command.args(["--concurrency", &workers.to_string(), "--log-level", log_level]);
        // Without hot restart Envoys need no base ids, so any number of them can run side by side.
        command.args(["--disable-hot-restart", "--file-flush-interval-msec", "20", "--drain-time-s", "1"]);
        let mut process = Process::spawn("envoy", &mut command, &folder.path().join("log"))?;
        let admin = admin_address(&mut process, &admin_file).await?;
        wait_ready(&mut process, admin).await?;
        let listener = listener_address(admin).await.with_context(|| format!("its last lines:\n{}", process.tail()))?;
        Ok(Self { process, version, admin, listener, access_log, _folder: folder })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener
    }

    /// The admin interface.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Which Envoy it is.
    #[must_use]
    pub fn version(&self) -> &EnvoyVersion {
        &self.version
    }

    /// The process itself.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Lines of the access log so far.
    #[must_use]
    pub fn access_log(&self) -> Vec<String> {
        let bytes = fs::read(&self.access_log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
    }

    /// Waits until the access log has a line for which `wanted` holds, and returns it. Envoy writes it every 20 ms.
    ///
    /// # Errors
    /// When there is none after 10 s.
    pub async fn access_log_line(&self, wanted: impl Fn(&str) -> bool) -> Result<String> {
        wait_until("such line in the access log", Duration::from_secs(10), || {
            std::future::ready(Ok(self.access_log().into_iter().find(|line| wanted(line))))
        })
        .await
    }

    /// `GET path` of the admin interface.
    ///
    /// # Errors
    /// When no response comes.
    pub async fn admin_get(&self, path: &str) -> Result<Response> {
        http_client::get(self.admin, path).await
    }

    /// `POST path` of the admin interface, for what changes something.
    ///
    /// # Errors
    /// When it does not answer 200.
    pub async fn admin_post(&self, path: &str) -> Result<Response> {
        let response = http_client::send(self.admin, Request::post(path).body(bytes::Bytes::new())?).await?;
        ensure!(response.status.is_success(), "admin {path} answers {}: {}", response.status, response.text());
        Ok(response)
    }

    /// Sets the log level of one component, for example `wasm` to `debug`.
    ///
    /// # Errors
    /// When Envoy refuses.
    pub async fn set_log_level(&self, component: &str, level: &str) -> Result<()> {
        self.admin_post(&format!("/logging?{component}={level}")).await.map(drop)
    }

    /// Sum of the counters and gauges whose name contains `part`; 0 when there are none.
    ///
    /// # Errors
    /// When the admin interface does not answer.
    pub async fn stat(&self, part: &str) -> Result<u64> {
        let page = self.admin_get("/stats").await?.text();
        let values = page.lines().filter(|line| line.split_once(": ").is_some_and(|(name, _)| name.contains(part)));
        Ok(values.filter_map(|line| line.split_once(": ")?.1.parse::<u64>().ok()).sum())
    }

    /// All metrics in Prometheus's format.
    ///
    /// # Errors
    /// When the admin interface does not answer.
    pub async fn prometheus(&self) -> Result<String> {
        Ok(self.admin_get("/stats/prometheus").await?.text())
    }

    /// The configuration that Envoy runs, dynamic extensions included.
    ///
    /// # Errors
    /// When the admin interface does not answer.
    pub async fn config_dump(&self) -> Result<serde_json::Value> {
        self.admin_get("/config_dump").await?.json()
    }
}

async fn admin_address(process: &mut Process, file: &Path) -> Result<SocketAddr> {
    wait_until("admin address of Envoy", START_LIMIT, || {
        let look = process.still_runs().map(|()| fs::read_to_string(file).ok()?.trim().parse().ok());
        std::future::ready(look)
    })
    .await
}

async fn wait_ready(process: &mut Process, admin: SocketAddr) -> Result<()> {
    wait_until("ready Envoy", START_LIMIT, || {
        let runs = process.still_runs();
        async move {
            runs?;
            Ok(http_client::get(admin, "/ready").await.is_ok_and(|page| page.status.is_success()).then_some(()))
        }
    })
    .await
}

async fn listener_address(admin: SocketAddr) -> Result<SocketAddr> {
    let page = http_client::get(admin, "/listeners?format=json").await?.json()?;
    let address = &page["listener_statuses"][0]["local_address"]["socket_address"];
    let port = address["port_value"].as_u64().and_then(|port| u16::try_from(port).ok());
    let ip = address["address"].as_str().and_then(|ip| ip.parse().ok());
    Ok(SocketAddr::new(ip.context("Envoy's listener has no address")?, port.context("Envoy's listener has no port")?))
}
