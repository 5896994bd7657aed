//! Who takes part, by name.

use headgate_protos::v1;

use crate::baselines::{
    Cinnamon, DagorFleet, EnvoyAdmission, EnvoyGradient, LlmD, NetflixGradient2, NoControl, StaticBucket, ThreeLevelFleet,
};
use crate::controller::Controller;
use crate::headgate::{Headgate, PolicyError, default_policy};
use crate::oracle::Oracle;
use crate::scenarios::Scenario;
use crate::world::Violation;

/// An algorithm that takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// Headgate's production code.
    Headgate,
    /// The clairvoyant scheduler.
    Oracle,
    /// No control.
    NoControl,
    /// A static token bucket.
    StaticTokenBucket,
    /// Envoy's `adaptive_concurrency`.
    EnvoyAdaptiveConcurrency,
    /// Envoy's `admission_control`.
    EnvoyAdmissionControl,
    /// Netflix's Gradient2.
    NetflixGradient2,
    /// The shedder in the style of Cinnamon.
    CinnamonPid,
    /// DAGOR.
    Dagor,
    /// The gate of llm-d.
    LlmDGate,
    /// The three-level limiter.
    ThreeLevel,
}

/// Why a run gave no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlayError {
    /// The production validator refuses the policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// An invariant does not hold.
    #[error(transparent)]
    Violation(#[from] Violation),
}

// === impl Algorithm ===

impl Algorithm {
    /// All of them, in the order of reports.
    pub const ALL: &'static [Self] = &[
        Self::Headgate,
        Self::Oracle,
        Self::NoControl,
        Self::StaticTokenBucket,
        Self::EnvoyAdaptiveConcurrency,
        Self::EnvoyAdmissionControl,
        Self::NetflixGradient2,
        Self::CinnamonPid,
        Self::Dagor,
        Self::LlmDGate,
        Self::ThreeLevel,
    ];

    /// Its name in reports and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Headgate => "headgate",
            Self::Oracle => "oracle",
            Self::NoControl => "no_control",
            Self::StaticTokenBucket => "static_token_bucket",
            Self::EnvoyAdaptiveConcurrency => "envoy_adaptive_concurrency",
            Self::EnvoyAdmissionControl => "envoy_admission_control",
            Self::NetflixGradient2 => "netflix_gradient2",
            Self::CinnamonPid => "cinnamon_pid",
            Self::Dagor => "dagor",
            Self::LlmDGate => "llm_d_gate",
            Self::ThreeLevel => "three_level",
        }
    }

    /// The algorithm of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|algorithm| algorithm.name() == name)
    }

    /// Whether it is one that others have published: neither Headgate nor the measure of all.
    pub fn is_baseline(self) -> bool {
        !matches!(self, Self::Headgate | Self::Oracle)
    }

    /// A controller that has seen nothing. `policy` is Headgate's; without one it gets the default policy of the scenario's classes.
    ///
    /// # Errors
    /// When the policy is not valid.
    pub fn controller(self, scenario: &Scenario, policy: Option<&v1::Policy>) -> Result<Box<dyn Controller>, PolicyError> {
        Ok(match self {
            Self::Headgate => match policy {
                Some(policy) => Box::new(Headgate::new(&scenario.setup, policy)?),
                None => Box::new(Headgate::new(&scenario.setup, &scenario_policy(scenario))?),
            },
            Self::Oracle => Box::new(Oracle::default()),
            Self::NoControl => Box::new(NoControl),
            Self::StaticTokenBucket => Box::new(StaticBucket::new(scenario.judging.capacity_rps)),
            Self::EnvoyAdaptiveConcurrency => Box::new(EnvoyGradient::default()),
            Self::EnvoyAdmissionControl => Box::new(EnvoyAdmission::default()),
            Self::NetflixGradient2 => Box::new(NetflixGradient2::default()),
            Self::CinnamonPid => Box::new(Cinnamon::default()),
            Self::Dagor => Box::new(DagorFleet::default()),
            Self::LlmDGate => Box::new(LlmD::default()),
            Self::ThreeLevel => Box::new(ThreeLevelFleet::default()),
        })
    }
}

/// The default policy for the scenario's classes, with its floors.
fn scenario_policy(scenario: &Scenario) -> v1::Policy {
    let mut policy = default_policy(&scenario.setup);
    if let Some(spec) = &mut policy.spec {
        for (class, floor) in spec.classes.iter_mut().zip(&scenario.floors_percent) {
            class.floor_percent = (*floor > 0).then_some(*floor);
        }
    }
    policy
}
