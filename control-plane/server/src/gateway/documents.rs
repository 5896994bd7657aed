//! Resources as they come in, as text or as messages: checked each in itself, every error at once.

use std::collections::BTreeSet;

use headgate_protos::document::gateway::{self, GatewayReading, kind_of};
use headgate_protos::document::{MAX_DOCUMENT_BYTES, MAX_ERRORS};
use headgate_protos::v1::GatewayResource;

use super::config::Checked;
use super::set::MAX_RESOURCES;
use crate::document::{Violation, Violations, parse_yaml};

/// Reads YAML documents separated by lines of `---`. Errs with everything that is wrong in any of them, after the resource's name.
pub fn read(text: &str) -> Result<Vec<Checked>, Violations> {
    if text.len() > MAX_DOCUMENT_BYTES {
        return Err(Violations::of("documents", format!("{} bytes are more than {MAX_DOCUMENT_BYTES}", text.len())));
    }
    let (mut checked, mut violations) = (Vec::new(), Vec::new());
    for (index, document) in split(text).into_iter().enumerate() {
        match read_one(&document, index) {
            Ok(resource) => checked.push(resource),
            Err(wrong) => violations.extend(wrong.iter().cloned()),
        }
        if violations.len() > MAX_ERRORS {
            break;
        }
    }
    finish(checked, violations)
}

/// Checks messages. Errs as [`read`] does.
pub fn check(resources: Vec<GatewayResource>) -> Result<Vec<Checked>, Violations> {
    let (mut checked, mut violations) = (Vec::new(), Vec::new());
    if resources.len() > MAX_RESOURCES {
        return Err(Violations::of("resources", format!("{} are more than {MAX_RESOURCES}", resources.len())));
    }
    for (index, resource) in resources.into_iter().enumerate() {
        let place = place(&resource, index);
        match Checked::try_from_wire(resource) {
            Ok(resource) => checked.push(resource),
            Err(wrong) => violations.extend(wrong.iter().map(|violation| at(&place, violation))),
        }
    }
    finish(checked, violations)
}

fn finish(checked: Vec<Checked>, mut violations: Vec<Violation>) -> Result<Vec<Checked>, Violations> {
    let mut seen = BTreeSet::new();
    for resource in &checked {
        let (kind, name) = (kind_of(resource.wire()), &resource.wire().name);
        if !seen.insert((kind, name)) {
            violations.push(Violation { field: format!("{kind} {name}"), problem: "is given twice".to_owned() });
        }
    }
    if checked.is_empty() && violations.is_empty() {
        return Err(Violations::of("documents", "there is none"));
    }
    violations.truncate(MAX_ERRORS);
    Violations::try_new(violations).map_or(Ok(checked), Err)
}

fn read_one(text: &str, index: usize) -> Result<Checked, Violations> {
    let value = parse_yaml(text).map_err(|error| Violations::of(&format!("document {}", index + 1), error.to_string()))?;
    let GatewayReading { resource, errors } = gateway::read(value);
    let place = place(&resource, index);
    let mut violations: Vec<Violation> = errors
        .iter()
        .map(|error| {
            let field = if error.field.is_empty() { "document".to_owned() } else { error.field.clone() };
            at(&place, &Violation { field, problem: error.problem.to_string() })
        })
        .collect();
    match Checked::try_from_wire(resource) {
        Ok(checked) if violations.is_empty() => return Ok(checked),
        Ok(_) => {}
        // What follows from an error that is listed is left out.
        Err(wrong) => violations.extend(wrong.iter().filter(|other| !errors.covers(&other.field)).map(|violation| at(&place, violation))),
    }
    Err(Violations::try_new(violations).unwrap_or_default())
}

/// How errors name a resource.
fn place(resource: &GatewayResource, index: usize) -> String {
    match (kind_of(resource), resource.name.as_str()) {
        ("", _) | (_, "") => format!("document {}", index + 1),
        (kind, name) => format!("{kind} {}", name.chars().take(63).collect::<String>()),
    }
}

fn at(place: &str, violation: &Violation) -> Violation {
    Violation { field: format!("{place}: {}", violation.field), problem: violation.problem.clone() }
}

/// The documents of a text; empty ones are left out.
fn split(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line.trim_end() == "---" {
            documents.push(String::new());
        } else if let Some(last) = documents.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    let says_something = |document: &String| document.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
    documents.into_iter().filter(says_something).collect()
}
