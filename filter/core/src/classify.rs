//! Classification: which class and tenant a request has, and what it may cost.
//!
//! A tenant is known by an identity that a client cannot invent: the SPIFFE id of its certificate, a claim of a JWT that Envoy has
//! verified, or an API key. A header alone never lifts a request: a claimed class counts when the tenant was granted it, or when it
//! is not above the class that the request has anyway.

use sha2::{Digest, Sha256};

use crate::budget::Size;
use crate::key_cache::KeyCache;
use crate::policy::{Cap, ClassId, Classification, Policy, TenantId};
use crate::request::{HeaderView, MAX_KEY_BYTES, RequestInfo};

#[cfg(test)]
mod tests;

/// Bytes of a request for one token of its prompt, about: English in UTF-8, and the JSON around it.
pub(crate) const BYTES_PER_TOKEN: u64 = 4;
/// Tokens of output that a request is taken to ask for.
const DEFAULT_OUTPUT_TOKENS: u64 = 256;

/// What a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Classified {
    /// Its class.
    pub class: ClassId,
    /// Its tenant; `None`: nobody known.
    pub tenant: Option<TenantId>,
    /// Whether it claimed a class that it was not granted.
    pub denied_claim: bool,
    /// Estimate of its work: `content-length / 4 + 256`, in tokens of prompt and output. A request of unknown length counts as
    /// empty.
    pub cost_tokens: u64,
}

impl Classified {
    /// Its work as a size.
    pub(crate) fn size(&self) -> Size {
        let prompt = self.cost_tokens.saturating_sub(DEFAULT_OUTPUT_TOKENS);
        Size { prompt: u32::try_from(prompt).unwrap_or(u32::MAX), output: DEFAULT_OUTPUT_TOKENS as u32 }
    }
}

/// Classifies a request.
///
/// `claim_slots` has for each of [`Policy::claims`] its position in the request's verified claims. Of several identities the most
/// specific decides: the certificate before the JWT before the API key.
#[inline]
pub fn classify(policy: &Policy, request: &RequestInfo<'_>, claim_slots: &[usize], cache: &mut KeyCache) -> Classified {
    let rules = policy.classification();
    let tenant = tenant_by_certificate(policy, request)
        .or_else(|| tenant_by_claim(policy, request, claim_slots))
        .or_else(|| tenant_by_key(policy, request, cache));
    let known = tenant.and_then(|id| policy.tenants().get(id.index()));
    let (own, granted): (ClassId, &[ClassId]) = known.map_or((rules.default_class, &[]), |tenant| (tenant.class, &tenant.may_claim));
    let claimed = claimed_class(policy, &request.headers);
    let denied_claim = claimed.is_some_and(|claimed| claimed < own && !granted.contains(&claimed));
    let class = match claimed {
        Some(claimed) if !denied_claim => claimed,
        _ => own,
    };
    let class = lowered(class, rules, request);
    let prompt_tokens = request.content_length.unwrap_or(0) / BYTES_PER_TOKEN;
    Classified { class, tenant, denied_claim, cost_tokens: prompt_tokens.saturating_add(DEFAULT_OUTPUT_TOKENS) }
}

#[inline]
fn tenant_by_certificate(policy: &Policy, request: &RequestInfo<'_>) -> Option<TenantId> {
    policy.identities.spiffe.find(0, request.identity.spiffe?)
}

#[inline]
fn tenant_by_claim(policy: &Policy, request: &RequestInfo<'_>, claim_slots: &[usize]) -> Option<TenantId> {
    claim_slots.iter().enumerate().find_map(|(claim, slot)| {
        let got = request.identity.jwt_claims.get(*slot).copied().flatten()?;
        policy.identities.claim_values.find(claim, got)
    })
}

#[inline]
fn tenant_by_key(policy: &Policy, request: &RequestInfo<'_>, cache: &mut KeyCache) -> Option<TenantId> {
    if policy.identities.api_keys.is_empty() {
        return None;
    }
    request.api_keys.iter().flatten().find_map(|key| tenant_of_key(policy, key, cache))
}

#[inline]
fn tenant_of_key(policy: &Policy, key: &[u8], cache: &mut KeyCache) -> Option<TenantId> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return None;
    }
    cache.get(key).unwrap_or_else(|| tenant_of_new_key(policy, key, cache))
}

// Apart, so that the way of a key that is remembered has no SHA-256 in its code.
#[inline(never)]
fn tenant_of_new_key(policy: &Policy, key: &[u8], cache: &mut KeyCache) -> Option<TenantId> {
    let digest: [u8; 32] = Sha256::digest(key).into();
    let keys = &policy.identities.api_keys;
    let found = keys.binary_search_by(|(known, _)| known.cmp(&digest)).ok().and_then(|position| keys.get(position));
    let tenant = found.map(|(_, tenant)| *tenant);
    cache.insert(key, tenant);
    tenant
}

/// The class named in the priority header. None when the header is absent, names no class, or stands there with different values: a
/// proxy in front may have added its own, and which one counts must not depend on the order.
#[inline]
fn claimed_class(policy: &Policy, headers: &HeaderView<'_>) -> Option<ClassId> {
    let name = policy.classification().priority_header.as_bytes();
    claim(policy, headers.first(name)?, headers)
}

/// The class that `first`, the first value of the priority header, names.
#[inline(never)]
fn claim(policy: &Policy, first: &[u8], headers: &HeaderView<'_>) -> Option<ClassId> {
    let first = first.trim_ascii();
    let mut values = headers.all(policy.classification().priority_header.as_bytes());
    if values.any(|other| !other.trim_ascii().eq_ignore_ascii_case(first)) {
        return None;
    }
    policy.classes().iter().position(|class| class.name.as_bytes().eq_ignore_ascii_case(first)).map(ClassId::new)
}

/// The class after every cap that matches.
#[inline]
fn lowered(class: ClassId, rules: &Classification, request: &RequestInfo<'_>) -> ClassId {
    if rules.caps.is_empty() { class } else { capped(class, rules, request) }
}

#[inline(never)]
fn capped(class: ClassId, rules: &Classification, request: &RequestInfo<'_>) -> ClassId {
    rules.caps.iter().filter(|cap| cap.class > class && matches(cap, rules, request)).map(|cap| cap.class).max().unwrap_or(class)
}

fn matches(cap: &Cap, rules: &Classification, request: &RequestInfo<'_>) -> bool {
    let Cap { class: _, path_prefix, model, min_content_length } = cap;
    path_prefix.as_ref().is_none_or(|prefix| request.path.starts_with(prefix.as_bytes()))
        && min_content_length.is_none_or(|min| request.content_length.is_none_or(|length| length >= min))
        && model.as_ref().is_none_or(|model| request.headers.first(rules.model_header.as_bytes()) == Some(model.as_bytes()))
}
