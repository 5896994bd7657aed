//! What a target saw of an input: a cheap stand-in for coverage.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::input::fingerprint;

/// What one input showed. Two inputs with the same marks took, as far as the target can tell, the same way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks(BTreeSet<u64>);

impl Marks {
    /// Notes something that happened: a field that was refused, a kind of answer.
    pub(crate) fn note(&mut self, what: impl Hash) {
        // Its keys are fixed, so the marks of an input are the same in every run.
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        self.0.insert(hasher.finish());
    }

    /// Notes how often something happened, roughly: by its power of two.
    pub(crate) fn count(&mut self, what: impl Hash, times: u64) {
        self.note((what, times.checked_ilog2()));
    }

    /// Tells a story and returns the fingerprint of what it showed.
    pub(crate) fn of(input: &[u8], story: impl Fn(&[u8], &mut Self)) -> u64 {
        let mut marks = Self::default();
        story(input, &mut marks);
        fingerprint(marks.0.iter().map(|mark| mark.to_le_bytes()))
    }
}
