//! Epochs across replicas: whose limits are newer when another control plane has taken over.
//!
//! An epoch is a number in which the leader's term comes first and its count second: `term × 2^42 + count`. So the limits of a leader
//! are newer than all of those before it, whatever it knows of their counts. A control plane without other replicas has the term 0
//! and counts from the calendar in milliseconds, which stays below 2^42 until the year 2109: the first leader of several is newer.

/// Bits of the count.
const COUNT_BITS: u32 = 42;

/// The term of several replicas' leader; 0 for one alone.
pub type Term = u64;

/// The epoch from which a leader counts on in its `term`; without other replicas (term 0) that is the calendar.
#[must_use]
pub const fn first_epoch(term: Term, unix_ms: u64) -> u64 {
    if term == 0 { unix_ms } else { term << COUNT_BITS }
}

/// The term in which limits with this epoch were made.
#[must_use]
pub const fn term_of(epoch: u64) -> Term {
    epoch >> COUNT_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_term_is_newer_whatever_was_counted_before() {
        let alone_in_2100 = 4_102_444_800_000;
        let year_at_50_hz = 366 * 86_400 * 50;
        assert!(first_epoch(1, 0) > first_epoch(0, alone_in_2100) + year_at_50_hz);
        for term in 1..100 {
            assert!(first_epoch(term + 1, 0) > first_epoch(term, 0) + 1000 * year_at_50_hz);
            assert_eq!(term_of(first_epoch(term, 5) + year_at_50_hz), term);
        }
        assert_eq!(term_of(first_epoch(0, alone_in_2100)), 0);
    }
}
