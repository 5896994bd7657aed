//! The store, and what a control plane does because it is one of several replicas.

use std::net::SocketAddr;
use std::sync::Arc;

use headgate_protos::v1;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::ServeError;
use crate::config::{Config, Replication, StoreOrigin};
use crate::etcd::Etcd;
use crate::fleet::Fleet;
use crate::gateway::GatewayHub;
use crate::records::{Records, StoreError};
use crate::replica::devices::DeviceRelay;
use crate::replica::election::Election;
use crate::replica::following::{Following, REPORTS};
use crate::replica::{Helm, Peer};
use crate::store::Store;

/// What is kept, and who steers.
pub(super) struct Replica {
    pub(super) records: Records,
    pub(super) helm: Helm,
    /// What the proxies of this replica report.
    pub(super) reports: broadcast::Sender<Arc<v1::LoadReport>>,
    election: Option<(Election, Replication)>,
}

/// Opens the store. With other replicas it waits for etcd as long as that does not answer.
pub(super) async fn open(config: &Config, grpc: SocketAddr, shutdown: &CancellationToken) -> Result<Replica, ServeError> {
    let opened = |source: StoreError| ServeError::Store { flag: config.store.flag(), source };
    let (reports, _) = broadcast::channel(REPORTS);
    let replication = match &config.store {
        StoreOrigin::Embedded => {
            let records = Records::open(&config.data_dir).map_err(opened)?;
            return Ok(Replica { records, helm: Helm::alone(), reports, election: None });
        }
        StoreOrigin::Etcd(replication) => Replication::clone(replication),
    };
    let is_https = replication.etcd.ca.1.is_some();
    let connector = replication.etcd.connector(is_https, None).map_err(ServeError::Client)?;
    let etcd = Etcd::new(&replication.members, &connector).map_err(|error| ServeError::Client(format!("--store: {error}")))?;
    let records = Records::connect(etcd.clone(), &replication.name, shutdown.clone()).await.map_err(opened)?;
    let helm = Helm::of_replica(replication.name.clone());
    let scheme = if replication.peers.is_some() { "https" } else { "http" };
    let address = replication.advertise.clone().unwrap_or_else(|| format!("{scheme}://{grpc}"));
    let me = Peer { name: replication.name.clone(), address };
    Ok(Replica { records, helm: helm.clone(), reports, election: Some((Election { etcd, helm, me }, replication)) })
}

// === impl Replica ===

impl Replica {
    /// The policies and the gateway among the records.
    pub(super) fn stores(&self, flag: &'static str, fleet: &Fleet) -> Result<(Store, GatewayHub), ServeError> {
        let store = Store::open(self.records.clone(), fleet.clone()).map_err(|source| ServeError::Store { flag, source })?;
        let hub = GatewayHub::open(self.records.clone()).map_err(|source| ServeError::Gateway { flag, source })?;
        Ok((store, hub))
    }

    /// Takes part in elections, and follows who wins them. Nothing without other replicas.
    pub(super) fn start(
        self,
        fleet: Fleet,
        devices: DeviceRelay,
        parts: &mut JoinSet<Result<(), ServeError>>,
        shutdown: &CancellationToken,
    ) {
        let Some((election, replication)) = self.election else { return };
        let following = Following { helm: self.helm, fleet, reports: self.reports, devices, peers: replication.peers };
        let (ends, also_ends) = (shutdown.clone(), shutdown.clone());
        parts.spawn(async move {
            election.run(ends).await;
            Ok(())
        });
        parts.spawn(async move {
            following.run(also_ends).await;
            Ok(())
        });
    }
}
