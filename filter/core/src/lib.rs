//! The decision core of Headgate: classification, admission, the three-level limiter, leases and the discovery client.
//!
//! No host, no clock, no I/O and no randomness but seeded: every entry point takes `now`, effects are returned as data. The filter,
//! the control plane and every simulation run this code, so that a decision is made the same way everywhere.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod breaker;
pub mod classify;
pub mod control;
pub mod estimator;
pub mod histogram;
pub mod level;
pub mod policy;
pub mod reason;
pub mod request;
pub mod rng;
pub mod stream;
pub mod throttle;
pub mod ticket;
pub mod time;
pub mod worker;
