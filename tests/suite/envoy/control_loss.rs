//! The control plane comes, goes and comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use headgate_test_support::envoy::{HttpFilter, WasmFilter};
use headgate_test_support::{EnvoyVersion, wait_until};
use headgate_tests::connection::Connection;
use headgate_tests::documents::{key_header, spec};
use headgate_tests::mesh::{Mesh, MeshOptions, PATIENCE};

/// After this the filters must be back on their streams.
const RETURN_LIMIT: Duration = Duration::from_secs(2);

/// Clients that ask without pause until told to stop, and must be answered 200.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    clients: Vec<tokio::task::JoinHandle<Result<()>>>,
}

impl Traffic {
    pub(crate) fn start(connections: Vec<Connection>) -> Self {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = connections
            .into_iter()
            .map(|mut connection| {
                let (stop, asked) = (stop.clone(), asked.clone());
                tokio::spawn(async move {
                    while !stop.load(Ordering::SeqCst) {
                        for class in ["high", "medium", "low"] {
                            let response = connection.get("/v1/models", &[key_header(class)]).await?;
                            ensure!(response.status == 200, "{class} is answered {} {}", response.status, response.text());
                            asked.fetch_add(1, Ordering::SeqCst);
                        }
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    Ok(())
                })
            })
            .collect();
        Self { stop, asked, clients }
    }

    /// Waits until `n` more requests were answered.
    pub(crate) async fn more(&self, n: u64) -> Result<()> {
        let from = self.asked.load(Ordering::SeqCst);
        wait_until("traffic", PATIENCE, || std::future::ready(Ok((self.asked.load(Ordering::SeqCst) >= from + n).then_some(())))).await
    }

    pub(crate) async fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.await??;
        }
        Ok(self.asked.load(Ordering::SeqCst))
    }
}

pub(crate) async fn killing_the_control_plane_fails_no_request(version: EnvoyVersion) -> Result<()> {
    let mut mesh = Mesh::start(MeshOptions::new(version, spec())?).await?;
    let before = mesh.control.status().await?["proxies"][0]["policies"].clone();
    let traffic = Traffic::start(mesh.connections(4).await?);
    traffic.more(200).await?;
    mesh.control.kill_9()?;
    traffic.more(2_000).await?;
    mesh.control.restart().await?;
    let back = Instant::now();
    mesh.wait_for_workers(2).await?;
    let took = back.elapsed();
    traffic.more(200).await?;
    let asked = traffic.finish().await?;
    println!("{asked} requests, none failed; the filters were back after {took:?}");
    ensure!(took <= RETURN_LIMIT, "the filters were back only after {took:?}");
    let after = mesh.control.status().await?["proxies"][0]["policies"].clone();
    ensure!(after[0]["version"] == before[0]["version"], "policies before {before}, after {after}");
    // What it pushes after its return is in force: the GPU fills, low is refused.
    mesh.gpu.set_memory_used(90.0)?;
    mesh.wait_for_refusal("refusal after the return").await
}

pub(crate) async fn ecds_delivers_the_filter(version: EnvoyVersion) -> Result<()> {
    let mut options = MeshOptions::new(version, spec())?;
    options.filter = HttpFilter::Ecds(WasmFilter::headgate_controlled()?);
    let mesh = Mesh::start(options).await?;
    wait_until("filter by ECDS", PATIENCE, || async {
        let updates = mesh.envoy.stat("extension_config_discovery.http_filter.headgate.config_reload").await?;
        Ok((updates >= 1).then_some(()))
    })
    .await?;
    ensure!(mesh.envoy.stat("extension_config_discovery.http_filter.headgate.update_rejected").await? == 0, "Envoy refused the filter");
    mesh.gpu.set_memory_used(90.0)?;
    mesh.wait_for_refusal("refusal").await
}
