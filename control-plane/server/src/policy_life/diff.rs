//! What differs between two policies, field by field, as documents write the fields.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use headgate_protos::document;
use headgate_protos::v1;
use serde::Serialize;
use serde_json::Value;

/// What stands behind the path of a list where the value is the order of its elements.
const ORDER: &str = " (order)";

/// One field that differs. Displayed as `field: before -> after`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Path of the field without `spec.`; an element of a list is in brackets, by its name where all of them have one.
    pub field: String,
    /// What it held; absent: not given, so its default.
    pub before: Option<Value>,
    /// What it holds; absent as well.
    pub after: Option<Value>,
}

/// Every field in which `after` differs from `before`, by path. Elements of a list that have names are compared by name, wherever they
/// stand; that they stand in another order is a difference of the list.
pub fn differences(before: &v1::Policy, after: &v1::Policy) -> Vec<Difference> {
    let (before, after) = (fields(before), fields(after));
    let paths: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let difference =
        |path: &&String| Difference { field: (*path).clone(), before: before.get(*path).cloned(), after: after.get(*path).cloned() };
    paths.iter().map(difference).filter(Difference::is_one).collect()
}

/// What a policy says: each path to a value that has no parts.
fn fields(policy: &v1::Policy) -> BTreeMap<String, Value> {
    let mut document = document::render(policy);
    let mut fields = BTreeMap::new();
    collect(String::new(), document["spec"].take(), &mut fields);
    fields
}

fn collect(path: String, value: Value, fields: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (key, value) in object {
                let at = if path.is_empty() { key } else { format!("{path}.{key}") };
                collect(at, value, fields);
            }
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            let names = names(&list);
            if let Some(names) = &names {
                fields.insert(format!("{path}{ORDER}"), Value::from(names.clone()));
            }
            for (index, element) in list.into_iter().enumerate() {
                let key = names.as_ref().and_then(|names| names.get(index).cloned()).unwrap_or_else(|| index.to_string());
                collect(format!("{path}[{key}]"), element, fields);
            }
        }
        // A list of plain values is read as a whole; an empty object says that it is there.
        plain => drop(fields.insert(path, plain)),
    }
}

/// The names of a list's elements, if each has one of its own.
fn names(list: &[Value]) -> Option<Vec<String>> {
    let names: Option<Vec<String>> = list.iter().map(|element| element["name"].as_str().map(str::to_owned)).collect();
    let names = names?;
    let distinct: BTreeSet<&String> = names.iter().collect();
    (distinct.len() == names.len()).then_some(names)
}

// === impl Difference ===

impl Difference {
    /// Of an order only that of the elements counts which both lists have: the others tell of themselves.
    fn is_one(&self) -> bool {
        if !self.field.ends_with(ORDER) {
            return self.before != self.after;
        }
        let names = |order: &Option<Value>| order.as_ref().and_then(Value::as_array).cloned().unwrap_or_default();
        let (before, after) = (names(&self.before), names(&self.after));
        let common = |list: &[Value], other: &[Value]| list.iter().filter(|name| other.contains(name)).cloned().collect::<Vec<_>>();
        common(&before, &after) != common(&after, &before)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<Value>| match value {
            None => "(not given)".to_owned(),
            Some(value) => value.to_string(),
        };
        write!(f, "{}: {} -> {}", self.field, shown(&self.before), shown(&self.after))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::document::CheckedPolicy;

    fn policy(rest: &str) -> v1::Policy {
        let text = format!("{{apiVersion: headgate.dev/v1, kind: AdmissionPolicy, metadata: {{name: a}}, spec: {{pool: llm, {rest}}}}}");
        CheckedPolicy::from_document(&text).unwrap().wire().clone()
    }

    fn shown(before: &str, after: &str) -> Vec<String> {
        differences(&policy(before), &policy(after)).iter().map(ToString::to_string).collect()
    }

    const CLASSES: &str = "classes: [{name: high, whenTripped: reserved_lane}, {name: low, whenTripped: refuse}]";

    #[test]
    fn equal_policies_differ_in_nothing_and_defaults_are_not_given() {
        assert_eq!(shown(CLASSES, CLASSES), [""; 0]);
        let strict = format!("{CLASSES}, levels: {{gpuMemory: {{tripPercent: 60}}}}, routes: [{{pathPrefix: /v1}}]");
        assert_eq!(
            shown(CLASSES, &strict),
            ["levels.gpuMemory.tripPercent: (not given) -> 60.0", "routes[0].pathPrefix: (not given) -> \"/v1\""]
        );
        assert_eq!(shown(&strict, CLASSES).len(), 2);
    }

    #[test]
    fn elements_with_names_are_compared_by_name_and_their_order_is_told() {
        let swapped = "classes: [{name: low, whenTripped: refuse}, {name: high, whenTripped: gradient_throttle}]";
        assert_eq!(
            shown(CLASSES, swapped),
            [
                "classes (order): [\"high\",\"low\"] -> [\"low\",\"high\"]",
                "classes[high].whenTripped: \"reserved_lane\" -> \"gradient_throttle\""
            ]
        );
    }

    #[test]
    fn an_element_that_comes_changes_no_order() {
        let more =
            "classes: [{name: high, whenTripped: reserved_lane}, {name: mid, whenTripped: refuse}, {name: low, whenTripped: refuse}]";
        let lines = ["classes[mid].name: (not given) -> \"mid\"", "classes[mid].whenTripped: (not given) -> \"refuse\""];
        assert_eq!(shown(CLASSES, more), lines);
    }

    #[test]
    fn a_section_that_comes_without_any_field_is_a_difference() {
        assert_eq!(shown(CLASSES, &format!("{CLASSES}, breaker: {{}}")), ["breaker: (not given) -> {}"]);
    }
}
