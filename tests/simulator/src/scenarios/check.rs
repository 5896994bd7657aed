//! Collects every problem of a document instead of stopping at the first.

use std::fmt;
use std::time::Duration;

/// A field that is wrong: path, value and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path of the field, for example `traffic[2].shape.step.factor`.
    pub field: String,
    /// What is wrong, with the value and the allowed range.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Problems so far.
#[derive(Debug, Default)]
pub(crate) struct Check {
    problems: Vec<Problem>,
}

// === impl Check ===

impl Check {
    /// Notes a problem.
    pub(crate) fn wrong(&mut self, field: &str, message: impl Into<String>) {
        self.problems.push(Problem { field: field.to_owned(), message: message.into() });
    }

    /// A name: 1 to 63 characters of `[a-z0-9-]`.
    pub(crate) fn name(&mut self, field: &str, name: &str) {
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 63 || !name.chars().all(is_name) {
            self.wrong(field, format!("{name:?} is not 1 to 63 characters of [a-z0-9-]"));
        }
    }

    /// `value` when it is within `min..=max`; otherwise `min`, and a problem.
    pub(crate) fn number(&mut self, field: &str, value: f64, min: f64, max: f64) -> f64 {
        if value >= min && value <= max {
            return value;
        }
        self.wrong(field, format!("{value} is outside {min}..={max}"));
        min
    }

    /// The same for whole numbers.
    pub(crate) fn count(&mut self, field: &str, value: u64, min: u64, max: u64) -> u64 {
        if !(min..=max).contains(&value) {
            self.wrong(field, format!("{value} is outside {min}..={max}"));
        }
        value.min(max).max(min)
    }

    /// A length of time given in seconds.
    pub(crate) fn seconds(&mut self, field: &str, value: f64, min: f64, max: f64) -> Duration {
        Duration::try_from_secs_f64(self.number(field, value, min, max)).unwrap_or_default()
    }

    /// A length of time given in milliseconds.
    pub(crate) fn millis(&mut self, field: &str, value: f64, min: f64, max: f64) -> Duration {
        Duration::try_from_secs_f64(self.number(field, value, min, max) / 1e3).unwrap_or_default()
    }

    /// What was built, unless anything was wrong.
    pub(crate) fn finish<T>(self, value: T) -> Result<T, Vec<Problem>> {
        if self.problems.is_empty() { Ok(value) } else { Err(self.problems) }
    }
}
