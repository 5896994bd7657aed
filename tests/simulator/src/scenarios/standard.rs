//! The standard set.

use super::{Scenario, ScenarioError};

/// Names and documents of the standard set, in the order of reports.
pub const STANDARD: &[(&str, &str)] = &[];

/// The document of a standard scenario.
pub fn document(name: &str) -> Option<&'static str> {
    STANDARD.iter().find(|(known, _)| *known == name).map(|(_, document)| *document)
}

/// A standard scenario; `None` when there is none of that name.
///
/// # Errors
/// Never, as a test reads them all.
pub fn standard(name: &str) -> Option<Result<Scenario, ScenarioError>> {
    document(name).map(Scenario::parse)
}
