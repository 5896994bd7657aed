//! Devices on the wire: what has changed since the message before, and back.
//!
//! Both sides keep the figures of every device as one array in the order of `FIGURES`. A message names the figures that differ and
//! by how much, so eight busy devices take a hundred bytes. The stream is reliable and in order; whatever breaks it begins anew with
//! everything.

mod decode;
mod encode;
mod figure;
#[cfg(test)]
mod tests;

pub use self::decode::{Decoder, ReportError};
pub use self::encode::Encoder;
use self::figure::{FIGURES, Figures};

/// Devices and MIG instances of one node: 16 devices of 7 instances, and their like to come.
pub const MAX_DEVICES: usize = 256;
/// Longest text in a message, in bytes: a name of a node has at most 253.
pub const MAX_TEXT_BYTES: usize = 512;
/// Pools that a node can serve.
pub const MAX_POOLS: usize = 64;
