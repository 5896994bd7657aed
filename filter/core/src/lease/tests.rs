use super::*;
use alloc::vec;
use proptest::prelude::*;

fn ms(ms: u64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn want(in_use: u32, wanted: u32) -> Want {
    Want { permits_in_use: in_use, permits_wanted: wanted, rate_wanted: f64::from(wanted) }
}

fn grant(total: u32) -> Grant {
    Grant { permits_total: Some(total) }
}

/// A record with `n` workers whose owners are 1..=n.
fn workers(n: u64) -> (LeaseRecord, Vec<SlotIndex>) {
    let mut record = LeaseRecord::new();
    let slots = (1..=n).map(|owner| record.claim(ms(0), owner).unwrap()).collect();
    (record, slots)
}

fn permits(record: &mut LeaseRecord, at: u64, slot: SlotIndex, want: Want, total: u32) -> u32 {
    record.update(ms(at), slot, slot.index() as u64 + 1, want, grant(total)).unwrap().permits.unwrap()
}

#[test]
fn a_worker_that_comes_later_finds_permits_at_once() {
    let (mut record, slots) = workers(1);
    // One that it always has, and half of the other 99.
    assert_eq!(permits(&mut record, 0, slots[0], want(0, 0), 100), 50);
    let late = record.claim(ms(10), 2).unwrap();
    assert_eq!(permits(&mut record, 10, late, want(0, 4), 100), 27, "4 that it wants and a quarter of the other 95");
    assert_eq!(permits(&mut record, 20, slots[0], want(60, 120), 100), 73, "the first takes what is free");
}

#[test]
fn a_single_worker_has_all_the_rates() {
    let (mut record, slots) = workers(1);
    let holding = record.update(ms(20), slots[0], 1, Want::default(), Grant { permits_total: None }).unwrap();
    assert_eq!(holding, Holding { permits: None, rate_share: 1.0, aperture: Extent::WHOLE, workers: 1 });
}

#[test]
fn permits_move_from_the_idle_to_the_busy_worker_within_two_ticks() {
    let (mut record, slots) = workers(2);
    for slot in &slots {
        permits(&mut record, 0, *slot, want(0, 0), 100);
    }
    permits(&mut record, 20, slots[0], want(0, 0), 100);
    permits(&mut record, 20, slots[1], want(50, 200), 100);
    // The idle one gives back all but one, the busy one takes it.
    assert_eq!(permits(&mut record, 40, slots[0], want(0, 0), 100), 1);
    assert_eq!(permits(&mut record, 40, slots[1], want(50, 200), 100), 99);
}

#[test]
fn permits_in_use_are_not_taken_away() {
    let (mut record, slots) = workers(2);
    assert_eq!(permits(&mut record, 0, slots[0], want(0, 10), 10), 9, "the second worker keeps one");
    permits(&mut record, 20, slots[1], want(0, 10), 10);
    assert_eq!(permits(&mut record, 40, slots[0], want(8, 8), 10), 8, "its target is 5");
    assert_eq!(permits(&mut record, 60, slots[0], want(5, 5), 10), 5);
    assert_eq!(permits(&mut record, 60, slots[1], want(2, 10), 10), 5);
}

#[test]
fn a_dead_worker_gives_its_permits_back_after_the_timeout() {
    let (mut record, slots) = workers(2);
    permits(&mut record, 0, slots[0], want(50, 50), 100);
    permits(&mut record, 0, slots[1], want(50, 100), 100);
    assert!(permits(&mut record, 1000, slots[1], want(50, 100), 100) < 100);
    assert_eq!(permits(&mut record, 1001, slots[1], want(50, 100), 100), 100);
    assert_eq!(record.update(ms(1001), slots[0], 1, want(0, 0), grant(100)), Err(LeaseError::Lost));
}

#[test]
fn a_smaller_grant_is_reached_as_requests_end() {
    let (mut record, slots) = workers(2);
    for at in [0, 20] {
        permits(&mut record, at, slots[0], want(50, 50), 100);
        permits(&mut record, at, slots[1], want(50, 50), 100);
    }
    assert_eq!(permits(&mut record, 40, slots[0], want(50, 50), 20), 50, "50 are in use");
    assert_eq!(permits(&mut record, 60, slots[0], want(10, 10), 20), 10);
    assert_eq!(permits(&mut record, 60, slots[1], want(3, 10), 20), 10);
    assert_eq!(record.permits_held(), 20);
}

#[test]
fn with_fewer_permits_than_workers_those_who_want_come_first() {
    let (mut record, slots) = workers(3);
    for round in 0..4 {
        for (slot, wanted) in slots.iter().zip([0, 5, 5]) {
            permits(&mut record, round * 20, *slot, want(0, wanted), 2);
        }
    }
    let held: Vec<u32> = slots.iter().zip([0, 5, 5]).map(|(slot, wanted)| permits(&mut record, 100, *slot, want(0, wanted), 2)).collect();
    assert_eq!(held, [0, 1, 1]);
}

#[test]
fn more_workers_than_slots_are_told_so() {
    let (mut record, _) = workers(SLOTS as u64);
    assert_eq!(record.claim(ms(0), 1000), Err(LeaseError::Full));
    assert!(record.claim(ms(1001), 1000).is_ok(), "all others are dead by then");
    assert_eq!(record.claim(ms(0), 0), Err(LeaseError::NoOwner));
}

#[test]
fn a_damaged_record_is_replaced_without_giving_out_what_others_may_hold() {
    let (mut record, slots) = workers(1);
    permits(&mut record, 0, slots[0], want(0, 100), 100);
    let mut bytes = record.encode();
    assert_eq!(LeaseRecord::decode(&bytes), Some(record));
    bytes[30] ^= 0x10;
    assert_eq!(LeaseRecord::decode(&bytes), None);
    let mut record = LeaseRecord::recovered(ms(0));
    let slot = record.claim(ms(0), 1).unwrap();
    assert_eq!(permits(&mut record, 0, slot, want(7, 100), 100), 7);
    assert_eq!(permits(&mut record, 1000, slot, want(7, 100), 100), 7, "a worker heard of as it was damaged may still act");
    assert_eq!(permits(&mut record, 1001, slot, want(7, 100), 100), 100);
}

#[test]
fn the_record_is_as_long_as_its_workers_need() {
    let (mut record, slots) = workers(3);
    // 16 of the seal, 8 of the record, 40 a slot.
    assert_eq!(record.encode().len(), 16 + 8 + 3 * 40);
    record.release(slots[0], 1);
    assert_eq!(LeaseRecord::decode(&record.encode()).unwrap().claim(ms(0), 9), Ok(slots[0]), "the others keep their slots");
    record.release(slots[2], 3);
    assert_eq!(record.encode().len(), 16 + 8 + 2 * 40);
    let mut too_many = record::open(MAGIC, &workers(SLOTS as u64).0.encode()).unwrap().to_vec();
    too_many.extend_from_slice(&[0; Slot::LEN]);
    assert_eq!(LeaseRecord::decode(&record::seal(MAGIC, &too_many)), None);
}

#[test]
fn rates_follow_demand_and_an_idle_worker_keeps_a_little() {
    let (mut record, slots) = workers(2);
    let mut share = |at, slot: usize, rate| {
        let want = Want { rate_wanted: rate, ..Want::default() };
        record.update(ms(at), slots[slot], slot as u64 + 1, want, grant(10)).unwrap().rate_share
    };
    for at in [0, 20, 40] {
        share(at, 0, 90.0);
        share(at, 1, 0.0);
    }
    // One eighth is even: 1/16 for the idle one, the rest for the other.
    assert_eq!(share(60, 1, 0.0), 1.0 / 16.0);
    assert_eq!(share(60, 0, 90.0), 15.0 / 16.0);
    assert!(share(80, 0, f64::NAN) > 0.0);
}

#[derive(Clone, Default)]
struct WorkerModel {
    slot: Option<SlotIndex>,
    read: Option<(LeaseRecord, u64)>,
    in_use: u32,
    permits: u32,
    dead: bool,
    heard: u64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Reads, writes that lose the race, time, death and changing totals interleave in any order.
    #[test]
    fn permits_never_sum_above_the_largest_total_in_force(
        ops in prop::collection::vec((0..4_usize, 0..10_u8, 0..60_u32), 1..250),
        totals in prop::collection::vec(0..40_u32, 1..5),
    ) {
        let mut model = vec![WorkerModel::default(); 4];
        let (mut record, mut cas, mut now) = (LeaseRecord::new(), 1_u64, 0_u64);
        let mut total = totals[0];
        let mut bound = total;
        for (who, op, value) in ops {
            let owner = who as u64 + 1;
            match op {
                0 => now += u64::from(value),
                1 => {
                    total = totals[value as usize % totals.len()];
                    // The old total stays in force for whoever read the record before.
                    bound = bound.max(total);
                }
                2 if value < 3 => model[who].dead = true,
                3..=5 if !model[who].dead => model[who].read = Some((record.clone(), cas)),
                6.. if !model[who].dead => {
                    let Some((mut copy, token)) = model[who].read.take() else { continue };
                    let slot = match model[who].slot {
                        Some(slot) => slot,
                        None => copy.claim(ms(now), owner).unwrap(),
                    };
                    let in_use = value.min(model[who].permits);
                    let updated = copy.update(ms(now), slot, owner, want(in_use, value), grant(total));
                    if token == cas {
                        record = LeaseRecord::decode(&copy.encode()).unwrap();
                        cas += 1;
                        model[who].slot = updated.is_ok().then_some(slot);
                        model[who].permits = updated.map_or(0, |holding| holding.permits.unwrap());
                        model[who].in_use = in_use;
                        model[who].heard = now;
                    }
                }
                _ => {}
            }
            prop_assert!(record.permits_held() <= u64::from(bound), "{} of {bound}", record.permits_held());
            // What workers believe they hold, as long as they have been heard of within the timeout, is what the record says or less.
            let believed: u64 = model.iter().filter(|w| !w.dead && now - w.heard <= 1000).map(|w| u64::from(w.permits)).sum();
            prop_assert!(believed <= u64::from(bound), "{believed} of {bound}");
        }
    }

    #[test]
    fn permits_that_are_wanted_end_with_a_worker_fairly(wants in prop::collection::vec(0..50_u32, 1..6), total in 0..100_u32) {
        let (mut record, slots) = workers(wants.len() as u64);
        let mut held = vec![0; wants.len()];
        for tick in 0..4 {
            for (index, slot) in slots.iter().enumerate() {
                // Requests end between ticks, so that nothing in use stands in the way.
                held[index] = permits(&mut record, tick * 20, *slot, want(0, wants[index]), total);
            }
        }
        let (holds, wanted) = (held.iter().sum::<u32>(), wants.iter().map(|want| *want.max(&1)).sum::<u32>());
        prop_assert_eq!(record.permits_held(), u64::from(holds));
        // What nobody wants: half of it stays free.
        let unwanted = total.saturating_sub(wanted);
        prop_assert_eq!(holds, total - unwanted.div_ceil(2), "{:?} for {:?}", held, wants);
        if total as usize >= wants.len() {
            prop_assert!(held.iter().all(|h| *h >= 1), "{held:?}");
        }
        // Max-min fair: whoever lacks something holds at least as much as anybody else, but for rounding.
        for (index, have) in held.iter().enumerate() {
            if *have < wants[index] {
                prop_assert!(held.iter().all(|other| *other <= have + 1), "{held:?} for {wants:?}");
            }
        }
    }

    #[test]
    fn any_bytes_decode_to_a_record_or_nothing(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = LeaseRecord::decode(&bytes);
    }
}
