use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// Puts `value` in for `context`.
fn put(contexts: &mut Contexts<u64>, context: u32, value: u64) {
    *contexts.vacant().unwrap() = value;
    contexts.keep(context);
}

proptest! {
    #[test]
    fn it_holds_what_a_map_holds(steps in prop::collection::vec((0..3_u8, 0..150_u32), 0..600)) {
        let mut contexts = Contexts::new();
        let mut map = BTreeMap::new();
        for (value, (kind, context)) in steps.into_iter().enumerate() {
            let value = value as u64;
            if kind < 2 {
                put(&mut contexts, context, value);
                map.insert(context, value);
            } else {
                prop_assert_eq!(contexts.remove(context).copied(), map.remove(&context));
            }
            prop_assert_eq!(contexts.len(), map.len());
        }
        for context in 0..150 {
            prop_assert_eq!(contexts.get_mut(context).copied(), map.get(&context).copied());
        }
    }
}

#[test]
fn one_request_at_a_time_stays_in_one_slot() {
    let mut contexts = Contexts::new();
    for context in 0..10_000 {
        put(&mut contexts, context, u64::from(context));
        assert_eq!(contexts.remove(context).copied(), Some(u64::from(context)));
    }
    assert_eq!((contexts.slots.len(), contexts.index.len(), contexts.len()), (1, FIRST_PLACES, 0));
}

#[test]
fn a_slot_that_was_not_kept_is_given_out_again() {
    let mut contexts = Contexts::new();
    *contexts.vacant().unwrap() = 7;
    assert_eq!(contexts.vacant().copied(), Some(7));
    assert!(contexts.is_empty() && contexts.get_mut(0).is_none() && contexts.remove(0).is_none());
}

#[test]
fn many_contexts_are_a_few_steps_from_their_home() {
    let mut contexts = Contexts::new();
    // Every third request is long and stays.
    (0..1 << 17).filter(|context| context % 3 == 0).for_each(|context| put(&mut contexts, context, 0));
    let mask = contexts.index.len() - 1;
    let steps = |context| contexts.place_of(context).unwrap().wrapping_sub(home(context, mask)) & mask;
    let longest: Vec<_> = (0..1 << 17).map(steps).collect();
    assert!(longest.iter().max().unwrap() < &32 && longest.iter().sum::<usize>() < longest.len(), "{:?}", longest.iter().max());
}
