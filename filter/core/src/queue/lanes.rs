//! The tenants of each class that have requests waiting, in the order of their turns.

use alloc::vec::Vec;

use super::heap::{Forest, NONE};

/// Part of the cost of its first request that counts for a tenant's turn. With all of it tenants take turns by when their requests would end
/// (A. Demers, S. Keshav, S. Shenker, "Analysis and simulation of a fair queueing algorithm", SIGCOMM 1989), with none by when they begin.
/// More of it gives more work in time, and less to tenants that come rarely, who cannot choose which of theirs is short: Jain's index over
/// 1,000 tenants was 0.986 with none, 0.979 with 0.3 and 0.958 with all of it, the work done in time 2 and 3 % more.
const FINISH_PART: f64 = 0.3;

/// One tenant in one class.
#[derive(Debug, Clone, Copy)]
struct Lane {
    /// Heap of its requests.
    root: u32,
    requests: u32,
    work: u64,
    /// Its counter while it waits.
    served: f64,
    /// Cost of the request at the root.
    first_cost: f64,
}

impl Lane {
    const EMPTY: Self = Self { root: NONE, requests: 0, work: 0, served: 0.0, first_cost: 0.0 };

    /// Order of the tenants of a class.
    fn turn(&self) -> f64 {
        turn(self.served, self.first_cost)
    }
}

/// See [`FINISH_PART`].
pub(super) fn turn(served: f64, cost: f64) -> f64 {
    served + FINISH_PART * cost
}

#[derive(Debug, Clone, Copy)]
struct ClassLanes {
    /// Heap of the tenants that wait.
    root: u32,
    tenants: u32,
    work: u64,
}

/// All tenants of all classes.
#[derive(Debug, Clone)]
pub(super) struct Lanes {
    tenants: usize,
    classes: Vec<ClassLanes>,
    lanes: Vec<Lane>,
    by_turn: Forest,
}

impl Lanes {
    /// For `classes` classes and tenants below `tenants`.
    pub(super) fn new(classes: usize, tenants: usize) -> Self {
        let count = classes.saturating_mul(tenants);
        let mut by_turn = Forest::default();
        by_turn.grow(count);
        Self {
            tenants,
            classes: alloc::vec![ClassLanes { root: NONE, tenants: 0, work: 0 }; classes],
            lanes: alloc::vec![Lane::EMPTY; count],
            by_turn,
        }
    }

    /// Work tokens that wait.
    pub(super) fn work(&self) -> u64 {
        self.classes.iter().fold(0, |sum, class| sum.saturating_add(class.work))
    }

    /// Work tokens that wait in a class.
    pub(super) fn work_of(&self, class: usize) -> u64 {
        self.classes.get(class).map_or(0, |class| class.work)
    }

    /// The counter of a tenant that waits in a class.
    pub(super) fn served(&self, class: usize, tenant: u16) -> f64 {
        self.lanes.get(self.lane(class, tenant)).map_or(0.0, |lane| lane.served)
    }

    /// The most important class in which anything waits.
    pub(super) fn first_class(&self) -> Option<usize> {
        self.classes.iter().position(|class| class.root != NONE)
    }

    /// The request that is served next.
    pub(super) fn head(&self) -> Option<u32> {
        let lane = self.classes.get(self.first_class()?)?.root;
        self.lanes.get(lane as usize).map(|lane| lane.root)
    }

    /// Upper estimate of the work served before a request of `tenant` with `work`, which would let the tenant's counter `served` grow by `cost`.
    pub(super) fn work_ahead(&self, class: usize, tenant: u16, work: u64, served: f64, cost: f64) -> u64 {
        let above = self.classes.iter().take(class).fold(0_u64, |sum, class| sum.saturating_add(class.work));
        let (Some(own), Some(lane)) = (self.classes.get(class), self.lanes.get(self.lane(class, tenant))) else { return above };
        let next = self.lanes.get(own.root as usize);
        if lane.requests == 0 && next.is_some_and(|next| turn(served, cost) < next.turn()) {
            return above;
        }
        let round = u64::from(own.tenants).saturating_mul(lane.work.saturating_add(work));
        above.saturating_add(own.work.min(round))
    }

    /// A request joins its tenant; `insert` puts it into the tenant's heap and returns the cost of the first one there.
    pub(super) fn join(&mut self, class: usize, tenant: u16, work: u64, served: f64, insert: impl FnOnce(&mut u32) -> f64) {
        let next = self.classes.get(class).and_then(|class| self.lanes.get(class.root as usize)).map_or(0.0, |next| next.served);
        self.edit(class, tenant, |lane| {
            lane.first_cost = insert(&mut lane.root);
            if lane.requests == 0 {
                lane.served = served.max(next);
            }
            lane.requests += 1;
            lane.work = lane.work.saturating_add(work);
        });
    }

    /// A request leaves its tenant; `remove` takes it out of the tenant's heap and returns the cost of the first one there.
    pub(super) fn leave(&mut self, class: usize, tenant: u16, work: u64, remove: impl FnOnce(&mut u32) -> f64) {
        self.edit(class, tenant, |lane| {
            lane.first_cost = remove(&mut lane.root);
            lane.requests = lane.requests.saturating_sub(1);
            lane.work = lane.work.saturating_sub(work);
        });
    }

    /// The counter of a tenant that still waits grows.
    pub(super) fn serve(&mut self, class: usize, tenant: u16, served: f64) {
        self.edit(class, tenant, |lane| lane.served += served);
    }

    /// Changes a lane, and with it its class and its place among the turns of the class.
    fn edit(&mut self, class: usize, tenant: u16, change: impl FnOnce(&mut Lane)) {
        let index = self.lane(class, tenant);
        let (Some(of_class), Some(before)) = (self.classes.get_mut(class), self.lanes.get(index).copied()) else { return };
        let mut after = before;
        change(&mut after);
        let (waited, waits) = (before.requests > 0, after.requests > 0);
        of_class.tenants = of_class.tenants.saturating_add(u32::from(waits)).saturating_sub(u32::from(waited));
        of_class.work = of_class.work.saturating_sub(before.work).saturating_add(after.work);
        let stays = waited && waits && before.turn().total_cmp(&after.turn()).is_eq();
        if waited && !stays {
            self.by_turn.remove(&mut of_class.root, index as u32, &precedes(&self.lanes));
        }
        if let Some(lane) = self.lanes.get_mut(index) {
            *lane = after;
        }
        if waits && !stays {
            self.by_turn.insert(&mut of_class.root, index as u32, &precedes(&self.lanes));
        }
    }

    /// Multiplies every counter.
    pub(super) fn rescale(&mut self, factor: f64) {
        for lane in &mut self.lanes {
            lane.served *= factor;
            lane.first_cost *= factor;
        }
    }

    /// Index of a tenant's lane; beyond all lanes when there is none.
    fn lane(&self, class: usize, tenant: u16) -> usize {
        let tenant = usize::from(tenant).min(self.tenants.saturating_sub(1));
        class.saturating_mul(self.tenants).saturating_add(tenant)
    }
}

/// Ties go to the lower index.
fn precedes(lanes: &[Lane]) -> impl Fn(u32, u32) -> bool {
    let key = |lane: u32| (lanes.get(lane as usize).map_or(0.0, Lane::turn), lane);
    move |a, b| key(a) < key(b)
}
