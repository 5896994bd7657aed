//! Changes of a request's headers.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Deref;

/// A change of one header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderOp {
    /// Set it, replacing every value it has.
    Set {
        /// Name, in lower case.
        name: &'static str,
        /// Value.
        value: Arc<str>,
    },
    /// Remove it.
    Remove {
        /// Name as it was received.
        name: Vec<u8>,
    },
}

/// Changes, in order. One of them takes no memory of its own: a decision allocates nothing, and may name an engine.
#[derive(Debug, Clone, Default)]
pub struct HeaderOps(Ops);

#[derive(Debug, Clone, Default)]
enum Ops {
    #[default]
    None,
    One([HeaderOp; 1]),
    Many(Vec<HeaderOp>),
}

impl HeaderOps {
    /// Appends a change.
    #[inline]
    pub(super) fn push(&mut self, op: HeaderOp) {
        self.0 = match core::mem::take(&mut self.0) {
            Ops::None => Ops::One([op]),
            before => more(before, op),
        };
    }

    /// Appends a change, if there is one.
    #[inline]
    pub(super) fn extend(&mut self, op: Option<HeaderOp>) {
        if let Some(op) = op {
            self.push(op);
        }
    }
}

#[inline(never)]
fn more(before: Ops, op: HeaderOp) -> Ops {
    let mut ops = match before {
        Ops::None => Vec::new(),
        Ops::One([first]) => alloc::vec![first],
        Ops::Many(ops) => ops,
    };
    ops.push(op);
    Ops::Many(ops)
}

impl Deref for HeaderOps {
    type Target = [HeaderOp];

    #[inline]
    fn deref(&self) -> &[HeaderOp] {
        match &self.0 {
            Ops::None => &[],
            Ops::One(op) => op,
            Ops::Many(ops) => ops,
        }
    }
}

impl From<Vec<HeaderOp>> for HeaderOps {
    fn from(ops: Vec<HeaderOp>) -> Self {
        Self(Ops::Many(ops))
    }
}

impl FromIterator<HeaderOp> for HeaderOps {
    fn from_iter<I: IntoIterator<Item = HeaderOp>>(ops: I) -> Self {
        ops.into_iter().collect::<Vec<_>>().into()
    }
}

impl PartialEq for HeaderOps {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for HeaderOps {}
