//! How many held requests a callback of a proxy continues, and how deep that may nest.
//!
//! A request that is continued may end at once, inside the callback that continued it: the proxy itself answers it. Its end frees work for
//! the next one, which may end at once, and so on: without a bound a queue of thousands would be one stack.

/// Requests that one callback continues at most.
pub const RESUMES_PER_CALLBACK: usize = 4;
/// Deepest chain of requests each of which was continued by the callback of the one before. Beyond it they wait for the tick.
const MAX_DEPTH: u32 = 2;

/// How a request was continued: in which tick, and how deep in a chain. The default is a request that never was, and any callback that is
/// about no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resumed {
    tick: u32,
    depth: u32,
}

impl Resumed {
    /// What those are that a callback about this request continues in tick `tick`; `None` when it must not continue any. A chain never
    /// outlives a tick, which is a callback of its own.
    #[must_use]
    pub fn next(self, tick: u32) -> Option<Self> {
        let depth = if self.tick == tick { self.depth + 1 } else { 1 };
        (depth <= MAX_DEPTH).then_some(Self { tick, depth })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_two_deep_and_the_next_tick_begins_anew() {
        let first = Resumed::default().next(7).unwrap();
        let second = first.next(7).unwrap();
        assert_eq!(second.next(7), None);
        assert_eq!((second.next(8), first.next(8)), (Resumed::default().next(8), Resumed::default().next(8)));
    }
}
