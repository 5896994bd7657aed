//! The standard set.

use super::{Scenario, ScenarioError};

/// Names and documents of the standard set, in the order of reports.
pub const STANDARD: &[(&str, &str)] = &[
    ("steady-2x", include_str!("../../scenarios/steady-2x.yaml")),
    ("steady-5x", include_str!("../../scenarios/steady-5x.yaml")),
    ("steady-10x", include_str!("../../scenarios/steady-10x.yaml")),
    ("step-2x", include_str!("../../scenarios/step-2x.yaml")),
    ("step-5x", include_str!("../../scenarios/step-5x.yaml")),
    ("step-10x", include_str!("../../scenarios/step-10x.yaml")),
    ("bursts", include_str!("../../scenarios/bursts.yaml")),
    ("gamma-cv3", include_str!("../../scenarios/gamma-cv3.yaml")),
    ("j-curve", include_str!("../../scenarios/j-curve.yaml")),
    ("agents", include_str!("../../scenarios/agents.yaml")),
    ("retry-storm-honouring", include_str!("../../scenarios/retry-storm-honouring.yaml")),
    ("retry-storm-ignoring", include_str!("../../scenarios/retry-storm-ignoring.yaml")),
    ("tenants-1000", include_str!("../../scenarios/tenants-1000.yaml")),
    ("heterogeneous", include_str!("../../scenarios/heterogeneous.yaml")),
    ("thermal-derating", include_str!("../../scenarios/thermal-derating.yaml")),
    ("non-llm", include_str!("../../scenarios/non-llm.yaml")),
    ("control-cut", include_str!("../../scenarios/control-cut.yaml")),
    ("engine-lost", include_str!("../../scenarios/engine-lost.yaml")),
];

/// The document of a standard scenario.
pub fn document(name: &str) -> Option<&'static str> {
    STANDARD.iter().find(|(known, _)| *known == name).map(|(_, document)| *document)
}

/// A standard scenario; `None` when there is none of that name.
///
/// # Errors
/// When its document is no scenario, which a test excludes.
pub fn standard(name: &str) -> Option<Result<Scenario, ScenarioError>> {
    document(name).map(Scenario::parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_is_a_scenario_of_its_name() {
        for (name, _) in STANDARD {
            let scenario = standard(name).unwrap().unwrap();
            assert_eq!(scenario.name(), *name);
            assert!(!scenario.summary.is_empty());
        }
    }

    /// The top class must stay below the capacity at every load, or no algorithm could serve it.
    #[test]
    fn the_top_class_fits_into_the_capacity() {
        for (name, _) in STANDARD {
            let scenario = standard(name).unwrap().unwrap();
            let top = scenario.setup.sources.iter().filter(|source| source.class == 0);
            let rps: f64 = top
                .map(|source| match source.arrivals {
                    crate::setup::Arrivals::Open { rps, .. } => rps,
                    crate::setup::Arrivals::Closed { clients, think, .. } => f64::from(clients) / think.as_secs_f64(),
                })
                .sum();
            assert!(rps < 0.6 * scenario.judging.capacity_rps, "{name}: {rps} of {}", scenario.judging.capacity_rps);
        }
    }

    #[test]
    fn every_problem_of_a_document_is_reported_with_field_value_and_range() {
        let text = document("step-10x").unwrap();
        let text = text.replace("load: 10", "load: 0").replace("factor: 20", "factor: -1").replacen("class: high", "class: vip", 1);
        let Err(ScenarioError::Invalid(problems)) = Scenario::parse(&text) else { panic!("it must be refused") };
        let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "traffic[0].class: \"vip\" is none of high, medium, low",
                "traffic[0].shape.factor: -1 is outside 0..=1000",
                "traffic[1].shape.factor: -1 is outside 0..=1000",
                "traffic[2].shape.factor: -1 is outside 0..=1000",
                "load: 0 is outside 0.01..=1000",
            ]
        );
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let text = format!("{}\nspeed: 3\n", document("steady-2x").unwrap());
        let error = Scenario::parse(&text).unwrap_err().to_string();
        assert!(error.contains("unknown field `speed`"), "{error}");
    }
}
