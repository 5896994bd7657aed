//! What the demo and the benchmarks share: CPU accounting of a process and a client that saturates a server.

pub mod cpu;
pub mod saturate;
