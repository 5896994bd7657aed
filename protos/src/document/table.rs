//! What a document may hold, by message: generated from the protos, so that it cannot differ from them.

/// A message as an object of a document.
pub(super) struct Message {
    pub(super) fields: &'static [Field],
}

/// A field of a message.
pub(super) struct Field {
    /// As documents write it: `pathPrefix`.
    pub(super) name: &'static str,
    /// On the wire.
    pub(super) number: u32,
    /// Whether it holds a list of `kind`.
    pub(super) list: bool,
    pub(super) kind: Kind,
}

/// What a field holds.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Bool,
    Uint32,
    Uint64,
    Double,
    Text,
    /// Names as documents write them, and numbers on the wire.
    Enum(&'static [(&'static str, i32)]),
    Message(&'static Message),
}

include!("../gen/document.rs");
