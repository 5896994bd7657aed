//! Who is at the other end, and what they may do.
//!
//! A connection comes in through a [`listener`], which speaks TLS as [`tls`] says and knows the peer's certificate. In front of every
//! service and page stands the [`Guard`]: it finds out who calls, by certificate or [`token`], asks the rules of [`access`] whether the
//! method may be called ([`rpcs`]), bounds rate and size, and hands the service a [`Caller`]. The service asks the caller for the rest: the
//! role for the very policy, the very node. Changes and refusals go into the [`audit`] log.

mod body;
mod caller;
mod files;
mod guard;
mod rates;

pub mod access;
pub mod audit;
pub mod certificate;
pub mod client;
pub mod frames;
pub mod listener;
pub mod pattern;
pub mod rpcs;
pub mod tls;
pub mod token;

pub use self::caller::{Caller, Proof};
pub use self::files::FileErrors;
pub use self::guard::{Guard, Guarded, Rules, guard_page};
