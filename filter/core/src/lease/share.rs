//! How a total is divided among the live workers; a pure function of the record, so every worker computes the same.

use super::{SLOTS, Slot};

/// Part of the rates that is divided evenly, whatever the workers want, so that an idle one can admit at once: one eighth.
const EVEN_PART: u64 = 8;

/// Permits that the worker in slot `index` should hold of `total`.
///
/// Water-filling over `max(1, want)`; then half of what is left is spread evenly. The other half stays free, so that a worker that
/// starts, or starts anew after a fault, finds permits at its first request and not when the others next look.
pub(super) fn permits(slots: &[Slot], index: usize, total: u32) -> u32 {
    let mut workers = [(0_u32, 0_usize); SLOTS];
    let mut n = 0_usize;
    for ((position, slot), entry) in slots.iter().enumerate().filter(|(_, slot)| slot.owner != 0).zip(workers.iter_mut()) {
        *entry = (slot.permits_want, position);
        n += 1;
    }
    let Some(workers) = workers.get_mut(..n) else { return 0 };
    let count = u32::try_from(n).unwrap_or(u32::MAX).max(1);
    // One each first, if that is possible at all: whoever wants something comes before whoever does not.
    let minimum = u32::from(total >= count);
    // Ascending by want, so that each worker gets the smaller of its want and an even part of what is left.
    crate::shellsort::ascending(workers);
    let mut left = total;
    let mut waiting = count;
    let mut mine = 0;
    for (want, position) in workers.iter() {
        let even = left.div_ceil(waiting);
        // Nobody's part may eat the minimum of those who wait behind it.
        let most = left.saturating_sub((waiting - 1).saturating_mul(minimum));
        let given = (*want).max(minimum).min(even).min(most);
        left -= given;
        waiting -= 1;
        if *position == index {
            mine = given;
        }
    }
    let place = u32::try_from(workers.iter().position(|(_, position)| *position == index).unwrap_or(n)).unwrap_or(u32::MAX);
    let spread = left / 2;
    mine.saturating_add(spread / count).saturating_add(u32::from(place < spread % count))
}

/// Part of the rates, in units of `1 / whole`, that the worker in slot `index` should hold.
///
/// One eighth evenly, the rest in proportion to the rate that each wants; all evenly when nobody wants any.
pub(super) fn of_rate(slots: &[Slot], index: usize, whole: u32) -> u32 {
    let live = || slots.iter().filter(|slot| slot.owner != 0);
    let n = (live().count() as u64).max(1);
    let wanted: u128 = live().map(|slot| u128::from(slot.rate_want_milli)).sum();
    let Some(mine) = slots.get(index) else { return 0 };
    let whole = u64::from(whole);
    if wanted == 0 {
        return u32::try_from(whole / n).unwrap_or(u32::MAX);
    }
    let even = whole / EVEN_PART;
    // Rounded down, so that the parts never sum above the whole.
    let by_want = u128::from(whole - even) * u128::from(mine.rate_want_milli) / wanted;
    u32::try_from(u128::from(even / n) + by_want).unwrap_or(u32::MAX)
}
