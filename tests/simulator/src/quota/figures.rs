//! What a run is worth.

use std::time::Duration;

use serde::Serialize;

use super::Scenario;

/// Time after a shift of demand in which grants move.
const SETTLING: Duration = Duration::from_secs(2);
/// What is used of what could be from when on a shift counts as over.
const CONVERGED: f64 = 0.98;

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Capacity, in units per second.
    pub capacity: f64,
    /// The most that was in force above it, in parts of it; 0: never.
    pub overshoot: f64,
    /// The most that was used at once above what the rate and the burst allow, in parts of a second's capacity; 0: never.
    pub used_beyond_burst: f64,
    /// What was used of what could have been, from 2 s after each shift on.
    pub utilisation: f64,
    /// The same in the worst half second.
    pub worst_window: f64,
    /// Seconds after a shift from which on the mean of what follows is at least 0.98; the worst shift. `None`: never.
    pub converged_s: Option<f64>,
    /// Grants a second for each proxy.
    pub grants_per_proxy_per_s: f64,
    /// Events after which it was checked that nothing was passed.
    pub events: u64,
    /// Half a second each.
    #[serde(skip)]
    pub windows: Vec<Window>,
}

/// Half a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Window {
    /// When it begins, in seconds.
    pub at_s: f64,
    /// What was asked for, in units per second.
    pub offered_per_s: f64,
    /// What was used.
    pub used_per_s: f64,
    /// Sum of the leases at its end.
    pub in_force_per_s: f64,
    /// What was used of what could have been: of the capacity, or of what was asked for when that is less.
    pub utilisation: f64,
}

// === impl Figures ===

impl Figures {
    /// What the windows say. A scenario without shifts is judged as if one were at its beginning.
    pub(super) fn of(scenario: &Scenario, windows: Vec<Window>) -> Self {
        let begins: Vec<Duration> = if scenario.shifts.is_empty() { vec![Duration::ZERO] } else { scenario.shifts.clone() };
        let ends = begins.iter().copied().skip(1).chain([scenario.duration]);
        let phase = |(from, to): (&Duration, Duration)| -> Vec<Window> {
            let is_in = |window: &&Window| window.at_s >= from.as_secs_f64() && window.at_s < to.as_secs_f64();
            windows.iter().filter(is_in).copied().collect()
        };
        let phases: Vec<Vec<Window>> = begins.iter().zip(ends).map(phase).collect();
        let is_settled = |(phase, from): (&Vec<Window>, &Duration)| -> Vec<f64> {
            let settled = phase.iter().filter(|window| window.at_s >= (*from + SETTLING).as_secs_f64());
            settled.map(|window| window.utilisation).collect()
        };
        let settled: Vec<f64> = phases.iter().zip(&begins).flat_map(is_settled).collect();
        Self {
            capacity: scenario.capacity(),
            overshoot: 0.0,
            used_beyond_burst: 0.0,
            utilisation: mean(&settled),
            worst_window: settled.iter().copied().fold(f64::INFINITY, f64::min),
            converged_s: phases.iter().map(|phase| converged_s(phase)).try_fold(0.0, |worst: f64, at| at.map(|at| worst.max(at))),
            grants_per_proxy_per_s: 0.0,
            events: 0,
            windows,
        }
    }
}

/// Seconds from the beginning of a phase until the mean of all windows that follow is [`CONVERGED`].
fn converged_s(phase: &[Window]) -> Option<f64> {
    let utilisation: Vec<f64> = phase.iter().map(|window| window.utilisation).collect();
    let at = (0..utilisation.len()).find(|at| mean(&utilisation[*at..]) >= CONVERGED)?;
    Some(phase[at].at_s - phase[0].at_s)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / (values.len() as f64).max(1.0)
}
