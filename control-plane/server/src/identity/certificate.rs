//! The names in a client's certificate.

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// Longest name that counts, in bytes; SPIFFE allows 2048.
const MAX_NAME_BYTES: usize = 2048;
/// Names of one certificate that count.
const MAX_NAMES: usize = 64;

/// A client certificate that TLS found good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Its subject alternative names of the kinds URI and DNS, URIs first, each as it is written. The subject's common name is none.
    pub names: Vec<String>,
}

// === impl PeerCertificate ===

impl PeerCertificate {
    /// Reads the names out of a certificate.
    pub fn of(der: &CertificateDer<'_>) -> Self {
        let Ok(certificate) = EndEntityCert::try_from(der) else { return Self::default() };
        let names = certificate.valid_uri_names().chain(certificate.valid_dns_names());
        Self { names: names.filter(|name| name.len() <= MAX_NAME_BYTES).take(MAX_NAMES).map(str::to_owned).collect() }
    }

    /// The name by which logs call the peer.
    pub fn name(&self) -> &str {
        self.names.first().map_or("a certificate without names", String::as_str)
    }
}
