//! The life of a candidate: which proxies have it, how it compares with the policy in force, and what becomes of it.

mod choice;

pub use choice::{has_candidate, told_to};
