//! What the suite's tests share.

pub mod connection;
pub mod documents;
pub mod mesh;
pub mod upstream;
pub mod wasm_host;
