//! Policy documents: what people write, as [`crate::v1::Policy`].
//!
//! ```yaml
//! apiVersion: headgate.dev/v1
//! kind: AdmissionPolicy
//! metadata: { name: demo }
//! spec: { pool: llm, classes: [{ name: all, whenTripped: refuse }] }
//! ```
//!
//! Reading goes on after an error and keeps what it could read, so that the errors of the validator, which knows what the fields
//! mean, can be reported together with those of the document. Writing leaves out what holds its default.

mod error;
pub mod gateway;
mod names;
mod read;
mod table;
#[cfg(test)]
mod tests;

use alloc::borrow::ToOwned;
use alloc::string::String;

pub use error::{DocumentError, DocumentErrors, DocumentProblem};
pub(crate) use names::{EnumName, EnumNames, is_default};
use serde_json::{Map, Value, json};

use crate::v1::{Policy, PolicySpec};

/// The only `apiVersion` there is.
pub const API_VERSION: &str = "headgate.dev/v1";
/// The `kind` of a policy document.
pub const KIND: &str = "AdmissionPolicy";
/// Largest document, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;
/// Most errors that are listed for one document.
pub const MAX_ERRORS: usize = 64;

/// What could be read of a document.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The policy; what could not be read is left out of it.
    pub policy: Policy,
    /// What could not be read.
    pub errors: DocumentErrors,
}

/// Reads a document as far as it can be read.
pub fn read(value: Value) -> Reading {
    let mut errors = DocumentErrors::default();
    let envelope = open(value, &[KIND], &mut errors).unwrap_or_default();
    let spec = envelope.spec.map_or_else(PolicySpec::default, |spec| read::read_spec(&spec, &table::POLICY_SPEC, &mut errors));
    Reading { policy: Policy { name: envelope.name, spec: Some(spec), version: String::new() }, errors }
}

/// Reads the `spec` part of a document alone, as far as it can be read; the policy gets `name`.
pub fn read_spec(name: &str, value: Value) -> Reading {
    let mut errors = DocumentErrors::default();
    let spec = read::read_spec(&value, &table::POLICY_SPEC, &mut errors);
    Reading { policy: Policy { name: name.to_owned(), spec: Some(spec), version: String::new() }, errors }
}

/// Reads a document. Errs with everything that could not be read.
pub fn parse(value: Value) -> Result<Policy, DocumentErrors> {
    read(value).into_result()
}

/// Reads the `spec` part of a document alone; the policy gets `name`. Errs with everything that could not be read.
pub fn parse_spec(name: &str, value: Value) -> Result<Policy, DocumentErrors> {
    read_spec(name, value).into_result()
}

/// The document that says what `policy` says. Numbers that are not finite have no form in a document and become null.
pub fn render(policy: &Policy) -> Value {
    let spec = policy.spec.as_ref().map_or_else(|| Ok(json!({})), serde_json::to_value);
    json!({
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": { "name": policy.name },
        // Structures of texts, numbers, lists and objects with text keys always have a form.
        "spec": spec.unwrap_or_default(),
    })
}

// === impl Reading ===

impl Reading {
    /// The policy, or every error when there is one.
    pub fn into_result(self) -> Result<Policy, DocumentErrors> {
        if self.errors.is_empty() { Ok(self.policy) } else { Err(self.errors) }
    }
}

/// What every document has around its specification.
#[derive(Default)]
struct Envelope {
    /// One of the kinds that were asked for; `None` when it is none.
    kind: Option<&'static str>,
    name: String,
    /// An object; `None` when there is none.
    spec: Option<Value>,
}

/// Takes a document of one of `kinds` apart. `None` when it is no object.
fn open(value: Value, kinds: &[&'static str], errors: &mut DocumentErrors) -> Option<Envelope> {
    let Value::Object(mut document) = value else {
        errors.push("", DocumentProblem::wrong_type(&value, "an object"));
        return None;
    };
    let _ = expect_one_of(document.remove("apiVersion"), "apiVersion", &[API_VERSION], errors);
    let kind = expect_one_of(document.remove("kind"), "kind", kinds, errors);
    let name = read_metadata(document.remove("metadata"), errors);
    let spec = document.remove("spec");
    refuse_others(&document, "", "apiVersion, kind, metadata, spec", errors);
    let spec = match spec {
        Some(spec @ Value::Object(_)) => Some(spec),
        Some(other) => {
            errors.push("spec", DocumentProblem::wrong_type(&other, "an object"));
            None
        }
        None => {
            errors.push("spec", DocumentProblem::Missing);
            None
        }
    };
    Some(Envelope { kind, name, spec })
}

fn expect_one_of(value: Option<Value>, field: &str, constants: &[&'static str], errors: &mut DocumentErrors) -> Option<&'static str> {
    let Some(value) = value else {
        errors.push(field, DocumentProblem::Missing);
        return None;
    };
    let found = constants.iter().find(|constant| value == **constant).copied();
    if found.is_none() {
        errors.push(field, DocumentProblem::wrong_type(&value, &constants.join(" or ")));
    }
    found
}

fn read_metadata(metadata: Option<Value>, errors: &mut DocumentErrors) -> String {
    let mut metadata = match metadata {
        Some(Value::Object(metadata)) => metadata,
        Some(other) => {
            errors.push("metadata", DocumentProblem::wrong_type(&other, "an object"));
            return String::new();
        }
        None => Map::new(),
    };
    let name = match metadata.remove("name") {
        Some(Value::String(name)) => name,
        Some(other) => {
            errors.push("metadata.name", DocumentProblem::wrong_type(&other, "a text"));
            String::new()
        }
        None => {
            errors.push("metadata.name", DocumentProblem::Missing);
            String::new()
        }
    };
    refuse_others(&metadata, "metadata.", "name", errors);
    name
}

fn refuse_others(rest: &Map<String, Value>, prefix: &str, allowed: &str, errors: &mut DocumentErrors) {
    // Room is left for the errors of the specification, which matter more.
    for key in rest.keys().take(MAX_ERRORS / 4) {
        errors.push(&(prefix.to_owned() + &error::cut(key)), DocumentProblem::UnknownField { allowed: allowed.to_owned() });
    }
}
