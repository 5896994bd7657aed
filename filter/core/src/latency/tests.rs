use super::*;
use alloc::format;
use alloc::vec;
use proptest::prelude::*;

/// Requests for each model of `asked`, one sample of 1 each.
fn ask(models: &mut Models, class: &mut ClassLatencies, asked: &[&str]) {
    for model in asked {
        let Seated { place, vacated } = models.seat(Some(model.as_bytes()));
        if let Some(vacated) = vacated {
            class.vacate(vacated);
        }
        class.record(models, place, &[(Metric::Total, 1)]);
    }
}

/// Samples by model.
fn counts(models: &Models, class: &ClassLatencies) -> Vec<(String, u64)> {
    let count = |stream: v1::LatencyStream| (stream.model.clone(), Latencies::from_wire(&stream).unwrap().count());
    let mut counts: Vec<_> = class.report("c", 1, models).map(count).collect();
    counts.sort();
    counts
}

#[test]
fn models_of_the_policy_have_a_place_whatever_else_is_asked_for() {
    let (mut models, mut class) = (Models::default(), ClassLatencies::default());
    assert_eq!(models.set_named(["named"].into_iter()), []);
    for turn in 0..10_000 {
        ask(&mut models, &mut class, &[&format!("junk-{turn}")]);
    }
    ask(&mut models, &mut class, &["named"]);
    let counts = counts(&models, &class);
    assert!(counts.contains(&("named".into(), 1)), "{counts:?}");
    assert!(counts.len() <= 2 + LEARNED_PLACES && models.holders.len() <= 1 + LEARNED_PLACES);
}

#[test]
fn who_is_asked_for_most_keeps_its_place_among_names_that_nobody_repeats() {
    let (mut models, mut class) = (Models::default(), ClassLatencies::default());
    for turn in 0..5_000 {
        ask(&mut models, &mut class, &["large", &format!("junk-{turn}"), "small"]);
    }
    let counts = counts(&models, &class);
    assert!(counts.contains(&("large".into(), 5_000)) && counts.contains(&("small".into(), 5_000)), "{counts:?}");
    assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>(), 15_000, "nothing is lost");
}

#[test]
fn a_model_that_lost_its_place_is_among_the_others_and_so_is_a_request_that_was_under_way() {
    let (mut models, mut class) = (Models::default(), ClassLatencies::default());
    let under_way = models.seat(Some(b"first")).place;
    class.record(&models, under_way, &[(Metric::Total, 1)]);
    for turn in 0..=LEARNED_PLACES {
        ask(&mut models, &mut class, &[&format!("a-{turn}"), &format!("b-{turn}")]);
    }
    assert!(models.name(under_way).is_empty(), "it was asked for once");
    class.record(&models, under_way, &[(Metric::Total, 1)]);
    let others = counts(&models, &class).first().cloned().unwrap();
    assert_eq!(others.0, "");
    assert!(others.1 >= 2, "{others:?}");
}

#[test]
fn a_name_that_is_empty_too_long_or_no_text_is_no_model() {
    let mut models = Models::default();
    for name in [None, Some(&b""[..]), Some(&[b'x'; MAX_MODEL_BYTES + 1][..]), Some(&[0xff, 0xfe][..])] {
        assert_eq!(models.seat(name), Seated { place: Place::OTHER, vacated: None });
    }
    assert!(models.holders.is_empty());
}

#[test]
fn changes_of_the_policy_leave_no_more_places_than_there_are() {
    let (mut models, mut class) = (Models::default(), ClassLatencies::default());
    for turn in 0..50 {
        let named: Vec<String> = (0..NAMED_PLACES).map(|index| format!("{turn}-{index}")).collect();
        for vacated in models.set_named(named.iter().map(String::as_str)) {
            class.vacate(vacated);
        }
        ask(&mut models, &mut class, &named.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(models.holders.len() <= NAMED_PLACES + LEARNED_PLACES);
        assert!(counts(&models, &class).len() <= MAX_STREAMS);
    }
}

proptest! {
    #[test]
    fn the_sum_over_all_models_is_exact_whoever_holds_a_place(asked in prop::collection::vec((0..20_u8, 0..1_000_000_u64), 0..200)) {
        let (mut models, mut class, mut truth) = (Models::default(), ClassLatencies::default(), Latencies::new());
        for (model, micros) in asked {
            let seated = models.seat(Some(format!("m{model}").as_bytes()));
            if let Some(vacated) = seated.vacated {
                class.vacate(vacated);
            }
            class.record(&models, seated.place, &[(Metric::Ttft, micros)]);
            truth.record(Metric::Ttft, micros);
        }
        let mut sum = Latencies::new();
        for stream in class.report("c", 1, &models) {
            sum.merge(&Latencies::from_wire(&stream).unwrap());
        }
        prop_assert_eq!(sum, truth);
    }

    #[test]
    fn latencies_merge_in_any_order(a in samples(), b in samples(), c in samples()) {
        let merged = |parts: &[&Latencies]| {
            let mut sum = Latencies::new();
            parts.iter().for_each(|part| sum.merge(part));
            sum
        };
        prop_assert_eq!(merged(&[&merged(&[&a, &b]), &c]), merged(&[&a, &merged(&[&b, &c])]));
        prop_assert_eq!(merged(&[&a, &b, &c]), merged(&[&c, &b, &a]));
        prop_assert_eq!(merged(&[&a, &b]).diff(&a), b);
    }
}

fn samples() -> impl Strategy<Value = Latencies> {
    prop::collection::vec((0..Metric::ALL.len(), any::<u32>()), 0..40).prop_map(|samples| {
        let mut latencies = Latencies::new();
        for (metric, micros) in samples {
            latencies.record(Metric::ALL[metric], u64::from(micros));
        }
        latencies
    })
}

#[test]
fn all_five_metrics_come_back_from_the_wire() {
    let mut latencies = Latencies::new();
    for (metric, micros) in Metric::ALL.into_iter().zip([1_u64, 200, 3_000, 40_000, 500_000]) {
        latencies.record(metric, micros);
    }
    let wire = latencies.to_wire("high", "m", 3, 7);
    assert_eq!((wire.class.as_str(), wire.model.as_str(), wire.series, wire.place), ("high", "m", 3, 7));
    assert_eq!(Latencies::from_wire(&wire), Ok(latencies.clone()));
    let firsts: Vec<_> = Metric::ALL.map(|metric| latencies.of(metric).count()).into();
    assert_eq!(firsts, vec![1; 5]);
}
