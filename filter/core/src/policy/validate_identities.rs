//! Checks of the tenants' identities, and the index that finds a tenant by one.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use headgate_protos::v1;

use super::check::{Checker, Form, join, quoted};
use super::error::Problem;
use super::{ClaimName, IdentityIndex, TenantId};

const MAX_IDENTITIES: usize = 16;
/// Different claims that identify tenants: the adapter reads each with a host call for every request.
const MAX_CLAIM_NAMES: usize = 8;
const DEFAULT_PAYLOAD: &str = "jwt_payload";
const SPIFFE_EXPECTED: &str = "a URI of at most 512 bytes that starts with spiffe://";

const CLAIM_WORD: Form = Form {
    max_bytes: 256,
    allows: |byte| !byte.is_ascii_control(),
    ends_allow: |byte| !byte.is_ascii_control(),
    expected: "1 to 256 bytes without control characters",
};

/// The identities seen so far.
#[derive(Default)]
pub(super) struct Identities {
    index: IdentityIndex,
    seen: BTreeMap<String, String>,
}

impl Identities {
    /// The identities of one tenant; none may be another's.
    pub(super) fn add(&mut self, check: &mut Checker, tenant_at: &str, wire: &[v1::Identity], tenant: TenantId) {
        let checked = check.count(tenant_at, "identities", wire.len(), 1..=MAX_IDENTITIES);
        for (position, identity) in wire.iter().take(checked).enumerate() {
            let at = format!("{tenant_at}.identities[{position}]");
            self.add_one(check, &at, identity, tenant);
        }
    }

    fn add_one(&mut self, check: &mut Checker, at: &str, wire: &v1::Identity, tenant: TenantId) {
        let v1::Identity { api_key_sha256, jwt_claim, spiffe_id } = wire;
        let given = usize::from(!api_key_sha256.is_empty()) + usize::from(jwt_claim.is_some()) + usize::from(!spiffe_id.is_empty());
        if given != 1 {
            check.report(String::from(at), Problem::NotExactlyOne { got: given, of: "apiKeySha256, jwtClaim, spiffeId" });
        }
        if !api_key_sha256.is_empty() {
            self.add_key(check, at, api_key_sha256, tenant);
        }
        if let Some(claim) = jwt_claim {
            self.add_claim(check, at, claim, tenant);
        }
        if !spiffe_id.is_empty() {
            self.add_spiffe(check, at, spiffe_id, tenant);
        }
    }

    fn add_key(&mut self, check: &mut Checker, at: &str, text: &str, tenant: TenantId) {
        let Some(digest) = digest(text) else {
            // What stands here may be the key itself, so the error does not repeat it.
            let got = format!("a text of {} bytes", text.len());
            return check.report(join(at, "apiKeySha256"), Problem::Malformed { got, expected: "64 hexadecimal digits" });
        };
        check.unique(join(at, "apiKeySha256"), &text.to_ascii_lowercase(), &mut self.seen);
        self.index.api_keys.push((digest, tenant));
    }

    fn add_claim(&mut self, check: &mut Checker, at: &str, wire: &v1::JwtClaim, tenant: TenantId) {
        let v1::JwtClaim { payload, claim, value } = wire;
        let at = join(at, "jwtClaim");
        check.optional_text(&at, "payload", payload, &CLAIM_WORD);
        check.text(&at, "claim", claim, &CLAIM_WORD);
        check.text(&at, "value", value, &CLAIM_WORD);
        let payload = String::from(if payload.is_empty() { DEFAULT_PAYLOAD } else { payload });
        check.unique(at.clone(), &format!("{payload}\n{claim}\n{value}"), &mut self.seen);
        let name = ClaimName { payload, claim: claim.clone() };
        let position = match self.index.claims.iter().position(|known| *known == name) {
            Some(position) => position,
            None if self.index.claims.len() >= MAX_CLAIM_NAMES => {
                let rule = "all tenants together use at most 8 different claims, since each is read for every request";
                return check.report(at, Problem::Conflict { got: quoted(claim), rule });
            }
            None => {
                self.index.claims.push(name);
                self.index.claims.len().saturating_sub(1)
            }
        };
        self.index.claim_values.push(position, value, tenant);
    }

    fn add_spiffe(&mut self, check: &mut Checker, at: &str, id: &str, tenant: TenantId) {
        let is_uri = id.strip_prefix("spiffe://").is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic()));
        if !is_uri || id.len() > 512 {
            check.report(join(at, "spiffeId"), Problem::Malformed { got: quoted(id), expected: SPIFFE_EXPECTED });
        }
        check.unique(join(at, "spiffeId"), id, &mut self.seen);
        self.index.spiffe.push(0, id, tenant);
    }

    /// The finished index.
    pub(super) fn into_index(self) -> IdentityIndex {
        let Self { mut index, seen: _ } = self;
        index.api_keys.sort_unstable();
        index.spiffe.index();
        index.claim_values.index();
        index
    }
}

/// A SHA-256 written as 64 hexadecimal digits of either case.
fn digest(text: &str) -> Option<[u8; 32]> {
    let nibbles: Option<Vec<u8>> = text.chars().map(|digit| digit.to_digit(16).and_then(|value| u8::try_from(value).ok())).collect();
    let bytes: Vec<u8> = nibbles?
        .chunks(2)
        .filter_map(|pair| match pair {
            [high, low] => Some(high << 4 | low),
            _ => None,
        })
        .collect();
    if text.len() == 64 { bytes.try_into().ok() } else { None }
}
