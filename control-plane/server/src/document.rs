//! Policies as they come in, as text or as a message: checked as a whole, every error at once.

mod yaml;

pub(crate) use self::yaml::parse as parse_yaml;

#[cfg(test)]
mod tests;

use std::fmt;

use headgate_core::policy::{FieldError, Policy, content_version};
use headgate_protos::document::{self, MAX_DOCUMENT_BYTES, Reading};
use headgate_protos::v1;

/// A policy that the shared validator accepts, with its version.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckedPolicy {
    wire: v1::Policy,
    policy: Policy,
}

/// Everything that is wrong with a policy; never empty as the error of a `Result`. Displayed with one error a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations(Vec<Violation>);

/// One thing that is wrong with a policy. Displayed as `field: problem`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field as a document writes it, without `spec.`; `document` for the text as a whole.
    pub field: String,
    /// What is wrong, with the value and what is allowed.
    pub problem: String,
}

// === impl CheckedPolicy ===

impl CheckedPolicy {
    /// Checks a YAML or JSON document. Errs with the errors of the text, or with those of the document and of the policy together.
    pub fn from_document(text: &str) -> Result<Self, Violations> {
        if text.len() > MAX_DOCUMENT_BYTES {
            return Err(Violations::of("document", format!("{} bytes are more than {MAX_DOCUMENT_BYTES}", text.len())));
        }
        let value = yaml::parse(text).map_err(|error| Violations::of("document", error.to_string()))?;
        let Reading { policy, errors } = document::read(value);
        if errors.is_empty() {
            return Self::from_wire(policy);
        }
        let mut violations: Vec<Violation> = errors
            .iter()
            .map(|error| Violation {
                field: if error.field.is_empty() { "document".to_owned() } else { error.field.clone() },
                problem: error.problem.to_string(),
            })
            .collect();
        if let Err(Violations(others)) = Self::from_wire(policy) {
            violations.extend(others.into_iter().filter(|other| !errors.covers(&other.field)));
        }
        Err(Violations(violations))
    }

    /// Checks a message. Its version is replaced by that of its content. Errs with every error of the policy.
    pub fn from_wire(mut wire: v1::Policy) -> Result<Self, Violations> {
        wire.version = content_version(&wire);
        let everything = governs_everything(&wire);
        match Policy::try_from_wire(&wire) {
            Ok(policy) if everything.is_none() => Ok(Self { wire, policy }),
            Ok(_) => Err(Violations(everything.into_iter().collect())),
            Err(errors) => Err(Violations(errors.iter().map(Violation::from).chain(everything).collect())),
        }
    }

    /// The policy as it is stored and sent.
    pub fn wire(&self) -> &v1::Policy {
        &self.wire
    }

    /// The policy as it is executed.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }
}

/// A candidate that leaves its policy nothing. Filters take it, since that is what a proxy is told that has been chosen; nobody asks for it.
fn governs_everything(wire: &v1::Policy) -> Option<Violation> {
    let percent = wire.spec.as_ref()?.candidate.as_ref()?.requests_percent?;
    let (field, problem) = ("candidate.requestsPercent".to_owned(), "100 is outside 1..=99".to_owned());
    (percent == 100).then_some(Violation { field, problem })
}

// === impl Violations ===

impl Violations {
    /// One violation.
    pub fn of(field: &str, problem: impl Into<String>) -> Self {
        Self(vec![Violation { field: field.to_owned(), problem: problem.into() }])
    }

    /// These violations, if there are any.
    pub fn try_new(violations: Vec<Violation>) -> Option<Self> {
        if violations.is_empty() { None } else { Some(Self(violations)) }
    }

    /// The violations, in the order of the document.
    pub fn iter(&self) -> std::slice::Iter<'_, Violation> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Violations {
    type Item = &'a Violation;
    type IntoIter = std::slice::Iter<'a, Violation>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, violation) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            violation.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Violations {}

impl From<&FieldError> for Violation {
    fn from(error: &FieldError) -> Self {
        Self { field: error.field.clone(), problem: error.problem.to_string() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}
