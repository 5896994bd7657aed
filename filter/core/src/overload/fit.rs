//! Sums of a least-squares line that merge by addition.

use headgate_protos::v1;

/// Sums over samples `(x, y)`: n, Σx, Σy, Σx², Σxy.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FitSums {
    /// Samples; a real number, since old samples are forgotten by a factor.
    pub count: f64,
    /// Σ x.
    pub x: f64,
    /// Σ y.
    pub y: f64,
    /// Σ x².
    pub xx: f64,
    /// Σ x·y.
    pub xy: f64,
}

/// A line `y = intercept + slope · x`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// Value at 0.
    pub intercept: f64,
    /// Growth of y a unit of x.
    pub slope: f64,
}

impl FitSums {
    /// Takes a sample in; one that is not finite is ignored.
    pub fn observe(&mut self, x: f64, y: f64) {
        if x.is_finite() && y.is_finite() {
            self.add(&Self { count: 1.0, x, y, xx: x * x, xy: x * y });
        }
    }

    /// Adds all samples of `other`.
    pub fn add(&mut self, other: &Self) {
        // An infinite sum would never be learned from again.
        let sum = |one: f64, other: f64| (one + other).clamp(f64::MIN, f64::MAX);
        self.count = sum(self.count, other.count);
        self.x = sum(self.x, other.x);
        self.y = sum(self.y, other.y);
        self.xx = sum(self.xx, other.xx);
        self.xy = sum(self.xy, other.xy);
    }

    /// Samples that came since `older`, an earlier state of these cumulative sums; none when the counts went back.
    #[must_use]
    pub fn diff(&self, older: &Self) -> Self {
        let newer = Self {
            count: self.count - older.count,
            x: self.x - older.x,
            y: self.y - older.y,
            xx: self.xx - older.xx,
            xy: self.xy - older.xy,
        };
        let sane = newer.count >= 0.0 && [newer.x, newer.y, newer.xx, newer.xy].iter().all(|sum| sum.is_finite() && *sum >= 0.0);
        if sane { newer } else { Self::default() }
    }

    /// All sums times `factor`: forgets old samples exponentially when called once a period.
    pub fn scale(&mut self, factor: f64) {
        self.count *= factor;
        self.x *= factor;
        self.y *= factor;
        self.xx *= factor;
        self.xy *= factor;
    }

    /// Mean of y; `None` without samples.
    #[must_use]
    pub fn mean_y(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.y / self.count).filter(|mean| mean.is_finite())
    }

    /// Mean of x; `None` without samples.
    #[must_use]
    pub fn mean_x(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.x / self.count).filter(|mean| mean.is_finite())
    }

    /// The least-squares line. `None` with fewer than `min_count` samples or when the x are so alike (standard deviation below
    /// 5 % of their mean) that the slope would be noise.
    #[must_use]
    pub fn line(&self, min_count: f64) -> Option<Line> {
        if self.count < min_count.max(2.0) {
            return None;
        }
        let (mean_x, mean_y) = (self.mean_x()?, self.mean_y()?);
        let variance = self.xx / self.count - mean_x * mean_x;
        let covariance = self.xy / self.count - mean_x * mean_y;
        // 0.0025 = 5 % squared.
        if !(variance.is_finite() && covariance.is_finite()) || variance <= 0.0025 * mean_x * mean_x {
            return None;
        }
        let slope = covariance / variance;
        let line = Line { intercept: mean_y - slope * mean_x, slope };
        (line.slope.is_finite() && line.intercept.is_finite()).then_some(line)
    }

    /// The form on the wire.
    #[must_use]
    pub fn to_wire(&self) -> v1::FitSums {
        v1::FitSums { count: self.count as u64, x: self.x, y: self.y, xx: self.xx, xy: self.xy }
    }

    /// Reads the form on the wire; absent, not finite or negative sums are none.
    #[must_use]
    pub fn from_wire(wire: Option<&v1::FitSums>) -> Self {
        let Some(v1::FitSums { count, x, y, xx, xy }) = wire else { return Self::default() };
        let sums = Self { count: *count as f64, x: *x, y: *y, xx: *xx, xy: *xy };
        sums.diff(&Self::default())
    }
}
