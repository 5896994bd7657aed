//! Several replicas of a control plane over a cluster of etcds, with links between them that can be cut.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::control_plane::{ControlPlaneOptions, ControlPlaneProcess};
use crate::etcd::EtcdCluster;
use crate::link::Link;
use crate::wait::wait_until;

/// Longest wait for a leader when nothing hinders one.
const LEADER_LIMIT: Duration = Duration::from_secs(20);

/// Everything running.
#[derive(Debug)]
pub struct Replicas {
    /// The store.
    pub etcd: EtcdCluster,
    /// The replicas.
    pub control: Vec<ControlPlaneProcess>,
    /// Of each replica, its links to the members of etcd.
    pub to_etcd: Vec<Vec<Link>>,
    /// Of each replica, the link by which the others reach it.
    pub to_peer: Vec<Link>,
}

/// What a replica says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its index.
    pub index: usize,
    /// Whether it computes limits.
    pub is_acting: bool,
    /// The newest term that it knows of.
    pub term: u64,
}

impl Replicas {
    /// Starts `n` replicas on three members, and waits until one of them leads.
    ///
    /// # Errors
    /// When that does not come about.
    pub async fn start(n: usize, options: &ControlPlaneOptions) -> Result<Self> {
        let etcd = EtcdCluster::start(3).await?;
        let mut replicas = Self { etcd, control: Vec::new(), to_etcd: Vec::new(), to_peer: Vec::new() };
        for index in 0..n {
            replicas.add(index, options.clone()).await?;
        }
        replicas.leader().await?;
        Ok(replicas)
    }

    async fn add(&mut self, index: usize, mut options: ControlPlaneOptions) -> Result<()> {
        let mut links = Vec::new();
        for member in 0..self.etcd.len() {
            links.push(Link::start(Some(self.etcd.client(member))).await?);
        }
        let members: Vec<String> = links.iter().map(|link| link.address().to_string()).collect();
        let peer = Link::start(None).await?;
        let name = format!("replica-{index}");
        let (store, advertise) = (format!("etcd://{}", members.join(",")), peer.address().to_string());
        options.args.extend(["--store", &store, "--replica", &name, "--advertise", &advertise].map(str::to_owned));
        let control = ControlPlaneProcess::start(options).await?;
        peer.lead_to(control.grpc());
        self.control.push(control);
        self.to_etcd.push(links);
        self.to_peer.push(peer);
        Ok(())
    }

    /// Addresses of the gRPC listeners.
    #[must_use]
    pub fn grpc(&self) -> Vec<SocketAddr> {
        self.control.iter().map(ControlPlaneProcess::grpc).collect()
    }

    /// What the replicas say that answer at once.
    pub async fn standings(&self) -> Vec<Standing> {
        let mut standings = Vec::new();
        for (index, control) in self.control.iter().enumerate() {
            // One that is stopped or gone says nothing.
            let Ok(Ok(status)) = tokio::time::timeout(Duration::from_millis(300), control.status()).await else { continue };
            let replica = &status["replica"];
            let is_acting = replica["is_acting"].as_bool().unwrap_or(false);
            standings.push(Standing { index, is_acting, term: replica["term"].as_u64().unwrap_or(0) });
        }
        standings
    }

    /// The replica that leads, once one does.
    ///
    /// # Errors
    /// When none does for 20 s.
    pub async fn leader(&self) -> Result<Standing> {
        wait_until("leader", LEADER_LIMIT, || async { Ok(self.standings().await.into_iter().find(|standing| standing.is_acting)) })
            .await
            .context("nobody leads")
    }
}
