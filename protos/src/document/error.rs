//! What is wrong with a document, as far as it can be said without knowing what the fields mean.

use alloc::borrow::{Cow, ToOwned};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde_json::Value;

/// Longest part of a wrong value or of a key that an error repeats, in characters.
const MAX_SHOWN_CHARS: usize = 80;

/// The errors of one document, in the order of the document; never empty as the error of a `Result`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DocumentErrors(pub(super) Vec<DocumentError>);

/// One error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentError {
    /// Path of the field as the document writes it, without `spec.`: `levels.gpuMemory.tripPercent`, `metadata.name`. Empty for the
    /// document itself.
    pub field: String,
    /// What is wrong with it.
    pub problem: DocumentProblem,
}

/// What is wrong with a field of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DocumentProblem {
    /// It is required.
    Missing,
    /// There is no such field.
    UnknownField {
        /// Fields that there are.
        allowed: String,
    },
    /// A value that the field's enum does not have.
    NotOneOf {
        /// The value.
        got: String,
        /// The values that there are.
        allowed: String,
    },
    /// A value of another type or beyond what the type holds.
    WrongType {
        /// The value.
        got: String,
        /// What is allowed.
        expected: String,
    },
    /// Nothing stands where something is expected.
    Null,
    /// The document has more errors than [`super::MAX_ERRORS`]; the others are not listed.
    TooManyErrors,
}

// === impl DocumentErrors ===

impl DocumentErrors {
    /// The errors.
    pub fn iter(&self) -> core::slice::Iter<'_, DocumentError> {
        self.0.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an error of this field follows from one that is listed: the field itself, or what it is part of, could not be read.
    pub fn covers(&self, field: &str) -> bool {
        self.0.iter().any(|error| match field.strip_prefix(error.field.as_str()) {
            Some(rest) => error.field.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']),
            None => error.field == "spec" && !field.starts_with("metadata"),
        })
    }

    pub(super) fn push(&mut self, field: &str, problem: DocumentProblem) {
        self.0.push(DocumentError { field: field.to_owned(), problem });
    }
}

impl<'a> IntoIterator for &'a DocumentErrors {
    type Item = &'a DocumentError;
    type IntoIter = core::slice::Iter<'a, DocumentError>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for DocumentErrors {
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

impl core::error::Error for DocumentErrors {}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = if self.field.is_empty() { "document" } else { &self.field };
        write!(f, "{field}: {}", self.problem)
    }
}

impl core::error::Error for DocumentError {}

// === impl DocumentProblem ===

impl DocumentProblem {
    pub(super) fn not_one_of(value: &Value, allowed: impl Iterator<Item = &'static str>) -> Self {
        Self::NotOneOf { got: shown(value), allowed: allowed.collect::<Vec<_>>().join(", ") }
    }

    pub(super) fn wrong_type(value: &Value, expected: &str) -> Self {
        Self::WrongType { got: shown(value), expected: expected.to_owned() }
    }
}

impl fmt::Display for DocumentProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("is required"),
            Self::UnknownField { allowed } => write!(f, "is no field here; the fields are {allowed}"),
            Self::NotOneOf { got, allowed } => write!(f, "{got} is not one of {allowed}"),
            Self::WrongType { got, expected } => write!(f, "{got} is not {expected}"),
            Self::Null => f.write_str("has no value; leave the field out to get its default"),
            Self::TooManyErrors => write!(f, "has more than {} errors; correct these first", super::MAX_ERRORS),
        }
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        scalar => cut(&scalar.to_string()).into_owned(),
    }
}

/// The front of a text that a person gave.
pub(super) fn cut(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => Cow::Owned(format!("{}…", text.get(..end).unwrap_or_default())),
        None => Cow::Borrowed(text),
    }
}
