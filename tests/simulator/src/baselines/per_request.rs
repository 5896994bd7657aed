//! What a controller remembers about each open request.

use crate::controller::RequestId;

/// A table by [`RequestId`], which is a small index.
#[derive(Debug)]
pub(crate) struct PerRequest<T>(Vec<Option<T>>);

// === impl PerRequest ===

impl<T> Default for PerRequest<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> PerRequest<T> {
    pub(crate) fn insert(&mut self, id: RequestId, value: T) {
        if self.0.len() <= id.index() {
            self.0.resize_with(id.index() + 1, || None);
        }
        self.0[id.index()] = Some(value);
    }

    pub(crate) fn take(&mut self, id: RequestId) -> Option<T> {
        self.0.get_mut(id.index())?.take()
    }

    pub(crate) fn get(&self, id: RequestId) -> Option<&T> {
        self.0.get(id.index())?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: RequestId) -> Option<&mut T> {
        self.0.get_mut(id.index())?.as_mut()
    }
}
