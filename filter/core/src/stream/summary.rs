//! The decision about one request as the access log shows it.

use core::fmt;
use core::time::Duration;

use super::{Record, Verdict};
use crate::policy::{Class, Tenant};
use crate::reason::Cause;
use crate::refusal::Number;

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision {
    /// The request went to the pool.
    Admit,
    /// It was told to come back.
    Refuse {
        /// Why.
        cause: Cause,
        /// When.
        retry_after: Duration,
    },
    /// The fallback of an open breaker took it.
    Fallback {
        /// Why.
        cause: Cause,
    },
}

/// A decision for the access log. [`fmt::Display`] writes one line of `key=value`, and never hides numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary<'a> {
    /// What was decided.
    pub decision: Decision,
    /// Class.
    pub class: &'a str,
    /// Tenant; `None`: nobody known.
    pub tenant: Option<&'a str>,
    /// Whether a claim of a class was ignored.
    pub denied_claim: bool,
    /// Estimate of the work, in tokens.
    pub cost_tokens: u64,
    /// Name of the policy.
    pub policy: &'a str,
    /// Version of the policy.
    pub policy_version: &'a str,
    /// Time to first token, once known.
    pub ttft: Option<Duration>,
}

impl Record {
    pub(super) fn summary(&self) -> Summary<'_> {
        let Self { policy, classified, decision, ttft } = self;
        let tenant = classified.tenant.and_then(|id| policy.tenants().get(id.index()));
        Summary {
            decision: match *decision {
                Verdict::Admitted => Decision::Admit,
                Verdict::Refused { cause, retry_after } => Decision::Refuse { cause, retry_after },
                Verdict::Diverted { cause } => Decision::Fallback { cause },
            },
            class: policy.class(classified.class).map_or("-", |Class { name, .. }| name),
            tenant: tenant.map(|Tenant { name, .. }| name.as_str()),
            denied_claim: classified.denied_claim,
            cost_tokens: classified.cost_tokens,
            policy: policy.name(),
            policy_version: policy.version(),
            ttft: *ttft,
        }
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { decision, class, tenant, denied_claim, cost_tokens, policy, policy_version, ttft } = self;
        let name = match decision {
            Decision::Admit => "admit",
            Decision::Refuse { .. } => "refuse",
            Decision::Fallback { .. } => "fallback",
        };
        write!(f, "decision={name} class={class} tenant={}", tenant.unwrap_or("-"))?;
        if *denied_claim {
            f.write_str(" denied_claim=true")?;
        }
        if let Decision::Refuse { cause, .. } | Decision::Fallback { cause } = decision {
            let Cause { reason, value, threshold, source } = cause;
            write!(
                f,
                " reason={reason} value={} threshold={} level={reason} source={}",
                Number(*value),
                Number(*threshold),
                source.as_str()
            )?;
        }
        if let Decision::Refuse { retry_after, .. } = decision {
            write!(f, " retry_after_ms={}", retry_after.as_millis())?;
        }
        write!(f, " policy={policy}@{policy_version} cost_tokens={cost_tokens}")?;
        if let Some(ttft) = ttft {
            write!(f, " ttft_ms={}", Number(ttft.as_secs_f64() * 1000.0))?;
        }
        Ok(())
    }
}
