//! Bearer tokens: JSON web tokens of issuers whose keys are in a file.
//!
//! Only signatures of a public key count. Issuer, audience and expiry are required; `nbf` counts where it is given.

use std::collections::HashSet;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};

mod signature;

/// Longest token, in bytes.
const MAX_TOKEN_BYTES: usize = 8 << 10;
/// Keys of one issuer.
const MAX_KEYS: usize = 64;

/// An issuer and its keys.
#[derive(Debug)]
pub struct Issuer {
    issuer: String,
    validation: Validation,
    keys: Vec<Key>,
}

/// What an issuer's tokens must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// The claim `iss`.
    pub issuer: String,
    /// One of them must be in the claim `aud`.
    pub audiences: Vec<String>,
    /// Difference of the clocks that is forgiven, in seconds.
    pub clock_skew_s: u64,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// A token that was found good.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    /// Who issued it.
    pub issuer: String,
    /// The claim `sub`, empty without one.
    pub subject: String,
    /// All claims.
    pub all: Map<String, Value>,
    /// The claim `exp` and the forgiven difference of clocks, in seconds since the Unix epoch.
    pub ends_at_unix_s: u64,
}

/// Why a token is not believed. No text of the token is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Longer than tokens are.
    #[error("the token is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    /// Not of the form of a token, or a claim has the wrong type.
    #[error("the token is malformed")]
    Malformed,
    /// No issuer has a key of its id and algorithm.
    #[error("no issuer has the key that signed the token")]
    UnknownKey,
    /// The signature is not that of the key.
    #[error("the token's signature is wrong")]
    Signature,
    /// It has run out.
    #[error("the token has expired")]
    Expired,
    /// It is not valid yet.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// It was made for somebody else.
    #[error("the token is for another audience")]
    Audience,
    /// Another issuer's name with this issuer's key.
    #[error("the token is of another issuer")]
    Issuer,
    /// A claim that is required is not there.
    #[error("the token lacks one of the claims iss, aud, exp")]
    MissingClaim,
}

// === impl Issuer ===

impl Issuer {
    /// An issuer with the keys of a JSON web key set. Keys for encryption, shared secrets and unknown kinds are left out.
    ///
    /// # Errors
    /// What is wrong with the set: no JSON, no key that can be used, too many keys.
    pub fn new(expectation: Expectation, key_set: &[u8]) -> Result<Self, String> {
        signature::install();
        let set: JwkSet = serde_json::from_slice(key_set).map_err(|error| format!("is no JSON web key set: {error}"))?;
        let keys: Vec<Key> = set.keys.iter().filter_map(Key::of).collect();
        match keys.len() {
            0 => return Err("has no public key for signatures (RSA, P-256, P-384 or Ed25519)".to_owned()),
            1..=MAX_KEYS => {}
            got => return Err(format!("has {got} keys, more than {MAX_KEYS}")),
        }
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = expectation.clock_skew_s;
        validation.validate_nbf = true;
        validation.set_issuer(&[&expectation.issuer]);
        validation.set_audience(&expectation.audiences);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        Ok(Self { issuer: expectation.issuer, validation, keys })
    }

    fn check(&self, token: &str, key: &Key, algorithm: Algorithm) -> Result<Claims, TokenError> {
        let validation = Validation { algorithms: vec![algorithm], ..self.validation.clone() };
        let all = decode::<Map<String, Value>>(token, &key.key, &validation).map_err(|error| TokenError::of(error.kind()))?.claims;
        let subject = all.get("sub").and_then(Value::as_str).unwrap_or_default().to_owned();
        let expiry = all.get("exp").and_then(Value::as_f64).unwrap_or_default() as u64;
        Ok(Claims { issuer: self.issuer.clone(), subject, all, ends_at_unix_s: expiry.saturating_add(self.validation.leeway) })
    }
}

/// Checks `token` against every key that may have signed it.
///
/// # Errors
/// [`TokenError`]: the one of the key that came closest.
pub fn verify(issuers: &[Issuer], token: &str) -> Result<Claims, TokenError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::TooLong);
    }
    let header = decode_header(token).map_err(|_| TokenError::Malformed)?;
    // An extension that must be understood, and is not.
    if header.crit.is_some() {
        return Err(TokenError::Malformed);
    }
    let mut closest = TokenError::UnknownKey;
    for issuer in issuers {
        for key in issuer.keys.iter().filter(|key| key.may_have_signed(header.kid.as_deref(), header.alg)) {
            match issuer.check(token, key, header.alg) {
                Ok(claims) => return Ok(claims),
                // Says least: a later key may fit.
                Err(TokenError::Signature) if closest != TokenError::UnknownKey => {}
                Err(error) => closest = error,
            }
        }
    }
    Err(closest)
}

// === impl Key ===

impl Key {
    fn of(jwk: &Jwk) -> Option<Self> {
        if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
            return None;
        }
        let fitting: &[Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => {
                &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512]
            }
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => &[Algorithm::ES256],
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => &[Algorithm::ES384],
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => &[Algorithm::EdDSA],
            _ => return None,
        };
        let named = jwk.common.key_algorithm.map(|algorithm| algorithm.to_string());
        let mut algorithms = fitting.to_vec();
        algorithms.retain(|algorithm| named.as_ref().is_none_or(|named| *named == format!("{algorithm:?}")));
        let key = DecodingKey::from_jwk(jwk).ok()?;
        (!algorithms.is_empty()).then(|| Self { id: jwk.common.key_id.clone(), algorithms, key })
    }

    fn may_have_signed(&self, id: Option<&str>, algorithm: Algorithm) -> bool {
        let same_id = match (&self.id, id) {
            (Some(own), Some(id)) => own == id,
            _ => true,
        };
        same_id && self.algorithms.contains(&algorithm)
    }
}

// === impl Claims ===

impl Claims {
    /// The texts of the claim `name`: the text itself, or the entries of a list. A dot leads into an object, as in `realm_access.roles`.
    pub fn texts(&self, name: &str) -> Vec<&str> {
        let nested = || {
            name.split('.').try_fold(None, |at: Option<&Value>, part| match at {
                None => self.all.get(part).map(Some),
                Some(value) => value.get(part).map(Some),
            })
        };
        match self.all.get(name).or_else(|| nested().flatten()) {
            Some(Value::String(text)) => vec![text],
            Some(Value::Array(list)) => {
                // A list may name a group twice.
                let mut seen = HashSet::new();
                list.iter().filter_map(Value::as_str).filter(|text| seen.insert(*text)).collect()
            }
            _ => Vec::new(),
        }
    }
}

// === impl TokenError ===

impl TokenError {
    fn of(kind: &ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidSignature => Self::Signature,
            ErrorKind::ExpiredSignature => Self::Expired,
            ErrorKind::ImmatureSignature => Self::NotYetValid,
            ErrorKind::InvalidAudience => Self::Audience,
            ErrorKind::InvalidIssuer => Self::Issuer,
            ErrorKind::MissingRequiredClaim(_) => Self::MissingClaim,
            _ => Self::Malformed,
        }
    }
}
