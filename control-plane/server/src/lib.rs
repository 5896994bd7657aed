//! The control plane of Headgate.
//!
//! `headgate serve` reads GPU memory through NVML and loads from the filters, computes limits every 100 ms and pushes them over
//! discovery. The parts know each other only through [`fleet::Fleet`]: the store publishes policies into it, the control loop
//! limits, the load reports what each proxy does, and the discovery service reads what each proxy should know.

pub mod access_log;
pub mod agent;
pub mod alarms;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control_loop;
pub mod device;
pub mod device_reporting;
pub mod discovery;
pub mod document;
pub mod dry_run;
pub mod engine;
pub mod etcd;
pub mod fleet;
pub mod gateway;
pub mod gateway_service;
pub mod http;
pub mod identity;
pub mod load_reporting;
pub mod policy_life;
pub mod policy_service;
pub mod records;
pub mod replica;
pub mod resources;
pub mod rollout;
pub mod serve;
pub mod status;
pub mod store;
