//! Means over seeds with their confidence, and paired comparisons.

use serde::Serialize;

/// A mean over independent runs with its 95 % confidence interval by Student's t.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Mean of the runs.
    pub mean: f64,
    /// Lower end of the interval; the mean itself with one run.
    pub low: f64,
    /// Upper end of the interval; the mean itself with one run.
    pub high: f64,
    /// Runs.
    pub n: usize,
}

/// Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom; beyond them the normal distribution's is close enough.
const T_95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093,
    2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];
const NORMAL_95: f64 = 1.960;

// === impl Estimate ===

impl Estimate {
    /// The estimate from one value a run; `None` without runs, or when a value is not a number.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n as f64;
        let half = match n {
            1 => 0.0,
            _ => {
                let variance = values.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / (n - 1) as f64;
                T_95.get(n - 2).copied().unwrap_or(NORMAL_95) * (variance / n as f64).sqrt()
            }
        };
        Some(Self { mean, low: mean - half, high: mean + half, n })
    }
}

/// How one controller stands against another on the same seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// Mean of the differences, ours minus theirs, with its interval.
    #[serde(flatten)]
    pub difference: Estimate,
    /// The verdict.
    pub standing: Standing,
}

/// A verdict on a paired comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// The whole interval of the difference is above zero.
    Ahead,
    /// The means are equal to within a thousandth, or the interval contains zero.
    Level,
    /// The whole interval is below zero.
    Behind,
}

// === impl Paired ===

impl Paired {
    /// Compares run by run; both slices hold the same seeds in the same order. `None` without runs.
    pub fn of(ours: &[f64], theirs: &[f64]) -> Option<Self> {
        let differences: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours - theirs).collect();
        let difference = Estimate::of(&differences)?;
        let standing = if difference.mean.abs() < 1e-3 {
            Standing::Level
        } else if difference.low > 0.0 {
            Standing::Ahead
        } else if difference.high < 0.0 {
            Standing::Behind
        } else {
            Standing::Level
        };
        Some(Self { difference, standing })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_runs_use_four_degrees_of_freedom() {
        let estimate = Estimate::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        // s = 1.5811, s / sqrt(5) = 0.7071, t(4) = 2.776.
        assert!((estimate.mean - 3.0).abs() < 1e-9 && (estimate.high - 4.963).abs() < 1e-3, "{estimate:?}");
        assert_eq!(Estimate::of(&[2.0]), Some(Estimate { mean: 2.0, low: 2.0, high: 2.0, n: 1 }));
        assert_eq!(Estimate::of(&[f64::NAN, 1.0]), None);
    }

    #[test]
    fn pairs_are_ahead_only_when_the_interval_leaves_zero() {
        let theirs = [10.0, 20.0, 30.0];
        assert_eq!(Paired::of(&[11.0, 21.1, 30.9], &theirs).unwrap().standing, Standing::Ahead);
        assert_eq!(Paired::of(&[15.0, 15.0, 31.0], &theirs).unwrap().standing, Standing::Level);
        assert_eq!(Paired::of(&[9.0, 18.9, 29.1], &theirs).unwrap().standing, Standing::Behind);
    }
}
