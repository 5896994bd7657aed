//! What is wrong with a document, as far as it can be said without knowing what the fields mean.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use super::names::NOT_ONE_OF;
use serde_json::Value;

/// Longest part of a wrong value that an error repeats, in characters.
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

    pub(super) fn has(&self, field: &str) -> bool {
        self.0.iter().any(|error| error.field == field)
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
    /// The problem behind serde's error, which names types as Rust does.
    pub(super) fn from_serde(message: &str, value: Option<&Value>) -> Self {
        if message.starts_with("unknown field") {
            let allowed = message.rsplit_once("expected ").map_or("", |(_, allowed)| allowed);
            return Self::UnknownField { allowed: allowed.trim_start_matches("one of ").replace('`', "").replace(" or ", ", ") };
        }
        let got = value.map_or_else(|| "nothing".to_owned(), shown);
        match (message.strip_prefix(NOT_ONE_OF), message.rsplit_once("expected ")) {
            (Some(allowed), _) => Self::NotOneOf { got, allowed: allowed.to_owned() },
            (None, Some((_, expected))) => Self::WrongType { got, expected: in_words(expected) },
            (None, None) => Self::WrongType { got, expected: format!("allowed ({message})") },
        }
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

fn in_words(expected: &str) -> String {
    match expected {
        "f64" | "f32" => "a number".to_owned(),
        "u32" => "a whole number in 0..=4294967295".to_owned(),
        "u64" => "a whole number in 0..=18446744073709551615".to_owned(),
        "a string" | "option" => "a text".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        kind if kind.starts_with("struct ") => "an object".to_owned(),
        other => other.to_owned(),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        scalar => {
            let text = scalar.to_string();
            match text.char_indices().nth(MAX_SHOWN_CHARS) {
                Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
                None => text,
            }
        }
    }
}
