//! The corpus, replayed; and a short look beyond it, always the same.

use std::time::Duration;

use headgate_fuzz::run::{Outcome, fuzz, once};
use headgate_fuzz::{TARGETS, corpus};

#[test]
fn every_input_of_the_corpus_is_taken_without_a_panic() {
    for target in TARGETS {
        let inputs = corpus::load(target).unwrap();
        assert!(inputs.len() > 1, "{} has a corpus", target.name);
        for (name, input) in inputs {
            let outcome = once(target, &input);
            assert!(matches!(outcome, Outcome::Fine(_)), "{} {name}: {outcome:?}", target.name);
        }
    }
}

#[test]
fn mutations_show_shapes_that_the_corpus_does_not_and_nothing_wrong() {
    for target in TARGETS {
        let inputs: Vec<Vec<u8>> = (target.seeds)();
        let summary = fuzz(target, &inputs, 1, Duration::from_millis(100));
        assert!(summary.findings.is_empty(), "{}: {:?}", target.name, summary.findings);
        assert!(!summary.novel.is_empty(), "{}: {} inputs showed nothing new", target.name, summary.inputs);
    }
}
