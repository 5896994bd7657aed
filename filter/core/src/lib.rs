//! The decision core of Headgate: classification, admission, the three-level limiter, leases and the discovery client.
//!
//! No host, no clock, no I/O and no randomness but seeded: every entry point takes `now`, effects are returned as data. The filter,
//! the control plane and every simulation run this code, so that a decision is made the same way everywhere.
//!
//! In the filter all of this is compiled for size but what is `#[inline]`, which is compiled with the adapter: the way of an admitted
//! request. What it calls seldom, and what ticks and messages call, is `#[inline(never)]` and stays here.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod admission;
pub mod aperture;
pub mod breaker;
mod budget;
pub mod classify;
pub mod contexts;
pub mod control;
pub mod discovery;
pub mod envoy;
pub mod estimator;
mod fairness;
pub mod fleet;
mod hash;
pub mod histogram;
pub mod in_band;
#[cfg(test)]
mod invariants;
pub mod key_cache;
pub mod latency;
pub mod leader;
pub mod lease;
pub mod level;
mod limits;
pub mod metrics;
pub mod needs;
mod output_estimate;
pub mod overload;
mod permits;
pub mod policy;
mod pool;
mod queue;
pub mod quota;
pub mod reason;
mod record;
pub mod refusal;
mod report;
pub mod request;
pub mod resume;
mod retry_budget;
pub mod rng;
mod routes;
pub mod session;
pub mod shared;
mod shellsort;
pub mod stream;
pub mod throttle;
pub mod ticket;
pub mod time;
mod words;
pub mod worker;
