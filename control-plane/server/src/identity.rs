//! Who is at the other end, and what they may do.
//!
//! A connection comes in through a [`listener`], which speaks TLS as [`tls`] says.

pub mod certificate;
pub mod listener;
pub mod tls;
