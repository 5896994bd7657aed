//! The queue of admitted-when-there-is-room requests in one worker.
//!
//! Most important class first; inside a class the tenant that was served least in work tokens lately, so that a tenant with a thousand
//! requests waiting gets no more than one with two; inside a tenant the request that must start first. That is deficit round robin
//! with the deficits remembered: the counter of a tenant outlives its stay in the queue ([`crate::fairness`]), and a tenant that comes
//! to wait begins no lower than the one that is next, so that nobody saves up a burst.
//!
//! Size counts twice, since not all that waits can start and what an engine prefills for one long prompt it could have done for many short
//! ones: among tenants that were served alike the one with the smaller request is first ([`lanes::FINISH_PART`]), and a tenant's own go
//! by when they must start and by their work ([`PLACE_PER_TOKEN`]).
//!
//! Entries and links live in slabs: in the steady state nothing is allocated. Push is O(1) amortised, taking the head, cancelling and
//! expiring are O(log n) amortised.

use alloc::vec::Vec;

use core::time::Duration;

use crate::policy::ClassId;
use crate::time::Timestamp;

mod heap;
mod lanes;
mod outlook;
#[cfg(test)]
mod tests;

use heap::{Forest, NONE};
use lanes::Lanes;
use outlook::Outlook;
pub(crate) use outlook::Pace;

/// By how much later a request is taken to have come for each of its work tokens, among those of its tenant: one of 500 tokens goes behind a
/// small one that comes up to 2 s after it, and no later. With 1 ms the work done in time was half a percent less, with 10 ms no more.
const PLACE_PER_TOKEN: Duration = Duration::from_millis(4);

/// Place in the queue. It stays valid until its answer was collected, and never names another request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    slot: u32,
    generation: u32,
}

/// Who waits, and for what.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Waiting<N> {
    /// Name of the stream, given by the adapter.
    pub(crate) stream: u32,
    pub(crate) class: ClassId,
    /// Tenant as counted by [`crate::fairness::Usage`].
    pub(crate) tenant: u16,
    /// Work tokens.
    pub(crate) work: u64,
    /// What its tenant's counter would grow by; 0 where requests cost the same whatever their size, which then says nothing of their order.
    pub(crate) cost: f64,
    /// Bytes of headers and declared body.
    pub(crate) bytes: u64,
    pub(crate) arrived: Timestamp,
    /// When it must have left the queue.
    pub(crate) start_by: Timestamp,
    /// What it needs in order to start.
    pub(crate) need: N,
}

/// Bounds of one worker's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) requests: u32,
    pub(crate) bytes: u64,
}

/// Why nothing more can wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// As many requests as may.
    Requests,
    /// As many bytes as may.
    Bytes,
}

/// What was in the place of a ticket.
#[derive(Debug)]
pub(crate) enum Left<N, A> {
    /// It had no answer yet.
    Waiting(Waiting<N>),
    /// It had one, which nobody will collect.
    Answered(A),
    /// It is no longer there.
    Gone,
}

#[derive(Debug)]
enum State<N, A> {
    Free { next: u32 },
    Waits(Waiting<N>),
    Answered { stream: u32, answer: A },
}

#[derive(Debug)]
struct Slot<N, A> {
    generation: u32,
    /// Order of arrival.
    sequence: u64,
    state: State<N, A>,
}

impl<N, A> Slot<N, A> {
    fn waiting(&self) -> Option<&Waiting<N>> {
        if let State::Waits(waiting) = &self.state { Some(waiting) } else { None }
    }

    /// Order of expiry.
    fn expiry(&self) -> (Timestamp, u64) {
        (self.waiting().map_or(Timestamp::ZERO, |waiting| waiting.start_by), self.sequence)
    }

    /// Order inside a tenant.
    fn place(&self) -> (Timestamp, u64) {
        let behind = |waiting: &Waiting<N>| {
            let work = if waiting.cost > 0.0 { u32::try_from(waiting.work).unwrap_or(u32::MAX) } else { 0 };
            PLACE_PER_TOKEN.saturating_mul(work)
        };
        (self.waiting().map_or(Timestamp::ZERO, |waiting| waiting.start_by + behind(waiting)), self.sequence)
    }
}

/// The queue. `N`: what a request needs; `A`: the answer that it gets.
#[derive(Debug)]
pub(crate) struct AdmissionQueue<N, A> {
    /// Of a slot that is new.
    first_generation: u32,
    slots: Vec<Slot<N, A>>,
    free: u32,
    sequence: u64,
    bounds: Bounds,
    /// Waiting or answered and not collected: both are streams that are held.
    held: u32,
    waiting: u32,
    bytes: u64,
    lanes: Lanes,
    /// By tenant.
    by_place: Forest,
    /// All that wait.
    by_expiry: Forest,
    expiry_root: u32,
    outlook: Outlook,
}

impl<N: Copy, A> AdmissionQueue<N, A> {
    /// An empty queue for `classes` classes and tenants below `tenants`.
    pub(crate) fn new(classes: usize, tenants: usize, bounds: Bounds) -> Self {
        Self {
            first_generation: 0,
            slots: Vec::new(),
            free: NONE,
            sequence: 0,
            bounds,
            held: 0,
            waiting: 0,
            bytes: 0,
            lanes: Lanes::new(classes, tenants),
            by_place: Forest::default(),
            by_expiry: Forest::default(),
            expiry_root: NONE,
            outlook: Outlook::default(),
        }
    }

    /// The same queue as the `number`-th of its pool: a ticket of an earlier one names nobody in it.
    #[must_use]
    pub(crate) fn numbered(mut self, number: u64) -> Self {
        // 2^32 over the golden ratio: the generations of one queue lie far from those of the next ones.
        self.first_generation = (number as u32).wrapping_mul(0x9e37_79b9);
        self
    }

    /// Changes the bounds. Who waits beyond smaller ones goes on waiting; nobody comes in.
    pub(crate) fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// The bounds.
    pub(crate) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Requests that wait.
    pub(crate) fn len(&self) -> u32 {
        self.waiting
    }

    /// Streams that are held: waiting, or with an answer that was not collected.
    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    /// Bytes of the requests that wait.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Work tokens that wait.
    pub(crate) fn work(&self) -> u64 {
        self.lanes.work()
    }

    /// Whether a request of `class`, or of one more important, waits.
    pub(crate) fn has_before(&self, class: ClassId) -> bool {
        self.lanes.first_class().is_some_and(|first| first <= class.index())
    }

    /// Work tokens that would be served before a request of `class` and `tenant` with `work`: all of the classes above, and of its own
    /// what each of the tenants that wait can get in before this one has had as much. `served`: the tenant's counter; `cost`: what it would
    /// grow by.
    pub(crate) fn work_ahead(&self, class: ClassId, tenant: u16, work: u64, served: f64, cost: f64) -> u64 {
        self.lanes.work_ahead(class.index(), tenant, work, served, cost)
    }

    /// How long the longest has waited. O(n).
    pub(crate) fn oldest(&self) -> Option<Timestamp> {
        self.slots.iter().filter_map(|slot| slot.waiting().map(|waiting| waiting.arrived)).min()
    }

    /// Whether a request with `bytes` can come in.
    pub(crate) fn room(&self, bytes: u64) -> Result<(), Full> {
        if self.held >= self.bounds.requests {
            return Err(Full::Requests);
        }
        if self.bytes.saturating_add(bytes) > self.bounds.bytes { Err(Full::Bytes) } else { Ok(()) }
    }

    /// Lets a request wait. `served`: the tenant's counter.
    ///
    /// # Errors
    /// [`Full`], and nothing has changed.
    pub(crate) fn push(&mut self, waiting: Waiting<N>, served: f64) -> Result<Ticket, Full> {
        self.room(waiting.bytes)?;
        let slot = self.free_slot();
        self.sequence += 1;
        let sequence = self.sequence;
        let Some(place) = self.slots.get_mut(slot as usize) else { return Err(Full::Requests) };
        let State::Free { next } = place.state else { return Err(Full::Requests) };
        self.free = next;
        place.sequence = sequence;
        place.state = State::Waits(waiting);
        let ticket = Ticket { slot, generation: place.generation };
        self.held += 1;
        self.link(slot, &waiting, served);
        Ok(ticket)
    }

    /// Who is served next.
    pub(crate) fn head(&self) -> Option<(Ticket, &Waiting<N>)> {
        self.waiting_at(self.lanes.head()?)
    }

    /// Who expires next.
    pub(crate) fn next_to_expire(&self) -> Option<(Ticket, &Waiting<N>)> {
        self.waiting_at(self.expiry_root)
    }

    /// Who still waits with a ticket.
    fn waiting(&self, ticket: Ticket) -> Option<&Waiting<N>> {
        self.slots.get(ticket.slot as usize).filter(|place| place.generation == ticket.generation)?.waiting()
    }

    fn waiting_at(&self, slot: u32) -> Option<(Ticket, &Waiting<N>)> {
        let place = self.slots.get(slot as usize)?;
        Some((Ticket { slot, generation: place.generation }, place.waiting()?))
    }

    /// Gives an answer to one that waits. `served`: what its tenant's counter grows by.
    pub(crate) fn answer(&mut self, ticket: Ticket, answer: A, served: f64) {
        let Some(waiting) = self.unlink(ticket) else { return };
        self.lanes.serve(waiting.class.index(), waiting.tenant, served);
        if let Some(place) = self.slots.get_mut(ticket.slot as usize) {
            place.state = State::Answered { stream: waiting.stream, answer };
        }
    }

    /// The stream whose answer is there to be collected.
    pub(crate) fn answered(&self, ticket: Ticket) -> Option<u32> {
        match self.slots.get(ticket.slot as usize).filter(|place| place.generation == ticket.generation)?.state {
            State::Answered { stream, .. } => Some(stream),
            State::Free { .. } | State::Waits(_) => None,
        }
    }

    /// Whether it still waits for an answer.
    pub(crate) fn waits(&self, ticket: Ticket) -> bool {
        self.waiting(ticket).is_some()
    }

    /// Takes the answer, if there is one; the ticket is void then.
    pub(crate) fn collect(&mut self, ticket: Ticket) -> Option<A> {
        self.answered(ticket)?;
        match self.vacate(ticket.slot)? {
            State::Answered { answer, .. } => Some(answer),
            State::Free { .. } | State::Waits(_) => None,
        }
    }

    /// The client has left: nothing of it remains.
    pub(crate) fn cancel(&mut self, ticket: Ticket) -> Left<N, A> {
        if let Some(answer) = self.collect(ticket) {
            return Left::Answered(answer);
        }
        let Some(waiting) = self.unlink(ticket) else { return Left::Gone };
        self.vacate(ticket.slot);
        Left::Waiting(waiting)
    }

    /// All streams that it holds.
    pub(crate) fn streams(&self) -> impl Iterator<Item = u32> {
        self.slots.iter().filter_map(|slot| match slot.state {
            State::Free { .. } => None,
            State::Waits(Waiting { stream, .. }) | State::Answered { stream, .. } => Some(stream),
        })
    }

    /// All answers that were not collected.
    pub(crate) fn into_answers(self) -> impl Iterator<Item = A> {
        self.slots.into_iter().filter_map(|slot| if let State::Answered { answer, .. } = slot.state { Some(answer) } else { None })
    }

    /// Takes over other lists of classes and tenants; `change` says what each one that waits is then, and `served` the counter of its
    /// tenant. Tickets stay valid.
    pub(crate) fn reshape(
        &mut self,
        (classes, tenants): (usize, usize),
        change: impl Fn(&mut Waiting<N>),
        served: impl Fn(&Waiting<N>) -> f64,
    ) {
        self.lanes = Lanes::new(classes, tenants);
        self.by_place.clear();
        self.by_expiry.clear();
        self.expiry_root = NONE;
        (self.waiting, self.bytes) = (0, 0);
        for slot in 0..self.slots.len() as u32 {
            let Some(State::Waits(waiting)) = self.slots.get_mut(slot as usize).map(|place| &mut place.state) else { continue };
            change(waiting);
            let waiting = *waiting;
            self.link(slot, &waiting, served(&waiting));
        }
    }

    /// Multiplies every counter of tenants by a power of two.
    pub(crate) fn rescale(&mut self, factor: f64) {
        for slot in &mut self.slots {
            if let State::Waits(waiting) = &mut slot.state {
                waiting.cost *= factor;
            }
        }
        self.lanes.rescale(factor);
    }

    fn free_slot(&mut self) -> u32 {
        if self.free == NONE {
            self.free = self.slots.len() as u32;
            self.slots.push(Slot { generation: self.first_generation, sequence: 0, state: State::Free { next: NONE } });
            self.by_place.grow(self.slots.len());
            self.by_expiry.grow(self.slots.len());
        }
        self.free
    }

    fn link(&mut self, slot: u32, waiting: &Waiting<N>, served: f64) {
        self.waiting += 1;
        self.bytes = self.bytes.saturating_add(waiting.bytes);
        let (slots, forest) = (&self.slots, &mut self.by_place);
        self.by_expiry.insert(&mut self.expiry_root, slot, &expires_before(slots));
        self.lanes.join(waiting.class.index(), waiting.tenant, waiting.work, served, |root| {
            forest.insert(root, slot, &is_placed_before(slots));
            cost(slots, *root)
        });
    }

    /// Takes one that waits out of every order; its slot still says that it waits.
    fn unlink(&mut self, ticket: Ticket) -> Option<Waiting<N>> {
        let slots = &self.slots;
        let waiting = *self.waiting(ticket)?;
        let forest = &mut self.by_place;
        self.by_expiry.remove(&mut self.expiry_root, ticket.slot, &expires_before(slots));
        self.lanes.leave(waiting.class.index(), waiting.tenant, waiting.work, |root| {
            forest.remove(root, ticket.slot, &is_placed_before(slots));
            cost(slots, *root)
        });
        self.waiting = self.waiting.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(waiting.bytes);
        Some(waiting)
    }

    /// Frees a slot; what was in it.
    fn vacate(&mut self, slot: u32) -> Option<State<N, A>> {
        let place = self.slots.get_mut(slot as usize)?;
        place.generation = place.generation.wrapping_add(1);
        let state = core::mem::replace(&mut place.state, State::Free { next: self.free });
        self.free = slot;
        self.held = self.held.saturating_sub(1);
        Some(state)
    }
}

fn expires_before<N, A>(slots: &[Slot<N, A>]) -> impl Fn(u32, u32) -> bool {
    let key = |slot: u32| slots.get(slot as usize).map(Slot::expiry);
    move |a, b| key(a) < key(b)
}

fn is_placed_before<N, A>(slots: &[Slot<N, A>]) -> impl Fn(u32, u32) -> bool {
    let key = |slot: u32| slots.get(slot as usize).map(Slot::place);
    move |a, b| key(a) < key(b)
}

/// Cost of the request that waits in `slot`; of none 0.
fn cost<N, A>(slots: &[Slot<N, A>], slot: u32) -> f64 {
    slots.get(slot as usize).and_then(Slot::waiting).map_or(0.0, |waiting| waiting.cost)
}
