use std::collections::BTreeMap;
use std::vec;

use proptest::prelude::*;

use super::*;

type Queue = AdmissionQueue<(), u32>;

const TENANTS: usize = 5;

fn waiting(stream: u32, class: usize, tenant: u16, start_by_ms: u64) -> Waiting<()> {
    sized(stream, class, tenant, start_by_ms, 100)
}

fn sized(stream: u32, class: usize, tenant: u16, start_by_ms: u64, work: u64) -> Waiting<()> {
    Waiting {
        stream,
        class: ClassId::new(class),
        tenant,
        work,
        cost: work as f64,
        bytes: 10,
        arrived: Timestamp::ZERO,
        start_by: Timestamp::from_millis(start_by_ms),
        need: (),
    }
}

fn queue(requests: u32) -> Queue {
    Queue::new(3, TENANTS, Bounds { requests, bytes: 1_000_000 })
}

/// Streams in the order in which they are served, each growing its tenant's counter by `served`.
fn drained(queue: &mut Queue, served: f64) -> Vec<u32> {
    let mut order = vec![];
    while let Some((ticket, waiting)) = queue.head().map(|(ticket, waiting)| (ticket, *waiting)) {
        order.push(waiting.stream);
        queue.answer(ticket, 0, served);
        assert_eq!(queue.collect(ticket), Some(0));
    }
    order
}

#[test]
fn the_more_important_class_comes_first_and_inside_a_tenant_the_earlier_deadline() {
    let mut queue = queue(10);
    for (stream, class, start_by_ms) in [(1, 2, 10), (2, 0, 90), (3, 1, 50), (4, 0, 80), (5, 0, 80)] {
        queue.push(waiting(stream, class, 0, start_by_ms), 0.0).unwrap();
    }
    assert_eq!(drained(&mut queue, 100.0), [4, 5, 2, 3, 1]);
}

#[test]
fn a_smaller_request_of_a_tenant_passes_those_that_came_little_earlier() {
    let mut queue = queue(10);
    // 400 tokens more are 1.6 s.
    for (stream, start_by_ms, work) in [(1, 1000, 500), (2, 2000, 100), (3, 2599, 100), (4, 2600, 100), (5, 2601, 100)] {
        queue.push(sized(stream, 0, 0, start_by_ms, work), 0.0).unwrap();
    }
    let expiring = queue.next_to_expire().map(|(_, waiting)| waiting.stream);
    assert_eq!((drained(&mut queue, 100.0), expiring), (vec![2, 3, 1, 4, 5], Some(1)));
}

#[test]
fn of_tenants_that_were_served_alike_the_one_with_the_smaller_request_is_next() {
    let mut queue = queue(10);
    for (stream, tenant, work, served) in [(1, 0, 1000, 0.0), (2, 1, 100, 269.0), (3, 2, 100, 271.0)] {
        queue.push(sized(stream, 1, tenant, 0, work), served).unwrap();
    }
    // 0 + 0.3 · 1000 lies between 269 and 271 + 0.3 · 100.
    assert_eq!(drained(&mut queue, 100.0), [2, 1, 3]);
}

#[test]
fn a_tenant_is_as_far_on_when_its_first_request_leaves_or_all_counters_are_scaled() {
    let mut queue = queue(10);
    let small = queue.push(sized(1, 1, 0, 0, 100), 0.0).unwrap();
    queue.push(sized(2, 1, 0, 0, 1000), 0.0).unwrap();
    queue.push(sized(3, 1, 1, 0, 500), 0.0).unwrap();
    assert!(matches!(queue.cancel(small), Left::Waiting(_)));
    assert_eq!(queue.head().unwrap().1.stream, 3, "what is left of the first tenant is larger");
    queue.rescale(0.25);
    queue.push(sized(4, 1, 2, 0, 120), 0.0).unwrap();
    assert_eq!(queue.head().unwrap().1.stream, 4, "120 are less than a quarter of 500 now");
    queue.push(sized(5, 1, 3, 0, 130), 0.0).unwrap();
    assert_eq!(drained(&mut queue, 0.0), [4, 3, 5, 2]);
}

#[test]
fn a_tenant_with_many_requests_gets_no_more_turns_than_one_with_few() {
    let mut queue = queue(100);
    for stream in 0..20 {
        queue.push(waiting(stream, 1, 0, 0), 0.0).unwrap();
    }
    for stream in 100..103 {
        queue.push(waiting(stream, 1, 1, 1000), 0.0).unwrap();
    }
    let order = drained(&mut queue, 100.0);
    assert_eq!(order[..7], [0, 100, 1, 101, 2, 102, 3]);
}

#[test]
fn a_tenant_that_comes_back_has_saved_up_no_burst_but_what_it_was_served_counts() {
    let mut queue = queue(100);
    for stream in 0..4 {
        queue.push(waiting(stream, 1, 0, 0), 5000.0).unwrap();
    }
    for stream in 10..14 {
        queue.push(waiting(stream, 1, 1, 0), 0.0).unwrap();
    }
    queue.push(waiting(20, 1, 2, 0), 5150.0).unwrap();
    assert_eq!(drained(&mut queue, 100.0), [0, 10, 1, 11, 20, 2, 12, 3, 13], "the idle tenant begins at the least served one that waits");
}

#[test]
fn nothing_comes_in_beyond_a_bound_and_a_held_answer_counts() {
    let mut queue = queue(2);
    let first = queue.push(waiting(1, 0, 0, 0), 0.0).unwrap();
    queue.push(waiting(2, 0, 0, 0), 0.0).unwrap();
    assert_eq!(queue.push(waiting(3, 0, 0, 0), 0.0), Err(Full::Requests));
    queue.answer(first, 7, 0.0);
    assert_eq!(queue.push(waiting(3, 0, 0, 0), 0.0), Err(Full::Requests), "the stream is still held");
    assert_eq!((queue.collect(first), queue.collect(first)), (Some(7), None));
    queue.push(waiting(3, 0, 0, 0), 0.0).unwrap();
    queue.set_bounds(Bounds { requests: 9, bytes: 25 });
    assert_eq!(queue.push(waiting(4, 0, 0, 0), 0.0), Err(Full::Bytes));
}

#[test]
fn five_thousand_clients_that_leave_at_once_leave_nothing() {
    let mut queue = queue(5000);
    let join = |queue: &mut Queue, round: u32| -> Vec<Ticket> {
        let one = |n: u32| waiting(round * 5000 + n, n as usize % 3, (n % 5) as u16, u64::from(n * 7 % 1000));
        (0..5000).map(|n| queue.push(one(n), 0.0).unwrap()).collect()
    };
    for round in 0..3 {
        let mut tickets = join(&mut queue, round);
        assert_eq!((queue.len(), queue.bytes(), queue.work()), (5000, 50_000, 500_000));
        tickets.sort_unstable_by_key(|ticket| u64::from(ticket.slot) * 0x9e37_79b9 % 5003);
        for ticket in &tickets {
            assert!(matches!(queue.cancel(*ticket), Left::Waiting(_)));
        }
        assert!(tickets.iter().all(|ticket| matches!(queue.cancel(*ticket), Left::Gone)));
        assert_eq!((queue.len(), queue.bytes(), queue.work(), queue.held), (0, 0, 0, 0));
        assert!(queue.head().is_none() && queue.next_to_expire().is_none() && queue.oldest().is_none());
    }
    assert_eq!(queue.slots.len(), 5000, "slots are used again");
}

#[test]
fn work_ahead_is_that_of_the_classes_above_and_a_round_of_the_own() {
    let mut queue = queue(100);
    for stream in 0..24 {
        let (class, tenant) = if stream < 4 { (0, 0) } else { (1, 1) };
        queue.push(waiting(stream, class, tenant, 0), 0.0).unwrap();
    }
    let ahead = |class, tenant, served| queue.work_ahead(ClassId::new(class), tenant, 100, served, 100.0);
    assert_eq!(ahead(0, 0, 0.0), 400);
    assert_eq!(ahead(1, 1, 0.0), 400 + 2000, "a tenant waits behind its own");
    assert_eq!(ahead(1, 2, 0.0), 400 + 100, "and another one behind its first");
    assert_eq!(ahead(2, 2, 0.0), 400 + 2000);
    for stream in 0..19 {
        let (ticket, _) = queue.head().unwrap();
        queue.answer(ticket, stream, 100.0);
    }
    let ahead = |served| queue.work_ahead(ClassId::new(1), 2, 100, served, 100.0);
    assert_eq!(queue.work(), 500);
    assert_eq!((ahead(1499.0), ahead(1501.0)), (0, 100), "one whose turn comes before all of its class waits for none of them");
}

#[test]
fn a_change_of_classes_keeps_who_waits_and_their_tickets() {
    let mut queue = queue(100);
    let low = queue.push(waiting(1, 2, 3, 50), 0.0).unwrap();
    let high = queue.push(waiting(2, 0, 4, 60), 0.0).unwrap();
    queue.reshape((2, 2), |waiting| (waiting.class, waiting.tenant) = (ClassId::new(usize::from(waiting.stream == 2)), 1), |_| 0.0);
    assert_eq!((queue.len(), queue.work(), queue.bytes()), (2, 200, 20));
    assert_eq!(queue.head().unwrap().0, low);
    assert!(matches!(queue.cancel(high), Left::Waiting(_)) && matches!(queue.cancel(low), Left::Waiting(_)));
    assert!(queue.head().is_none());
}

#[derive(Debug, Clone)]
enum Op {
    Push { class: usize, tenant: u16, start_by_ms: u64, work: u64 },
    Serve,
    Expire,
    Cancel(usize),
    Collect(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..3_usize, 0..TENANTS as u16, 0..400_u64, 0..200_u64)
            .prop_map(|(class, tenant, start_by_ms, work)| Op::Push { class, tenant, start_by_ms, work }),
        2 => Just(Op::Serve),
        1 => Just(Op::Expire),
        2 => any::<prop::sample::Index>().prop_map(|index| Op::Cancel(index.index(1000))),
        1 => any::<prop::sample::Index>().prop_map(|index| Op::Collect(index.index(1000))),
    ]
}

/// The same queue as a list.
#[derive(Default)]
struct Model {
    waiting: Vec<(Waiting<()>, Ticket)>,
    answered: Vec<Ticket>,
    served: BTreeMap<(usize, u16), f64>,
}

impl Model {
    /// The first of every tenant in its class, the one that is next first.
    fn turns(&self) -> Vec<(Waiting<()>, Ticket)> {
        let lane = |waiting: &Waiting<()>| (waiting.class.index(), waiting.tenant);
        let mut firsts = BTreeMap::new();
        for one in &self.waiting {
            let place = |waiting: &Waiting<()>| (waiting.start_by + Duration::from_millis(4 * waiting.work), waiting.stream);
            let first = firsts.entry(lane(&one.0)).or_insert(*one);
            if place(&one.0) < place(&first.0) {
                *first = *one;
            }
        }
        let mut turns: Vec<_> = firsts.into_values().collect();
        let turn = |waiting: &Waiting<()>| self.served[&lane(waiting)] + 0.3 * waiting.work as f64;
        turns.sort_by(|(a, _), (b, _)| {
            a.class.index().cmp(&b.class.index()).then(turn(a).total_cmp(&turn(b))).then(a.tenant.cmp(&b.tenant))
        });
        turns
    }

    fn head(&self) -> Option<Ticket> {
        self.turns().first().map(|(_, ticket)| *ticket)
    }

    fn next_to_expire(&self) -> Option<Ticket> {
        self.waiting.iter().min_by_key(|(waiting, _)| (waiting.start_by, waiting.stream)).map(|(_, ticket)| *ticket)
    }

    fn push(&mut self, waiting: Waiting<()>, ticket: Ticket) {
        let lane = (waiting.class.index(), waiting.tenant);
        let in_class = |other: &&(Waiting<()>, Ticket)| other.0.class == waiting.class;
        if !self.waiting.iter().any(|(other, _)| (other.class.index(), other.tenant) == lane) {
            let next = self.turns().iter().find(in_class).map(|(next, _)| self.served[&(lane.0, next.tenant)]);
            self.served.insert(lane, next.unwrap_or(0.0).max(0.0));
        }
        self.waiting.push((waiting, ticket));
    }

    fn answer(&mut self, ticket: Ticket, served: f64) {
        let index = self.waiting.iter().position(|(_, other)| *other == ticket).unwrap();
        let (waiting, _) = self.waiting.remove(index);
        self.answered.push(ticket);
        *self.served.get_mut(&(waiting.class.index(), waiting.tenant)).unwrap() += served;
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_queue_is_what_a_list_would_be(ops in prop::collection::vec(op(), 1..300)) {
        let mut queue = queue(40);
        let mut model = Model::default();
        for (number, op) in (0_u32..).zip(ops) {
            match op {
                Op::Push { class, tenant, start_by_ms, work } => {
                    let one = sized(number, class, tenant, start_by_ms, work);
                    let is_full = model.waiting.len() + model.answered.len() >= 40;
                    match queue.push(one, 0.0) {
                        Ok(ticket) => { prop_assert!(!is_full); model.push(one, ticket); }
                        Err(full) => prop_assert!(is_full && full == Full::Requests),
                    }
                }
                Op::Serve => if let Some(ticket) = model.head() {
                    queue.answer(ticket, number, 100.0);
                    model.answer(ticket, 100.0);
                },
                Op::Expire => if let Some(ticket) = model.next_to_expire() {
                    queue.answer(ticket, number, 0.0);
                    model.answer(ticket, 0.0);
                },
                Op::Cancel(index) if !model.waiting.is_empty() => {
                    let (_, ticket) = model.waiting.remove(index % model.waiting.len());
                    prop_assert!(matches!(queue.cancel(ticket), Left::Waiting(_)));
                }
                Op::Collect(index) if !model.answered.is_empty() => {
                    let ticket = model.answered.swap_remove(index % model.answered.len());
                    prop_assert!(queue.collect(ticket).is_some() && queue.collect(ticket).is_none());
                }
                Op::Cancel(_) | Op::Collect(_) => {}
            }
            prop_assert_eq!(queue.head().map(|(ticket, _)| ticket), model.head());
            prop_assert_eq!(queue.next_to_expire().map(|(ticket, _)| ticket), model.next_to_expire());
            prop_assert_eq!((queue.len() as usize, queue.bytes()), (model.waiting.len(), 10 * model.waiting.len() as u64));
            prop_assert!(queue.held <= 40);
        }
    }
}

/// Streams that wait in vain at `now_ms`, where a work token leaves in a millisecond, and for how many each would still have to wait.
fn in_vain(queue: &mut Queue, now_ms: u64, from_class: usize) -> BTreeMap<u32, u64> {
    queue.look_ahead(Timestamp::from_millis(now_ms), Pace { drain: 1000.0, growth: 1.0, from_class });
    let noted = core::iter::from_fn(|| queue.next_in_vain());
    noted.map(|(_, waiting, wait_s)| (waiting.stream, (wait_s * 1e3).round() as u64)).collect()
}

#[test]
fn who_is_overtaken_until_its_time_is_too_short_waits_in_vain() {
    let mut queue = queue(20);
    let tickets: Vec<Ticket> = (0..5).map(|stream| queue.push(waiting(stream, 2, 0, 450), 0.0).unwrap()).collect();
    assert_eq!(in_vain(&mut queue, 0, 0), BTreeMap::new(), "the fifth begins after 400 ms");
    assert_eq!(in_vain(&mut queue, 60, 0), [(4, 400)].into());
    assert_eq!(in_vain(&mut queue, 60, 3), BTreeMap::new(), "all of its class is to start");
    queue.push(sized(5, 1, 0, 1000, 160), 0.0).unwrap();
    assert_eq!(in_vain(&mut queue, 0, 0), [(3, 460), (4, 460)].into(), "what leaves is before nobody");
    queue.look_ahead(Timestamp::ZERO, Pace { drain: 1000.0, growth: 1.0, from_class: 0 });
    queue.answer(tickets[4], 0, 0.0);
    let left: Vec<Ticket> = core::iter::from_fn(|| queue.next_in_vain()).map(|(ticket, ..)| ticket).collect();
    assert_eq!(left, [tickets[3]], "whoever has an answer meanwhile is passed over");
}

#[test]
fn of_tenants_the_one_that_was_served_more_waits_in_vain() {
    let mut queue = queue(20);
    for (stream, tenant, served) in [(0, 1, 0.0), (1, 0, 1000.0), (2, 0, 1000.0), (3, 1, 0.0)] {
        queue.push(waiting(stream, 1, tenant, 250), served).unwrap();
    }
    assert_eq!(in_vain(&mut queue, 0, 0), [(2, 300)].into());
}

proptest! {
    /// Whoever is looked up begins when all before it have begun, in the order in which the queue hands them out.
    #[test]
    fn the_first_who_waits_in_vain_is_the_first_to_come_out_too_late(
        requests in prop::collection::vec((0..3_usize, 0..TENANTS as u16, 0..3000_u64, 1..200_u64), 1..40),
        now_ms in 0..500_u64,
    ) {
        let mut queue = queue(40);
        for (stream, (class, tenant, start_by_ms, work)) in (0..).zip(requests) {
            queue.push(sized(stream, class, tenant, start_by_ms, work), 0.0).unwrap();
        }
        let found = in_vain(&mut queue, now_ms, 0);
        let (mut at_ms, mut first) = (now_ms, None);
        while let Some((ticket, waiting)) = queue.head().map(|(ticket, waiting)| (ticket, *waiting)) {
            if Timestamp::from_millis(at_ms) > waiting.start_by.max(Timestamp::from_millis(now_ms)) {
                first = Some((waiting.stream, at_ms - now_ms));
                break;
            }
            at_ms += waiting.work;
            queue.answer(ticket, 0, waiting.cost);
        }
        prop_assert_eq!(first.is_some(), !found.is_empty());
        if let Some((stream, wait_ms)) = first {
            prop_assert_eq!(found.get(&stream), Some(&wait_ms));
        }
    }
}
