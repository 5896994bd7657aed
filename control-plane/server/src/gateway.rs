//! Gateway mode: pools, routes and gateways become the complete configuration of an Envoy.
//!
//! [`documents`] reads and checks, [`GatewaySet`] puts together, [`render()`] is pure, [`GatewayHub`] keeps them and tells the proxies.

pub mod config;
pub mod documents;
mod hub;
mod latency;
mod publisher;
mod render;
mod set;
mod telemetry;

pub use self::config::Checked;
pub use self::hub::{GatewayError, GatewayHub, Stored};
pub use self::latency::EndpointLatencies;
pub use self::publisher::GatewayPublisher;
pub use self::render::{RenderError, Rendered, RenderedGateway, render};
pub use self::set::{GatewaySet, MAX_RESOURCES};
pub use self::telemetry::{EndpointState, EndpointStates, EndpointView};

#[cfg(test)]
mod tests;
