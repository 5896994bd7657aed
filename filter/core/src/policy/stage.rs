//! What a policy is in the life of its pool: in force, only watching, or a candidate beside the one in force.

use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use headgate_protos::v1;

/// What a candidate's books and limits are called, behind the name of the pool. No pool's own name has this character.
const CANDIDATE_SUFFIX: &str = "~candidate";

/// What a policy is.
#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    /// It governs the requests of its routes.
    Acting,
    /// It decides about the requests of its routes, and they all go on.
    Watching,
    /// It decides about every request of another policy, beside it, and acts on none.
    WatchingBeside {
        /// Name of the policy in force.
        of: String,
    },
    /// It governs a part of the requests of another policy.
    Canary(Canary),
}

/// How a candidate governs a part of another policy's requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Canary {
    /// Name of the policy in force.
    pub of: String,
    /// Which part.
    pub part: CanaryPart,
    /// How it goes on.
    pub rollout: RolloutConfig,
    /// Why it was aborted; then it governs nothing.
    pub halted: Option<String>,
}

/// Which part of the requests a canary governs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CanaryPart {
    /// This percentage of the requests in every proxy, 1 to 100; 100 in the proxies that a control plane has chosen.
    Requests(u32),
    /// Every request in this percentage of the proxies, 1 to 99; which ones the control plane knows.
    Proxies(u32),
}

/// When a candidate gets more, is promoted, or is aborted.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutConfig {
    /// Percentages that follow the first, ascending, 1 to 99; empty: promoted by hand.
    pub steps: Vec<u32>,
    /// Shortest time of each percentage, 1 s to 7 days.
    pub hold: Duration,
    /// Requests of either before they are compared, 30 to 100,000,000.
    pub min_samples: u32,
    /// Confidence of an abort, over all looks at one percentage, 80 to 99.9999 percent.
    pub confidence_percent: f64,
    /// Margin of requests served within their objective, in points, 0 to 100.
    pub attainment_margin: f64,
    /// Margin of failed responses, in points, 0 to 100.
    pub error_margin: f64,
    /// Margin of late responses, in points, 0 to 100.
    pub late_margin: f64,
    /// Whether the last percentage is followed by its promotion, not by somebody who decides on that.
    pub auto_promote: bool,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            steps: Vec::new(),
            hold: Duration::from_secs(300),
            min_samples: 200,
            confidence_percent: 99.0,
            attainment_margin: 1.0,
            error_margin: 1.0,
            late_margin: 1.0,
            auto_promote: false,
        }
    }
}

impl Stage {
    /// Whether it decides without acting.
    #[must_use]
    pub const fn is_shadow(&self) -> bool {
        matches!(self, Self::Watching | Self::WatchingBeside { .. })
    }

    /// Name of the policy beside which it is tried; `None` when it stands for itself.
    #[must_use]
    pub fn of(&self) -> Option<&str> {
        match self {
            Self::Acting | Self::Watching => None,
            Self::WatchingBeside { of } | Self::Canary(Canary { of, .. }) => Some(of),
        }
    }

    /// Percentage of the requests in a proxy that it governs in place of another policy.
    #[must_use]
    pub const fn requests_percent(&self) -> Option<u32> {
        match self {
            Self::Canary(Canary { part: CanaryPart::Requests(percent), halted: None, .. }) => Some(*percent),
            _ => None,
        }
    }
}

/// What the books and limits of a policy are called: its pool's name, and for a candidate a name of its own, since both are in force
/// for one pool.
#[must_use]
pub fn books_name(spec: &v1::PolicySpec) -> Cow<'_, str> {
    match spec.candidate {
        None => Cow::Borrowed(&spec.pool),
        Some(_) => Cow::Owned(candidate_books(&spec.pool)),
    }
}

/// What the books and limits of a candidate for `pool` are called.
#[must_use]
pub fn candidate_books(pool: &str) -> String {
    [pool, CANDIDATE_SUFFIX].concat()
}

/// The part that a policy governs of another one's requests; `None` when it stands for itself or only watches. One that was halted has had
/// that part.
#[must_use]
pub fn canary_part(spec: &v1::PolicySpec) -> Option<CanaryPart> {
    let candidate = spec.candidate.as_ref().filter(|_| spec.enforcement() != v1::Enforcement::Shadow)?;
    let requests = candidate.requests_percent.map(CanaryPart::Requests);
    requests.or_else(|| candidate.proxies_percent.map(CanaryPart::Proxies))
}

/// The pool behind the name of its books.
#[must_use]
pub fn serving_pool(books: &str) -> &str {
    books.strip_suffix(CANDIDATE_SUFFIX).unwrap_or(books)
}
