//! The paged KV cache: a fixed pool of blocks, each holding the keys and values of a few tokens.

use std::num::NonZeroU32;

/// One block of the KV cache, by its index in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockId(u32);

/// A fixed number of KV blocks, handed out one by one and given back.
///
/// Invariant: `free() + (blocks held by sequences) == capacity()`, and no block is held twice; a block is a move-only
/// claim in spirit, so the pool trusts callers to give back exactly what they took.
#[derive(Debug)]
pub struct BlockPool {
    free: Vec<BlockId>,
    capacity: u32,
    block_tokens: u32,
}

impl BlockPool {
    /// A pool of `capacity` free blocks of `block_tokens` tokens each.
    pub fn new(capacity: NonZeroU32, block_tokens: NonZeroU32) -> BlockPool {
        let free = (0..capacity.get()).rev().map(BlockId).collect();
        BlockPool { free, capacity: capacity.get(), block_tokens: block_tokens.get() }
    }

    /// Blocks that nobody holds.
    pub fn free(&self) -> u32 {
        self.free.len() as u32
    }

    /// Blocks held by sequences.
    pub fn in_use(&self) -> u32 {
        self.capacity - self.free()
    }

    /// All blocks, free or held.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Tokens in one block.
    pub fn block_tokens(&self) -> u32 {
        self.block_tokens
    }

    /// Blocks that hold `tokens` tokens: `ceil(tokens / block_tokens)`.
    pub fn blocks_for(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.block_tokens)
    }

    /// Blocks still missing before a sequence that holds `held` blocks can store `tokens` tokens.
    pub fn missing(&self, held: &[BlockId], tokens: u32) -> u32 {
        self.blocks_for(tokens).saturating_sub(held.len() as u32)
    }

    /// Grows `held` until it can store `tokens` tokens. All or nothing: `false` leaves both sides as they were.
    pub fn grow(&mut self, held: &mut Vec<BlockId>, tokens: u32) -> bool {
        let missing = self.missing(held, tokens);
        if missing > self.free() {
            return false;
        }
        let keep = self.free.len() - missing as usize;
        held.extend(self.free.drain(keep..));
        true
    }

    /// Takes every block of `held` back.
    pub fn release(&mut self, held: &mut Vec<BlockId>) {
        self.free.append(held);
    }
}
