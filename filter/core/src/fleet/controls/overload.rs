//! Overload control of one pool within the control loop: its signals, its controller, and what each proxy is told of it.

use alloc::sync::Arc;
use core::time::Duration;

use headgate_protos::v1;

use crate::aperture::Extent;
use crate::control::{ClassAction, PoolState};
use crate::fleet::{FleetServed, PoolView, ProxyShare, Ring};
use crate::level::{LevelState, LevelStatus};
use crate::overload::{Budgets, EngineSample, Flow, OverloadController, OverloadSignals, OverloadState, Work};
use crate::policy::Policy;
use crate::time::Timestamp;

/// Overload control of one pool.
#[derive(Clone)]
pub(super) struct PoolOverload {
    controller: OverloadController,
    /// Most engines that were read at once.
    engines: u32,
    fewer: Option<Fewer>,
    /// Whom work was served, as the proxies have been told.
    told: Option<Arc<FleetServed>>,
}

/// A time with fewer engines than there were.
#[derive(Clone, Copy)]
struct Fewer {
    since: Timestamp,
    /// The fewest of it.
    engines: u32,
}

/// Absence after which an engine that is back starts cold. A shorter one is a page that came late.
const AWAY: Duration = Duration::from_secs(5);

/// What the proxies are told of overload control.
#[derive(Clone, Debug, PartialEq)]
pub struct OverloadPush {
    /// The state of the whole fleet.
    pub state: Arc<OverloadState>,
    /// The work of a usual request. No budget is so small a part that this does not fit: a proxy that may admit nothing can tell
    /// nobody that it is asked for something. All proxies together may exceed the budgets by this much each.
    pub least: Work,
    /// The engines, when the filters pick them; else none.
    pub ring: Arc<Ring>,
    /// Whom work was served lately, when that is news.
    pub served: Option<Arc<FleetServed>>,
}

// === impl PoolOverload ===

impl PoolOverload {
    /// For a policy that asks for it.
    pub(super) fn of(now: Timestamp, policy: &Policy) -> Option<Self> {
        policy.overload().map(|_| Self { controller: OverloadController::new(now, policy), engines: 0, fewer: None, told: None })
    }

    pub(super) fn set_policy(&mut self, now: Timestamp, policy: &Policy) {
        // The policy may name other engines.
        (self.engines, self.fewer) = (0, None);
        self.controller.set_policy(now, policy);
    }

    pub(super) fn step(&mut self, now: Timestamp, load: &PoolView, engine: Option<EngineSample>, levels: &[LevelStatus; 3]) {
        self.note_engines(now, engine.map_or(0, |sample| sample.engines));
        let nothing = Flow::default();
        let flow = load.flow.as_ref().unwrap_or(&nothing);
        // The books only grow while this program runs.
        self.controller.step(now, &OverloadSignals { series: 0, flow, engine, level_pressure: level_pressure(levels) });
    }

    /// An engine that was away and is back gets its work little by little; the others go on as they are.
    fn note_engines(&mut self, now: Timestamp, engines: u32) {
        if engines < self.engines {
            let fewest = self.fewer.map_or(engines, |fewer| fewer.engines.min(engines));
            self.fewer = Some(Fewer { since: self.fewer.map_or(now, |fewer| fewer.since), engines: fewest });
            return;
        }
        self.engines = engines;
        if let Some(fewer) = self.fewer.take().filter(|fewer| now.since(fewer.since) >= AWAY) {
            let back = engines.saturating_sub(fewer.engines);
            self.controller.begin_slow_start(now, f64::from(back) / f64::from(engines.max(1)));
        }
    }

    pub(super) fn state(&self) -> &OverloadState {
        self.controller.state()
    }

    /// What the proxies are told. `able` is a factor on what depends on the devices' speed: not on the KV cache, which is there or not.
    pub(super) fn push(&self, load: &PoolView, able: f64, ring: Ring) -> OverloadPush {
        let mut state = self.state().clone();
        for budgets in [&mut state.budgets, &mut state.safe_budgets] {
            let part = |bound: Option<u64>| bound.map(|bound| (bound as f64 * able) as u64);
            (budgets.prefill_tokens, budgets.streams) = (part(budgets.prefill_tokens), part(budgets.streams));
        }
        state.drain_work_per_s *= able;
        let is_news = |served: &Arc<FleetServed>| self.told.as_ref().is_none_or(|told| !Arc::ptr_eq(told, served));
        let served = load.served.clone().filter(is_news);
        OverloadPush { state: Arc::new(state), least: usual_request(load), ring: Arc::new(ring), served }
    }

    /// Notes what was pushed.
    pub(super) fn pushed(&mut self, push: &OverloadPush) {
        self.told = push.served.clone().or(self.told.take());
    }
}

// === impl OverloadPush ===

impl OverloadPush {
    /// All of it, as replicas pass it on.
    pub(in crate::fleet) fn whole(&self) -> v1::OverloadLimits {
        self.part(1.0, 1.0, Extent::WHOLE)
    }

    fn part(&self, rate: f64, safe: f64, aperture: Extent) -> v1::OverloadLimits {
        let mut limits = self.state.to_wire(rate, safe);
        self.ring.write(aperture, &mut limits);
        if let Some(served) = &self.served {
            served.write(&mut limits);
        }
        limits
    }

    /// One proxy's part.
    #[must_use]
    pub fn for_share(&self, share: ProxyShare) -> v1::OverloadLimits {
        let mut limits = self.part(share.rate, share.safe, share.aperture);
        limits.budgets = Some(at_least(Budgets::from_wire(limits.budgets.as_ref()), &self.state.budgets, self.least).to_wire());
        limits.safe_budgets =
            Some(at_least(Budgets::from_wire(limits.safe_budgets.as_ref()), &self.state.safe_budgets, self.least).to_wire());
        limits
    }
}

/// Raises each bound of `part` to `least`, but never above the whole.
fn at_least(part: Budgets, whole: &Budgets, least: Work) -> Budgets {
    let raise = |part: Option<u64>, whole: Option<u64>, least: u64| Some(part?.max(least.min(whole?)));
    Budgets {
        prefill_tokens: raise(part.prefill_tokens, whole.prefill_tokens, least.prefill_tokens),
        kv_tokens: raise(part.kv_tokens, whole.kv_tokens, least.kv_tokens),
        streams: raise(part.streams, whole.streams, 1),
    }
}

/// Twice the mean of what was admitted: most requests fit. Nothing while none was.
fn usual_request(load: &PoolView) -> Work {
    let Some(admitted) = load.flow.as_ref().map(|flow| flow.admitted).filter(|admitted| admitted.streams > 0) else { return Work::NONE };
    let twice_mean = |sum: u64| (sum / admitted.streams).saturating_mul(2);
    Work { prefill_tokens: twice_mean(admitted.prefill_tokens), kv_tokens: twice_mean(admitted.kv_tokens), streams: 1 }
}

/// The largest `value / threshold` of the levels that know both.
fn level_pressure(levels: &[LevelStatus; 3]) -> f64 {
    let knows = |level: &&LevelStatus| !matches!(level.state, LevelState::Disabled | LevelState::Learning | LevelState::Stale);
    levels.iter().filter(knows).map(LevelStatus::pressure).fold(0.0, f64::max)
}

/// Under overload control the levels are terms of the saturation and act on no class themselves.
pub(super) fn release_classes(limits: &mut v1::Limits) {
    for class in &mut limits.classes {
        class.action = v1::ClassAction::Admit.into();
        (class.rate_rps, class.burst) = (0.0, 0.0);
        class.because = v1::LevelKind::Unspecified.into();
    }
}

/// The same for people.
pub(super) fn with_released_classes(state: &PoolState) -> PoolState {
    let mut state = state.clone();
    for class in &mut state.classes {
        (class.action, class.because, class.fraction) = (ClassAction::Admit, None, 1.0);
    }
    state
}
