//! Sorting in few bytes of code.

/// Shell's sort, ascending: a thousand numbers ten times a second do not need the library's, which is several KiB of wasm.
///
/// Source of the gaps: Ciura, "Best increments for the average case of Shellsort" (FCT 2001).
#[inline(never)]
pub(crate) fn ascending<T: PartialOrd>(values: &mut [T]) {
    for gap in [701, 301, 132, 57, 23, 10, 4, 1].iter().copied() {
        for start in gap..values.len() {
            let mut at = start;
            while let Some(before) = at.checked_sub(gap)
                && values.get(before) > values.get(at)
            {
                values.swap(before, at);
                at = before;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use std::vec::Vec;

    #[test]
    fn numbers_are_sorted_however_they_come() {
        let mut rng = Rng::new(5);
        for len in [0, 1, 2, 700, 1025] {
            let mut values: Vec<f64> = (0..len).map(|_| rng.next_f64()).collect();
            ascending(&mut values);
            assert!(values.is_sorted(), "{len}");
        }
    }
}
