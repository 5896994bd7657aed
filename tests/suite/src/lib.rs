//! What the suite's tests share.

pub mod wasm_host;
