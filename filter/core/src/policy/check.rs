//! Collects the errors of a policy while its parts are converted. A check that fails reports and gives back the default, so that the
//! conversion goes on and finds every other error; the value is never used, since one error refuses the whole policy.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use core::time::Duration;

use super::error::{FieldError, PolicyErrors, Problem};

/// Characters of a refused text that an error quotes.
const QUOTED_CHARS: usize = 80;

/// Form of a text: which characters, how many bytes, and how an error says so.
pub struct Form {
    /// Most bytes.
    pub max_bytes: usize,
    /// Which bytes it is made of.
    pub allows: fn(u8) -> bool,
    /// First and last character, when they are more restricted than the rest.
    pub ends_allow: fn(u8) -> bool,
    /// What is allowed, in words.
    pub expected: &'static str,
}

impl Form {
    fn holds(&self, text: &str) -> bool {
        let bytes = text.as_bytes();
        !bytes.is_empty()
            && bytes.len() <= self.max_bytes
            && bytes.iter().all(|byte| (self.allows)(*byte))
            && bytes.first().is_some_and(|byte| (self.ends_allow)(*byte))
            && bytes.last().is_some_and(|byte| (self.ends_allow)(*byte))
    }
}

/// The errors found so far.
#[derive(Debug, Default)]
pub struct Checker {
    errors: Vec<FieldError>,
}

impl Checker {
    /// The errors, if there are any.
    pub fn finish(self) -> Option<PolicyErrors> {
        PolicyErrors::try_new(self.errors)
    }

    /// Takes note of an error.
    pub fn report(&mut self, field: String, problem: Problem) {
        self.errors.push(FieldError { field, problem });
    }

    /// A number within `range`, or `default` when absent. NaN is in no range.
    pub fn number(&mut self, at: &str, field: &str, got: Option<f64>, default: f64, range: RangeInclusive<f64>) -> f64 {
        match got {
            None => default,
            Some(got) if range.contains(&got) => got,
            Some(got) => {
                self.report(join(at, field), Problem::OutOfRange { got, min: *range.start(), max: *range.end() });
                default
            }
        }
    }

    /// A whole number within `range`, or `default` when absent.
    pub fn whole(&mut self, at: &str, field: &str, got: Option<u32>, default: u32, range: RangeInclusive<u32>) -> u32 {
        match got {
            None => default,
            Some(got) if range.contains(&got) => got,
            Some(got) => {
                let (min, max) = (f64::from(*range.start()), f64::from(*range.end()));
                self.report(join(at, field), Problem::OutOfRange { got: f64::from(got), min, max });
                default
            }
        }
    }

    /// A span of whole milliseconds within `range`, or `default` when absent.
    pub fn millis(&mut self, at: &str, field: &str, got: Option<u32>, default: Duration, range: RangeInclusive<u32>) -> Duration {
        let default_ms = u32::try_from(default.as_millis()).unwrap_or(u32::MAX);
        Duration::from_millis(u64::from(self.whole(at, field, got, default_ms, range)))
    }

    /// A required text of a form.
    pub fn text(&mut self, at: &str, field: &str, got: &str, form: &Form) {
        if got.is_empty() {
            self.report(join(at, field), Problem::Missing);
        } else {
            self.optional_text(at, field, got, form);
        }
    }

    /// A text of a form, or an empty one.
    pub fn optional_text(&mut self, at: &str, field: &str, got: &str, form: &Form) {
        if !got.is_empty() && !form.holds(got) {
            self.report(join(at, field), Problem::Malformed { got: quoted(got), expected: form.expected });
        }
    }

    /// A text of at most `max` bytes.
    pub fn length(&mut self, at: &str, field: &str, got: &str, max: usize) {
        if got.len() > max {
            self.report(join(at, field), Problem::TooLong { bytes: got.len(), max });
        }
    }

    /// A list of a length within `range`. The elements beyond its end are not worth an error each: give back how many to look at.
    pub fn count(&mut self, at: &str, field: &str, got: usize, range: RangeInclusive<usize>) -> usize {
        if !range.contains(&got) {
            self.report(join(at, field), Problem::Count { got, min: *range.start(), max: *range.end() });
        }
        got.min(*range.end())
    }

    /// A value that must not stand twice: `seen` holds each value with the field that has it first.
    pub fn unique(&mut self, field: String, got: &str, seen: &mut alloc::collections::BTreeMap<String, String>) {
        match seen.get(got) {
            Some(first) => {
                let first = first.clone();
                self.report(field, Problem::Duplicate { got: quoted(got), first });
            }
            None => {
                seen.insert(got.to_owned(), field);
            }
        }
    }

    /// A value that is none of the allowed ones.
    pub fn unknown<'a>(&mut self, field: String, got: &str, allowed: impl IntoIterator<Item = &'a str>) {
        let allowed = allowed.into_iter().map(ToOwned::to_owned).collect();
        self.report(field, Problem::Unknown { got: quoted(got), allowed });
    }
}

/// `at.field`, or `field` at the top.
pub fn join(at: &str, field: &str) -> String {
    if at.is_empty() { field.to_owned() } else { format!("{at}.{field}") }
}

/// The start of a text, for an error.
pub fn quoted(text: &str) -> String {
    text.chars().take(QUOTED_CHARS).collect()
}
