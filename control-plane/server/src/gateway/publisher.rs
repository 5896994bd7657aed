//! The task that tells proxies the gateway: after every change of the documents, and when telemetry moves an endpoint.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::config::Weights;
use super::hub::{GatewayHub, Stored};
use super::latency::EndpointLatencies;
use super::render::{Rendered, render};
use super::telemetry::{EndpointView, Measured, TelemetryMemory};
use crate::clock::Clock;
use crate::config::FilterDelivery;
use crate::device::DeviceBoard;
use crate::engine::EngineBoard;
use crate::fleet::Fleet;

/// Least time between two looks: a GPU that is lost is out of the balancing within it.
const LEAST_PERIOD: Duration = Duration::from_millis(100);
/// Longest time between two looks while nothing happens: what ages, and the ramps.
const PERIOD: Duration = Duration::from_secs(1);

/// The same where weights follow the engines, which are read ten times a second.
const SATURATION_PERIOD: Duration = Duration::from_millis(250);

/// Everything that the task needs.
pub struct GatewayPublisher {
    /// What is stored.
    pub hub: GatewayHub,
    /// The devices of all nodes.
    pub devices: DeviceBoard,
    /// Time to the first byte of an endpoint, where somebody has measured it.
    pub latencies: EndpointLatencies,
    /// What the engines say of themselves.
    pub engines: EngineBoard,
    /// How proxies reach this control plane.
    pub filter: FilterDelivery,
    /// The monotonic clock.
    pub clock: Clock,
    /// Where the rendered configuration and the endpoints' states go.
    pub fleet: Fleet,
}

// === impl GatewayPublisher ===

impl GatewayPublisher {
    /// Publishes what is stored, before the first proxy can ask: one that comes back to a control plane without configuration would take
    /// its own for deleted.
    pub fn publish(&self) {
        let stored = self.hub.current().borrow().clone();
        self.tell(&stored, &mut TelemetryMemory::default(), &mut None);
    }

    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut stored = self.hub.current();
        let mut devices = self.devices.changed();
        let mut memory = TelemetryMemory::default();
        let mut told: Option<Rendered> = None;
        loop {
            let current = stored.borrow_and_update().clone();
            devices.mark_unchanged();
            self.tell(&current, &mut memory, &mut told);
            let (least, due) = (Instant::now() + LEAST_PERIOD, Instant::now() + period(&current));
            tokio::select! {
                () = shutdown.cancelled() => return,
                Ok(()) = stored.changed() => continue,
                () = sleep_until(least) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                Ok(()) = stored.changed() => {}
                // Without pools there is nothing that devices could move.
                Ok(()) = devices.changed(), if current.set.pools().next().is_some() => {}
                () = sleep_until(due) => {}
            }
        }
    }

    fn tell(&self, stored: &Stored, memory: &mut TelemetryMemory, told: &mut Option<Rendered>) {
        let now = self.clock.now();
        let latency = |address: SocketAddr| self.latencies.get(now, address);
        let engine = |address: SocketAddr| self.engines.reading_at(now, address);
        let measured = Measured { devices: &self.devices.view(now), latency: &latency, engine: &engine };
        let states = memory.look(now, &stored.set, &measured);
        let rendered = render(&stored.set, &states, &self.filter);
        if told.as_ref() == Some(&rendered) {
            return;
        }
        match rendered.resources() {
            Ok(resources) => self.fleet.publish_rendered(resources),
            // A valid set renders, so this is a bug; what is told stays in force.
            Err(error) => tracing::error!(%error, "gateway: no configuration"),
        }
        self.fleet.refusals().retain(|kind, name| rendered.tells(kind, name));
        self.fleet.publish_endpoints(EndpointView::all(&stored.set, &states));
        *told = Some(rendered);
    }
}

fn period(stored: &Stored) -> Duration {
    let follows_engines = stored.set.pools().any(|pool| pool.balancing.weights() == Some(Weights::Saturation));
    if follows_engines { SATURATION_PERIOD } else { PERIOD }
}
