//! What a policy would have done: the last minutes' signals, played to the control loop again.
//!
//! The control loop is a pure function of policies and signals ([`Controls::step`]). Its task records the signals of each fifth of a
//! second for three minutes ([`Tape`]); a dry run plays them twice ([`play`]), under the policy in force and under another one, from
//! what the loop had learned when the recording begins. What cannot be known so is said in the answer: clients would have behaved
//! otherwise after other refusals, and a proxy's own budgets, queues and breakers are not played.
//!
//! [`Controls::step`]: headgate_core::fleet::Controls::step

mod answer;
mod play;
mod service;
mod tape;
#[cfg(test)]
mod tests;

pub use play::{ClassCourse, Course, LevelCourse, play};
pub use service::DryRunServer;
pub use tape::{Frame, Tape};
