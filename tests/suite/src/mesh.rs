//! A whole set-up: upstream, GPU, control plane and Envoy with the filter.

use std::time::Duration;

use anyhow::Result;
use headgate_test_support::control_plane::ControlPlaneOptions;
use headgate_test_support::envoy::{Bootstrap, EnvoyOptions, HttpFilter, Upstream as To, WasmFilter};
use headgate_test_support::{ControlPlaneProcess, EnvoyProcess, EnvoyVersion, NvmlDevice, NvmlState, wait_until};
use serde_json::Value;
use tempfile::TempDir;

use crate::connection::Connection;
use crate::documents;
use crate::upstream::Upstream;

/// Time within which anything that is to happen has happened, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Everything running.
pub struct Mesh {
    /// The proxy.
    pub envoy: EnvoyProcess,
    /// The control plane.
    pub control: ControlPlaneProcess,
    /// The GPU.
    pub gpu: NvmlState,
    /// The upstream.
    pub upstream: Upstream,
    _folder: TempDir,
}

/// What differs between meshes.
pub struct MeshOptions {
    /// Which Envoy.
    pub version: EnvoyVersion,
    /// Its workers.
    pub workers: u32,
    /// Spec of the policy `test`, applied before Envoy starts.
    pub spec: Value,
    /// The control plane, but for its GPU.
    pub control: ControlPlaneOptions,
    /// The filter; it is given the control plane by the caller's configuration.
    pub filter: HttpFilter,
}

impl MeshOptions {
    /// Two workers, the filter in the bootstrap with nothing but the control plane's address.
    pub fn new(version: EnvoyVersion, spec: Value) -> Result<Self> {
        let filter = HttpFilter::Wasm(WasmFilter::headgate_controlled()?);
        Ok(Self { version, workers: 2, spec, control: ControlPlaneOptions::new(None)?, filter })
    }
}

impl Mesh {
    /// Starts everything with GPU memory at 10 % and waits until every worker enforces the policy.
    pub async fn start(options: MeshOptions) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let gpu = NvmlState::create(&folder.path().join("nvml.json"), &[NvmlDevice::with_memory_used(0, 10.0)])?;
        let control = ControlPlaneOptions { nvml_state: Some(gpu.path().to_owned()), ..options.control };
        let control = ControlPlaneProcess::start(control).await?;
        control.apply(&documents::document("test", &options.spec))?;
        let upstream = Upstream::start().await?;
        let bootstrap = Bootstrap::new(options.filter, To::Endpoint(upstream.address())).with_control_plane(control.grpc());
        let mut envoy = EnvoyOptions::new(bootstrap);
        envoy.version = options.version;
        envoy.workers = options.workers;
        let envoy = EnvoyProcess::start(envoy).await?;
        let mesh = Self { envoy, control, gpu, upstream, _folder: folder };
        mesh.wait_for_workers(options.workers).await?;
        // A control plane that has just begun learns for a second before it pushes.
        wait_until("pushed limits", PATIENCE, || async {
            let status = mesh.control.status().await?;
            Ok((status["pools"][0]["epoch"].as_u64() > Some(0)).then_some(()))
        })
        .await?;
        Ok(mesh)
    }

    /// Waits until the control plane knows `workers` workers that have the policy in force.
    pub async fn wait_for_workers(&self, workers: u32) -> Result<()> {
        wait_until("worker with the policy in force", PATIENCE, || async {
            let status = self.control.status().await?;
            let proxy = &status["proxies"][0];
            let has_policy = proxy["policies"].as_array().is_some_and(|policies| policies.iter().any(|policy| policy["name"] == "test"));
            let n_workers = proxy["workers"].as_u64().unwrap_or(0);
            Ok((has_policy && n_workers >= u64::from(workers)).then_some(()))
        })
        .await
    }

    /// Waits until a request of the class `low` is refused; `what` names that for the message when none is.
    pub async fn wait_for_refusal(&self, what: &str) -> Result<()> {
        wait_until(what, PATIENCE, || async {
            let response = Connection::open(self.envoy.address()).await?.get("/v1/models", &[documents::key_header("low")]).await?;
            Ok((response.status == 429).then_some(()))
        })
        .await
    }

    /// One connection to each worker, several times over: Envoy spreads connections evenly.
    pub async fn connections(&self, n: usize) -> Result<Vec<Connection>> {
        let mut connections = Vec::with_capacity(n);
        for _ in 0..n {
            connections.push(Connection::open(self.envoy.address()).await?);
        }
        Ok(connections)
    }
}
