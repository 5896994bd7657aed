//! The control loop of one pool: signals in, state of every level and class out.
//!
//! The control plane runs it for the fleet, a worker that is alone for itself. It is pure: the caller brings time and signals.

mod capacity;
mod controller;
mod ramp;
mod state;

pub use controller::PoolController;
pub use state::{ClassAction, ClassDecision, ClassLoad, LimitsFrame, PoolState, Signals};

#[cfg(test)]
mod tests;
