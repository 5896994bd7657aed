//! What is stored and not at work: a policy that matches nothing, a pool that nobody measures, a signal that is stale, a proxy on an old
//! version. Nothing of that is an error anywhere, so each raises an alarm, until it is over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use headgate_core::fleet::{PoolControlView, PoolView};
use headgate_core::level::{LevelKind, LevelState};
use headgate_core::time::Timestamp;

use crate::control_loop::ControlView;
use crate::engine::{EngineView, PoolEngines};
use crate::fleet::{PolicySet, Proxies};

/// Time without any request after which a policy matches no traffic.
const WITHOUT_TRAFFIC: Duration = Duration::from_secs(60);
/// Time that telemetry has to come, and a push to reach the proxies, before it is missed.
const GRACE: Duration = Duration::from_secs(5);
/// Time for which a signal that comes late is not called stale.
const LATE: Duration = Duration::from_secs(1);

/// What can be wrong without being an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlarmKind {
    /// No request has come for the policy for a minute.
    PolicyWithoutTraffic,
    /// The policy looks at GPU memory or engines, and neither can be read.
    PoolWithoutTelemetry,
    /// A level or an engine was read before, and what is known of it is too old to decide on, or stands still.
    StaleSignal,
    /// A proxy has not had the policy's version in force for 5 s.
    ProxyBehind,
    /// The policy is a candidate that was aborted: what it was to bring is not in force.
    CandidateAborted,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// What.
    pub kind: AlarmKind,
    /// With which policy.
    pub policy: String,
    /// Its pool, as its books are called.
    pub pool: String,
    /// Since when.
    pub since: Timestamp,
    /// For people.
    pub text: String,
}

/// One policy as the control loop sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicySeen {
    /// Its name.
    pub policy: String,
    /// Its version.
    pub version: String,
    /// Its pool, as its books are called.
    pub pool: String,
    /// Requests that arrived for it; only grows.
    pub offered: u64,
    /// Why nothing is known of GPUs and engines at which it looks; `None` when something is, or it looks at none.
    pub untold: Option<String>,
    /// Signals that are stale.
    pub stale: Vec<String>,
    /// Proxies that do not have its version.
    pub behind: u32,
    /// Proxies that refuse it.
    pub refused: usize,
    /// Why it was aborted, if it is a candidate that was.
    pub halted: Option<String>,
}

/// Watches for it.
#[derive(Debug, Default)]
pub struct Alarms {
    /// Since when a condition holds.
    since: BTreeMap<(AlarmKind, String), Timestamp>,
    /// Of each policy the version, the requests that had come, and when the last of them did.
    traffic: BTreeMap<String, (String, u64, Timestamp)>,
}

// === impl AlarmKind ===

impl AlarmKind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::PolicyWithoutTraffic, Self::PoolWithoutTelemetry, Self::StaleSignal, Self::ProxyBehind, Self::CandidateAborted];

    /// Its name in metrics and status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PolicyWithoutTraffic => "policy_without_traffic",
            Self::PoolWithoutTelemetry => "pool_without_telemetry",
            Self::StaleSignal => "stale_signal",
            Self::ProxyBehind => "proxy_behind",
            Self::CandidateAborted => "candidate_aborted",
        }
    }

    /// How long a condition must hold to be one.
    const fn patience(self) -> Duration {
        match self {
            Self::PolicyWithoutTraffic => WITHOUT_TRAFFIC,
            Self::PoolWithoutTelemetry | Self::ProxyBehind => GRACE,
            Self::StaleSignal => LATE,
            Self::CandidateAborted => Duration::ZERO,
        }
    }
}

// === impl Alarms ===

impl Alarms {
    /// What is wrong now; every second or so.
    pub fn step(&mut self, now: Timestamp, policies: &[PolicySeen]) -> Vec<Alarm> {
        let names: BTreeSet<&str> = policies.iter().map(|seen| seen.policy.as_str()).collect();
        self.traffic.retain(|policy, _| names.contains(policy.as_str()));
        let mut raised = Vec::new();
        let mut since = BTreeMap::new();
        for seen in policies {
            for (kind, began, text) in self.conditions(now, seen) {
                let key = (kind, seen.policy.clone());
                let began = began.unwrap_or_else(|| self.since.get(&key).copied().unwrap_or(now));
                since.insert(key, began);
                if now.since(began) >= kind.patience() {
                    raised.push(Alarm { kind, policy: seen.policy.clone(), pool: seen.pool.clone(), since: began, text });
                }
            }
        }
        self.since = since;
        raised
    }

    /// The conditions that hold now; with the time since when, where that is known.
    fn conditions(&mut self, now: Timestamp, seen: &PolicySeen) -> Vec<(AlarmKind, Option<Timestamp>, String)> {
        if let Some(reason) = &seen.halted {
            return vec![(AlarmKind::CandidateAborted, None, reason.clone())];
        }
        let quiet_since = self.quiet_since(now, seen);
        let mut conditions = vec![(
            AlarmKind::PolicyWithoutTraffic,
            Some(quiet_since),
            format!("no request has come for {} s; do its routes match any?", now.since(quiet_since).as_secs()),
        )];
        conditions.extend(seen.untold.clone().map(|text| (AlarmKind::PoolWithoutTelemetry, None, text)));
        if !seen.stale.is_empty() {
            conditions.push((AlarmKind::StaleSignal, None, seen.stale.join("; ")));
        }
        if seen.behind > 0 {
            let text = format!("{} proxies lack version {}; {} refuse it", seen.behind, seen.version, seen.refused);
            conditions.push((AlarmKind::ProxyBehind, None, text));
        }
        conditions
    }

    /// When the last request came for a policy; a version that is new has as long as any to get its first.
    fn quiet_since(&mut self, now: Timestamp, seen: &PolicySeen) -> Timestamp {
        match self.traffic.get(&seen.policy) {
            Some((version, offered, at)) if *version == seen.version && *offered == seen.offered => *at,
            _ => {
                self.traffic.insert(seen.policy.clone(), (seen.version.clone(), seen.offered, now));
                now
            }
        }
    }
}

// === impl PolicySeen ===

impl PolicySeen {
    /// The policy of each pool in `view`, with what proxies and books tell of it.
    pub fn all(view: &ControlView, loads: &BTreeMap<String, PoolView>, policies: &PolicySet, proxies: &Proxies) -> Vec<Self> {
        let seen = |(pool, control): (&String, &PoolControlView)| {
            let policy = policies.policies.get(&control.policy).map(|stored| &stored.policy);
            let reach = policy.map(|policy| proxies.reach(policy)).unwrap_or_default();
            let candidate = policy.and_then(|policy| policy.spec.as_ref()?.candidate.as_ref());
            let engines = view.engines.get(pool);
            Self {
                policy: control.policy.clone(),
                version: control.version.clone(),
                pool: pool.clone(),
                offered: loads.get(pool).map_or(0, |load| load.classes.iter().map(|class| class.totals.offered).sum()),
                untold: untold(control, engines, view.memory_sources.get(pool).map(|reason| reason.text()).unwrap_or_default()),
                stale: stale(control, engines),
                behind: reach.proxies_behind,
                refused: reach.rejections.len(),
                halted: candidate.map(|candidate| candidate.halted.clone()).filter(|reason| !reason.is_empty()),
            }
        };
        view.pools.iter().map(seen).collect()
    }
}

/// Why neither GPU memory nor an engine is known to a policy that looks at one of them.
fn untold(control: &PoolControlView, engines: Option<&PoolEngines>, memory_source: String) -> Option<String> {
    let is_known = |state: LevelState| matches!(state, LevelState::Ok | LevelState::Tripped | LevelState::Recovering);
    let memory = control.state.levels.iter().find(|level| level.kind == LevelKind::GpuMemory).map(|level| level.state);
    let looks = memory.is_some_and(|state| state != LevelState::Disabled) || engines.is_some();
    let knows = memory.is_some_and(is_known) || engines.is_some_and(|engines| engines.sample.is_some());
    let text = || if memory_source.is_empty() { String::new() } else { format!(" (GPU memory: {memory_source})") };
    (looks && !knows).then(|| format!("neither GPU memory nor any engine can be read{}", text()))
}

/// The signals that were known and are too old, or stand still.
fn stale(control: &PoolControlView, engines: Option<&PoolEngines>) -> Vec<String> {
    let levels = control.state.levels.iter().filter(|level| level.state == LevelState::Stale);
    let level = levels.map(|level| format!("{} is {:.1} s old", level.kind.as_str(), level.age.as_secs_f64()));
    let is_bad = |engine: &&EngineView| engine.age.is_some() && engine.word() != "ok";
    let engines = engines.map_or(&[][..], |engines| &engines.engines).iter().filter(is_bad);
    level.chain(engines.map(|engine| format!("engine {} is {}", engine.url, engine.word()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> PolicySeen {
        PolicySeen { policy: "demo".to_owned(), version: "1".to_owned(), pool: "llm".to_owned(), ..PolicySeen::default() }
    }

    /// The alarms after each of `steps`: the second at which it is, and what is seen.
    fn raised(steps: &[(u64, PolicySeen)]) -> Vec<Vec<(&'static str, u64)>> {
        let mut alarms = Alarms::default();
        let at = |seconds: u64| Timestamp::from_millis(seconds * 1000);
        let told = |alarm: &Alarm| (alarm.kind.as_str(), alarm.since.as_nanos() / 1_000_000_000);
        steps.iter().map(|(second, seen)| alarms.step(at(*second), std::slice::from_ref(seen)).iter().map(told).collect()).collect()
    }

    #[test]
    fn a_policy_that_no_request_matches_is_told_after_a_minute_and_until_one_does() {
        let with = |offered: u64| PolicySeen { offered, ..seen() };
        let steps = [(0, with(0)), (59, with(0)), (60, with(0)), (61, with(1)), (62, with(1)), (121, with(1))];
        let alarm = "policy_without_traffic";
        assert_eq!(raised(&steps), [vec![], vec![], vec![(alarm, 0)], vec![], vec![], vec![(alarm, 61)]]);
    }

    #[test]
    fn a_new_version_has_a_minute_of_its_own() {
        let next = || PolicySeen { version: "2".to_owned(), ..seen() };
        assert_eq!(raised(&[(0, seen()), (50, next()), (109, next()), (110, next())]).concat(), [("policy_without_traffic", 50)]);
    }

    #[test]
    fn what_holds_for_a_moment_raises_nothing_and_what_lasts_is_told_until_it_is_over() {
        let traffic = |second: u64| PolicySeen { offered: second, ..seen() };
        for (alarm, patience) in [("pool_without_telemetry", 5), ("stale_signal", 1), ("proxy_behind", 5)] {
            let bad = |seen: PolicySeen| match alarm {
                "pool_without_telemetry" => PolicySeen { untold: Some("off".to_owned()), ..seen },
                "stale_signal" => PolicySeen { stale: vec!["p99 is 9.0 s old".to_owned()], ..seen },
                _ => PolicySeen { behind: 2, ..seen },
            };
            let end = 10 + patience;
            let steps = [
                (9, bad(traffic(9))),
                (10, traffic(10)),
                (11, bad(traffic(11))),
                (end, bad(traffic(end))),
                (end + 1, bad(traffic(end + 1))),
                (end + 2, traffic(end + 2)),
            ];
            // The second at 10 breaks what began at 9.
            let expected = [vec![], vec![], vec![], vec![], vec![(alarm, 11)], vec![]];
            assert_eq!(raised(&steps), expected, "{alarm}");
        }
    }

    #[test]
    fn a_candidate_that_was_aborted_is_told_at_once_with_the_reason_and_nothing_else_is_missed_of_it() {
        let halted = || PolicySeen { halted: Some("class low: worse".to_owned()), behind: 3, ..seen() };
        let steps = [(0, seen()), (10, halted()), (100, halted()), (101, seen())];
        let alarm = "candidate_aborted";
        assert_eq!(raised(&steps), [vec![], vec![(alarm, 10)], vec![(alarm, 10)], vec![("policy_without_traffic", 0)]]);
    }

    #[test]
    fn a_policy_that_is_gone_takes_its_alarms_along() {
        let mut alarms = Alarms::default();
        alarms.step(Timestamp::ZERO, &[seen()]);
        assert_eq!(alarms.step(Timestamp::from_millis(60_000), &[seen()]).len(), 1);
        assert_eq!(alarms.step(Timestamp::from_millis(61_000), &[]), []);
        assert_eq!(alarms.step(Timestamp::from_millis(62_000), &[seen()]), [], "it comes back with a minute of its own");
    }
}
