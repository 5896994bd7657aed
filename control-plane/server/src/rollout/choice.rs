//! Which proxies a policy is for, and in which form they are told it.

use std::borrow::Cow;

use headgate_protos::v1;
use ring::digest;

/// Whether the proxy `node_id` is told the policy: all are, but for a candidate that was halted, or that is tried in a part of the proxies.
///
/// A proxy's place in the order is a hash of the candidate's name and its `node.id`: the same on every replica and after every restart,
/// and a higher percentage takes no proxy out again.
#[must_use]
pub fn has_candidate(policy: &v1::Policy, node_id: &str) -> bool {
    let Some(candidate) = candidate(policy) else { return true };
    if !candidate.halted.is_empty() {
        return false;
    }
    candidate.proxies_percent.is_none_or(|percent| place(&policy.name, node_id) * 100.0 < f64::from(percent))
}

/// The policy as the proxies that have it are told it: a candidate that is tried in a part of them governs every request there, and how it
/// goes on is not their business.
#[must_use]
pub fn told_to(policy: &v1::Policy) -> Cow<'_, v1::Policy> {
    if candidate(policy).is_none() {
        return Cow::Borrowed(policy);
    }
    let mut told = policy.clone();
    if let Some(candidate) = told.spec.as_mut().and_then(|spec| spec.candidate.as_mut()) {
        candidate.rollout = None;
        if candidate.proxies_percent.take().is_some() {
            candidate.requests_percent = Some(100);
        }
    }
    Cow::Owned(told)
}

fn candidate(policy: &v1::Policy) -> Option<&v1::Candidate> {
    policy.spec.as_ref()?.candidate.as_ref()
}

/// A number in `0.0..1.0`.
fn place(candidate: &str, node_id: &str) -> f64 {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [candidate, "\0", node_id] {
        context.update(part.as_bytes());
    }
    let bits = context.finish().as_ref().iter().take(4).fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
    f64::from(bits) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use headgate_core::policy::Policy;

    use super::*;
    use crate::document::CheckedPolicy;

    fn candidate(part: &str) -> v1::Policy {
        let text = format!(
            "{{apiVersion: headgate.dev/v1, kind: AdmissionPolicy, metadata: {{name: next}}, spec: {{pool: llm, \
             classes: [{{name: low, whenTripped: refuse}}], candidate: {{of: demo, {part}}}}}}}"
        );
        CheckedPolicy::from_document(&text).unwrap().wire().clone()
    }

    #[test]
    fn a_part_of_the_proxies_has_the_candidate_and_keeps_it_as_the_part_grows() {
        let ids: Vec<String> = (0..2000).map(|n| format!("edge-{n}")).collect();
        let chosen = |percent: u32| -> Vec<&String> {
            let policy = candidate(&format!("proxiesPercent: {percent}"));
            ids.iter().filter(|id| has_candidate(&policy, id)).collect()
        };
        let (few, more) = (chosen(10), chosen(30));
        // 200 and 600 are expected with standard deviations of 13 and 20.
        assert!((140..=260).contains(&few.len()) && (510..=690).contains(&more.len()), "{} {}", few.len(), more.len());
        assert!(few.iter().all(|id| more.contains(id)));
    }

    #[test]
    fn every_proxy_has_what_is_tried_on_a_part_of_the_requests_and_none_what_was_halted() {
        assert!(has_candidate(&candidate("requestsPercent: 1"), "any"));
        assert!(!has_candidate(&candidate("requestsPercent: 99, halted: worse"), "any"));
    }

    #[test]
    fn a_chosen_proxy_is_told_to_govern_all_by_the_version_that_is_stored() {
        let policy = candidate("proxiesPercent: 10, rollout: {steps: [20]}");
        let told = told_to(&policy);
        let read = Policy::try_from_wire(&told).unwrap();
        assert_eq!((read.stage().requests_percent(), read.version()), (Some(100), policy.version.as_str()));
    }
}
