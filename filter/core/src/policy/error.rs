//! What is wrong with a policy: every error with its field, value and allowed range.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// All errors of one policy, in field order; never empty.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyErrors(Vec<FieldError>);

impl PolicyErrors {
    /// `errors` as the refusal of a policy; `None` when there is none.
    #[must_use]
    pub fn try_new(errors: Vec<FieldError>) -> Option<Self> {
        if errors.is_empty() { None } else { Some(Self(errors)) }
    }

    /// The errors, in field order.
    pub fn iter(&self) -> core::slice::Iter<'_, FieldError> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a PolicyErrors {
    type Item = &'a FieldError;
    type IntoIter = core::slice::Iter<'a, FieldError>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl core::error::Error for PolicyErrors {}

/// One error.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct FieldError {
    /// Path of the field as a document writes it, without `spec.`: `levels.gpuMemory.tripPercent`, `classes[1].name`.
    pub field: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq)]
pub enum Problem {
    /// The field is required.
    Missing,
    /// A number outside its range, both ends included. NaN and the infinities are outside every range.
    OutOfRange {
        /// The value.
        got: f64,
        /// Smallest allowed value.
        min: f64,
        /// Largest allowed value.
        max: f64,
    },
    /// Not one of the allowed values.
    Unknown {
        /// The value.
        got: String,
        /// The allowed values.
        allowed: Vec<String>,
    },
    /// The same value stands elsewhere.
    Duplicate {
        /// The value.
        got: String,
        /// Field that has it first.
        first: String,
    },
    /// A text of the wrong form.
    Malformed {
        /// The value, at most 80 characters of it.
        got: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// A text that is too long.
    TooLong {
        /// Its length, in bytes.
        bytes: usize,
        /// Largest allowed length, in bytes.
        max: usize,
    },
    /// A list of the wrong length.
    Count {
        /// Its length.
        got: usize,
        /// Smallest allowed length.
        min: usize,
        /// Largest allowed length.
        max: usize,
    },
    /// A value that another field does not allow.
    Conflict {
        /// The value.
        got: String,
        /// Why it is not allowed.
        rule: &'static str,
    },
    /// None of several fields is given.
    NoneGiven {
        /// The fields.
        of: &'static str,
    },
    /// Not exactly one of several fields is given.
    NotExactlyOne {
        /// How many are given.
        got: usize,
        /// The fields.
        of: &'static str,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("is required"),
            Self::OutOfRange { got, min, max } => write!(f, "{got} is outside {min}..={max}"),
            Self::Unknown { got, allowed } => {
                write!(f, "{got:?} is not one of ")?;
                for (index, name) in allowed.iter().enumerate() {
                    write!(f, "{}{name}", if index > 0 { ", " } else { "" })?;
                }
                Ok(())
            }
            Self::Duplicate { got, first } => write!(f, "{got:?} is already used by {first}"),
            Self::Malformed { got, expected } => write!(f, "{got:?} is not {expected}"),
            Self::TooLong { bytes, max } => write!(f, "{bytes} bytes are more than {max}"),
            Self::Count { got, min, max } => write!(f, "{got} entries are outside {min}..={max}"),
            Self::Conflict { got, rule } => write!(f, "{got} is not allowed: {rule}"),
            Self::NoneGiven { of } => write!(f, "none of {of} is given"),
            Self::NotExactlyOne { got, of } => write!(f, "{got} fields are given instead of exactly one of {of}"),
        }
    }
}
