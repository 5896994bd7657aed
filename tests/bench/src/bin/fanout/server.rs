//! The two servers: Headgate's control plane, and the floor.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use headgate_protos::discovery::DeltaDiscoveryResponse;
use headgate_protos::v1;
use headgate_protos::v1::policy_service_client::PolicyServiceClient;
use headgate_test_support::ControlPlaneProcess;
use headgate_test_support::control_plane::ControlPlaneOptions;
use headgate_test_support::process::CpuTime;
use tonic::transport::{Channel, Endpoint};

use crate::floor::FloorProcess;

/// The demo's policy: what a real change carries.
const POLICY: &str = include_str!("../../../policy.yaml");

/// A server with streams to push to.
pub(crate) enum Served {
    /// `headgate serve`, told by its policy service.
    Headgate { process: Box<ControlPlaneProcess>, policies: Box<PolicyServiceClient<Channel>>, pushes: u32 },
    /// The server without a protocol, told what to write.
    Floor { process: Box<FloorProcess>, pushed: VecDeque<DeltaDiscoveryResponse> },
}

impl Served {
    /// A control plane without GPUs.
    pub(crate) async fn headgate() -> Result<Self> {
        // The control plane hands the filter's path to Envoys, of which there are none here.
        let options = ControlPlaneOptions { filter: PathBuf::from("/headgate.wasm"), ..ControlPlaneOptions::default() };
        let process = ControlPlaneProcess::start(options).await?;
        let policies = PolicyServiceClient::new(Endpoint::from_shared(format!("http://{}", process.grpc()))?.connect().await?);
        Ok(Self::Headgate { process: Box::new(process), policies: Box::new(policies), pushes: 0 })
    }

    /// A server that writes these responses, one at each push.
    pub(crate) async fn floor(pushed: Vec<DeltaDiscoveryResponse>) -> Result<Self> {
        Ok(Self::Floor { process: Box::new(FloorProcess::start().await?), pushed: pushed.into() })
    }

    /// Where proxies connect.
    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Headgate { process, .. } => process.grpc(),
            Self::Floor { process, .. } => process.address(),
        }
    }

    /// Has the next change sent to every proxy.
    pub(crate) async fn push(&mut self) -> Result<()> {
        match self {
            Self::Headgate { policies, pushes, .. } => {
                *pushes += 1;
                let document = v1::policy_source::Source::Document(changed(*pushes));
                let source = Some(v1::PolicySource { source: Some(document) });
                policies.apply_policy(v1::ApplyPolicyRequest { source, ..Default::default() }).await?;
                Ok(())
            }
            Self::Floor { process, pushed } => process.write(&pushed.pop_front().context("more pushes than Headgate made")?).await,
        }
    }

    /// Processor time of the server so far.
    pub(crate) fn cpu_time(&mut self) -> Result<CpuTime> {
        match self {
            Self::Headgate { process, .. } => process.process().cpu_time(),
            Self::Floor { process, .. } => process.cpu_time(),
        }
    }

    /// Memory of the server that is in RAM, in bytes.
    pub(crate) fn resident_bytes(&mut self) -> Result<u64> {
        match self {
            Self::Headgate { process, .. } => process.process().resident_bytes(),
            Self::Floor { process, .. } => process.resident_bytes(),
        }
    }
}

/// The policy with something that changes.
fn changed(push: u32) -> String {
    POLICY.replace("sampleMs: 50", &format!("sampleMs: {}", 50 + push))
}
