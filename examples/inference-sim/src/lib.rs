//! An OpenAI-compatible server in front of a realistic model of an inference engine: something real to protect, without a GPU.
//!
//! [`engine`] is the model, pure and deterministic. [`serving`] runs it in real time. [`http`] speaks OpenAI's API and
//! Prometheus. [`gpu`] turns the engine's state into what NVML would show and writes it for the NVML shim.

pub mod cli;
pub mod engine;
pub mod gpu;
pub mod http;
pub mod metrics;
pub mod openai;
pub mod orca;
pub mod serving;
mod sse;
