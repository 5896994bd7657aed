//! Enforcement and candidate of a policy.

use alloc::format;
use alloc::string::{String, ToString};

use headgate_protos::v1;

use super::check::{Checker, join};
use super::error::Problem;
use super::stage::{Canary, CanaryPart, RolloutConfig, Stage};
use super::validate::DNS_LABEL;

const MAX_STEPS: usize = 16;
const MAX_HALTED_BYTES: usize = 1024;
const AT: &str = "candidate";

/// The stage of the policy `name`.
pub(super) fn stage(check: &mut Checker, name: &str, enforcement: i32, wire: Option<&v1::Candidate>) -> Stage {
    let is_shadow = match v1::Enforcement::try_from(enforcement) {
        Ok(v1::Enforcement::Unspecified | v1::Enforcement::Enforce) => false,
        Ok(v1::Enforcement::Shadow) => true,
        Err(_) => {
            check.unknown(String::from("enforcement"), &enforcement.to_string(), ["enforce", "shadow"]);
            false
        }
    };
    match wire {
        None if is_shadow => Stage::Watching,
        None => Stage::Acting,
        Some(wire) => candidate(check, name, is_shadow, wire),
    }
}

fn candidate(check: &mut Checker, name: &str, is_shadow: bool, wire: &v1::Candidate) -> Stage {
    let v1::Candidate { of, requests_percent, proxies_percent, rollout, halted } = wire;
    check.text(AT, "of", of, &DNS_LABEL);
    if of == name {
        check.report(join(AT, "of"), Problem::Conflict { got: of.clone(), rule: "a policy is no candidate for itself" });
    }
    check.length(AT, "halted", halted, MAX_HALTED_BYTES);
    let part = part(check, is_shadow, *requests_percent, *proxies_percent);
    let rollout = rollout.as_ref().map(|wire| self::rollout(check, part, wire)).unwrap_or_default();
    let of = of.clone();
    match part {
        None => Stage::WatchingBeside { of },
        Some(part) => Stage::Canary(Canary { of, part, rollout, halted: if halted.is_empty() { None } else { Some(halted.clone()) } }),
    }
}

fn part(check: &mut Checker, is_shadow: bool, requests: Option<u32>, proxies: Option<u32>) -> Option<CanaryPart> {
    let given = usize::from(requests.is_some()) + usize::from(proxies.is_some());
    match (is_shadow, given) {
        (true, 0) => return None,
        (true, _) => {
            let got = String::from("a percentage");
            check.report(String::from(AT), Problem::Conflict { got, rule: "with enforcement shadow it watches every request" });
        }
        (false, 1) => {}
        (false, got) => check.report(String::from(AT), Problem::NotExactlyOne { got, of: "requestsPercent, proxiesPercent" }),
    }
    match (requests, proxies) {
        // What a control plane sends to the proxies that it has chosen is 100; nobody else says so.
        (Some(100), None) => Some(CanaryPart::Requests(100)),
        (Some(_), _) => Some(CanaryPart::Requests(check.whole(AT, "requestsPercent", requests, 1, 1..=99))),
        (None, _) => Some(CanaryPart::Proxies(check.whole(AT, "proxiesPercent", proxies, 1, 1..=99))),
    }
}

fn rollout(check: &mut Checker, part: Option<CanaryPart>, wire: &v1::Rollout) -> RolloutConfig {
    let v1::Rollout { steps, hold_ms, min_samples, confidence_percent, attainment_margin, error_margin, late_margin, auto_promote } = wire;
    let (at, defaults) = ("candidate.rollout", RolloutConfig::default());
    let n_checked = check.count(at, "steps", steps.len(), 0..=MAX_STEPS);
    let mut least = match part {
        Some(CanaryPart::Requests(percent) | CanaryPart::Proxies(percent)) => percent,
        None => 0,
    };
    for (index, step) in steps.iter().take(n_checked).enumerate() {
        let field = format!("steps[{index}]");
        check.whole(at, &field, Some(*step), 1, 1..=99);
        if *step <= least {
            check.report(join(at, &field), Problem::Conflict { got: step.to_string(), rule: "each percentage is above the one before" });
        }
        least = *step;
    }
    let mut margin = |field, got, default| check.number(at, field, got, default, 0.0..=100.0);
    let attainment_margin = margin("attainmentMargin", *attainment_margin, defaults.attainment_margin);
    let error_margin = margin("errorMargin", *error_margin, defaults.error_margin);
    let late_margin = margin("lateMargin", *late_margin, defaults.late_margin);
    RolloutConfig {
        steps: steps.clone(),
        hold: check.millis(at, "holdMs", *hold_ms, defaults.hold, 1000..=604_800_000),
        min_samples: check.whole(at, "minSamples", *min_samples, defaults.min_samples, 30..=100_000_000),
        confidence_percent: check.number(at, "confidencePercent", *confidence_percent, defaults.confidence_percent, 80.0..=99.9999),
        attainment_margin,
        error_margin,
        late_margin,
        auto_promote: *auto_promote,
    }
}
