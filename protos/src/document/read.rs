//! Reads a tree of values into a specification and goes on after an error, so that a person gets all of them at once.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::MAX_ERRORS;
use super::error::{DocumentErrors, DocumentProblem};
use super::strict::Strict;
use crate::v1::PolicySpec;
use serde_json::{Map, Value};
use serde_path_to_error::{Path, Segment};

/// One step from a value to a part of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Key(String),
    Index(usize),
}

/// Reads a specification. Each error is recorded and what is wrong taken out, until the rest can be read.
pub(super) fn read_spec(mut value: Value, errors: &mut DocumentErrors) -> PolicySpec {
    take_out_nulls(&mut value, "", errors);
    // How often the element of a list at a path was replaced.
    let mut replaced: BTreeMap<Vec<Step>, usize> = BTreeMap::new();
    loop {
        if errors.0.len() >= MAX_ERRORS {
            errors.push("", DocumentProblem::TooManyErrors);
            return PolicySpec::default();
        }
        let error = match serde_path_to_error::deserialize::<_, PolicySpec>(Strict(&value)) {
            Ok(spec) => return spec,
            Err(error) => error,
        };
        let steps = steps_of(error.path());
        let field = field_of(&steps);
        if !errors.has(&field) {
            let problem = DocumentProblem::from_serde(&error.inner().to_string(), at(&mut value, &steps).map(|value| &*value));
            errors.push(if field.is_empty() { "spec" } else { &field }, problem);
        }
        if steps.is_empty() {
            return PolicySpec::default();
        }
        let times = replaced.entry(steps.clone()).or_default();
        take_out(&mut value, &steps, *times);
        *times += 1;
    }
}

/// Takes out every null of an object, which would silently mean the default.
fn take_out_nulls(value: &mut Value, field: &str, errors: &mut DocumentErrors) {
    match value {
        Value::Object(map) => map.retain(|key, value| {
            let field = join(field, key);
            if value.is_null() {
                note_null(&field, errors);
                return false;
            }
            take_out_nulls(value, &field, errors);
            true
        }),
        Value::Array(list) => {
            for (index, value) in list.iter_mut().enumerate() {
                let field = format!("{field}[{index}]");
                if value.is_null() {
                    note_null(&field, errors);
                }
                take_out_nulls(value, &field, errors);
            }
        }
        _ => {}
    }
}

fn note_null(field: &str, errors: &mut DocumentErrors) {
    if errors.0.len() < MAX_ERRORS {
        errors.push(field, DocumentProblem::Null);
    }
}

/// Takes out the value at the end of the steps. An element of a list is replaced, so that the others keep their places: `times`
/// counts what was tried, since whether a list holds enums, texts or objects is known to the deserializer alone.
fn take_out(value: &mut Value, steps: &[Step], times: usize) {
    let Some((last, parents)) = steps.split_last() else { return };
    match (at(value, parents), last) {
        (Some(Value::Object(map)), Step::Key(key)) => {
            map.remove(key);
        }
        (Some(Value::Array(list)), Step::Index(index)) => match (list.get_mut(*index), times) {
            (Some(element), 0) => *element = Value::Null,
            (Some(element), 1) => *element = Value::String(String::new()),
            (Some(element), 2) => *element = Value::Object(Map::new()),
            (Some(_), _) => drop(list.remove(*index)),
            (None, _) => {}
        },
        // The deserializer names a place that the tree does not have: what it is in cannot be read.
        _ => take_out(value, parents, usize::MAX),
    }
}

fn at<'a>(value: &'a mut Value, steps: &[Step]) -> Option<&'a mut Value> {
    steps.iter().try_fold(value, |value, step| match (value, step) {
        (Value::Object(map), Step::Key(key)) => map.get_mut(key),
        (Value::Array(list), Step::Index(index)) => list.get_mut(*index),
        _ => None,
    })
}

fn steps_of(path: &Path) -> Vec<Step> {
    path.iter()
        .map_while(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

fn field_of(steps: &[Step]) -> String {
    steps.iter().fold(String::new(), |field, step| match step {
        Step::Key(key) => join(&field, key),
        Step::Index(index) => format!("{field}[{index}]"),
    })
}

fn join(field: &str, key: &str) -> String {
    if field.is_empty() { key.to_owned() } else { format!("{field}.{key}") }
}
