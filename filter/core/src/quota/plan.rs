//! Who is to have how much, and which grants must move for it. A pure function of what is granted and wanted.

use alloc::vec::Vec;

use super::fill;
use super::{CLASSES, PerClass, Terms};

/// Part by which a grant must fall short of its target before others give way for it, whoever it is.
const MATERIAL: f64 = 0.2;
/// Part of the capacity by which all grants together may fall short before others give way for those that do so the most. What moves is unused
/// until it has been given back and granted again, so that chance had better move little.
const TOGETHER: f64 = 0.006;
/// How much more than it wants a proxy is to have before others give way for more: chance makes it want more for a moment.
const HEADROOM: f64 = 1.1;
/// Part of the capacity that may lie unused, besides the reserve, before it is given to those who fall short by less than that.
const SPARE: f64 = 0.001;
/// Part of its target below which a grant is that of a newcomer, who may have of the reserve.
const NEWCOMER: f64 = 0.5;
/// Part of an even share of the capacity that every proxy counts as asked for when it is about what it can save.
const LEAST_ASKED: f64 = 0.01;
/// Part of a grant that is not worth taking back.
const CRUMB: f64 = 0.01;

/// One holder that listens.
#[derive(Clone, Debug, Default)]
pub(super) struct Seat {
    /// The most that may be in force.
    pub(super) most: f64,
    /// What its newest grant gives.
    pub(super) granted: f64,
    /// What it is asked for, in all.
    pub(super) asked: f64,
    /// What it wants of each class.
    pub(super) wants: PerClass,
    /// What it wants in all, with its even base.
    pub(super) wanted: f64,
    /// What it should have, by class.
    pub(super) target: PerClass,
    /// What it is granted now, when that is something else than before.
    pub(super) moved: Option<f64>,
    /// What it should be able to save.
    pub(super) burst: f64,
}

/// What there is to share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Supply {
    /// What nobody can have in force now; negative while more is in force than may be.
    pub(super) free: f64,
    /// What is to be kept free.
    pub(super) reserve: f64,
}

// === impl Seat ===

impl Seat {
    fn due(&self) -> f64 {
        self.target.iter().sum()
    }

    /// What a raise to its target takes of what is free.
    fn cost(&self) -> f64 {
        self.due() - self.most.max(self.granted)
    }

    /// What others give way for.
    fn shortfall(&self) -> f64 {
        (self.due().min(self.wanted * HEADROOM) - self.granted).max(0.0)
    }
}

/// Sets the targets: an even base, then floors, priorities and water-filling over what is wanted; what nobody wants goes half by demand and
/// half evenly.
pub(super) fn aim(seats: &mut [Seat], terms: &Terms, budget: f64) {
    let count = seats.len() as f64;
    let budget = budget.max(0.0);
    let base = (terms.safe * terms.capacity).min(budget) / count.max(1.0);
    let mut totals = [0.0; CLASSES];
    for seat in seats.iter_mut() {
        let mut left = base;
        seat.wanted = seat.wants.iter().sum::<f64>().max(base);
        for ((target, want), total) in seat.target.iter_mut().zip(seat.wants.iter_mut()).zip(&mut totals) {
            *target = want.min(left);
            left -= *target;
            *want -= *target;
            *total += *want;
        }
        if let Some(first) = seat.target.first_mut() {
            *first += left;
        }
    }
    let budget = budget - base * count;
    let given = fill::classes(&totals, &terms.floors.map(|floor| floor * terms.capacity), budget);
    for (class, (given, total)) in given.iter().zip(&totals).enumerate() {
        let want_of = |seat: &Seat| seat.wants.get(class).copied().unwrap_or(0.0);
        let level = if given < total { fill::level(seats.iter().map(want_of), *given) } else { f64::INFINITY };
        for seat in seats.iter_mut() {
            let want = want_of(seat);
            seat.target.get_mut(class).into_iter().for_each(|target| *target += want.min(level));
        }
    }
    spread(seats, budget - given.iter().sum::<f64>(), totals.iter().sum());
}

/// Spreads what nobody wants.
fn spread(seats: &mut [Seat], spare: f64, wanted: f64) {
    if spare <= 0.0 {
        return;
    }
    let by_demand = if wanted > 0.0 { 0.5 * spare / wanted } else { 0.0 };
    let evenly = (spare - by_demand * wanted) / seats.len() as f64;
    for seat in seats {
        for (target, want) in seat.target.iter_mut().zip(&seat.wants) {
            *target += want * by_demand;
        }
        if let Some(first) = seat.target.first_mut() {
            *first += evenly;
        }
    }
}

/// Says who should be able to save how much of `total`: by the root of what they are asked for, as chance goes. What a proxy loses by chance
/// falls with the requests that it can save, whatever their rate, so what many small ones gain is more than what few large ones lose.
pub(super) fn save(seats: &mut [Seat], terms: &Terms, total: f64) {
    let base = terms.capacity * LEAST_ASKED / (seats.len() as f64).max(1.0);
    let root = |seat: &Seat| libm::sqrt(seat.asked.max(base));
    let sum: f64 = seats.iter().map(root).sum();
    for seat in seats {
        seat.burst = total.max(0.0) * root(seat) / sum;
    }
}

/// Decides which grants move now. Only those do that have to: who falls short materially, and those who have the most too much, as far as
/// that is needed.
pub(super) fn decide(seats: &mut [Seat], supply: Supply, capacity: f64) {
    let mut takers = takers(seats, capacity);
    let lacking: f64 = takers.iter().filter_map(|at| seats.get(*at)).map(|seat| seat.cost().max(0.0)).sum();
    let coming: f64 = seats.iter().map(|seat| (seat.most - seat.granted).max(0.0)).sum();
    take_back(seats, lacking + supply.reserve - supply.free - coming, capacity);
    let mut left = supply.free.max(0.0);
    // The cheapest first: so the most of them have what they need at once, and who needs much waits for what is taken back.
    sort_by(&mut takers, seats, Seat::cost);
    for at in takers {
        let Some(seat) = seats.get_mut(at) else { continue };
        let kept = if seat.granted < seat.due() * NEWCOMER { 0.0 } else { supply.reserve };
        raise(seat, &mut left, kept);
    }
    let mut others = positions(seats, |seat| seat.moved.is_none() && seat.due() > seat.granted * (1.0 + CRUMB));
    sort_by(&mut others, seats, |seat| -seat.cost());
    for at in others {
        if left <= supply.reserve + SPARE * capacity {
            break;
        }
        if let Some(seat) = seats.get_mut(at) {
            raise(seat, &mut left, supply.reserve);
        }
    }
}

/// Those that fall short materially: each for itself, or by so much that it matters to all.
fn takers(seats: &[Seat], capacity: f64) -> Vec<usize> {
    let mut takers = positions(seats, |seat| seat.shortfall() > 0.0);
    sort_by(&mut takers, seats, |seat| -seat.shortfall());
    let shortfall = |at: &usize| seats.get(*at).map_or(0.0, Seat::shortfall);
    let mut together: f64 = takers.iter().map(shortfall).sum();
    takers.retain(|at| {
        let matters = together > TOGETHER * capacity;
        together -= shortfall(at);
        matters || seats.get(*at).is_some_and(|seat| seat.shortfall() > MATERIAL * seat.granted + 1e-6 * capacity)
    });
    takers
}

fn raise(seat: &mut Seat, left: &mut f64, kept: f64) {
    let most = seat.most.max(seat.granted);
    let to = seat.due().min(most + (*left - kept).max(0.0));
    if to > seat.granted * (1.0 + CRUMB) {
        *left -= (to - most).max(0.0);
        seat.moved = Some(to);
    }
}

/// Takes back `shortage` from those who have the most above their targets.
fn take_back(seats: &mut [Seat], shortage: f64, capacity: f64) {
    if shortage <= SPARE * 0.5 * capacity {
        return;
    }
    let mut givers = positions(seats, |seat| seat.granted - seat.due() > CRUMB * seat.granted);
    sort_by(&mut givers, seats, |seat| seat.due() - seat.granted);
    let mut left = shortage;
    for at in givers {
        if left <= 0.0 {
            return;
        }
        if let Some(seat) = seats.get_mut(at) {
            let due = seat.due();
            left -= seat.granted - due;
            seat.moved = Some(due);
        }
    }
}

fn positions(seats: &[Seat], is_one: impl Fn(&Seat) -> bool) -> Vec<usize> {
    seats.iter().enumerate().filter(|(_, seat)| is_one(seat)).map(|(at, _)| at).collect()
}

fn sort_by(positions: &mut [usize], seats: &[Seat], key: impl Fn(&Seat) -> f64) {
    let key = |at: &usize| seats.get(*at).map_or(0.0, &key);
    positions.sort_by(|one, other| key(one).total_cmp(&key(other)));
}
