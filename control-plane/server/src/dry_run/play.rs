//! The control loop over recorded signals.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use headgate_core::control::ClassAction;
use headgate_core::fleet::{PolicySet, PoolControlView, PoolView, Ring, Shares, StepInputs, StoredPolicy};
use headgate_core::level::{GpuMemorySample, LevelKind};
use headgate_core::policy::GpuMemoryConfig;
use headgate_protos::v1;

use super::tape::Frame;

/// What a policy did over the frames.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Course {
    /// Length of what was played.
    pub window: Duration,
    /// Its classes, in its order.
    pub classes: Vec<ClassCourse>,
    /// The levels.
    pub levels: Vec<LevelCourse>,
}

/// One class.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClassCourse {
    /// Its name.
    pub class: String,
    /// Requests that arrived.
    pub offered: u64,
    /// Of those, refused as it really happened.
    pub refused: u64,
    /// Of those, refused by the limits that were computed when played: `Σ offered · part`, a mean and so no whole number.
    pub refused_when_played: f64,
}

/// One level.
#[derive(Clone, Debug, PartialEq)]
pub struct LevelCourse {
    /// Which.
    pub kind: LevelKind,
    /// Time for which it acted.
    pub acted: Duration,
    /// Greatest value, and the threshold at that time, in the unit of the kind.
    pub peak: (f64, f64),
}

/// Plays `frames` to the control loop with `policy` alone in force, which must be valid and no candidate. The first frame has what was
/// learned before; what was learned of the pool stays where the policy does not change it, as it would if the policy were applied.
///
/// What a class is refused between two frames is what the earlier one decided: all of it, what exceeds its rate, or the part of its cohorts
/// above the cut-off.
pub fn play(frames: &[Arc<Frame>], policy: &v1::Policy) -> Course {
    let pool = policy.spec.as_ref().map_or("", |spec| spec.pool.as_str());
    let Some((first, mut controls)) = frames.first().and_then(|first| Some((first, first.learned.clone()?))) else {
        return Course::default();
    };
    let stored = StoredPolicy { policy: policy.clone(), changed_at_unix_ms: 0 };
    let set = PolicySet { policies: [(policy.name.clone(), Arc::new(stored))].into() };
    controls.set_policies(first.at, 0, &set);
    let (mut course, mut before) = (Course::default(), None::<&Frame>);
    for frame in frames {
        if let Some(before) = before.replace(frame) {
            let view = controls.views().remove(pool);
            course.add(frame.at.since(before.at), view.as_ref(), before.loads.get(pool), frame.loads.get(pool));
        }
        let gpu_memory = |pool: &str, _: &GpuMemoryConfig| -> Option<GpuMemorySample> { frame.gpu_memory.get(pool).copied() };
        let capacity = |pool: &str, _: &GpuMemoryConfig| frame.capacity.get(pool).copied().unwrap_or(1.0);
        let engines = |pool: &str| frame.engines.get(pool).copied();
        let shares = |_: &str| Shares::default();
        let inputs = StepInputs {
            loads: &frame.loads,
            gpu_memory: &gpu_memory,
            capacity: &capacity,
            engines: &engines,
            // Where requests would have gone is no part of what is said.
            rings: &|_| Ring::default(),
            shares: &shares,
        };
        controls.step(frame.at, &inputs);
    }
    course
}

// === impl Course ===

impl Course {
    /// The class of that name.
    pub(super) fn class(&self, name: &str) -> Option<&ClassCourse> {
        self.classes.iter().find(|class| class.class == name)
    }

    /// Adds the requests that arrived in `time` under what `view` decided.
    fn add(&mut self, time: Duration, view: Option<&PoolControlView>, before: Option<&PoolView>, now: Option<&PoolView>) {
        self.window += time;
        let Some(view) = view else { return };
        if self.classes.is_empty() {
            let fresh = |class: &str| ClassCourse { class: class.to_owned(), ..ClassCourse::default() };
            self.classes = view.state.classes.iter().map(|decision| fresh(&decision.class)).collect();
            let levels = view.state.levels.iter();
            self.levels = levels.map(|level| LevelCourse { kind: level.kind, acted: Duration::ZERO, peak: (0.0, 0.0) }).collect();
        }
        for (course, level) in self.levels.iter_mut().zip(&view.state.levels) {
            if level.acts() {
                course.acted += time;
            }
            if level.value > course.peak.0 {
                course.peak = (level.value, level.threshold);
            }
        }
        let arrived = arrivals(before, now);
        for (index, course) in self.classes.iter_mut().enumerate() {
            let (offered, refused) = arrived.get(course.class.as_str()).copied().unwrap_or_default();
            course.offered += offered;
            course.refused += refused;
            course.refused_when_played += offered as f64 * refused_part(view, index, offered as f64 / time.as_secs_f64());
        }
    }
}

/// Requests of each class that arrived between two frames, and were refused.
fn arrivals<'a>(before: Option<&PoolView>, now: Option<&'a PoolView>) -> BTreeMap<&'a str, (u64, u64)> {
    let totals = |view: Option<&PoolView>, class: &str| {
        let class = view.and_then(|view| view.classes.iter().find(|other| other.class == class));
        class.map_or((0, 0), |class| (class.totals.offered, class.totals.refused.iter().sum::<u64>()))
    };
    let since = |class: &str| {
        let ((offered, refused), (offered_before, refused_before)) = (totals(now, class), totals(before, class));
        (offered.saturating_sub(offered_before), refused.saturating_sub(refused_before))
    };
    now.into_iter().flat_map(|view| &view.classes).map(|class| (class.class.as_str(), since(&class.class))).collect()
}

/// Part of a class's requests that the limits refuse at `rate`, 0 to 1.
fn refused_part(view: &PoolControlView, class: usize, rate: f64) -> f64 {
    let by_levels = match view.state.classes.get(class).map(|decision| decision.action) {
        Some(ClassAction::Throttle { rate_rps, .. }) if rate > rate_rps => 1.0 - rate_rps / rate,
        Some(ClassAction::Refuse) => 1.0,
        Some(ClassAction::Admit | ClassAction::Throttle { .. }) | None => 0.0,
    };
    let by_cut_off = view.overload.as_ref().map_or(0.0, |overload| overload.cut_off.shed_part(class));
    f64::max(by_levels, by_cut_off)
}
