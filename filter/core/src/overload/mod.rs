//! Overload control of one pool: how much work may be in flight, what is cut off, which rungs of the ladder are engaged.
//!
//! The control plane runs one [`OverloadController`] a pool for the fleet, a worker that is alone one for itself. It is pure: the caller
//! brings time and signals, once every control tick (100 ms).

mod controller;
mod fit;
mod flow;
mod level;
mod state;
mod work;

pub use controller::OverloadController;
pub use fit::{FitSums, Line};
pub use flow::{EngineSample, Flow, FlowError, OverloadSignals};
pub use level::{COHORTS, CutOff, LEVELS, Level, OfferedError, OfferedLevels};
pub use state::{OverloadState, RungState, Saturation, Term};
pub use work::{Budgets, Work};
