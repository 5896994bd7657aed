//! One Envoy from its first configuration to another replica, under traffic of which no request fails.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use headgate_test_support::{EnvoyProcess, EnvoyVersion, wait_until};
use headgate_tests::connection::Connection;
use headgate_tests::upstream::Upstream;
use headgate_xds::ResourceType;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::bootstrap::{Mode, bootstrap};
use crate::replica::Replica;
use crate::world::{FILTER, FILTER_HEADER, RUNTIME_KEY, RUNTIME_LAYER, RUNTIME_TTL, World};

/// Anything that is told is in force by then. Below the 15 s after which Envoy gives up waiting for endpoints and goes on without.
const PATIENCE: Duration = Duration::from_secs(10);
const REJECTED_CLUSTERS: &str = "cluster_manager.cds.update_rejected";
const UPDATED_CLUSTERS: &str = "cluster_manager.cds.update_success";
const UPDATED_LISTENERS: &str = "listener_manager.lds.update_success";

struct Life {
    envoy: EnvoyProcess,
    replica: Replica,
    world: World,
}

/// A client that asks without pause until told to stop.
struct Traffic {
    stop: Arc<AtomicBool>,
    client: JoinHandle<Result<u64>>,
}

/// The whole life.
pub(crate) async fn of_a_configuration(version: EnvoyVersion, mode: Mode) -> Result<()> {
    let [one, two] = [Upstream::start().await?, Upstream::start().await?];
    let world = World { mode, endpoint: one.address(), connect_timeout_s: 1, filter: Some("v1"), has_extra: false, runtime_value: 1 };
    let replica = Replica::start(world.resources()?).await?;
    let envoy = EnvoyProcess::start_yaml(version, 2, &bootstrap(mode, replica.address()).to_string()).await?;
    let mut life = Life { envoy, replica, world };
    life.wait_for_filter("v1").await?;
    ensure!(one.total() > 0, "the first configuration routes to the first endpoint");
    let traffic = Traffic::start(Connection::open(life.envoy.address()).await?);
    life.add().await?;
    life.change(&two).await?;
    life.refuse().await.context("refusal")?;
    life.recover().await?;
    life.remove().await?;
    life.renew().await?;
    let life = life.reconnect().await.context("another replica")?;
    let asked = traffic.finish().await?;
    drop(life);
    ensure!(asked > 0, "nobody asked");
    Ok(())
}

impl Life {
    fn tell(&self) -> Result<()> {
        self.replica.tell(self.world.resources()?)
    }

    async fn add(&mut self) -> Result<()> {
        self.world.has_extra = true;
        self.tell()?;
        let address = wait_until("second listener", PATIENCE, || async { self.listener("extra").await }).await?;
        let response = Connection::open(address).await?.get("/", &[]).await?;
        ensure!(response.status == 200, "the second listener answers {}", response.status);
        Ok(())
    }

    /// A cluster changes, its endpoints do; the endpoints of the other change not at all.
    async fn change(&mut self, other: &Upstream) -> Result<()> {
        self.world.connect_timeout_s = 2;
        self.tell()?;
        self.wait_for_connect_timeout("2s").await?;
        self.world.endpoint = other.address();
        self.tell()?;
        let before = other.total();
        wait_until("request at the new endpoint", PATIENCE, || std::future::ready(Ok((other.total() > before).then_some(())))).await
    }

    async fn refuse(&mut self) -> Result<()> {
        (self.world.connect_timeout_s, self.world.filter) = (0, None);
        self.tell()?;
        self.wait_for_stat(REJECTED_CLUSTERS).await?;
        self.wait_for_stat(&rejected_filters()).await?;
        // A change of something else, twice, shows that the refused is not sent again: it would be refused before these are in force.
        for value in [2, 3] {
            self.world.runtime_value = value;
            self.tell()?;
            self.wait_for_runtime(value).await?;
        }
        let rejected = [self.envoy.stat(REJECTED_CLUSTERS).await?, self.envoy.stat(&rejected_filters()).await?];
        ensure!(rejected[0] == 1, "the clusters were refused {} times", rejected[0]);
        // Both listeners have the filter, and each counts.
        ensure!((1..=2).contains(&rejected[1]), "the filter was refused {} times", rejected[1]);
        self.wait_for_filter("v1").await
    }

    async fn recover(&mut self) -> Result<()> {
        (self.world.connect_timeout_s, self.world.filter) = (3, Some("v2"));
        self.tell()?;
        self.wait_for_connect_timeout("3s").await?;
        self.wait_for_filter("v2").await?;
        // What was accepted before the refusal is applied again, although its bytes are not new.
        self.world.filter = Some("v1");
        self.tell()?;
        self.wait_for_filter("v1").await
    }

    async fn remove(&mut self) -> Result<()> {
        self.world.has_extra = false;
        self.tell()?;
        wait_until("end of the second listener and its cluster", PATIENCE, || async {
            let gone = self.listener("extra").await?.is_none() && self.cluster("extra").await?.is_none();
            Ok(gone.then_some(()))
        })
        .await
    }

    /// What expires stays for as long as the replica lives.
    async fn renew(&self) -> Result<()> {
        let since = Instant::now();
        wait_until("three lifetimes", PATIENCE, || async {
            ensure!(self.runtime_value().await?.is_some(), "the runtime layer expired although the replica lives");
            Ok((since.elapsed() > RUNTIME_TTL * 3).then_some(()))
        })
        .await
    }

    async fn reconnect(self) -> Result<Self> {
        let Self { envoy, replica, mut world } = self;
        let before = [envoy.stat(UPDATED_CLUSTERS).await?, envoy.stat(UPDATED_LISTENERS).await?];
        let address = replica.address();
        replica.stop().await?;
        wait_until("end of what expires", PATIENCE, || async { Ok(runtime_value(&envoy).await?.is_none().then_some(())) }).await?;
        let replica = Replica::start_at(address, world.resources()?).await?;
        wait_until("connection to the other replica", PATIENCE, || std::future::ready(Ok((replica.connections() > 0).then_some(()))))
            .await?;
        wait_until("runtime layer of the other replica", PATIENCE, || async { Ok(runtime_value(&envoy).await?.is_some().then_some(())) })
            .await?;
        // By deltas the other replica knows from Envoy what it has; the state of the world is told anew, on its own stream if need be.
        let updates = [(ResourceType::Cluster, UPDATED_CLUSTERS), (ResourceType::Listener, UPDATED_LISTENERS)];
        let told_anew = updates.map(|(kind, _)| u64::from(!world.mode.is_delta(kind)));
        for ((_, stat), expected) in updates.iter().zip([before[0] + told_anew[0], before[1] + told_anew[1]]) {
            wait_until(stat, PATIENCE, || async { Ok((envoy.stat(stat).await? >= expected).then_some(())) }).await?;
        }
        world.connect_timeout_s = 4;
        let life = Self { envoy, replica, world };
        life.tell()?;
        life.wait_for_connect_timeout("4s").await?;
        let after = [life.envoy.stat(UPDATED_CLUSTERS).await?, life.envoy.stat(UPDATED_LISTENERS).await?];
        let expected = [before[0] + told_anew[0] + 1, before[1] + told_anew[1]];
        ensure!(after == expected, "updates of clusters and listeners: {after:?} after the reconnect and a change, {expected:?} expected");
        Ok(life)
    }

    async fn wait_for_filter(&self, version: &str) -> Result<()> {
        wait_until(&format!("response of the filter {version}"), PATIENCE, || async {
            let response = Connection::open(self.envoy.address()).await?.get("/", &[]).await?;
            ensure!(response.status == 200, "a request is answered {}", response.status);
            Ok((response.headers.get(FILTER_HEADER).is_some_and(|value| value == version)).then_some(()))
        })
        .await
    }

    async fn wait_for_connect_timeout(&self, wanted: &str) -> Result<()> {
        wait_until(&format!("cluster with a connect timeout of {wanted}"), PATIENCE, || async {
            Ok(self.cluster("pool").await?.filter(|cluster| cluster["connect_timeout"] == wanted).map(drop))
        })
        .await
    }

    async fn wait_for_stat(&self, name: &str) -> Result<()> {
        wait_until(name, PATIENCE, || async { Ok((self.envoy.stat(name).await? > 0).then_some(())) }).await
    }

    async fn wait_for_runtime(&self, wanted: u32) -> Result<()> {
        wait_until("runtime value", PATIENCE, || async { Ok((self.runtime_value().await? == Some(wanted)).then_some(())) }).await
    }

    async fn runtime_value(&self) -> Result<Option<u32>> {
        runtime_value(&self.envoy).await
    }

    /// The cluster as it is in force.
    async fn cluster(&self, name: &str) -> Result<Option<Value>> {
        let dump = self.envoy.config_dump().await?;
        let sections = dump["configs"].as_array().into_iter().flatten();
        let clusters = sections.filter_map(|section| section["dynamic_active_clusters"].as_array()).flatten();
        Ok(clusters.map(|entry| entry["cluster"].clone()).find(|cluster| cluster["name"] == name))
    }

    /// Where the listener takes connections.
    async fn listener(&self, name: &str) -> Result<Option<SocketAddr>> {
        let page = self.envoy.admin_get("/listeners?format=json").await?.json()?;
        let statuses = page["listener_statuses"].as_array().into_iter().flatten();
        let port = statuses.filter(|status| status["name"] == name).find_map(|status| {
            let port = status["local_address"]["socket_address"]["port_value"].as_u64()?;
            u16::try_from(port).ok()
        });
        Ok(port.map(|port| SocketAddr::from(([127, 0, 0, 1], port))))
    }
}

/// The value of the layer that expires; `None` when it is not there.
async fn runtime_value(envoy: &EnvoyProcess) -> Result<Option<u32>> {
    let page = envoy.admin_get("/runtime").await?.json()?;
    let value = page["entries"][RUNTIME_KEY]["final_value"].as_str().filter(|value| !value.is_empty());
    value.map(|value| value.parse().with_context(|| format!("layer {RUNTIME_LAYER}: {value}"))).transpose()
}

fn rejected_filters() -> String {
    format!("extension_config_discovery.http_filter.{FILTER}.config_fail")
}

impl Traffic {
    fn start(mut connection: Connection) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let client = tokio::spawn(async move {
            let mut asked = 0;
            while !stopped.load(Ordering::SeqCst) {
                let response = connection.get("/", &[]).await?;
                ensure!(response.status == 200, "request {asked} is answered {} {}", response.status, response.text());
                asked += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(asked)
        });
        Self { stop, client }
    }

    async fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        self.client.await?
    }
}
