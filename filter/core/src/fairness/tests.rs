use super::*;

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

#[test]
fn whoever_was_served_most_lately_is_cut_off_first() {
    let mut usage = Usage::new(at(0), 1, 64, 7);
    for tenant in 0..64_u16 {
        usage.serve(at(0), 0, tenant, f64::from(tenant + 1) * 100.0);
    }
    usage.on_tick(at(0));
    let cohorts: Vec<u8> = (0..64).map(|tenant| usage.cohort(at(0), 0, tenant, 0.0)).collect();
    assert!(cohorts.is_sorted() && cohorts[0] < 2 && cohorts[63] >= 126, "{cohorts:?}");
    // Sixty-four tenants have been served once in twenty seconds: a half-life is two minutes, and what was served counts nine tenths.
    usage.serve(at(20), 0, 0, 6400.0);
    usage.on_tick(at(20));
    assert!(usage.cohort(at(20), 0, 0, 0.0) >= 126);
}

#[test]
fn a_long_request_ranks_behind_a_short_one_of_a_tenant_that_was_served_as_much() {
    let mut usage = Usage::new(at(0), 1, 64, 7);
    for tenant in 0..64_u16 {
        usage.serve(at(0), 0, tenant, f64::from(tenant + 1) * 100.0);
    }
    usage.on_tick(at(0));
    let cohort = |beyond| usage.cohort(at(0), 0, 32, beyond);
    assert_eq!([cohort(-1000.0), cohort(0.0), cohort(1000.0)].map(|cohort| cohort / 20), [2, 3, 4], "ten tenants lie within 1,000");
}

#[test]
fn tenants_that_were_served_alike_are_spread_and_change_places_every_hour() {
    let mut usage = Usage::new(at(0), 1, 1000, 7);
    for tenant in 0..1000 {
        usage.serve(at(0), 0, tenant, 500.0);
    }
    usage.on_tick(at(0));
    let cohorts = |now| (0..1000).map(|tenant| usage.cohort(now, 0, tenant, 0.0)).collect::<Vec<_>>();
    let mut in_half = [0; 2];
    for cohort in cohorts(at(1)) {
        in_half[usize::from(cohort / 64)] += 1;
    }
    assert!(in_half.iter().all(|count| (430..570).contains(count)), "{in_half:?}");
    assert_eq!(cohorts(at(1)), cohorts(at(3599)));
    assert_ne!(cohorts(at(1)), cohorts(at(3601)));
}

#[test]
fn counters_keep_their_order_over_days() {
    let mut usage = Usage::new(at(0), 1, 2, 7);
    for second in (0..400_000).step_by(100) {
        usage.serve(at(second), 0, 0, 10.0);
        usage.serve(at(second), 0, 1, 20.0);
        usage.on_tick(at(second));
    }
    let now = at(400_000);
    let (one, two) = (usage.served(0, 0) / usage.growth(now), usage.served(0, 1) / usage.growth(now));
    assert!(one.is_finite() && (two / one - 2.0).abs() < 1e-6 && (12.7..12.9).contains(&one), "{one} {two}");
}

#[test]
fn what_was_served_is_forgotten_in_the_time_that_tenants_take_for_eight_requests_each() {
    let half_life_s = |tenants: u16, per_tick: u16| {
        let mut usage = Usage::new(at(0), 1, usize::from(tenants), 7);
        for tick in 0..1000 {
            let now = Timestamp::from_millis(100 * tick);
            (0..per_tick).for_each(|n| usage.serve(now, 0, (tick as u16).wrapping_mul(per_tick).wrapping_add(n) % tenants, 100.0));
            usage.on_tick(now);
        }
        let later = Timestamp::from_millis(200_000);
        100.1 / libm::log2(usage.growth(later) / usage.growth(Timestamp::from_millis(99_900)))
    };
    assert!((9.0..11.0).contains(&half_life_s(4, 1)), "10 requests per second of 4 tenants: the least");
    assert!((19.0..21.5).contains(&half_life_s(25, 1)), "of 25 tenants: 8 · 25 / 10 s");
    assert!((117.0..123.0).contains(&half_life_s(1000, 1)), "of 1,000 tenants: the most");
}

#[test]
fn the_short_series_is_exact_to_a_billionth() {
    for step in 0..=20_000 {
        let x = f64::from(step) / 100_000.0;
        assert!((exp2(x) / libm::exp2(x) - 1.0).abs() < 2e-9, "2^{x}");
    }
}

#[test]
fn ranks_follow_who_comes_and_who_is_forgotten() {
    let mut usage = Usage::new(at(0), 2, 8, 7);
    for round in 0..500_u64 {
        // Of few requests a tick and of more than are listed.
        for request in 0..if round % 10 == 0 { 100 } else { 1 } {
            let (tenant, class) = (((round + request) * 7 % 8) as u16, (round % 2) as usize);
            usage.serve(at(round), class, tenant, 1.0 + ((round + request) * 31 % 17) as f64);
        }
        usage.on_tick(at(round));
        for (class, ranks) in usage.ranks.iter().enumerate() {
            let served: Vec<f64> = (0..9).map(|tenant| usage.served(class, tenant)).collect();
            let mut anew = Ranks::new(served.len());
            anew.place_all(&served);
            assert_eq!(ranks.len(), anew.len(), "round {round}, class {class}");
            assert!(served.iter().all(|counter| ranks.find(*counter) == anew.find(*counter)), "round {round}: {ranks:?}");
        }
    }
    usage.on_tick(at(500_000));
    assert!(usage.ranks.iter().all(|ranks| ranks.len() == 0), "nobody has been served for days");
}

#[test]
fn nobody_is_served_less_than_nothing() {
    let mut usage = Usage::new(at(0), 1, 1, 7);
    usage.serve(at(0), 0, 0, 10.0);
    usage.serve(at(5), 0, 0, -1000.0);
    assert!(usage.served(0, 0).abs() < f64::EPSILON);
}

/// Two workers before the same 64 tenants: the second is asked by those that the first has served.
#[test]
fn the_fleets_count_stands_for_a_workers_own_with_what_it_has_served_since() {
    let (mut here, mut there) = (Usage::new(at(0), 2, 64, 7), Usage::new(at(0), 2, 64, 7));
    for tenant in 0..64_u16 {
        there.serve(at(0), 1, tenant, f64::from(tenant + 1) * 100.0);
    }
    there.serve(at(0), 1, there.index(None), 9000.0);
    there.on_tick(at(1));
    let (number, told) = there.told();
    assert_eq!((number, told.work.len(), told.work[63], told.work[64]), (1, 65, 6400, 9000));
    here.serve(at(0), 1, 5, 250.0);
    here.follow_fleet(at(0), &told.slot_deltas, &told.work);
    here.on_tick(at(0));
    assert_eq!((here.served(1, 63), here.served(1, 5), here.served(1, here.index(None))), (1600.0, 400.0, 2250.0));
    let cohorts: Vec<u8> = (0..64).map(|tenant| here.cohort(at(0), 1, tenant, 0.0)).collect();
    assert!(cohorts[0] < 2 && cohorts[63] > 120 && (24..36).contains(&cohorts[5]), "{cohorts:?}");
    assert!(here.served(0, 63).abs() < f64::EPSILON, "the other class");
}

#[test]
fn what_was_served_is_told_once_and_what_was_taken_back_with_what_comes_next() {
    let mut usage = Usage::new(at(0), 1, 64, 7);
    usage.serve(at(0), 0, 3, 100.6);
    usage.on_tick(Timestamp::from_millis(900));
    assert_eq!(usage.told(), (0, &Served::default()), "a second is not over");
    usage.on_tick(at(1));
    assert_eq!(usage.told(), (1, &Served { slot_deltas: alloc::vec![3], work: alloc::vec![100] }));
    usage.serve(at(1), 0, 3, -40.0);
    usage.on_tick(at(2));
    assert_eq!(usage.told(), (2, &Served::default()));
    usage.serve(at(2), 0, 3, 100.0);
    usage.on_tick(at(3));
    assert_eq!(usage.told().1.work, [60]);
}

#[test]
fn workers_before_few_tenants_tell_nobody() {
    let mut usage = Usage::new(at(0), 1, 63, 7);
    usage.serve(at(0), 0, 3, 100.0);
    usage.on_tick(at(5));
    assert_eq!(usage.told(), (0, &Served::default()));
}

#[test]
fn counts_of_tenants_that_there_are_not_change_nobody() {
    let mut usage = Usage::new(at(0), 2, 64, 7);
    usage.serve(at(0), 0, 3, 100.0);
    usage.follow_fleet(at(0), &[5 * 1025 + 7, u32::MAX], &[1, 2, 3]);
    assert!((0..2).all(|class| (0..=64).all(|tenant| usage.served(class, tenant) == if (class, tenant) == (0, 3) { 100.0 } else { 0.0 })));
}
