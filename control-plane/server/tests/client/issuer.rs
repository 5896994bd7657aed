//! An issuer of tokens for tests, and a control plane that believes it.

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use headgate::config::RawConfig;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

use crate::authority::Authority;
use crate::running;

/// Signs tokens with Ed25519.
pub(crate) struct TokenIssuer {
    key: Ed25519KeyPair,
}

impl TokenIssuer {
    /// One with a new key.
    pub(crate) fn new() -> Self {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self { key: Ed25519KeyPair::from_pkcs8(key.as_ref()).unwrap() }
    }

    /// Its key set.
    pub(crate) fn jwks(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.key.public_key().as_ref());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "use": "sig", "alg": "EdDSA", "x": x}]}).to_string()
    }

    /// Flags of a control plane with TLS that believes this issuer and `authority`, by the rules `access`; its files are in `folder`.
    pub(crate) fn flags(&self, folder: &Path, authority: &Authority, access: &str) -> RawConfig {
        let (certificate, key) = authority.server().write(folder, "server");
        fs::write(folder.join("ca.pem"), &authority.pem).unwrap();
        fs::write(folder.join("keys.json"), self.jwks()).unwrap();
        fs::write(folder.join("access.yaml"), access).unwrap();
        RawConfig {
            tls_cert: Some(certificate),
            tls_key: Some(key),
            client_ca: Some(folder.join("ca.pem")),
            access: Some(folder.join("access.yaml")),
            ..running::flags(&folder.join("data"))
        }
    }

    /// A token with these claims.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_as(&json!({"alg": "EdDSA", "kid": "k"}), claims)
    }

    /// A token with this header.
    pub(crate) fn sign_as(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(self.key.sign(message.as_bytes())))
    }
}
