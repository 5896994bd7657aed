//! What a run's time series say: settling, overshoot, recovery, the least use while work waits.

use std::time::Duration;

/// Equidistant samples of one quantity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Distance of two samples.
    pub period: Duration,
    /// The samples; the first stands for the first period of the run.
    pub values: Vec<f64>,
}

/// Width of the band in which a quantity counts as settled, as a part of its later mean.
pub const SETTLED_WITHIN: f64 = 0.05;
/// Span of the moving average that is applied before anything is judged.
pub const SMOOTHING: Duration = Duration::from_millis(500);

/// How a quantity came to rest after a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settling {
    /// From the step to the last time outside the band.
    pub settled_after: Duration,
    /// Largest excess over the later mean after the step, as a part of it; 0 when it came from below and never passed it.
    pub overshoot: f64,
}

// === impl Series ===

impl Series {
    /// Moving average over the last `span` (at least one sample), the same length as the series.
    pub fn smoothed(&self, span: Duration) -> Self {
        let width = self.index(span).max(1);
        let mut sum = 0.0;
        let values = self.values.iter().enumerate().map(|(at, value)| {
            sum += value;
            if at >= width {
                sum -= self.values[at - width];
            }
            sum / (at + 1).min(width) as f64
        });
        Self { period: self.period, values: values.collect() }
    }

    /// Mean over a span of time; 0 when it holds no sample.
    pub fn mean(&self, from: Duration, to: Duration) -> f64 {
        let part = self.part(from, to);
        part.iter().sum::<f64>() / part.len().max(1) as f64
    }

    /// The samples of a span of time.
    pub fn part(&self, from: Duration, to: Duration) -> &[f64] {
        let (from, to) = (self.index(from).min(self.values.len()), self.index(to).min(self.values.len()));
        &self.values[from..to.max(from)]
    }

    /// Settling after a step of the load at `step`, which then stays as it is until `until`.
    ///
    /// Each quantity is smoothed over 500 ms and taken as a part of its own mean over the second half of the span. It counts as settled
    /// from the first 500 ms on during which it is wholly within 0.05 of `optimum`, the same quantity under the clairvoyant scheduler;
    /// without one, of 1. The optimum is the measure because filling a KV cache takes as long as a response, whoever fills it. `None`
    /// when it never gets there, or when the later mean is 0.
    pub fn settling(&self, step: Duration, until: Duration, optimum: Option<&Self>) -> Option<Settling> {
        let smooth = self.smoothed(SMOOTHING);
        let target = smooth.mean(step + (until - step) / 2, until);
        if target <= 0.0 {
            return None;
        }
        let after: Vec<f64> = smooth.part(step, until).iter().map(|value| value / target).collect();
        let wanted = optimum.map_or_else(|| vec![1.0; after.len()], |optimum| optimum.as_part_of_later_mean(step, until));
        let is_in_band: Vec<bool> = after.iter().zip(&wanted).map(|(is, wanted)| (is - wanted).abs() <= SETTLED_WITHIN).collect();
        let hold = self.index(SMOOTHING).max(1);
        let settled = is_in_band.windows(hold).position(|window| window.iter().all(|is_in| *is_in))?;
        let first_below = after.iter().position(|value| *value <= 1.0 + SETTLED_WITHIN).unwrap_or(0);
        let peak = after[first_below..].iter().copied().fold(0.0, f64::max);
        Some(Settling { settled_after: self.period * settled as u32, overshoot: (peak - 1.0).max(0.0) })
    }

    fn as_part_of_later_mean(&self, step: Duration, until: Duration) -> Vec<f64> {
        let smooth = self.smoothed(SMOOTHING);
        let mean = smooth.mean(step + (until - step) / 2, until).max(f64::MIN_POSITIVE);
        smooth.part(step, until).iter().map(|value| value / mean).collect()
    }

    fn index(&self, at: Duration) -> usize {
        (at.as_nanos() / self.period.as_nanos().max(1)) as usize
    }
}

/// Smallest ratio of the means of `used` and `wanted` over `span` among spans during which `waiting` was above 0 all the time; `None` when
/// there is none.
pub fn least_while_waiting(used: &Series, wanted: &Series, waiting: &Series, span: Duration, from: Duration, to: Duration) -> Option<f64> {
    let width = used.index(span).max(1);
    let parts = [used, wanted, waiting].map(|series| series.part(from, to).chunks_exact(width));
    let [used, wanted, waits] = parts;
    used.zip(wanted)
        .zip(waits)
        .filter(|(_, waits)| waits.iter().all(|waits| *waits > 0.0))
        .map(|((used, wanted), _)| used.iter().sum::<f64>() / wanted.iter().sum::<f64>().max(f64::MIN_POSITIVE))
        .min_by(f64::total_cmp)
}

/// Jain's index of `values`: `(Σ x)² / (n Σ x²)`, 1 when all are equal, `1 / n` when one has everything; 1 without values.
///
/// Source: Jain, Chiu, Hawe, DEC-TR-301 (1984).
pub fn jain(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    let squares: f64 = values.iter().map(|value| value * value).sum();
    if squares <= 0.0 { 1.0 } else { sum * sum / (values.len() as f64 * squares) }
}

/// Max-min fair shares of `supply` among `demands`: nobody gets more than the demand, nobody's share can grow but at the cost of a smaller one.
pub fn max_min_shares(demands: &[f64], supply: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..demands.len()).collect();
    order.sort_by(|a, b| demands[*a].total_cmp(&demands[*b]));
    let mut shares = vec![0.0; demands.len()];
    let mut left = supply;
    for (rank, index) in order.iter().copied().enumerate() {
        let share = demands[index].min(left / (demands.len() - rank) as f64);
        shares[index] = share;
        left -= share;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        Series { period: Duration::from_millis(100), values: values.to_vec() }
    }

    #[test]
    fn a_step_that_rises_in_a_second_settles_then() {
        let mut values = vec![0.0; 50];
        values.extend((1..=10).map(|n| f64::from(n) * 10.0));
        values.extend(vec![100.0; 190]);
        let settling = series(&values).settling(Duration::from_secs(5), Duration::from_secs(25), None).unwrap();
        // The mean of 80, 90, 100, 100, 100 is 94; one sample later it is 98.
        assert_eq!(settling.settled_after, Duration::from_millis(1200));
        assert!(settling.overshoot.abs() < 1e-9);
    }

    #[test]
    fn an_overshoot_is_measured_against_the_later_mean() {
        let mut values = vec![150.0; 10];
        values.splice(0..0, vec![0.0; 10]);
        values.extend(vec![100.0; 180]);
        let settling = series(&values).settling(Duration::from_secs(1), Duration::from_secs(20), None).unwrap();
        assert!((settling.overshoot - 0.5).abs() < 1e-9, "{settling:?}");
        assert_eq!(series(&[0.0; 100]).settling(Duration::ZERO, Duration::from_secs(10), None), None);
    }

    #[test]
    fn what_the_optimum_needs_time_for_is_not_held_against_others() {
        let mut values = vec![0.0; 10];
        values.extend((1..=100).map(f64::from));
        values.extend(vec![100.0; 100]);
        let optimum = series(&values);
        let slower = series(&values.iter().map(|value| value * 0.9).collect::<Vec<_>>());
        let settling = slower.settling(Duration::from_secs(1), Duration::from_secs(21), Some(&optimum)).unwrap();
        assert_eq!(settling.settled_after, Duration::ZERO, "nine tenths of it all the way is the same course");
    }

    #[test]
    fn a_span_counts_only_while_work_waits_through_all_of_it() {
        let used = series(&[0.9, 0.9, 0.1, 0.1, 0.5, 0.7]);
        let waits = series(&[1.0, 1.0, 1.0, 0.0, 1.0, 1.0]);
        let wanted = series(&[1.0; 6]);
        let least = least_while_waiting(&used, &wanted, &waits, Duration::from_millis(200), Duration::ZERO, Duration::from_secs(1));
        assert_eq!(least, Some(0.6));
    }

    #[test]
    fn max_min_gives_small_demands_everything() {
        assert_eq!(max_min_shares(&[1.0, 10.0, 10.0], 9.0), [1.0, 4.0, 4.0]);
        assert_eq!(max_min_shares(&[1.0, 2.0], 9.0), [1.0, 2.0]);
        assert!((jain(&[1.0, 1.0, 0.0, 0.0]) - 0.5).abs() < 1e-9);
    }
}
