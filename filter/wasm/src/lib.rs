//! The Envoy filter: a thin adapter between proxy-wasm and [`headgate_core`].
//!
//! `abi` declares what crosses the boundary, `host` makes every host call a total function, `vm` finds the instance and the stream of
//! a callback, `http` turns callbacks into events and outcomes into effects, `root` does what moves with time, `control` speaks to
//! the control plane. No decision is made here.
// Natively nothing calls the callbacks; the crate is still checked there.
#![cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]

mod abi;
mod config;
mod control;
#[cfg(feature = "fault-injection")]
mod fault;
mod host;
mod http;
mod metrics;
mod root;
mod vm;
