//! Fuzz targets: functions from bytes to nothing but an assertion, and the loop that feeds them.
//!
//! A [`Target`] takes any bytes and must neither panic nor take longer than a second; what it asserts beyond that its module says. It
//! returns a fingerprint of what happened, and inputs with a fingerprint never seen before are kept and mutated further: a poor man's
//! coverage, without a compiler that instruments. Some targets read their input as decisions (`source.rs`) and compare what comes of them
//! with a model. The corpus lies in `corpus/<target>/`; the test command replays it.

pub mod corpus;
pub mod input;
mod marks;
pub mod mutate;
pub mod run;
mod source;
pub mod targets;

pub(crate) use marks::Marks;
pub(crate) use source::Source;
pub use targets::{TARGETS, Target};
