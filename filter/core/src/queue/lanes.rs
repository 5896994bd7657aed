//! The tenants of each class that have requests waiting, the least served first.

use alloc::vec::Vec;

use super::heap::{Forest, NONE};

/// One tenant in one class.
#[derive(Debug, Clone, Copy)]
struct Lane {
    /// Heap of its requests.
    root: u32,
    requests: u32,
    work: u64,
    /// Its counter while it waits.
    served: f64,
}

impl Lane {
    const EMPTY: Self = Self { root: NONE, requests: 0, work: 0, served: 0.0 };
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
    by_served: Forest,
}

impl Lanes {
    /// For `classes` classes and tenants below `tenants`.
    pub(super) fn new(classes: usize, tenants: usize) -> Self {
        let count = classes.saturating_mul(tenants);
        let mut by_served = Forest::default();
        by_served.grow(count);
        Self {
            tenants,
            classes: alloc::vec![ClassLanes { root: NONE, tenants: 0, work: 0 }; classes],
            lanes: alloc::vec![Lane::EMPTY; count],
            by_served,
        }
    }

    /// Work tokens that wait.
    pub(super) fn work(&self) -> u64 {
        self.classes.iter().fold(0, |sum, class| sum.saturating_add(class.work))
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

    /// Upper estimate of the work served before a request of `tenant` with `work`.
    pub(super) fn work_ahead(&self, class: usize, tenant: u16, work: u64) -> u64 {
        let above = self.classes.iter().take(class).fold(0_u64, |sum, class| sum.saturating_add(class.work));
        let Some(own) = self.classes.get(class) else { return above };
        let before_me = self.lanes.get(self.lane(class, tenant)).map_or(0, |lane| lane.work);
        let round = u64::from(own.tenants).saturating_mul(before_me.saturating_add(work));
        above.saturating_add(own.work.min(round))
    }

    /// A request joins its tenant; `insert` puts it into the tenant's heap.
    pub(super) fn join(&mut self, class: usize, tenant: u16, work: u64, served: f64, insert: impl FnOnce(&mut u32)) {
        let index = self.lane(class, tenant);
        let Some(of_class) = self.classes.get_mut(class) else { return };
        let least = self.lanes.get(of_class.root as usize).map_or(0.0, |lane| lane.served);
        let Some(lane) = self.lanes.get_mut(index) else { return };
        insert(&mut lane.root);
        let is_first = lane.requests == 0;
        lane.requests += 1;
        lane.work = lane.work.saturating_add(work);
        of_class.work = of_class.work.saturating_add(work);
        if is_first {
            lane.served = served.max(least);
            of_class.tenants += 1;
            let lanes = &self.lanes;
            self.by_served.insert(&mut of_class.root, index as u32, &|a, b| precedes(lanes, a, b));
        }
    }

    /// A request leaves its tenant; `remove` takes it out of the tenant's heap.
    pub(super) fn leave(&mut self, class: usize, tenant: u16, work: u64, remove: impl FnOnce(&mut u32)) {
        let index = self.lane(class, tenant);
        let (Some(of_class), Some(lane)) = (self.classes.get_mut(class), self.lanes.get_mut(index)) else { return };
        remove(&mut lane.root);
        lane.requests = lane.requests.saturating_sub(1);
        lane.work = lane.work.saturating_sub(work);
        of_class.work = of_class.work.saturating_sub(work);
        if lane.requests == 0 {
            of_class.tenants = of_class.tenants.saturating_sub(1);
            let lanes = &self.lanes;
            self.by_served.remove(&mut of_class.root, index as u32, &|a, b| precedes(lanes, a, b));
        }
    }

    /// The counter of a tenant that still waits grows.
    pub(super) fn serve(&mut self, class: usize, tenant: u16, served: f64) {
        let index = self.lane(class, tenant);
        let waits = self.lanes.get(index).is_some_and(|lane| lane.requests > 0);
        let Some(of_class) = self.classes.get_mut(class) else { return };
        if !waits || served == 0.0 {
            return;
        }
        let lanes = &self.lanes;
        self.by_served.remove(&mut of_class.root, index as u32, &|a, b| precedes(lanes, a, b));
        if let Some(lane) = self.lanes.get_mut(index) {
            lane.served += served;
        }
        let lanes = &self.lanes;
        self.by_served.insert(&mut of_class.root, index as u32, &|a, b| precedes(lanes, a, b));
    }

    /// Multiplies every counter.
    pub(super) fn rescale(&mut self, factor: f64) {
        for lane in &mut self.lanes {
            lane.served *= factor;
        }
    }

    /// Index of a tenant's lane; beyond all lanes when there is none.
    fn lane(&self, class: usize, tenant: u16) -> usize {
        let tenant = usize::from(tenant).min(self.tenants.saturating_sub(1));
        class.saturating_mul(self.tenants).saturating_add(tenant)
    }
}

/// Ties go to the lower index.
fn precedes(lanes: &[Lane], a: u32, b: u32) -> bool {
    let key = |lane: u32| (lanes.get(lane as usize).map_or(0.0, |lane| lane.served), lane);
    key(a) < key(b)
}
