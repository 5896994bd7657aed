//! What the demo and the benchmarks share.

pub mod affinity;
