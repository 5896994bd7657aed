//! TLS of the listeners: certificate, key and client CA from files, read again when they change.
//!
//! A change makes a new configuration for connections that come; those that are open keep the one that they began with. Files that
//! cannot be used change nothing: the last good ones go on serving, and the log says why.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the files are looked at. Mounted secrets are exchanged by renaming a directory, which watches of single files miss.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest file: a chain of certificates or a bundle of authorities.
const MAX_FILE_BYTES: u64 = 1 << 20;

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

/// All that is wrong with the files. `Display` gives one error a line.
#[derive(Debug, PartialEq, Eq)]
pub struct TlsErrors(Vec<String>);

/// Contents of the files, to tell whether they have changed.
#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authority: Option<Vec<u8>>,
}

// === impl TlsErrors ===

impl fmt::Display for TlsErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for TlsErrors {}

/// The only cryptography in the program; naming it keeps a second one that some dependency brings from being chosen.
pub(crate) fn cryptography() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

// === impl TlsFiles ===

impl TlsFiles {
    /// Reads the files once, then again whenever one of them changes, until `shutdown`.
    ///
    /// # Errors
    /// [`TlsErrors`] with every file that cannot be used at the start.
    pub async fn watch(self, shutdown: CancellationToken) -> Result<watch::Receiver<ServerTls>, TlsErrors> {
        let contents = self.read().await?;
        let (sender, receiver) = watch::channel(self.parse(&contents)?);
        tokio::spawn(self.reload(contents, sender, shutdown));
        Ok(receiver)
    }

    async fn reload(self, mut seen: Contents, sender: watch::Sender<ServerTls>, shutdown: CancellationToken) {
        let mut last_problem = None;
        while shutdown.run_until_cancelled(tokio::time::sleep(LOOK_INTERVAL)).await.is_some() {
            let outcome = match self.read().await {
                Ok(contents) if contents == seen => Ok(None),
                Ok(contents) => self.parse(&contents).map(|tls| Some((tls, contents))),
                Err(errors) => Err(errors),
            };
            match outcome {
                Ok(None) => last_problem = None,
                Ok(Some((tls, contents))) => {
                    tracing::info!(certificate = %self.certificate.display(), "TLS: the files have changed and are in use");
                    (seen, last_problem) = (contents, None);
                    sender.send_replace(tls);
                }
                // Said once: files that stay broken would fill the log.
                Err(errors) if last_problem.as_ref() != Some(&errors) => {
                    tracing::error!(%errors, "TLS: the changed files cannot be used; the last good ones stay in use");
                    last_problem = Some(errors);
                }
                Err(_) => {}
            }
        }
    }

    async fn read(&self) -> Result<Contents, TlsErrors> {
        let authority = async {
            match &self.clients {
                Some(clients) => read("client-ca", &clients.file).await.map(Some),
                None => Ok(None),
            }
        };
        match tokio::join!(read("tls-cert", &self.certificate), read("tls-key", &self.key), authority) {
            (Ok(certificate), Ok(key), Ok(authority)) => Ok(Contents { certificate, key, authority }),
            (certificate, key, authority) => {
                Err(TlsErrors([certificate.err(), key.err(), authority.err()].into_iter().flatten().collect()))
            }
        }
    }

    fn parse(&self, contents: &Contents) -> Result<ServerTls, TlsErrors> {
        let chain = certificates("tls-cert", &self.certificate, &contents.certificate);
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|error| format!("--tls-key: {}: no private key in PEM: {error}", self.key.display()));
        let authority = match (&self.clients, &contents.authority) {
            (Some(clients), Some(pem)) => authorities("client-ca", &clients.file, pem).map(|roots| Some((Arc::new(roots), clients))),
            _ => Ok(None),
        };
        let (chain, key, authority) = match (chain, key, authority) {
            (Ok(chain), Ok(key), Ok(authority)) => (chain, key, authority),
            (chain, key, authority) => {
                return Err(TlsErrors([chain.err(), key.err(), authority.err()].into_iter().flatten().collect()));
            }
        };
        let configuration = |protocols: &[&[u8]], required: bool| {
            let verifier = match &authority {
                None => WebPkiClientVerifier::no_client_auth(),
                Some((roots, _)) => verifier(roots.clone(), required)?,
            };
            self.configuration(verifier, chain.clone(), key.clone_key(), protocols)
        };
        let required = authority.as_ref().is_some_and(|(_, clients)| clients.certificates == ClientCertificates::Required);
        let both = configuration(&[b"h2"], required).and_then(|grpc| Ok((grpc, configuration(&[b"h2", b"http/1.1"], false)?)));
        let (grpc, http) = both.map_err(|error| TlsErrors(vec![error]))?;
        Ok(ServerTls { grpc, http })
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

fn verifier(roots: Arc<RootCertStore>, required: bool) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let builder = WebPkiClientVerifier::builder_with_provider(roots, cryptography());
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| format!("--client-ca: {error}"))
}

async fn read(flag: &str, path: &Path) -> Result<Vec<u8>, String> {
    let fail = |problem: String| format!("--{flag}: {}: {problem}", path.display());
    let length = tokio::fs::metadata(path).await.map_err(|error| fail(error.to_string()))?.len();
    if length > MAX_FILE_BYTES {
        return Err(fail(format!("{length} bytes is more than {MAX_FILE_BYTES}")));
    }
    tokio::fs::read(path).await.map_err(|error| fail(error.to_string()))
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
