//! Never starve (`design.md`, invariant 8): no engine idles while enough work waits for it.

use std::time::Duration;

use headgate_core::policy::Policy;
use headgate_core::time::Timestamp;

/// How long an engine may idle while work waits: one that is back, seen by a reading, filled with what its cold part of the budgets lets
/// through, one prompt after another, and its part of the ring: no step longer than those of the others. With budgets that all start anew it
/// is half a second more.
const LONGEST: Duration = Duration::from_millis(1400);
/// An engine idles when it has no more than this part of the requests that the engines have on average.
const IDLE_PART: f64 = 0.1;

/// Watches the engines, once every step of the control loop.
pub(super) struct Hunger {
    /// Whether the policy lets nothing wait but for want of a place: neither `maxInFlight` nor a rung of the ladder.
    is_judged: bool,
    /// By engine, since when it has idled while work waited.
    since: Vec<Option<Timestamp>>,
}

// === impl Hunger ===

impl Hunger {
    pub(super) fn new(policy: &Policy) -> Self {
        let holds_back = policy.concurrency().is_some() || policy.overload().is_none_or(|overload| !overload.ladder.is_empty());
        Self { is_judged: !holds_back, since: Vec::new() }
    }

    /// Takes a look: `waiting` requests wait in all proxies, `outstanding` says of every engine how many it has, `None` of one that is
    /// lost. With fewer requests than engines an engine may idle, since a worker that has one request has one place for it.
    ///
    /// # Errors
    /// An engine has idled for too long.
    pub(super) fn look(&mut self, now: Timestamp, waiting: u32, outstanding: impl Iterator<Item = Option<u32>>) -> Result<(), String> {
        let engines: Vec<Option<u32>> = outstanding.collect();
        let is_work = self.is_judged && waiting as usize >= engines.len();
        let sum: u32 = engines.iter().flatten().sum();
        let few = IDLE_PART * f64::from(sum) / engines.iter().flatten().count().max(1) as f64;
        self.since.resize(engines.len(), None);
        let mut found = Ok(());
        for (engine, (since, outstanding)) in self.since.iter_mut().zip(engines).enumerate() {
            let idles = is_work && outstanding.is_some_and(|outstanding| f64::from(outstanding) <= few);
            *since = since.or(Some(now)).filter(|_| idles);
            let passed = since.map_or(Duration::ZERO, |since| now.since(since));
            if passed > LONGEST {
                found = Err(format!("engine {engine} has idled for {} ms while {waiting} requests wait", passed.as_millis()));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headgate::default_policy;
    use crate::setup::Setup;

    fn hunger(change: impl FnOnce(&mut headgate_protos::v1::PolicySpec)) -> Hunger {
        let mut policy = default_policy(&Setup::default());
        change(policy.spec.as_mut().unwrap());
        "1".clone_into(&mut policy.version);
        Hunger::new(&Policy::try_from_wire(&policy).unwrap())
    }

    /// Looks at two engines every 100 ms for 3 s: the first has 100 requests, the second as many as `second` says; whether anything
    /// was found.
    fn finds(mut hunger: Hunger, waiting: u32, second: impl Fn(u64) -> Option<u32>) -> bool {
        let look = |tenth| hunger.look(Timestamp::from_millis(100 * tenth), waiting, [Some(100), second(tenth)].into_iter());
        let mut looks = (0..30).map(look);
        looks.any(|look| look.is_err())
    }

    #[test]
    fn an_engine_that_idles_while_work_waits_is_found() {
        assert!(finds(hunger(|_| {}), 2, |_| Some(5)));
        assert!(!finds(hunger(|_| {}), 2, |_| Some(6)), "more than a tenth of 53");
        assert!(!finds(hunger(|_| {}), 1, |_| Some(0)), "fewer requests than engines");
        assert!(!finds(hunger(|_| {}), 2, |_| None), "it is lost");
        let busy_every = |tenths: u64| move |tenth: u64| Some(if tenth.is_multiple_of(tenths) { 100 } else { 0 });
        assert!(!finds(hunger(|_| {}), 2, busy_every(15)), "never for long");
        assert!(finds(hunger(|_| {}), 2, busy_every(17)));
    }

    #[test]
    fn a_pool_that_idles_as_a_whole_is_found() {
        let mut hunger = hunger(|_| {});
        let mut looks = (0..30).map(|tenth| hunger.look(Timestamp::from_millis(100 * tenth), 2, [Some(0), Some(0)].into_iter()));
        assert!(looks.any(|look| look.is_err()));
    }

    #[test]
    fn a_policy_that_holds_back_is_not_judged() {
        let most = headgate_protos::v1::Concurrency { max_in_flight: 5 };
        assert!(!finds(hunger(|spec| spec.concurrency = Some(most)), 100, |_| Some(0)));
    }
}
