//! What the tests, the demo and the benchmarks share: real processes that end with their owner, Envoy bootstraps, and open-loop load.
//!
//! Nothing here sleeps in place of a condition: [`wait::wait_until`] is the only way to wait.

pub mod artefact;
pub mod authority;
pub mod calendar;
pub mod chaos;
pub mod control_plane;
pub mod envoy;
pub mod etcd;
pub mod http_client;
pub mod inference_sim;
pub mod link;
pub mod load;
pub mod nvml;
pub mod ports;
pub mod process;
pub mod replicas;
pub mod user_files;
pub mod wait;
pub mod wasm_module;

pub use artefact::EnvoyVersion;
pub use calendar::Calendar;
pub use control_plane::ControlPlaneProcess;
pub use envoy::{Bootstrap, EnvoyProcess, HttpFilter};
pub use etcd::EtcdCluster;
pub use inference_sim::InferenceSimProcess;
pub use link::Link;
pub use nvml::{NvmlDevice, NvmlState};
pub use process::Process;
pub use replicas::Replicas;
pub use wait::wait_until;
