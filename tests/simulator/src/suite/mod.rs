//! Runs: one scenario under one algorithm with one seed, and the whole set of them over all cores.

mod algorithm;
mod matrix;
mod results;

pub use algorithm::{Algorithm, PlayError};
pub use matrix::{Outcome, Plan, Played, Progress, compare, compare_one, play};
pub use results::{ControllerResults, ScenarioResults, SuiteResults};
