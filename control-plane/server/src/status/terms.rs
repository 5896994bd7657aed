//! What the terms of a pool's saturation are measured against.

use std::collections::BTreeMap;

use headgate_core::overload::{EngineSample, OverloadState, Term, Work, engine_queue_reference};
use headgate_core::policy::OverloadConfig;
use headgate_core::time::Timestamp;
use serde::{Deserialize, Serialize};

/// A term against its threshold. The term is 1 where what it measures is at the threshold; while something is cut off, the terms of work
/// also grow with what is asked for beyond it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TermStatus {
    /// What is measured, in `unit`; absent where it has several parts.
    pub value: Option<f64>,
    /// Where the term is 1, in `unit`; absent while it is unbounded or unknown.
    pub threshold: Option<f64>,
    /// `tokens`, `%`, `streams`, `requests`, `ms` or, of the levels, parts of their own thresholds: `1`.
    pub unit: String,
    /// Who says so: `filters` or `engines`.
    pub source: String,
    /// Age of what the engines said, in milliseconds; absent for what the filters report, every 100 ms.
    pub age_ms: Option<u64>,
}

/// Every term, by name. `sample` is what the controller was given of the engines, none of it while they are stale.
pub(super) fn of(
    now: Timestamp,
    state: &OverloadState,
    config: &OverloadConfig,
    work: Work,
    sample: Option<&EngineSample>,
) -> BTreeMap<String, TermStatus> {
    Term::ALL.into_iter().map(|term| (term.as_str().to_owned(), one(now, term, state, config, work, sample))).collect()
}

fn one(
    now: Timestamp,
    term: Term,
    state: &OverloadState,
    config: &OverloadConfig,
    work: Work,
    sample: Option<&EngineSample>,
) -> TermStatus {
    let budgets = &state.budgets;
    let filters = |value: Option<f64>, threshold: Option<f64>, unit: &str| TermStatus {
        value,
        threshold,
        unit: unit.to_owned(),
        source: "filters".to_owned(),
        age_ms: None,
    };
    let engines = |value: f64, threshold: f64, unit: &str| TermStatus {
        source: "engines".to_owned(),
        age_ms: sample.map(|sample| u64::try_from(now.since(sample.at).as_millis()).unwrap_or(u64::MAX)),
        ..filters(Some(value), Some(threshold), unit)
    };
    let of_budget = |used: u64, budget: Option<u64>, unit| filters(Some(used as f64), budget.map(|budget| budget as f64), unit);
    let millis = |time: std::time::Duration| time.as_secs_f64() * 1000.0;
    let ratio = state.saturation.term(term);
    match (term, sample) {
        (Term::Prefill, _) => of_budget(work.prefill_tokens, budgets.prefill_tokens, "tokens"),
        (Term::Kv, Some(sample)) if sample.kv_total_tokens > 0 => {
            let used = 100.0 * sample.kv_used_tokens as f64 / sample.kv_total_tokens as f64;
            engines(used, f64::from(config.kv_target_percent), "%")
        }
        (Term::Kv, _) => of_budget(work.kv_tokens, budgets.kv_tokens, "tokens"),
        (Term::Decode, _) => of_budget(work.streams, budgets.streams, "streams"),
        (Term::EngineQueue, Some(sample)) => engines(sample.waiting as f64, engine_queue_reference(sample), "requests"),
        (Term::EngineQueue, None) => TermStatus { source: "engines".to_owned(), ..filters(None, None, "requests") },
        // The wait and the service, less what a request takes that waits for nobody, against what that leaves of the objective.
        (Term::Ttft, _) => filters(None, Some(millis(config.ttft_slo)), "ms"),
        (Term::Tpot, _) => {
            let objective = millis(config.tpot_slo);
            let value = (ratio > 0.0).then_some(ratio * objective);
            match value.filter(|_| state.tpot_is_engines) {
                Some(value) => engines(value, objective, "ms"),
                None => filters(value, Some(objective), "ms"),
            }
        }
        (Term::Level, _) => filters(Some(ratio), Some(1.0), "1"),
    }
}

#[cfg(test)]
mod tests {
    use headgate_core::overload::{Budgets, Saturation};
    use std::time::Duration;

    use super::*;

    fn sample() -> EngineSample {
        EngineSample {
            at: Timestamp::from_millis(960),
            kv_used_tokens: 1200,
            kv_total_tokens: 2000,
            running: 400,
            waiting: 7,
            engines: 2,
            ..EngineSample::default()
        }
    }

    fn state() -> OverloadState {
        let mut saturation = Saturation::NONE;
        saturation.terms.iter_mut().for_each(|(_, value)| *value = 0.5);
        let budgets = Budgets { prefill_tokens: Some(4000), kv_tokens: Some(900), streams: None };
        OverloadState { budgets, saturation, sample_epoch: 7, ..OverloadState::from_wire(&headgate_protos::v1::OverloadLimits::default()) }
    }

    #[test]
    fn every_term_has_what_it_measures_and_where_it_is_one() {
        let config = OverloadConfig { tpot_slo: Duration::from_millis(80), kv_target_percent: 90, ..OverloadConfig::default() };
        let work = Work { prefill_tokens: 1000, kv_tokens: 450, streams: 3 };
        let of = |sample: Option<&EngineSample>| of(Timestamp::from_millis(1000), &state(), &config, work, sample);
        let terms = of(Some(&sample()));
        let seen = |name: &str| (terms[name].value, terms[name].threshold, &*terms[name].unit, &*terms[name].source);
        assert_eq!(terms.len(), Term::COUNT);
        assert_eq!(seen("prefill"), (Some(1000.0), Some(4000.0), "tokens", "filters"));
        assert_eq!(seen("kv"), (Some(60.0), Some(90.0), "%", "engines"));
        assert_eq!(seen("decode"), (Some(3.0), None, "streams", "filters"));
        // A twentieth of the 400 that run is more than five an engine.
        assert_eq!(seen("engine_queue"), (Some(7.0), Some(20.0), "requests", "engines"));
        assert_eq!(terms["engine_queue"].age_ms, Some(40));
        assert_eq!(seen("ttft"), (None, Some(2000.0), "ms", "filters"));
        assert_eq!(seen("tpot"), (Some(40.0), Some(80.0), "ms", "filters"));
        assert_eq!(seen("level"), (Some(0.5), Some(1.0), "1", "filters"));
        let by_engines =
            super::of(Timestamp::from_millis(1000), &OverloadState { tpot_is_engines: true, ..state() }, &config, work, Some(&sample()));
        let tpot = &by_engines["tpot"];
        assert_eq!((tpot.value, &*tpot.source, tpot.age_ms), (Some(40.0), "engines", Some(40)), "what the filters do not tell");
        let blind = of(None);
        assert_eq!((blind["kv"].value, blind["kv"].threshold, &*blind["kv"].source), (Some(450.0), Some(900.0), "filters"));
        assert_eq!((blind["engine_queue"].value, blind["engine_queue"].threshold), (None, None));
    }
}
