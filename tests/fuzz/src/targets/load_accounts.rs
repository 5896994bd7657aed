//! Histograms and the work that workers report.

use headgate_core::histogram::Histogram;
use headgate_core::overload::{Flow, OfferedLevels};
use headgate_protos::v1;
use prost::Message;

use super::build;
use crate::{Marks, Source};

pub(super) fn run(input: &[u8]) -> u64 {
    Marks::of(input, story)
}

fn story(input: &[u8], marks: &mut Marks) {
    let mut source = Source::new(input);
    match source.below(4) {
        0 => {
            if let Ok(wire) = v1::Histogram::decode(source.all()) {
                histogram(&wire, &mut source, marks);
            }
        }
        1 => {
            if let Ok(wire) = v1::OverloadReport::decode(source.all()) {
                flow(&wire, &wire, marks);
            }
        }
        2 => {
            let wire = build::histogram(&mut source);
            histogram(&wire, &mut source, marks);
        }
        _ => {
            let (one, two) = (build::overload_report(&mut source), build::overload_report(&mut source));
            flow(&one, &two, marks);
        }
    }
}

fn histogram(wire: &v1::Histogram, source: &mut Source<'_>, marks: &mut Marks) {
    let read = match Histogram::from_wire(wire) {
        Ok(read) => read,
        Err(error) => return marks.note(std::mem::discriminant(&error)),
    };
    assert_eq!(Histogram::from_wire(&read.to_wire()).as_ref(), Ok(&read));
    assert_eq!(read.count(), wire.buckets().map(|(_, count)| count).sum::<u64>());
    let quantiles = [f64::NAN, -1.0, 0.0, 0.25, 0.5, 0.99, 1.0, 2.0].map(|q| read.quantile(q));
    assert!(quantiles.is_sorted() && quantiles.iter().all(|value| value.is_some() == (read.count() > 0)), "{quantiles:?}");
    let mut recorded = Histogram::new();
    for _ in 0..source.below(8) {
        recorded.record(source.number());
    }
    let (mut ab, mut ba) = (read.clone(), recorded.clone());
    ab.merge(&recorded);
    ba.merge(&read);
    assert_eq!(ab, ba, "a merge depends on the order");
    assert!(ab.count() >= read.count() && ab.sum() >= read.sum());
    if ab.count() < u64::MAX && ab.sum() < u64::MAX {
        assert_eq!(ab.diff(&recorded), read);
    }
    marks.count("samples", ab.count());
}

fn flow(one: &v1::OverloadReport, two: &v1::OverloadReport, marks: &mut Marks) {
    let read = |wire| Flow::from_wire(wire).inspect_err(|error| assert!(!error.to_string().is_empty()));
    let (one, two) = match (read(one), read(two)) {
        (Ok(one), Ok(two)) => (one, two),
        (one, two) => return marks.note(("refused", one.is_err(), two.is_err())),
    };
    let (mut sum, mut other) = (one.clone(), two.clone());
    sum.add(&two);
    other.add(&one);
    assert_eq!(sum, other, "a sum depends on the order");
    assert!(sum.admitted.kv_tokens >= one.admitted.kv_tokens.max(two.admitted.kv_tokens));
    assert!(sum.offered.total() >= one.offered.total().max(two.offered.total()));
    offered(&sum.offered);
    let fit = sum.ttft_fit.to_wire();
    assert!([fit.x, fit.y, fit.xx, fit.xy].iter().all(|sum| sum.is_finite() && *sum >= 0.0), "{fit:?}");
    let line = sum.ttft_fit.line(2.0);
    assert!(line.is_none_or(|line| line.slope.is_finite() && line.intercept.is_finite()), "{line:?}");
    marks.note(("sum", line.is_some(), sum.offered.total().checked_ilog2(), sum.tpot_us.count().checked_ilog2()));
}

fn offered(levels: &OfferedLevels) {
    let (offered_level_deltas, offered_work) = levels.to_wire();
    let report = v1::OverloadReport { offered_level_deltas, offered_work, ..Default::default() };
    assert_eq!(OfferedLevels::from_wire(&report).as_ref(), Ok(levels));
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let bytes: Vec<u8> = (0..=255).map(|byte: u8| byte.wrapping_mul(37)).collect();
    let mut source = Source::new(&bytes);
    let (histogram, report) = (build::histogram(&mut source), build::overload_report(&mut source));
    vec![[vec![0], histogram.encode_to_vec()].concat(), [vec![1], report.encode_to_vec()].concat(), [vec![3], bytes].concat()]
}
