//! The state at which the parts of the control plane meet: policies, limits, proxies.
//!
//! | written by | read by |
//! |---|---|
//! | policies: the store | discovery, control loop, policy service |
//! | limits: the control loop | discovery |
//! | rendered resources, endpoints: the gateway | discovery; gateway service, HTTP |
//! | refusals: discovery | gateway service, HTTP |
//! | alarms: the control loop | HTTP |
//! | rollouts: their evaluator | policy service, HTTP |
//! | proxies: load reporting and discovery (NACKs) | control loop, policy service, HTTP |

use std::sync::Arc;

pub use headgate_core::fleet::{
    GONE_AFTER, LimitsTable, MAX_POLICIES_PER_PROXY, MAX_PROXIES, PolicySet, PoolLimits, ProxyShare, StoredPolicy,
};
use headgate_protos::v1;
use tokio::sync::watch;

use crate::alarms::Alarm;
use crate::gateway::EndpointView;

pub use self::proxies::{PolicyHolding, PolicyReach, Proxies, ProxyView};
pub use self::refusals::{MAX_REFUSALS, Refusal, Refusals};
pub use self::rendered::{RenderedError, RenderedResources};

mod proxies;
mod refusals;
mod rendered;

/// The shared state. Cheap to clone; all clones are one fleet.
#[derive(Clone, Debug)]
pub struct Fleet {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    policies: watch::Sender<Arc<PolicySet>>,
    limits: watch::Sender<Arc<LimitsTable>>,
    rendered: watch::Sender<Arc<RenderedResources>>,
    shared: watch::Sender<()>,
    endpoints: watch::Sender<Arc<Vec<EndpointView>>>,
    alarms: watch::Sender<Arc<Vec<Alarm>>>,
    rollouts: watch::Sender<Arc<Vec<v1::RolloutStatus>>>,
    refusals: Refusals,
    proxies: Proxies,
}

// === impl Fleet ===

impl Fleet {
    /// A fleet without policies, limits, rendered resources and proxies.
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                policies: watch::Sender::new(Arc::default()),
                limits: watch::Sender::new(Arc::default()),
                rendered: watch::Sender::new(Arc::default()),
                shared: watch::Sender::new(()),
                endpoints: watch::Sender::new(Arc::default()),
                alarms: watch::Sender::new(Arc::default()),
                rollouts: watch::Sender::new(Arc::default()),
                refusals: Refusals::default(),
                proxies: Proxies::default(),
            }),
        }
    }

    /// Publishes the policies in force. The store calls it after each durable change and once after opening.
    pub fn publish_policies(&self, policies: PolicySet) {
        self.inner.policies.send_replace(Arc::new(policies));
        self.inner.shared.send_replace(());
    }

    /// The policies in force; the receiver wakes on every change.
    pub fn policies(&self) -> watch::Receiver<Arc<PolicySet>> {
        self.inner.policies.subscribe()
    }

    /// Publishes the limits of all pools. The control loop calls it when something that a proxy acts on has changed.
    pub fn publish_limits(&self, limits: LimitsTable) {
        self.inner.limits.send_replace(Arc::new(limits));
    }

    /// The newest limits; the receiver wakes on every publication.
    pub fn limits(&self) -> watch::Receiver<Arc<LimitsTable>> {
        self.inner.limits.subscribe()
    }

    /// Publishes configuration in Envoy's own types. Every stream is told what has changed of what it subscribes to, in an order in which
    /// nothing refers to what is not there.
    pub fn publish_rendered(&self, rendered: RenderedResources) {
        self.inner.rendered.send_replace(Arc::new(rendered));
        self.inner.shared.send_replace(());
    }

    /// The newest rendered configuration; the receiver wakes on every publication.
    pub fn rendered(&self) -> watch::Receiver<Arc<RenderedResources>> {
        self.inner.rendered.subscribe()
    }

    /// Wakes after every change of what more than one proxy is told: policies and rendered resources. Thousands of streams wait, each on
    /// this alone.
    pub fn shared_changes(&self) -> watch::Receiver<()> {
        self.inner.shared.subscribe()
    }

    /// Publishes the endpoints of all pools of the gateway, as proxies are told them.
    pub fn publish_endpoints(&self, endpoints: Vec<EndpointView>) {
        self.inner.endpoints.send_replace(Arc::new(endpoints));
    }

    /// The endpoints of all pools of the gateway.
    pub fn endpoints(&self) -> Arc<Vec<EndpointView>> {
        self.inner.endpoints.borrow().clone()
    }

    /// Publishes what is wrong now; nothing where another replica leads.
    pub fn publish_alarms(&self, alarms: Vec<Alarm>) {
        self.inner.alarms.send_replace(Arc::new(alarms));
    }

    /// What is wrong now.
    pub fn alarms(&self) -> Arc<Vec<Alarm>> {
        self.inner.alarms.borrow().clone()
    }

    /// Publishes how far the candidates have come.
    pub fn publish_rollouts(&self, rollouts: Vec<v1::RolloutStatus>) {
        self.inner.rollouts.send_replace(Arc::new(rollouts));
    }

    /// How far the candidates have come, by name.
    pub fn rollouts(&self) -> Arc<Vec<v1::RolloutStatus>> {
        self.inner.rollouts.borrow().clone()
    }

    /// What proxies refuse of the rendered configuration.
    pub fn refusals(&self) -> &Refusals {
        &self.inner.refusals
    }

    /// What is known of each proxy.
    pub fn proxies(&self) -> &Proxies {
        &self.inner.proxies
    }
}

impl Default for Fleet {
    fn default() -> Self {
        Self::new()
    }
}
