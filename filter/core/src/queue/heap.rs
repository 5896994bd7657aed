//! Pairing heaps over numbered nodes, whose links live in one vector: many heaps share a forest, and none allocates by itself.
//!
//! Source: Fredman, Sedgewick, Sleator, Tarjan, "The pairing heap: a new form of self-adjusting heap" (Algorithmica 1, 1986). Insert
//! O(1); removal of any node O(log n) amortised. Merging in two passes is a loop here, so no depth of a tree can overflow a stack.

use alloc::vec::Vec;

/// No node.
pub(super) const NONE: u32 = u32::MAX;

/// Links of a node: its first child, its next sibling, and what points to it (the sibling before it, or else its parent).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Link {
    child: u32,
    next: u32,
    before: u32,
}

impl Link {
    const LONE: Self = Self { child: NONE, next: NONE, before: NONE };
}

/// The links of all nodes. A heap is the number of its root, [`NONE`] when it is empty.
#[derive(Debug, Clone, Default)]
pub(super) struct Forest {
    links: Vec<Link>,
}

impl Forest {
    /// Makes room for nodes below `nodes`.
    pub(super) fn grow(&mut self, nodes: usize) {
        if self.links.len() < nodes {
            self.links.resize(nodes, Link::LONE);
        }
    }

    /// Cuts every link; the caller forgets every root.
    pub(super) fn clear(&mut self) {
        self.links.fill(Link::LONE);
    }

    /// Puts a lone node into the heap `root`. `precedes(a, b)`: whether `a` comes out before `b`.
    pub(super) fn insert(&mut self, root: &mut u32, node: u32, precedes: &impl Fn(u32, u32) -> bool) {
        *root = self.meld(*root, node, precedes);
    }

    /// Takes `node`, which is in the heap `root`, out of it.
    pub(super) fn remove(&mut self, root: &mut u32, node: u32, precedes: &impl Fn(u32, u32) -> bool) {
        let Link { child, next, before } = self.link(node);
        let children = self.merge_siblings(child, precedes);
        if *root == node {
            *root = children;
        } else {
            self.edit(before, |link| if link.child == node { link.child = next } else { link.next = next });
            self.edit(next, |link| link.before = before);
            *root = self.meld(*root, children, precedes);
        }
        self.edit(node, |link| *link = Link::LONE);
    }

    /// Joins two heaps, either of which may be empty; the new root.
    fn meld(&mut self, one: u32, other: u32, precedes: &impl Fn(u32, u32) -> bool) -> u32 {
        if one == NONE || other == NONE {
            return if one == NONE { other } else { one };
        }
        let (root, child) = if precedes(other, one) { (other, one) } else { (one, other) };
        let first = self.link(root).child;
        self.edit(first, |link| link.before = child);
        self.edit(child, |link| {
            link.next = first;
            link.before = root;
        });
        self.edit(root, |link| *link = Link { child, ..Link::LONE });
        root
    }

    /// Joins the siblings that begin with `first`: in pairs from the left, then the pairs from the right.
    fn merge_siblings(&mut self, first: u32, precedes: &impl Fn(u32, u32) -> bool) -> u32 {
        let mut pairs = NONE;
        let mut rest = first;
        while rest != NONE {
            let second = self.detach(rest);
            let after = if second == NONE { NONE } else { self.detach(second) };
            let pair = self.meld(rest, second, precedes);
            self.edit(pair, |link| link.next = pairs);
            pairs = pair;
            rest = after;
        }
        let mut root = NONE;
        while pairs != NONE {
            let after = self.detach(pairs);
            root = self.meld(root, pairs, precedes);
            pairs = after;
        }
        root
    }

    /// Makes `node` the root of its own tree; the sibling that followed it.
    fn detach(&mut self, node: u32) -> u32 {
        let next = self.link(node).next;
        self.edit(node, |link| {
            link.next = NONE;
            link.before = NONE;
        });
        next
    }

    fn link(&self, node: u32) -> Link {
        self.links.get(node as usize).copied().unwrap_or(Link::LONE)
    }

    fn edit(&mut self, node: u32, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.links.get_mut(node as usize) {
            change(link);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn nodes_come_out_in_order_whatever_was_removed_meanwhile(ops in prop::collection::vec((0..64_u32, 0..1000_u32), 1..400)) {
            let mut keys = [0_u32; 64];
            let mut model = BTreeSet::new();
            let mut forest = Forest::default();
            forest.grow(64);
            let mut root = NONE;
            for (node, key) in ops {
                let held = model.remove(&(keys[node as usize], node));
                if held {
                    let before = keys;
                    forest.remove(&mut root, node, &|a, b| (before[a as usize], a) < (before[b as usize], b));
                } else {
                    keys[node as usize] = key;
                    model.insert((key, node));
                    forest.insert(&mut root, node, &|a, b| (keys[a as usize], a) < (keys[b as usize], b));
                }
                prop_assert_eq!(model.first().map_or(NONE, |(_, first)| *first), root);
            }
            while let Some((_, first)) = model.pop_first() {
                prop_assert_eq!(first, root);
                forest.remove(&mut root, first, &|a, b| (keys[a as usize], a) < (keys[b as usize], b));
            }
            prop_assert_eq!(root, NONE);
        }
    }
}
