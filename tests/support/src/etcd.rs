//! A cluster of real etcds on loopback.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::artefact;
use crate::http_client;
use crate::ports::free_address;
use crate::process::Process;
use crate::wait::wait_until;

const START_LIMIT: Duration = Duration::from_secs(20);

/// Members that end with their owner.
#[derive(Debug)]
pub struct EtcdCluster {
    members: Vec<Member>,
    folder: TempDir,
}

#[derive(Debug)]
struct Member {
    process: Process,
    client: SocketAddr,
    peer: SocketAddr,
}

impl EtcdCluster {
    /// Starts `n` members on free ports and waits until they have a leader.
    ///
    /// # Errors
    /// When etcd is not installed, or the cluster is not healthy within 20 s.
    pub async fn start(n: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let addresses: Vec<(SocketAddr, SocketAddr)> = (0..n).map(|_| Ok((free_address()?, free_address()?))).collect::<Result<_>>()?;
        let mut members = Vec::new();
        for (index, (client, peer)) in addresses.iter().enumerate() {
            let process = spawn(&folder, index, *client, &addresses)?;
            members.push(Member { process, client: *client, peer: *peer });
        }
        let mut cluster = Self { members, folder };
        cluster.wait_healthy().await?;
        Ok(cluster)
    }

    /// Where member `index` serves clients.
    #[must_use]
    pub fn client(&self, index: usize) -> SocketAddr {
        self.members[index].client
    }

    /// How many members there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The process of member `index`.
    pub fn process(&mut self, index: usize) -> &mut Process {
        &mut self.members[index].process
    }

    /// Starts member `index` again after its end: the same ports, the same data.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn restart(&mut self, index: usize) -> Result<()> {
        let addresses: Vec<(SocketAddr, SocketAddr)> = self.members.iter().map(|member| (member.client, member.peer)).collect();
        self.members[index].process = spawn(&self.folder, index, self.members[index].client, &addresses)?;
        Ok(())
    }

    /// Waits until every member has a leader and serves.
    ///
    /// # Errors
    /// When that takes longer than 20 s, or a member has ended.
    pub async fn wait_healthy(&mut self) -> Result<()> {
        for member in &mut self.members {
            let (client, process) = (member.client, &mut member.process);
            wait_until("healthy etcd", START_LIMIT, || {
                let runs = process.still_runs();
                async move {
                    runs?;
                    let page = http_client::get(client, "/health").await;
                    Ok(page.is_ok_and(|page| page.status.is_success() && page.text().contains("true")).then_some(()))
                }
            })
            .await?;
        }
        Ok(())
    }
}

fn spawn(folder: &TempDir, index: usize, client: SocketAddr, addresses: &[(SocketAddr, SocketAddr)]) -> Result<Process> {
    let url = |address: &SocketAddr| format!("http://{address}");
    let name = |index: usize| format!("etcd-{index}");
    let cluster: Vec<String> = addresses.iter().enumerate().map(|(n, (_, peer))| format!("{}={}", name(n), url(peer))).collect();
    let (_, peer) = addresses.get(index).context("no such member")?;
    let data: PathBuf = folder.path().join(name(index));
    let mut command = Command::new(artefact::etcd()?);
    command.args(["--name", &name(index), "--data-dir"]).arg(&data);
    command.args(["--listen-client-urls", &url(&client), "--advertise-client-urls", &url(&client)]);
    command.args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)]);
    command.args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new", "--log-level", "warn"]);
    Process::spawn(&name(index), &mut command, &folder.path().join(format!("{}.log", name(index))))
}
