//! A deterministic world of clients, proxies and inference engines, in which admission algorithms meet the same load.
//!
//! Discrete events on a virtual clock, one seed, no thread and no wall clock: a run is a pure function of its [`Setup`], its
//! [`Controller`] and its seed, to the last bit of its output.
//!
//! Request path: client → proxy worker ([`Site`], where the controller decides) → the world's balancer (power of two choices by
//! outstanding requests, the same for every controller) → engine.

pub mod baselines;
pub mod controller;
pub mod engine;
pub mod headgate;
pub mod measure;
pub mod observe;
pub mod oracle;
pub mod quota;
pub mod report;
pub mod rng;
pub mod scenarios;
pub mod setup;
pub mod suite;
pub mod world;

pub use controller::{Arrival, Controller, Ctx, Ending, RequestId, Site, Verdict};
pub use setup::Setup;
pub use world::{Totals, Violation, World};
