//! The validated policy. A [`Policy`] exists only as the result of [`Policy::try_from_wire`], so nothing downstream checks again;
//! the control plane runs it before it stores or publishes, the filter when it receives.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use headgate_protos::v1;
use prost::Message;
use sha2::{Digest, Sha256};

pub mod check;
mod config;
mod error;
mod overload;
mod quotas;
mod stage;
mod tenant_table;
mod validate;
mod validate_breaker;
mod validate_classes;
mod validate_identities;
mod validate_levels;
mod validate_overload;
mod validate_quotas;
mod validate_stage;

pub use config::{
    BreakerConfig, Class, ConcurrencyConfig, ErrorRateConfig, Fallback, GpuMemoryConfig, GpuMemorySource, HysteresisConfig, Levels,
    P99Config, QpsConfig, StaticReply, ThrottleConfig, WhenTripped,
};
pub use error::{FieldError, PolicyErrors, Problem};
pub use overload::{Fusion, OverloadConfig, QueueConfig, RetryConfig, RungConfig, RungKind};
pub use quotas::{QuotaConfig, QuotaUnit};
pub use stage::{Canary, CanaryPart, RolloutConfig, Stage, books_name, canary_part, candidate_books, serving_pool};
pub use tenant_table::TenantTable;
pub(crate) use validate_classes::MAX_TENANTS;

/// Index of a class in [`Policy::classes`]; 0 is the most important, so a smaller id is a higher class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(u8);

impl ClassId {
    /// The class at `index`; a policy has at most 8, so a larger index saturates and names no class.
    #[must_use]
    pub fn new(index: usize) -> Self {
        Self(u8::try_from(index).unwrap_or(u8::MAX))
    }

    /// The index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Index of a tenant in [`Policy::tenants`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(u16);

impl TenantId {
    pub(crate) fn new(index: usize) -> Self {
        Self(u16::try_from(index).unwrap_or(u16::MAX))
    }

    /// The index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Requests that a policy governs. All given criteria must match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Prefix of the path, starting with `/`.
    pub path_prefix: String,
    /// Host in lower case, without port; `None`: any.
    pub host: Option<String>,
}

/// A known client. Its identities are in the policy's [`IdentityIndex`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Name, unique in the policy.
    pub name: String,
    /// Class of its requests that claim none.
    pub class: ClassId,
    /// Classes above `class` that it may claim.
    pub may_claim: Vec<ClassId>,
}

/// A claim of a verified JWT: where it stands in the dynamic metadata of `envoy.filters.http.jwt_authn`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimName {
    /// Metadata key (`payload_in_metadata`).
    pub payload: String,
    /// Name of the claim.
    pub claim: String,
}

/// A cap on the class by what the request is; it can only lower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cap {
    /// Highest class of a matching request.
    pub class: ClassId,
    /// Prefix of the path.
    pub path_prefix: Option<String>,
    /// Model name, exact.
    pub model: Option<String>,
    /// Smallest `content-length`, in bytes.
    pub min_content_length: Option<u64>,
}

/// How requests get their class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classification {
    /// Class of a request without a recognised identity.
    pub default_class: ClassId,
    /// Header in which a client claims a class, in lower case.
    pub priority_header: String,
    /// Header that names the model, in lower case.
    pub model_header: String,
    /// Caps; every matching one applies.
    pub caps: Vec<Cap>,
}

/// All identities of all tenants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdentityIndex {
    /// SHA-256 of API keys, sorted for binary search.
    pub(crate) api_keys: Vec<([u8; 32], TenantId)>,
    /// SPIFFE ids.
    pub(crate) spiffe: TenantTable,
    /// Distinct claims that any tenant uses.
    pub(crate) claims: Vec<ClaimName>,
    /// Values of claims; their kind is the position in `claims`.
    pub(crate) claim_values: TenantTable,
}

/// An admission policy that has been checked; immutable.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) pool: String,
    pub(crate) routes: Vec<Route>,
    pub(crate) classes: Vec<Class>,
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) identities: IdentityIndex,
    pub(crate) classification: Classification,
    pub(crate) levels: Levels,
    pub(crate) throttle: ThrottleConfig,
    pub(crate) concurrency: Option<ConcurrencyConfig>,
    pub(crate) breaker: Option<BreakerConfig>,
    pub(crate) overload: Option<OverloadConfig>,
    pub(crate) engines: Vec<String>,
    pub(crate) orca: bool,
    pub(crate) quotas: Vec<QuotaConfig>,
    pub(crate) reveal_numbers: bool,
    pub(crate) stage: Stage,
}

impl Policy {
    /// Checks a policy as it came over the wire and fills the documented defaults in.
    ///
    /// A policy without a `version` gets its [`content_version`].
    ///
    /// # Errors
    /// Every error of the policy, in field order.
    pub fn try_from_wire(wire: &v1::Policy) -> Result<Self, PolicyErrors> {
        validate::policy(wire)
    }

    /// Name, unique in the control plane.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Content version; refusals and access logs name it.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Pool that the policy protects; of a candidate the name of its books and limits ([`books_name`]).
    #[must_use]
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// Requests that the policy governs; never empty, the catch-all is `/` on any host.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Classes, most important first; 1 to 8.
    #[must_use]
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// The class `id`; `None` when `id` belongs to another policy.
    #[must_use]
    pub fn class(&self, id: ClassId) -> Option<&Class> {
        self.classes.get(id.index())
    }

    /// Rates over all proxies; at most 16.
    #[must_use]
    pub fn quotas(&self) -> &[QuotaConfig] {
        &self.quotas
    }

    /// Known clients.
    #[must_use]
    pub fn tenants(&self) -> &[Tenant] {
        &self.tenants
    }

    /// How requests get their class.
    #[must_use]
    pub fn classification(&self) -> &Classification {
        &self.classification
    }

    /// Distinct JWT claims that identify tenants.
    #[must_use]
    pub fn claims(&self) -> &[ClaimName] {
        &self.identities.claims
    }

    /// Whether any tenant has a SPIFFE identity.
    #[must_use]
    pub fn uses_spiffe(&self) -> bool {
        !self.identities.spiffe.is_empty()
    }

    /// The three levels and their hysteresis.
    #[must_use]
    pub fn levels(&self) -> &Levels {
        &self.levels
    }

    /// How a throttled class shrinks and grows back.
    #[must_use]
    pub fn throttle(&self) -> &ThrottleConfig {
        &self.throttle
    }

    /// Bound on requests in flight; `None`: unbounded.
    #[must_use]
    pub fn concurrency(&self) -> Option<ConcurrencyConfig> {
        self.concurrency
    }

    /// Overload control; `None`: the levels act themselves.
    #[must_use]
    pub fn overload(&self) -> Option<&OverloadConfig> {
        self.overload.as_ref()
    }

    /// Addresses of the metrics pages of the engines behind the pool.
    #[must_use]
    pub fn engines(&self) -> &[String] {
        &self.engines
    }

    /// Whether the engines' responses are asked for their load, and it is read.
    #[must_use]
    pub fn orca(&self) -> bool {
        self.orca
    }

    /// Circuit breaker; `None`: none.
    #[must_use]
    pub fn breaker(&self) -> Option<&BreakerConfig> {
        self.breaker.as_ref()
    }

    /// Whether a refused client sees the signal's value and threshold.
    #[must_use]
    pub fn reveal_numbers(&self) -> bool {
        self.reveal_numbers
    }

    /// Whether it acts, watches, or is a candidate.
    #[must_use]
    pub fn stage(&self) -> &Stage {
        &self.stage
    }
}

/// Version of a policy's content: the first 16 hexadecimal digits of the SHA-256 of its encoding with `version` cleared.
///
/// Equal policies have equal versions on every machine: prost writes fields in tag order and the messages have no maps.
#[must_use]
pub fn content_version(wire: &v1::Policy) -> String {
    let v1::Policy { name, spec, version: _ } = wire;
    let unversioned = v1::Policy { name: name.clone(), spec: spec.clone(), version: String::new() };
    let digest = Sha256::digest(unversioned.encode_to_vec());
    let mut text = String::with_capacity(16);
    for byte in digest.iter().take(8) {
        for nibble in [byte >> 4, byte & 0x0f] {
            text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
        }
    }
    text
}

/// The version that the policy carries, or its content's.
fn version_of(wire: &v1::Policy) -> String {
    if wire.version.is_empty() { content_version(wire) } else { wire.version.to_owned() }
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
