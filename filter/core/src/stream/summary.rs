//! The decision about one request as the access log shows it.

use alloc::string::String;
use core::fmt::{self, Write};
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
    /// It was to wait, and its client left before it had an answer.
    Wait,
    /// The fallback of an open breaker, or a rung of the ladder, took it.
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
                Verdict::Waiting => Decision::Wait,
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

impl Summary<'_> {
    /// Appends what a policy that only watches would have done: ` | would=refuse class=…`, the bar only behind another line.
    pub fn write_would_to(&self, line: &mut String) {
        if !line.is_empty() {
            line.push_str(" | ");
        }
        let _ = self.write_as("would", line);
    }

    /// Appends the line to `line`, the same text as [`fmt::Display`] writes. An admitted request costs no formatting machinery: this
    /// runs once for every request.
    pub fn write_to(&self, line: &mut String) {
        let Self { decision, class, tenant, denied_claim, cost_tokens, policy, policy_version, ttft } = self;
        if *decision != Decision::Admit {
            // Writing to a string cannot fail.
            let _ = write!(line, "{self}");
            return;
        }
        for part in ["decision=admit class=", class, " tenant=", tenant.unwrap_or("-")] {
            line.push_str(part);
        }
        if *denied_claim {
            line.push_str(" denied_claim=true");
        }
        for part in [" policy=", policy, "@", policy_version, " cost_tokens="] {
            line.push_str(part);
        }
        push_number(line, *cost_tokens);
        if let Some(ttft) = ttft {
            line.push_str(" ttft_ms=");
            let Tenths { whole, tenth } = Tenths::of_ms(*ttft);
            push_number(line, whole);
            if tenth > 0 {
                line.push('.');
                push_number(line, tenth);
            }
        }
    }
}

/// A duration in milliseconds, rounded to one decimal; half a tenth goes up.
struct Tenths {
    whole: u64,
    tenth: u64,
}

impl Tenths {
    fn of_ms(duration: Duration) -> Self {
        let tenths = u64::try_from((duration.as_nanos().saturating_add(50_000)) / 100_000).unwrap_or(u64::MAX);
        Self { whole: tenths / 10, tenth: tenths % 10 }
    }
}

impl fmt::Display for Tenths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { whole, tenth: 0 } => write!(f, "{whole}"),
            Self { whole, tenth } => write!(f, "{whole}.{tenth}"),
        }
    }
}

/// Appends a number in decimal.
fn push_number(text: &mut String, number: u64) {
    let mut digits = [0_u8; 20];
    let mut left = number;
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(left % 10).unwrap_or(0);
        left /= 10;
        used += 1;
        if left == 0 {
            break;
        }
    }
    let start = digits.len() - used;
    for digit in digits.iter().skip(start) {
        text.push(char::from(*digit));
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_as("decision", f)
    }
}

impl Summary<'_> {
    fn write_as(&self, key: &str, f: &mut dyn fmt::Write) -> fmt::Result {
        let Self { decision, class, tenant, denied_claim, cost_tokens, policy, policy_version, ttft } = self;
        let name = match decision {
            Decision::Admit => "admit",
            Decision::Refuse { .. } => "refuse",
            Decision::Fallback { .. } => "fallback",
            Decision::Wait => "wait",
        };
        write!(f, "{key}={name} class={class} tenant={}", tenant.unwrap_or("-"))?;
        if *denied_claim {
            f.write_str(" denied_claim=true")?;
        }
        if let Decision::Refuse { cause, .. } | Decision::Fallback { cause } = decision {
            let Cause { reason, value, threshold, term: _, source } = cause;
            write!(
                f,
                " reason={reason} value={} threshold={} level={} source={}",
                Number(*value),
                Number(*threshold),
                cause.level(),
                source.as_str()
            )?;
        }
        if let Decision::Refuse { retry_after, .. } = decision {
            write!(f, " retry_after_ms={}", retry_after.as_millis())?;
        }
        write!(f, " policy={policy}@{policy_version} cost_tokens={cost_tokens}")?;
        if let Some(ttft) = ttft {
            write!(f, " ttft_ms={}", Tenths::of_ms(*ttft))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_admitted_line_is_the_same_both_ways(cost_tokens: u64, ttft in prop::option::of(0..u64::MAX / 4), denied_claim: bool, known: bool) {
            let summary = Summary {
                decision: Decision::Admit,
                class: "low",
                tenant: known.then_some("acme"),
                denied_claim,
                cost_tokens,
                policy: "demo",
                policy_version: "1a2b",
                ttft: ttft.map(Duration::from_nanos),
            };
            let mut line = String::new();
            summary.write_to(&mut line);
            prop_assert_eq!(line, summary.to_string());
        }
    }

    #[test]
    fn milliseconds_have_one_decimal_at_most() {
        let text = |nanos| Tenths::of_ms(Duration::from_nanos(nanos)).to_string();
        assert_eq!([text(0), text(49_999), text(50_000), text(949_999), text(12_340_000)], ["0", "0", "0.1", "0.9", "12.3"]);
    }
}
