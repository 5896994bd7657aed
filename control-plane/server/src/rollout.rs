//! The life of a candidate: which proxies have it, how it compares with the policy in force, and what becomes of it.

mod choice;
mod evaluator;
pub mod evidence;
pub mod judge;
pub mod progress;

pub use choice::{has_candidate, told_to};
pub use evaluator::Evaluator;
