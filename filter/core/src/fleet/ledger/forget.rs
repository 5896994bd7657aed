//! What the books let go of, and what they must remember of it: a proxy that comes back after it was forgotten reports counters that are
//! in the totals already, and nothing tells how much of them.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use super::latency::book_losses;
use super::node::Node;
use super::{GONE_AFTER, Ledger, REMEMBER};
use crate::time::Timestamp;

/// Forgotten proxies whose names are kept; with more of them every proxy counts as one that was known.
const MAX_NAMES: usize = 4096;

/// The proxies that were forgotten.
#[derive(Default)]
pub(super) struct Forgotten {
    names: BTreeSet<String>,
    has_more: bool,
}

impl Forgotten {
    /// Whether counters of this proxy may be in the totals already.
    pub(super) fn may_know(&self, node_id: &str) -> bool {
        self.has_more || self.names.contains(node_id)
    }

    fn add(&mut self, node_id: String) {
        if self.names.len() < MAX_NAMES {
            self.names.insert(node_id);
        } else {
            self.has_more = true;
        }
    }
}

impl Ledger {
    /// Forgets proxies that have been silent for ten minutes.
    pub fn expire(&mut self, now: Timestamp) {
        let is_over = |node: &Node| node.heard_at.is_none_or(|at| now.since(at) >= REMEMBER);
        let gone: Vec<_> = self.nodes.extract_if(.., |_, node| is_over(node)).collect();
        gone.into_iter().for_each(|(id, node)| self.forget(id, node));
    }

    /// Makes room by forgetting the proxy that has been silent longest; returns whether one could go.
    pub(super) fn evict(&mut self, now: Timestamp) -> bool {
        let oldest = self.nodes.iter().min_by_key(|(_, node)| node.heard_at).map(|(id, node)| (id.clone(), node.heard_at));
        let Some((id, heard_at)) = oldest else { return false };
        if heard_at.is_some_and(|at| now.since(at) < GONE_AFTER) {
            return false;
        }
        if let Some(node) = self.nodes.remove(&id) {
            self.forget(id, node);
        }
        true
    }

    fn forget(&mut self, node_id: String, mut node: Node) {
        node.lose_all();
        book_losses(&mut self.pools, &mut node);
        self.forgotten.add(node_id);
    }
}
