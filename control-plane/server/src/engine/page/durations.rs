//! The histograms of durations on a page: time to first token, time between tokens.
//!
//! They are cumulative twice: over their buckets and since the engine began. Kept is what lies in each bucket; what has come between two
//! pages is their difference ([`Durations::since`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::dialect::{Dialect, Timing};
use super::super::line::Sample;
use super::{MAX_SERIES, PageError};

/// Buckets of all durations, parallel engines and models of a page: 16 for each of the most series that are read.
const MAX_BUCKETS: usize = 16 * MAX_SERIES;
/// Largest edge that is told from none, in microseconds: up to here a float tells neighbours apart.
const MAX_EDGE_US: f64 = 9_007_199_254_740_992.0;

/// Samples of one duration since the engine began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durations {
    /// Buckets with samples, ascending: both edges, in microseconds, and the samples. Those beyond the page's last edge lie at that edge.
    pub buckets: Vec<(u64, u64, u64)>,
}

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Histograms {
    /// By duration and parallel engine. Few, and a page has the lines of one after another: the newest is the next line's.
    found: Vec<Cumulative>,
    buckets: usize,
}

/// The histogram of one parallel engine.
#[derive(Debug)]
struct Cumulative {
    timing: Timing,
    part: u64,
    /// Ascending: upper edge in microseconds, and the samples up to there.
    edges: Vec<(u64, f64)>,
}

// === impl Histograms ===

impl Histograms {
    /// Takes in a line of a bucket whose edge is in units of `unit_us` microseconds; `count` is what it says. Models of one engine add up; of
    /// ranks, which say the same several times, the first is read.
    pub(super) fn add(
        &mut self,
        name: &'static str,
        dialect: &Dialect,
        (timing, unit_us): (Timing, u32),
        sample: &Sample<'_>,
        count: f64,
    ) -> Result<(), PageError> {
        if !dialect.is_first_rank(sample) {
            return Ok(());
        }
        let (edge, part) = (edge_us(name, sample, unit_us)?, dialect.part_number(sample));
        let is_it = |found: &Cumulative| found.timing == timing && found.part == part;
        let at = self.found.iter().rposition(is_it).unwrap_or_else(|| {
            self.found.push(Cumulative { timing, part, edges: Vec::new() });
            self.found.len() - 1
        });
        let edges = &mut self.found[at].edges;
        match edges.binary_search_by_key(&edge, |(edge, _)| *edge) {
            Ok(known) => edges[known].1 += count,
            Err(_) if self.buckets >= MAX_BUCKETS => return Err(PageError::TooManySeries { figure: name }),
            Err(place) => {
                edges.insert(place, (edge, count));
                self.buckets += 1;
            }
        }
        Ok(())
    }

    /// The first of `timings` of which the page has anything; `None` as well where its counts fall from one bucket to the next.
    pub(super) fn durations(&self, timings: &[Timing]) -> Option<Durations> {
        let timing = timings.iter().find(|timing| self.found.iter().any(|found| found.timing == **timing))?;
        let mut merged: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        for cumulative in self.found.iter().filter(|found| found.timing == *timing) {
            let (mut lower, mut below) = (0, 0.0);
            for (edge, count) in &cumulative.edges {
                if *count < below {
                    return None;
                }
                let upper = if *edge == u64::MAX { lower } else { *edge };
                let samples = (*count - below) as u64;
                if samples > 0 {
                    let bucket = merged.entry((lower, upper)).or_insert(0);
                    *bucket = bucket.saturating_add(samples);
                }
                (lower, below) = (upper, *count);
            }
        }
        Some(Durations { buckets: merged.into_iter().map(|((lower, upper), samples)| (lower, upper, samples)).collect() })
    }
}

/// The label `le` in microseconds; `u64::MAX` for the bucket of everything.
fn edge_us(name: &'static str, sample: &Sample<'_>, unit_us: u32) -> Result<u64, PageError> {
    let edge = sample.label("le").and_then(|edge| edge.parse::<f64>().ok()).unwrap_or(f64::NAN);
    if edge.is_nan() {
        return Err(PageError::Unbelievable { figure: name, got: edge, expected: "an upper edge (label le)" });
    }
    let edge_us = edge * f64::from(unit_us);
    // What is below zero is no duration, and some servers have such an edge.
    Ok(if edge_us > MAX_EDGE_US { u64::MAX } else { edge_us.max(0.0).round() as u64 })
}

// === impl Durations ===

impl Durations {
    /// What has come since `before`, an earlier page of the same engine. Where any bucket has fewer samples than before the engine has begun
    /// anew, and all are new.
    pub fn since(&self, before: &Self) -> Self {
        let of = |buckets: &[(u64, u64, u64)]| -> BTreeMap<(u64, u64), u64> {
            buckets.iter().map(|(lower, upper, samples)| ((*lower, *upper), *samples)).collect()
        };
        let (old, new) = (of(&before.buckets), of(&self.buckets));
        if old.iter().any(|(edges, samples)| new.get(edges).is_none_or(|now| now < samples)) {
            return self.clone();
        }
        let more = |(lower, upper, samples): &(u64, u64, u64)| {
            let more = samples - old.get(&(*lower, *upper)).copied().unwrap_or(0);
            (more > 0).then_some((*lower, *upper, more))
        };
        Self { buckets: self.buckets.iter().filter_map(more).collect() }
    }

    /// Where samples are taken to lie, in microseconds, and how many there: evenly over their bucket, at `POINTS` places at most.
    pub fn places(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        const POINTS: u64 = 16;
        self.buckets.iter().flat_map(|(lower, upper, samples)| {
            let (points, width) = ((*samples).min(POINTS), upper.saturating_sub(*lower));
            let middle = move |point: u64| lower + (width as f64 * (2 * point + 1) as f64 / (2 * points) as f64) as u64;
            // Of the samples, those up to each point's share; the shares add up to all.
            let until = move |point: u64| samples / points * point + samples % points * point / points;
            (0..points).map(move |point| (middle(point), until(point + 1) - until(point)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::read;
    use super::*;

    fn page(counts: &[(&str, u64)]) -> String {
        let line = |(edge, count): &(&str, u64)| format!("vllm:time_to_first_token_seconds_bucket{{engine=\"0\",le=\"{edge}\"}} {count}\n");
        counts.iter().map(line).collect::<String>() + "vllm:num_requests_running 1\n"
    }

    fn ttft(page: &str) -> Option<Durations> {
        read(page.as_bytes()).unwrap().ttft
    }

    #[test]
    fn a_bucket_holds_what_is_above_the_one_before() {
        let durations = ttft(&page(&[("0.001", 0), ("0.25", 3), ("0.5", 3), ("1.0", 10), ("+Inf", 12)])).unwrap();
        assert_eq!(durations.buckets, [(1000, 250_000, 3), (500_000, 1_000_000, 7), (1_000_000, 1_000_000, 2)]);
        let places: Vec<(u64, u64)> = durations.places().collect();
        assert_eq!(&places[..3], [(42_500, 1), (125_500, 1), (208_500, 1)], "evenly");
        assert_eq!(places.last(), Some(&(1_000_000, 1)), "beyond the last edge it is at least that much");
    }

    #[test]
    fn parallel_engines_add_up_and_ranks_do_not() {
        let of = |labels: &str, count: u64| format!("sglang:inter_token_latency_seconds_bucket{{{labels},le=\"0.1\"}} {count}\n");
        let page = "sglang:num_running_reqs 1\n".to_owned()
            + &of("dp_rank=\"0\",tp_rank=\"0\"", 3)
            + &of("dp_rank=\"1\",tp_rank=\"0\"", 4)
            + &of("dp_rank=\"1\",tp_rank=\"1\"", 4);
        assert_eq!(read(page.as_bytes()).unwrap().tpot.unwrap().buckets, [(0, 100_000, 7)]);
    }

    #[test]
    fn what_has_come_is_the_difference_and_after_a_restart_everything() {
        let at = |first, second| Durations { buckets: vec![(0, 10, first), (10, 20, second)] };
        assert_eq!(at(5, 9).since(&at(5, 7)).buckets, [(10, 20, 2)]);
        assert_eq!(at(5, 9).since(&Durations::default()), at(5, 9));
        assert_eq!(at(1, 9).since(&at(5, 7)), at(1, 9), "it began anew");
        assert_eq!(Durations::default().since(&at(5, 7)), Durations::default());
    }

    #[test]
    fn many_samples_lie_at_few_places_and_all_of_them_do() {
        for samples in [1, 15, 16, 17, 1000, u64::MAX] {
            let durations = Durations { buckets: vec![(100, 200, samples)] };
            let places: Vec<(u64, u64)> = durations.places().collect();
            assert!(places.len() <= 16 && places.iter().all(|(at, _)| (100..200).contains(at)), "{places:?}");
            assert_eq!(places.iter().map(|(_, count)| count).sum::<u64>(), samples);
        }
    }

    #[test]
    fn histograms_that_cannot_be_are_refused_or_left_out() {
        assert_eq!(ttft(&page(&[("0.1", 5), ("0.2", 4), ("+Inf", 5)])), None, "counts that fall");
        let refused = |page: &str| read(page.as_bytes()).unwrap_err().to_string();
        let expected = "time_to_first_token_seconds_bucket: NaN is outside an upper edge (label le)";
        assert_eq!(refused(&page(&[("x", 5)])), expected);
        assert_eq!(refused("vllm:num_requests_running 1\nvllm:time_to_first_token_seconds_bucket 3\n"), expected);
        assert!(refused(&page(&[("0.1", 5)]).replace("} 5", "} -5")).contains("-5 is outside 0..=2^53"));
        let many: String = (0..=MAX_BUCKETS).map(|n| format!("vllm:time_to_first_token_seconds_bucket{{le=\"{n}\"}} {n}\n")).collect();
        assert_eq!(refused(&many), "time_to_first_token_seconds_bucket: more than 256 series");
    }
}
