//! One bound over all workers of a proxy, and what a trapped worker leaves behind.

use anyhow::{Result, ensure};
use headgate_test_support::artefact::Module;
use headgate_test_support::envoy::{Bootstrap, EnvoyOptions, HttpFilter, Upstream as To, WasmFilter};
use headgate_test_support::{EnvoyProcess, EnvoyVersion, wait_until};
use headgate_tests::connection::Connection;
use headgate_tests::documents::{bounded_spec, inline, key_header};
use headgate_tests::mesh::PATIENCE;
use headgate_tests::upstream::Upstream;

const BOUND: u32 = 16;
const CLIENTS: usize = 48;

/// One round: every client asks once at the same time and is held at the upstream for a while.
async fn round(envoy: &EnvoyProcess, upstream: &Upstream) -> Result<(usize, u64)> {
    upstream.take_peak();
    let requests = (0..CLIENTS)
        .map(|_| async { Connection::open(envoy.address()).await?.get("/v1/models", &[key_header("high"), ("x-delay-ms", "150")]).await });
    let responses = futures::future::try_join_all(requests).await?;
    let admitted = responses.iter().filter(|response| response.status == 200).count();
    let refused = responses.iter().filter(|response| response.status == 429).count();
    ensure!(admitted + refused == CLIENTS, "statuses: {:?}", responses.iter().map(|response| response.status).collect::<Vec<_>>());
    Ok((admitted, upstream.take_peak()))
}

/// Rounds until one uses the whole bound; in none is it exceeded.
async fn whole_bound_is_used(envoy: &EnvoyProcess, upstream: &Upstream) -> Result<()> {
    wait_until("round that uses the whole bound", PATIENCE, || async {
        let (admitted, peak) = round(envoy, upstream).await?;
        ensure!(peak <= u64::from(BOUND), "{peak} requests in flight, allowed {BOUND}");
        Ok((admitted >= BOUND as usize && peak == u64::from(BOUND)).then_some(()))
    })
    .await
}

pub(crate) async fn bound_holds_and_permits_of_a_trapped_worker_return(version: EnvoyVersion) -> Result<()> {
    for workers in [2, 4] {
        let upstream = Upstream::start().await?;
        let filter = WasmFilter::headgate(inline("test", &bounded_spec(BOUND)))?.with_module(Module::HeadgateWithFaults)?;
        let mut options = EnvoyOptions::new(Bootstrap::new(HttpFilter::Wasm(filter), To::Endpoint(upstream.address())));
        (options.version, options.workers, options.log_level) = (version.clone(), workers, "off");
        let envoy = EnvoyProcess::start(options).await?;
        whole_bound_is_used(&envoy, &upstream).await?;

        let trapped = Connection::open(envoy.address()).await?.get("/v1/models", &[("x-fault", "trap")]).await?;
        ensure!(trapped.status == 503, "a trap is answered {}", trapped.status);
        // Every worker is asked until the trapped one has a VM again; then its permits must come back as well.
        wait_until("reloaded VM", PATIENCE, || async {
            // Connections that are open at the same time are spread over all workers; one after the other they meet the same.
            let mut connections = Vec::new();
            for _ in 0..workers {
                connections.push(Connection::open(envoy.address()).await?);
            }
            for connection in &mut connections {
                connection.get("/other", &[]).await?;
            }
            Ok((envoy.stat("vm_reload_success").await? >= 1).then_some(()))
        })
        .await?;
        whole_bound_is_used(&envoy, &upstream).await?;
    }
    Ok(())
}
