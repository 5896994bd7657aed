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
/// Span of the moving average that is applied before anything is judged: with some hundred requests in flight a sample is off by several
/// per cent, a second of samples by less than the band.
pub const SMOOTHING: Duration = Duration::from_secs(1);

/// How a quantity came to rest after a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settling {
    /// From the step to the last time outside the band; `None`: it did not come to rest.
    pub settled_after: Option<Duration>,
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
    /// The quantity is taken as a part of `optimum`, the same quantity under the clairvoyant scheduler (without one, as it is), since
    /// filling a KV cache takes as long as a response lasts, whoever fills it. Its steady value is the mean over the second half of the
    /// span. It has settled at the last time that its average over [`SMOOTHING`] leaves the band of ±5 % around that value; if
    /// it still does so in the second half, that is no steady value. `None` when that value is 0.
    pub fn settling(&self, step: Duration, until: Duration, optimum: Option<&Self>) -> Option<Settling> {
        let smooth = self.smoothed(SMOOTHING).part(step, until).to_vec();
        let wanted = optimum.map_or_else(|| vec![1.0; smooth.len()], |optimum| optimum.smoothed(SMOOTHING).part(step, until).to_vec());
        let course: Vec<f64> = smooth.iter().zip(&wanted).map(|(is, wanted)| is / wanted.max(f64::MIN_POSITIVE)).collect();
        let second_half = course.get(course.len() / 2..).filter(|half| !half.is_empty())?;
        let steady = second_half.iter().sum::<f64>() / second_half.len() as f64;
        if steady <= 0.0 {
            return None;
        }
        let is_outside = |value: &f64| (value / steady - 1.0).abs() > SETTLED_WITHIN;
        let settled = course.iter().rposition(is_outside).map_or(0, |last| last + 1);
        let first_below = course.iter().position(|value| *value <= (1.0 + SETTLED_WITHIN) * steady).unwrap_or(0);
        let peak = course[first_below..].iter().copied().fold(0.0, f64::max);
        let settled_after = (settled < course.len() / 2).then(|| self.period * settled as u32);
        Some(Settling { settled_after, overshoot: (peak / steady - 1.0).max(0.0) })
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
        // The mean of 60, 70, 80, 90 and six times 100 is 90 and outside the band, the next one of 94 inside by a hundredth: 94 / 99.
        assert_eq!(settling.settled_after, Some(Duration::from_millis(1600)));
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
        assert_eq!(settling.settled_after, Some(Duration::ZERO), "nine tenths of it all the way is the same course");
    }

    #[test]
    fn what_leaves_the_band_again_has_not_settled_before() {
        let mut values = vec![100.0; 200];
        values[40..60].fill(50.0);
        let settling = |values: &[f64]| series(values).settling(Duration::ZERO, Duration::from_secs(20), None);
        // The average over a second holds a sample of 50 up to 0.9 s after the last, and one is exactly 5 % of ten.
        let settled = settling(&values).unwrap().settled_after.unwrap();
        assert!((Duration::from_millis(6800)..=Duration::from_millis(7000)).contains(&settled), "{settled:?}");
        values[150..170].fill(50.0);
        assert_eq!(settling(&values).unwrap().settled_after, None, "it does not come to rest");
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
