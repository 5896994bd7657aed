//! What an adapter must read of a request besides its headers.

use alloc::string::String;
use alloc::vec::Vec;

use crate::envoy;
use crate::policy::{ClaimName, Policy};

/// What the policies in force need of a request besides its headers; each costs the adapter a host call or more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// The peer certificate's URI SAN.
    pub spiffe: bool,
    /// Envoy's properties that hold claims of verified JWTs, in the order of [`crate::request::VerifiedIdentity::jwt_claims`].
    pub claim_paths: Vec<String>,
    /// The address of the upstream endpoint, when the request is over.
    pub endpoint: bool,
    /// The response's `x-headgate-failed-dependency`.
    pub failed_dependency: bool,
    /// The status as soon as it is known, for breakers; without one it is enough at the end.
    pub early_status: bool,
}

impl Needs {
    /// What `policies` need, whose claims are `claims`.
    pub(crate) fn of<'a>(policies: impl Iterator<Item = &'a Policy>, claims: &[ClaimName]) -> Self {
        let mut needs = Self { claim_paths: claims.iter().map(envoy::claim_path).collect(), ..Self::default() };
        for policy in policies {
            needs.spiffe |= policy.uses_spiffe();
            if let Some(breaker) = policy.breaker() {
                needs.early_status = true;
                needs.endpoint |= breaker.per_endpoint;
                needs.failed_dependency |= breaker.per_dependency;
            }
        }
        needs
    }
}
