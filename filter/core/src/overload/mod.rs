//! Overload control of one pool: how much work may be in flight, what is cut off, which rungs of the ladder are engaged.
//!
//! The control plane runs one [`OverloadController`] a pool for the fleet, a worker that is alone one for itself. It is pure: the caller
//! brings time and signals, once every control tick (100 ms).

mod aim;
mod controller;
mod credit;
mod fit;
mod flow;
mod fuser;
mod guard;
mod headroom;
mod kv;
mod ladder;
mod latency;
mod level;
mod means;
mod meter;
mod paces;
mod prefill;
mod ramp;
mod retries;
mod shed;
mod state;
mod streams;
mod work;

pub use controller::{OverloadController, engine_queue_reference};
pub use fit::{FitSums, Line};
pub use flow::{EngineSample, Flow, FlowError, OverloadSignals};
pub(crate) use level::RecentLevels;
pub use level::{COHORTS, CutOff, LEVELS, Level, OfferedError, OfferedLevels};
pub use paces::Paces;
pub use state::{OverloadState, RungState, Saturation, Term};
pub use work::{Budgets, Work};

#[cfg(test)]
mod plant;
#[cfg(test)]
mod tests;
