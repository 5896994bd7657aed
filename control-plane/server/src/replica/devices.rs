//! The devices that a follower hears of, passed on to the leader: a stream for each node, as if the node's agent had connected there.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use headgate_protos::v1;
use headgate_protos::v1::replication_client::ReplicationClient;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::agent::NodeStream;
use crate::clock::Clock;
use crate::device::{DeviceBoard, DeviceState};
use crate::device_reporting::DeviceReports;

/// Wait before the stream of a node begins anew.
const RETRY: Duration = Duration::from_millis(500);

/// What passes the devices on.
#[derive(Clone)]
pub struct DeviceRelay {
    /// All devices, those of other replicas' nodes included.
    pub board: DeviceBoard,
    /// Knows which nodes speak to this replica.
    pub reports: DeviceReports,
    /// The clock of the samples.
    pub clock: Clock,
    /// Name for the devices of this very machine.
    pub name: String,
}

// === impl DeviceRelay ===

impl DeviceRelay {
    /// Passes everything on over `channel`.
    pub(super) async fn run(&self, channel: Channel) -> Infallible {
        let mut changed = self.board.changed();
        let mut nodes: BTreeMap<String, watch::Sender<Arc<DeviceState>>> = BTreeMap::new();
        let mut streams = JoinSet::new();
        loop {
            let own = self.own();
            nodes.retain(|name, _| own.contains_key(name));
            for (name, state) in own {
                match nodes.get(&name) {
                    Some(sender) => {
                        sender.send_if_modified(|old| {
                            let is_new = *old != state;
                            *old = state;
                            is_new
                        });
                    }
                    None => {
                        let (sender, states) = watch::channel(state);
                        streams.spawn(relay(channel.clone(), self.clock, name.clone(), states));
                        nodes.insert(name, sender);
                    }
                }
            }
            while streams.try_join_next().is_some() {}
            // The board outlives everything.
            let _ = changed.changed().await;
        }
    }

    /// The nodes that speak to this replica, by the names under which they are passed on.
    fn own(&self) -> BTreeMap<String, Arc<DeviceState>> {
        let view = self.board.view(self.clock.now());
        let states = view.nodes().iter().map(|node| node.state.clone());
        let own = states.filter_map(|state| match &*state.node {
            "" if state.devices.is_empty() && state.lost.is_empty() => None,
            "" => Some((self.name.clone(), state)),
            node => self.reports.hears(node).then(|| (node.to_owned(), state.clone())),
        });
        own.collect()
    }
}

/// Streams one node until it is no longer this replica's.
async fn relay(channel: Channel, clock: Clock, name: String, mut states: watch::Receiver<Arc<DeviceState>>) {
    loop {
        let first = states.borrow().clone();
        let node = v1::AgentNode {
            name: name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            run: 0,
            source: first.source.to_string(),
            pools: first.pools.to_vec(),
        };
        let stream = NodeStream { clock, node, states: states.clone() };
        let mut client = ReplicationClient::new(channel.clone());
        let error = stream.run(async |reports| client.relay_devices(reports).await, |_| {}).await;
        tracing::debug!(node = name, %error, "the devices of a node are not passed on; the stream begins anew with the next sample");
        // Without a new sample there is nothing to say: the node's agent may have gone to another replica, which speaks for it now.
        states.mark_unchanged();
        if states.changed().await.is_err() {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}
