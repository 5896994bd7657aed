//! TLS of the listeners: certificate, key, client CA and revocation lists from files, read again when they change.
//!
//! A change makes a new configuration for connections that come; those that are open keep the one that they began with. Files that
//! cannot be used change nothing: the last good ones go on serving, and the log says why.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::files::{self, FileErrors, Source};

/// Whether clients of the gRPC listener show a certificate. On the HTTP listener it is never required: probes have none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Checked when a client shows one; what it may do without one is a matter of access.
    #[default]
    Optional,
    /// No connection without one.
    Required,
}

/// The client certificates that are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuthority {
    /// PEM file with the authorities.
    pub file: PathBuf,
    /// PEM file with the revocation lists of the authorities: a client whose authority has none in it is refused, since nobody knows then.
    /// A list counts on after its time; whoever lets it run out locks nobody out. `None`: nothing is revoked.
    pub revoked: Option<PathBuf>,
    /// Whether a certificate is required.
    pub certificates: ClientCertificates,
}

/// Files of the listeners' TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM file with the server's certificate, then its intermediates.
    pub certificate: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
    /// Who signs the certificates of clients; without one no client certificate is asked for.
    pub clients: Option<ClientAuthority>,
}

/// What a handshake needs, for each listener.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// Of the gRPC listener: HTTP/2 only.
    pub grpc: Arc<rustls::ServerConfig>,
    /// Of the HTTP listener.
    pub http: Arc<rustls::ServerConfig>,
}

/// Contents of the files, to tell whether they have changed.
#[derive(PartialEq, Eq)]
pub(super) struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authority: Option<Vec<u8>>,
    revoked: Option<Vec<u8>>,
}

/// The only cryptography in the program; naming it keeps a second one that some dependency brings from being chosen.
pub(crate) fn cryptography() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

// === impl TlsFiles ===

impl TlsFiles {
    /// Reads the files once, then again whenever one of them changes, until `shutdown`.
    ///
    /// # Errors
    /// [`FileErrors`] with every file that cannot be used at the start.
    pub async fn watch(self, shutdown: CancellationToken) -> Result<watch::Receiver<ServerTls>, FileErrors> {
        files::watch(self, shutdown).await
    }

    fn configuration(
        &self,
        verifier: Arc<dyn ClientCertVerifier>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        protocols: &[&[u8]],
    ) -> Result<Arc<rustls::ServerConfig>, String> {
        let wrong = |error| format!("--tls-cert, --tls-key: {} with {}: {error}", self.certificate.display(), self.key.display());
        let builder = rustls::ServerConfig::builder_with_provider(cryptography()).with_safe_default_protocol_versions().map_err(wrong)?;
        let mut configuration = builder.with_client_cert_verifier(verifier).with_single_cert(chain, key).map_err(wrong)?;
        configuration.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(configuration))
    }
}

impl Source for TlsFiles {
    type Contents = Contents;
    type Value = ServerTls;
    const NAME: &'static str = "TLS";

    async fn read(&self) -> Result<Contents, FileErrors> {
        let (certificate, key) = tokio::join!(files::read("tls-cert", &self.certificate), files::read("tls-key", &self.key));
        let authority = read_if_given("client-ca", self.clients.as_ref().map(|clients| &clients.file));
        let revoked = read_if_given("client-crl", self.clients.as_ref().and_then(|clients| clients.revoked.as_ref()));
        match (certificate, key, authority.await, revoked.await) {
            (Ok(certificate), Ok(key), Ok(authority), Ok(revoked)) => Ok(Contents { certificate, key, authority, revoked }),
            (certificate, key, authority, revoked) => {
                let errors = [certificate.err(), key.err(), authority.err(), revoked.err()];
                Err(FileErrors(errors.into_iter().flatten().collect()))
            }
        }
    }

    fn parse(&self, contents: &Contents) -> Result<ServerTls, FileErrors> {
        let chain = certificates("tls-cert", &self.certificate, &contents.certificate);
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|error| format!("--tls-key: {}: no private key in PEM: {error}", self.key.display()));
        let authority = match (&self.clients, &contents.authority) {
            (Some(clients), Some(pem)) => authorities("client-ca", &clients.file, pem).map(|roots| Some((Arc::new(roots), clients))),
            _ => Ok(None),
        };
        let revoked = match (self.clients.as_ref().and_then(|clients| clients.revoked.as_ref()), &contents.revoked) {
            (Some(path), Some(pem)) => revocation_lists(path, pem),
            _ => Ok(Vec::new()),
        };
        let (chain, key, authority, revoked) = match (chain, key, authority, revoked) {
            (Ok(chain), Ok(key), Ok(authority), Ok(revoked)) => (chain, key, authority, revoked),
            (chain, key, authority, revoked) => {
                let errors = [chain.err(), key.err(), authority.err(), revoked.err()];
                return Err(FileErrors(errors.into_iter().flatten().collect()));
            }
        };
        let configuration = |protocols: &[&[u8]], required: bool| {
            let verifier = match &authority {
                None => WebPkiClientVerifier::no_client_auth(),
                Some((roots, _)) => verifier(roots.clone(), revoked.clone(), required)?,
            };
            self.configuration(verifier, chain.clone(), key.clone_key(), protocols)
        };
        let required = authority.as_ref().is_some_and(|(_, clients)| clients.certificates == ClientCertificates::Required);
        let both = configuration(&[b"h2"], required).and_then(|grpc| Ok((grpc, configuration(&[b"h2", b"http/1.1"], false)?)));
        let (grpc, http) = both.map_err(|error| FileErrors(vec![error]))?;
        Ok(ServerTls { grpc, http })
    }
}

async fn read_if_given(flag: &'static str, path: Option<&PathBuf>) -> Result<Option<Vec<u8>>, String> {
    match path {
        Some(path) => files::read(flag, path).await.map(Some),
        None => Ok(None),
    }
}

fn verifier(
    roots: Arc<RootCertStore>,
    revoked: Vec<CertificateRevocationListDer<'static>>,
    required: bool,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let builder = WebPkiClientVerifier::builder_with_provider(roots, cryptography()).with_crls(revoked);
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| format!("--client-ca, --client-crl: {error}"))
}

/// The revocation lists in `pem`, which came from `path`.
fn revocation_lists(path: &Path, pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let fail = |problem: &str| format!("--client-crl: {}: no revocation list in PEM: {problem}", path.display());
    let lists: Vec<_> =
        CertificateRevocationListDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| fail(&error.to_string()))?;
    if lists.is_empty() { Err(fail("there is none in the file")) } else { Ok(lists) }
}

/// The certificates in `pem`, which came from `path`, the value of `--flag`.
pub(crate) fn certificates(flag: &str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let fail = |problem: String| format!("--{flag}: {}: {problem}", path.display());
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| fail(format!("no certificate in PEM: {error}")))?;
    if chain.is_empty() { Err(fail("no certificate in PEM: there is none in the file".to_owned())) } else { Ok(chain) }
}

/// The authorities in `pem`, which came from `path`, the value of `--flag`.
pub(crate) fn authorities(flag: &str, path: &Path, pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(flag, path, pem)? {
        roots.add(certificate).map_err(|error| format!("--{flag}: {}: {error}", path.display()))?;
    }
    Ok(roots)
}
