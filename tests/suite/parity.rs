//! Parity of native and wasm.
