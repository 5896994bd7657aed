//! Checks of the classes and of how requests get them.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use headgate_protos::v1;

use super::check::{Checker, Form, join};
use super::config::{Class, WhenTripped};
use super::error::Problem;
use super::validate::path;
use super::validate_identities::Identities;
use super::{Cap, ClassId, Classification, IdentityIndex, Tenant, TenantId};
use crate::permits::MAX_CLASSES;

const MAX_RESERVED_PERCENT: u32 = 90;
const MAX_FLOOR_PERCENT: u32 = 90;
const DEFAULT_MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
pub(crate) const MAX_TENANTS: usize = 1024;
const MAX_CAPS: usize = 64;
const MAX_MODEL_BYTES: usize = 256;
const AT: &str = "classification";

const CLASS_NAME: Form = Form {
    max_bytes: 32,
    allows: |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-'),
    ends_allow: |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-'),
    expected: "1 to 32 characters of a-z, 0-9, '_' and '-'",
};
pub(super) const TENANT_NAME: Form = Form {
    max_bytes: 63,
    allows: |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'.' | b'-'),
    ends_allow: |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'.' | b'-'),
    expected: "1 to 63 characters of a-z, 0-9, '_', '.' and '-'",
};
const HEADER_NAME: Form = Form {
    max_bytes: 64,
    allows: |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-'),
    ends_allow: |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit(),
    expected: "a header name of 1 to 64 characters of a-z, 0-9, '_' and '-'",
};

/// What the classification part of a policy becomes.
pub(super) struct Classified {
    pub(super) classification: Classification,
    pub(super) tenants: Vec<Tenant>,
    pub(super) identities: IdentityIndex,
}

pub(super) fn classes(check: &mut Checker, wire: &[v1::PriorityClass]) -> Vec<Class> {
    let checked = check.count("", "classes", wire.len(), 1..=MAX_CLASSES);
    let mut seen = BTreeMap::new();
    let mut classes = Vec::with_capacity(checked);
    for (index, class) in wire.iter().take(checked).enumerate() {
        classes.push(self::class(check, index, class, &mut seen));
    }
    let reserved: u32 = classes.iter().map(|class| class.reserved_percent).sum();
    if reserved > MAX_RESERVED_PERCENT {
        let rule = "the reserved percentages of all classes add up to at most 90";
        check.report(String::from("classes"), Problem::Conflict { got: format!("reservedPercent {reserved} in sum"), rule });
    }
    let floors: u32 = classes.iter().map(|class| class.floor_percent).sum();
    if floors > MAX_FLOOR_PERCENT {
        let rule = "the floors of all classes add up to at most 90";
        check.report(String::from("classes"), Problem::Conflict { got: format!("floorPercent {floors} in sum"), rule });
    }
    classes
}

/// Reports what means nothing in a policy without `overload`.
pub(super) fn without_overload(check: &mut Checker, classes: &[Class]) {
    for (index, class) in classes.iter().enumerate() {
        if class.floor_percent > 0 {
            let rule = "a floor needs `overload`, which measures the pool's capacity";
            check.report(format!("classes[{index}].floorPercent"), Problem::Conflict { got: format!("{}", class.floor_percent), rule });
        }
        if let Some(max_queue) = class.max_queue {
            let rule = "there is no queue without `overload.queue`";
            check.report(format!("classes[{index}].maxQueueMs"), Problem::Conflict { got: format!("{}", max_queue.as_millis()), rule });
        }
    }
}

fn class(check: &mut Checker, index: usize, wire: &v1::PriorityClass, seen: &mut BTreeMap<String, String>) -> Class {
    let v1::PriorityClass { name, when_tripped, reserved_percent, max_retry_after_ms, floor_percent, max_queue_ms } = wire;
    let at = format!("classes[{index}]");
    check.text(&at, "name", name, &CLASS_NAME);
    if !name.is_empty() {
        check.unique(join(&at, "name"), name, seen);
    }
    let when_tripped = match v1::WhenTripped::try_from(*when_tripped) {
        Ok(v1::WhenTripped::ReservedLane) => Some(WhenTripped::ReservedLane),
        Ok(v1::WhenTripped::GradientThrottle) => Some(WhenTripped::GradientThrottle),
        Ok(v1::WhenTripped::Refuse) => Some(WhenTripped::Refuse),
        Ok(v1::WhenTripped::Unspecified) => {
            check.report(join(&at, "whenTripped"), Problem::Missing);
            None
        }
        Err(_) => {
            check.unknown(join(&at, "whenTripped"), &format!("{when_tripped}"), ["reserved_lane", "gradient_throttle", "refuse"]);
            None
        }
    };
    let reserved_percent = check.whole(&at, "reservedPercent", *reserved_percent, 0, 0..=MAX_RESERVED_PERCENT);
    if reserved_percent > 0 && when_tripped.is_some_and(|when_tripped| when_tripped != WhenTripped::ReservedLane) {
        let rule = "only a class with whenTripped reserved_lane has a part of its own";
        check.report(join(&at, "reservedPercent"), Problem::Conflict { got: format!("{reserved_percent}"), rule });
    }
    let max_retry_after = check.millis(&at, "maxRetryAfterMs", *max_retry_after_ms, DEFAULT_MAX_RETRY_AFTER, 1000..=600_000);
    let floor_percent = check.whole(&at, "floorPercent", *floor_percent, 0, 0..=MAX_FLOOR_PERCENT);
    let max_queue = max_queue_ms.map(|ms| check.millis(&at, "maxQueueMs", Some(ms), Duration::ZERO, 0..=600_000));
    let when_tripped = when_tripped.unwrap_or(WhenTripped::Refuse);
    Class { name: name.clone(), when_tripped, reserved_percent, max_retry_after, floor_percent, max_queue }
}

pub(super) fn classification(check: &mut Checker, wire: Option<&v1::Classification>, classes: &[Class]) -> Classified {
    let empty = v1::Classification::default();
    let v1::Classification { default_class, priority_header, model_header, tenants, caps } = wire.unwrap_or(&empty);
    let last = ClassId::new(classes.len().saturating_sub(1));
    let default_class =
        if default_class.is_empty() { last } else { class_of(check, join(AT, "defaultClass"), default_class, classes).unwrap_or(last) };
    let priority_header = header(check, "priorityHeader", priority_header, "x-priority");
    let model_header = header(check, "modelHeader", model_header, "x-model");
    let mut identities = Identities::default();
    let tenants = self::tenants(check, tenants, classes, &mut identities);
    let caps = self::caps(check, caps, classes);
    Classified {
        classification: Classification { default_class, priority_header, model_header, caps },
        tenants,
        identities: identities.into_index(),
    }
}

/// The class called `name`; an error that lists the classes when there is none.
pub(super) fn class_of(check: &mut Checker, field: String, name: &str, classes: &[Class]) -> Option<ClassId> {
    if name.is_empty() {
        check.report(field, Problem::Missing);
        return None;
    }
    let found = classes.iter().position(|class| class.name == name).map(ClassId::new);
    if found.is_none() {
        check.unknown(field, name, classes.iter().map(|class| class.name.as_str()));
    }
    found
}

fn header(check: &mut Checker, field: &str, got: &str, default: &str) -> String {
    if got.is_empty() {
        return String::from(default);
    }
    check.text(AT, field, got, &HEADER_NAME);
    if got.starts_with("x-headgate-") {
        let rule = "x-headgate- headers of clients are removed";
        check.report(join(AT, field), Problem::Conflict { got: super::check::quoted(got), rule });
    }
    String::from(got)
}

fn tenants(check: &mut Checker, wire: &[v1::Tenant], classes: &[Class], identities: &mut Identities) -> Vec<Tenant> {
    let checked = check.count(AT, "tenants", wire.len(), 0..=MAX_TENANTS);
    let mut seen = BTreeMap::new();
    let mut tenants = Vec::with_capacity(checked);
    for (index, v1::Tenant { name, identities: wire_identities, class, may_claim }) in wire.iter().take(checked).enumerate() {
        let at = format!("{AT}.tenants[{index}]");
        check.text(&at, "name", name, &TENANT_NAME);
        if !name.is_empty() {
            check.unique(join(&at, "name"), name, &mut seen);
        }
        identities.add(check, &at, wire_identities, TenantId::new(index));
        let class = class_of(check, join(&at, "class"), class, classes);
        let may_claim = self::may_claim(check, &at, may_claim, classes);
        tenants.push(Tenant { name: name.clone(), class: class.unwrap_or(ClassId::new(0)), may_claim });
    }
    tenants
}

fn may_claim(check: &mut Checker, at: &str, wire: &[String], classes: &[Class]) -> Vec<ClassId> {
    let mut seen = BTreeMap::new();
    let checked = check.count(at, "mayClaim", wire.len(), 0..=MAX_CLASSES);
    let mut claims = Vec::new();
    for (index, name) in wire.iter().take(checked).enumerate() {
        let field = format!("{at}.mayClaim[{index}]");
        if let Some(class) = class_of(check, field.clone(), name, classes) {
            check.unique(field, name, &mut seen);
            claims.push(class);
        }
    }
    claims
}

fn caps(check: &mut Checker, wire: &[v1::ClassCap], classes: &[Class]) -> Vec<Cap> {
    let checked = check.count(AT, "caps", wire.len(), 0..=MAX_CAPS);
    let mut caps = Vec::with_capacity(checked);
    for (index, v1::ClassCap { class, path_prefix, model, min_content_length }) in wire.iter().take(checked).enumerate() {
        let at = format!("{AT}.caps[{index}]");
        let class = class_of(check, join(&at, "class"), class, classes);
        let path_prefix = path(check, &at, path_prefix);
        check.length(&at, "model", model, MAX_MODEL_BYTES);
        let model = if model.is_empty() { None } else { Some(model.clone()) };
        if path_prefix.is_none() && model.is_none() && min_content_length.is_none() {
            check.report(at, Problem::NoneGiven { of: "pathPrefix, model, minContentLength" });
        }
        if let Some(class) = class {
            caps.push(Cap { class, path_prefix, model, min_content_length: *min_content_length });
        }
    }
    caps
}
