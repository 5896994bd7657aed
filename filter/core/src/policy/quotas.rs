//! The validated quotas of a policy; the defaults are those that `policy.proto` documents.

use alloc::string::String;
use alloc::vec::Vec;

use super::TenantId;
use crate::budget::Size;
use crate::quota::Terms;

/// What a quota counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaUnit {
    /// Requests.
    Requests,
    /// Tokens of prompt and output.
    Tokens,
    /// Work tokens.
    WorkTokens,
}

/// A rate over all proxies.
#[derive(Debug, Clone, PartialEq)]
pub struct QuotaConfig {
    /// Name, unique in the policy.
    pub name: String,
    /// What leases are called by: `NAME/UNIT`, since those of another unit are of no use.
    pub key: String,
    /// What is counted.
    pub unit: QuotaUnit,
    /// Tenants that share it, ascending; empty: everybody.
    pub tenants: Vec<TenantId>,
    /// How it is shared out; amounts are per second.
    pub terms: Terms,
}

impl QuotaUnit {
    /// As documents write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::WorkTokens => "work_tokens",
        }
    }
}

impl QuotaConfig {
    /// Whether a request of this tenant falls under it.
    #[must_use]
    pub fn covers(&self, tenant: Option<TenantId>) -> bool {
        self.tenants.is_empty() || tenant.is_some_and(|tenant| self.tenants.binary_search(&tenant).is_ok())
    }

    /// What a request of this size costs, in its unit.
    pub(crate) fn cost(&self, size: Size, output_weight: f64) -> f64 {
        match self.unit {
            QuotaUnit::Requests => 1.0,
            QuotaUnit::Tokens => size.weighted_tokens(1.0),
            QuotaUnit::WorkTokens => size.weighted_tokens(output_weight),
        }
    }
}
