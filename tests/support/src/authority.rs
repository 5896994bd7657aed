//! A certificate authority for tests: server and client certificates, in memory and as files. What fails here is a bug and panics.
//!
//! The tests of `control-plane/server` include this file: that crate may not depend on this one.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, in PEM.
    pub pem: String,
}

/// A certificate with its key, in PEM.
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

impl Authority {
    /// A new one.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A server on this machine, also called `headgate.local`.
    pub fn server(&self) -> Identity {
        let names = ["127.0.0.1", "localhost", "headgate.local"].map(str::to_owned);
        self.sign(CertificateParams::new(names).unwrap(), ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client with the name `san`: a URI, or a DNS name.
    pub fn client(&self, san: &str) -> Identity {
        self.sign(client_params(san), ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A client whose certificate has this serial number.
    pub fn numbered_client(&self, san: &str, serial: u64) -> Identity {
        let mut params = client_params(san);
        params.serial_number = Some(SerialNumber::from(serial));
        self.sign(params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// The list, in PEM, of certificates that it no longer stands for.
    pub fn revocation_list(&self, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: rcgen::date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2025, 1, 1),
            next_update: rcgen::date_time_ymd(2099, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// A client whose certificate has run out.
    pub fn expired_client(&self, san: &str) -> Identity {
        let mut params = client_params(san);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        self.sign(params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Identity {
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        Identity { certificate: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }
}

fn client_params(san: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    let name = san.to_owned().try_into().unwrap();
    params.subject_alt_names = vec![if san.contains("://") { SanType::URI(name) } else { SanType::DnsName(name) }];
    params
}

impl Identity {
    /// Writes `NAME.pem` and `NAME.key` into `folder`, each under another name first.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let put = |file: String, text: &str| {
            let (path, partial) = (folder.join(&file), folder.join(format!("{file}.partial")));
            fs::write(&partial, text).unwrap();
            fs::rename(&partial, &path).unwrap();
            path
        };
        (put(format!("{name}.pem"), &self.certificate), put(format!("{name}.key"), &self.key))
    }
}
