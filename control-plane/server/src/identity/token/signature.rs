//! Signatures of tokens, checked with the cryptography that TLS uses too.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::signature::{Error, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};

static PROVIDER: CryptoProvider = CryptoProvider {
    // Nothing here signs.
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: |algorithm, key| {
        let check = Check::of(*algorithm).ok_or(ErrorKind::UnsupportedAlgorithm)?;
        verifier(*algorithm, check, key)
    },
    key_utils: KeyUtils::new_unimplemented(),
};

/// How a signature is checked.
#[derive(Clone, Copy)]
enum Check {
    /// With a public key as it is.
    Raw(&'static dyn VerificationAlgorithm),
    /// With modulus and exponent.
    Rsa(&'static RsaParameters),
}

struct KeyVerifier {
    algorithm: Algorithm,
    check: Check,
    key: DecodingKey,
}

/// Makes these checks those of the whole program. A second time changes nothing.
pub(super) fn install() {
    // The only error is that there is one already, which is this one.
    let _ = PROVIDER.install_default();
}

fn verifier(algorithm: Algorithm, check: Check, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    Ok(Box::new(KeyVerifier { algorithm, check, key: key.clone() }))
}

// === impl Check ===

impl Check {
    fn of(algorithm: Algorithm) -> Option<Self> {
        Some(match algorithm {
            Algorithm::EdDSA => Self::Raw(&signature::ED25519),
            Algorithm::ES256 => Self::Raw(&signature::ECDSA_P256_SHA256_FIXED),
            Algorithm::ES384 => Self::Raw(&signature::ECDSA_P384_SHA384_FIXED),
            Algorithm::RS256 => Self::Rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
            Algorithm::RS384 => Self::Rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
            Algorithm::RS512 => Self::Rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
            Algorithm::PS256 => Self::Rsa(&signature::RSA_PSS_2048_8192_SHA256),
            Algorithm::PS384 => Self::Rsa(&signature::RSA_PSS_2048_8192_SHA384),
            Algorithm::PS512 => Self::Rsa(&signature::RSA_PSS_2048_8192_SHA512),
            // A shared secret lets everybody who can check a token make one.
            _ => return None,
        })
    }
}

// === impl KeyVerifier ===

impl Verifier<Vec<u8>> for KeyVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        let outcome = match (self.check, self.key.kind()) {
            (Check::Raw(algorithm), DecodingKeyKind::SecretOrDer(key)) => UnparsedPublicKey::new(algorithm, key).verify(message, signature),
            (Check::Rsa(parameters), DecodingKeyKind::RsaModulusExponent { n, e }) => {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
            }
            // A key of another kind than the algorithm's.
            _ => return Err(Error::new()),
        };
        outcome.map_err(|_| Error::new())
    }
}

impl JwtVerifier for KeyVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
