//! The discovery services: each stream moves messages between a connection and a protocol machine of `headgate_xds`.

mod conversation;
mod retry;
mod service;
mod source;
#[cfg(test)]
mod tests;

use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::config::FilterDelivery;
use crate::fleet::Fleet;
use service::DiscoveryService;
use source::Source;

/// The aggregated discovery service and those of single types. Cheap to clone.
#[derive(Clone)]
pub struct Discovery {
    source: Source,
    shutdown: CancellationToken,
}

// === impl Discovery ===

impl Discovery {
    /// Serves what is in `fleet`, and the filter's configuration. Streams end when `shutdown` is cancelled.
    pub fn new(fleet: Fleet, filter: FilterDelivery, shutdown: CancellationToken) -> Self {
        Self { source: Source::new(fleet, filter), shutdown }
    }

    /// All the services.
    pub fn routes(&self) -> Routes {
        Routes::new(DiscoveryService::<0>::new(self))
            .add_service(DiscoveryService::<1>::new(self))
            .add_service(DiscoveryService::<2>::new(self))
            .add_service(DiscoveryService::<3>::new(self))
            .add_service(DiscoveryService::<4>::new(self))
            .add_service(DiscoveryService::<5>::new(self))
            .add_service(DiscoveryService::<6>::new(self))
    }
}
