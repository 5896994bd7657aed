//! A certificate authority for tests: server and client certificates, in memory and as files.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::transport::{Channel, Endpoint};

/// Signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, in PEM.
    pub(crate) pem: String,
}

/// A certificate with its key, in PEM.
pub(crate) struct Identity {
    /// The certificate.
    pub(crate) certificate: String,
    /// The private key.
    pub(crate) key: String,
}

impl Authority {
    /// A new one.
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A server on this machine, also called `headgate.local`.
    pub(crate) fn server(&self) -> Identity {
        let names = ["127.0.0.1", "localhost", "headgate.local"].map(str::to_owned);
        self.sign(CertificateParams::new(names).unwrap(), ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client with the name `san`: a URI, or a DNS name.
    pub(crate) fn client(&self, san: &str) -> Identity {
        self.sign(client_params(san), ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A client whose certificate has run out.
    #[allow(dead_code, reason = "not every test that shares this file needs one")]
    pub(crate) fn expired_client(&self, san: &str) -> Identity {
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
    pub(crate) fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let put = |file: String, text: &str| {
            let (path, partial) = (folder.join(&file), folder.join(format!("{file}.partial")));
            fs::write(&partial, text).unwrap();
            fs::rename(&partial, &path).unwrap();
            path
        };
        (put(format!("{name}.pem"), &self.certificate), put(format!("{name}.key"), &self.key))
    }
}

/// Connects as `identity` and trusts `authority`.
pub(crate) async fn connect(
    address: SocketAddr,
    authority: &Authority,
    identity: Option<&Identity>,
) -> Result<Channel, tonic::transport::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
    let config = match identity {
        Some(identity) => {
            let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![certificate], PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap()).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    let mut plain = HttpConnector::new();
    plain.enforce_http(false);
    let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http2().wrap_connector(plain);
    Endpoint::from_shared(format!("https://{address}")).unwrap().connect_with_connector(connector).await
}
