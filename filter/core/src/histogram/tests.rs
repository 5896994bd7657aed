use alloc::vec;
use alloc::vec::Vec;

use headgate_protos::v1;
use proptest::prelude::*;

use super::*;
use crate::rng::Rng;

fn of(values: &[u64]) -> Histogram {
    let mut histogram = Histogram::new();
    values.iter().for_each(|value| histogram.record(*value));
    histogram
}

fn merged(a: &Histogram, b: &Histogram) -> Histogram {
    let mut sum = a.clone();
    sum.merge(b);
    sum
}

/// Values of every magnitude, with the edges.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![0..256_u64, (0..42_u32, any::<u64>()).prop_map(|(shift, low)| (1 << shift) | (low & ((1 << shift) - 1))), any::<u64>(),]
}

fn values() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(value(), 0..60)
}

#[test]
fn is_exact_below_128() {
    for v in 0..128 {
        assert_eq!(of(&[v]).quantile(0.5), Some(v));
    }
}

#[test]
fn counts_up_to_a_value_are_those_of_its_bucket_and_below() {
    let histogram = of(&[0, 5, 127, 1000, 1003, 5000]);
    // 1000 and 1003 are in one bucket, which is 4 wide there.
    let counted = [0, 5, 126, 127, 999, 1000, 4000, u64::MAX].map(|value| histogram.count_at_most(value));
    assert_eq!(counted, [1, 2, 2, 3, 3, 5, 5, 6]);
    assert_eq!(Histogram::new().count_at_most(9), 0);
}

#[test]
fn has_no_quantile_without_samples() {
    assert_eq!(Histogram::new().quantile(0.99), None);
    assert_eq!(Histogram::new().mean(), None);
}

#[test]
fn takes_the_sample_whose_rank_is_the_quantile_rounded_up() {
    let histogram = of(&(1..=100).collect::<Vec<_>>());
    assert_eq!(histogram.quantile(0.99), Some(99));
    assert_eq!(histogram.quantile(0.991), Some(100));
    assert_eq!(histogram.quantile(0.0), Some(1));
    assert_eq!(histogram.quantile(f64::NAN), Some(1));
    assert_eq!(histogram.quantile(7.0), Some(100));
}

#[test]
fn counts_values_beyond_the_range_as_the_largest() {
    let (page, slot) = bucket_of(u64::MAX);
    assert_eq!(page * PAGE_LEN + slot, BUCKETS as usize - 1);
    assert_eq!(of(&[u64::MAX]).sum(), MAX_VALUE);
}

#[test]
fn refuses_malformed_wire_forms_by_name() {
    let wire = |index_deltas: &[u32], counts: &[u64]| {
        Histogram::from_wire(&v1::Histogram::new(index_deltas.iter().copied(), counts.iter().copied(), 0)).map(|h| h.count())
    };
    assert_eq!(wire(&[1], &[]), Err(HistogramError::Lengths { indices: 1, counts: 0 }));
    assert_eq!(wire(&[5, 0], &[1, 1]), Err(HistogramError::NotAscending { got: 5 }));
    assert_eq!(wire(&[BUCKETS], &[1]), Err(HistogramError::IndexOutOfRange { got: u64::from(BUCKETS) }));
    assert_eq!(wire(&[1, u32::MAX], &[1, 1]), Err(HistogramError::IndexOutOfRange { got: 1 + u64::from(u32::MAX) }));
    assert_eq!(wire(&[3], &[0]), Err(HistogramError::EmptyBucket { index: 3 }));
    assert_eq!(wire(&[3, 1], &[u64::MAX, 1]), Err(HistogramError::Overflow));
    assert_eq!(wire(&[0, 1], &[2, 3]), Ok(5));
}

#[test]
fn a_bucket_that_shrank_counts_as_unchanged() {
    let newer = of(&[5, 9]).diff(&of(&[5, 5, 5]));
    assert_eq!((newer.count(), newer.quantile(0.5)), (1, Some(9)));
}

#[test]
fn counts_of_more_than_32_bits_are_exact() {
    let (mut histogram, few) = (of(&[5]), u64::from(u32::MAX));
    for (count, total) in
        [(few - 1, few), (1, few + 1), (few + 9, 2 * few + 10), (u64::MAX - 3 * few, u64::MAX - few + 10), (few, u64::MAX)]
    {
        histogram.record_many(5, count);
        histogram.record_many(9, 1);
        assert_eq!(histogram.count_at_most(5), total);
        assert_eq!(histogram.occupied().map(|(_, slot, count)| (slot, count)).next(), Some((5, total)));
    }
    assert_eq!(histogram.count_at_most(9), u64::MAX);
    histogram.clear();
    assert_eq!(histogram, Histogram::new());
}

proptest! {
    #[test]
    fn merging_is_commutative_and_associative_and_loses_nothing(a in values(), b in values(), c in values()) {
        let (ha, hb, hc) = (of(&a), of(&b), of(&c));
        prop_assert_eq!(merged(&ha, &hb), merged(&hb, &ha));
        prop_assert_eq!(merged(&merged(&ha, &hb), &hc), merged(&ha, &merged(&hb, &hc)));
        let all: Vec<u64> = a.iter().chain(&b).chain(&c).copied().collect();
        prop_assert_eq!(merged(&merged(&ha, &hb), &hc), of(&all));
    }

    #[test]
    fn a_difference_gives_back_what_was_added(a in values(), b in values()) {
        let (ha, hb) = (of(&a), of(&b));
        prop_assert_eq!(merged(&ha, &hb).diff(&ha), hb);
    }

    #[test]
    fn quantiles_are_off_by_less_than_one_in_128(mut samples in prop::collection::vec(value().prop_map(|v| v.min(MAX_VALUE)), 1..200), q in 0.0..=1.0_f64) {
        let got = of(&samples).quantile(q).unwrap();
        samples.sort_unstable();
        let rank = (libm::ceil(q * samples.len() as f64) as usize).clamp(1, samples.len());
        let exact = samples[rank - 1];
        prop_assert!(got.abs_diff(exact) * 128 <= exact, "{got} for {exact}");
    }

    #[test]
    fn the_wire_form_is_lossless(samples in values()) {
        let histogram = of(&samples);
        prop_assert_eq!(Histogram::from_wire(&histogram.to_wire()), Ok(histogram));
    }

    #[test]
    fn what_came_between_two_wire_forms_is_the_difference_of_what_they_say(a in values(), b in values(), c in values()) {
        // The second need not have grown out of the first: a worker that went away leaves less.
        let (older, newer) = (merged(&of(&a), &of(&b)), merged(&of(&b), &of(&c)));
        let wire = newer.to_wire();
        let between = |older: Option<&v1::Histogram>, wire: &v1::Histogram| HistogramDelta::between(older, wire);
        prop_assert_eq!(between(Some(&older.to_wire()), &wire), Ok(HistogramDelta::from(&newer.diff(&older))));
        prop_assert_eq!(between(Some(&wire), &wire), Ok(HistogramDelta::default()));
        prop_assert_eq!(between(None, &wire), Ok(HistogramDelta::from(&newer)));
        for unreadable in [v1::Histogram::new([5, 0], [1, 1], 0), v1::Histogram::new([5], [1, 1], 0), v1::Histogram::new([BUCKETS], [1], 0)] {
            prop_assert_eq!(between(Some(&unreadable), &wire), Ok(HistogramDelta::from(&newer)));
            prop_assert!(between(Some(&wire), &unreadable).is_err());
        }
        let mut sum = older.clone();
        sum.add_delta(&HistogramDelta::from(&newer));
        prop_assert_eq!(sum, merged(&older, &newer));
    }

    #[test]
    fn what_grew_in_a_few_of_many_buckets_is_found(grown in prop::collection::vec((0..300_u64, 1..20_000_u64), 0..6)) {
        let mut older = Histogram::new();
        // Counts of one byte, of two, and gaps.
        (0..300).filter(|value| value % 50 < 45).for_each(|value| older.record_many(value, 1 + value % 140));
        let mut newer = older.clone();
        grown.iter().for_each(|(value, count)| newer.record_many(*value, *count));
        let delta = HistogramDelta::between(Some(&older.to_wire()), &newer.to_wire());
        prop_assert_eq!(delta, Ok(HistogramDelta::from(&newer.diff(&older))));
        let mut follower = older.clone();
        prop_assert_eq!(follower.follow(&newer), HistogramDelta::from(&newer.diff(&older)));
        prop_assert_eq!(&follower, &newer);
        prop_assert_eq!(follower.follow(&newer), HistogramDelta::default());
        follower.clear();
        prop_assert_eq!(follower, Histogram::new());
    }

    #[test]
    fn the_wire_form_that_is_told_is_the_newest(samples in values()) {
        let (told, mut histogram) = (Told::default(), Histogram::new());
        prop_assert_eq!(told.of(&histogram), None);
        for sample in samples {
            histogram.record(sample);
            prop_assert_eq!(told.of(&histogram), Some(histogram.to_wire()));
            prop_assert_eq!(told.of(&histogram), Some(histogram.to_wire()));
        }
    }

    #[test]
    fn any_wire_form_is_read_or_refused_without_a_panic(deltas in prop::collection::vec(any::<u32>(), 0..8), counts in prop::collection::vec(any::<u64>(), 0..8), sum in any::<u64>()) {
        let _ = Histogram::from_wire(&v1::Histogram::new(deltas, counts, sum));
    }
}

/// Samples of a distribution, from the same stream of chance each time.
fn drawn(distribution: impl Fn(&mut Rng) -> f64) -> Vec<u64> {
    let mut rng = Rng::new(7);
    (0..50_000).map(|_| distribution(&mut rng).clamp(0.0, MAX_VALUE as f64) as u64).collect()
}

/// Box and Muller 1958.
fn normal(rng: &mut Rng) -> f64 {
    libm::sqrt(-2.0 * libm::log(1.0 - rng.next_f64())) * libm::cos(2.0 * core::f64::consts::PI * rng.next_f64())
}

#[test]
fn p99_of_histograms_merged_from_many_workers_is_within_one_percent_of_the_exact_value() {
    let streams: [(&str, Vec<u64>); 4] = [
        ("uniform", drawn(|rng| 1_000_000.0 * rng.next_f64())),
        ("log-normal", drawn(|rng| libm::exp(11.0 + 1.2 * normal(rng)))),
        (
            "bimodal",
            drawn(|rng| if rng.next_f64() < 0.97 { 40_000.0 + 4_000.0 * normal(rng) } else { 2_000_000.0 + 90_000.0 * normal(rng) }),
        ),
        // Pareto with a shape of 1.1: its variance is infinite.
        ("heavy-tailed", drawn(|rng| 20_000.0 / libm::pow(1.0 - rng.next_f64(), 1.0 / 1.1))),
    ];
    for (name, mut samples) in streams {
        let mut merged = Histogram::new();
        samples.chunks(777).for_each(|chunk| merged.merge(&Histogram::from_wire(&of(chunk).to_wire()).unwrap()));
        samples.sort_unstable();
        for q in [0.5, 0.9, 0.99, 0.999] {
            let exact = samples[libm::ceil(q * samples.len() as f64) as usize - 1];
            let error = merged.quantile(q).unwrap().abs_diff(exact) as f64 / exact as f64;
            assert!(error <= 0.01, "{name} at {q}: {error}");
        }
    }
}

#[test]
fn what_is_wrong_behind_many_buckets_that_are_alike_is_found() {
    let wire = |last: [u32; 2]| v1::Histogram::new([1; 38].into_iter().chain(last), [1; 40], 0);
    let (good, repeats, beyond) = (wire([1, 1]), wire([1, 0]), wire([1, BUCKETS]));
    let all = HistogramDelta::between(None, &good);
    for bad in [repeats, beyond] {
        assert_eq!(HistogramDelta::between(Some(&bad), &good), all);
        assert_eq!(HistogramDelta::between(Some(&good), &bad), Histogram::from_wire(&bad).map(|_| HistogramDelta::default()));
        assert!(Histogram::from_wire(&bad).is_err());
    }
    assert_eq!(HistogramDelta::between(Some(&good), &wire([1, 3])).map(|delta| delta.count()), Ok(1));
}

#[test]
fn an_occupied_bucket_takes_at_most_sixteen_bytes_on_the_wire() {
    use prost::Message;
    let of_counts = |count: u64, step: usize| {
        let buckets = (0..BUCKETS as usize).step_by(step).count();
        let wire = v1::Histogram::new(vec![step as u32; buckets - 1], vec![count; buckets - 1], u64::MAX);
        assert!(Histogram::from_wire(&wire).is_ok());
        wire.encoded_len() as f64 / (buckets - 1) as f64
    };
    // A count that no worker reaches in a century, in buckets as far apart as they can be.
    assert!(of_counts(1 << 50, 1) <= 16.0 && of_counts(1 << 40, 900) <= 16.0, "{} {}", of_counts(1 << 50, 1), of_counts(1 << 40, 900));
    // As they are in practice: a million latencies.
    let wire = of(&drawn(|rng| libm::exp(11.0 + 1.2 * normal(rng)))).to_wire();
    let per_bucket = wire.encoded_len() as f64 / wire.lens().1 as f64;
    assert!(per_bucket <= 4.0, "{per_bucket}");
}
