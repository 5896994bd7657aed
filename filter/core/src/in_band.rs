//! What the engines say in their responses: their load in a header (ORCA), and how many tokens they made in `usage`.
//!
//! Both come from programs that we do not control, through bytes that anybody may have written, so a value is believed only within its
//! range, everything is bounded, and what cannot be read changes nothing.

mod book;
mod load;
mod scan;
mod tally;
mod usage;

pub(crate) use book::EndpointLoads;
pub use load::{EngineLoad, FORMAT_HEADER, LoadHeader, LoadSeen};
pub(crate) use tally::Tally;
pub use usage::TAIL_BYTES;
pub(crate) use usage::{Counted, Usage, Yields};
