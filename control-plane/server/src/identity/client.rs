//! TLS of connections that this program makes: whom it believes, and what it shows.

use std::fs;
use std::path::{Path, PathBuf};

use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use super::tls::{authorities, certificates, cryptography};

/// Files of a client, each with the flag that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// PEM file with the authorities that are believed.
    pub ca: (&'static str, Option<PathBuf>),
    /// PEM file with the client's certificate, then its intermediates.
    pub cert: (&'static str, Option<PathBuf>),
    /// PEM file with its private key.
    pub key: (&'static str, Option<PathBuf>),
}

// === impl ClientFiles ===

impl ClientFiles {
    /// A connector for `http` and `https` addresses; an `https` address needs the authorities. `server_name` is the name that the
    /// server's certificate must have, where it is not the one in the address.
    ///
    /// # Errors
    /// Every file that cannot be used, a line for each.
    pub fn connector(&self, is_https: bool, server_name: Option<ServerName<'static>>) -> Result<HttpsConnector<HttpConnector>, String> {
        let mut plain = HttpConnector::new();
        plain.enforce_http(false);
        plain.set_nodelay(true);
        if !is_https {
            // Never used to encrypt: the address says `http`.
            let unused = builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
            return Ok(HttpsConnectorBuilder::new().with_tls_config(unused).https_or_http().enable_all_versions().wrap_connector(plain));
        }
        let mut connector = HttpsConnectorBuilder::new().with_tls_config(self.tls()?).https_only();
        if let Some(name) = server_name {
            connector = connector.with_server_name_resolver(FixedServerNameResolver::new(name));
        }
        Ok(connector.enable_all_versions().wrap_connector(plain))
    }

    fn tls(&self) -> Result<ClientConfig, String> {
        let mut problems = Vec::new();
        let mut note = |problem: String| problems.push(problem);
        let (ca, cert, key) = (self.ca.0, self.cert.0, self.key.0);
        let roots = match &self.ca.1 {
            Some(path) => read(ca, path).and_then(|pem| authorities(ca, path, &pem)).map_err(&mut note).ok(),
            None => {
                note(format!("--{ca}: is needed for https; /etc/ssl/certs/ca-certificates.crt has the public authorities"));
                None
            }
        };
        let identity = match (&self.cert.1, &self.key.1) {
            (Some(chain), Some(private)) => {
                let chain = read(cert, chain).and_then(|pem| certificates(cert, chain, &pem)).map_err(&mut note).ok();
                let private = read(key, private).and_then(|pem| private_key(key, private, &pem)).map_err(&mut note).ok();
                chain.zip(private)
            }
            (None, None) => None,
            (Some(_), None) => {
                note(format!("--{cert}: needs --{key}"));
                None
            }
            (None, Some(_)) => {
                note(format!("--{key}: needs --{cert}"));
                None
            }
        };
        if !problems.is_empty() {
            return Err(problems.join("\n"));
        }
        let builder = builder()?.with_root_certificates(roots.unwrap_or_else(RootCertStore::empty));
        match identity {
            Some((chain, private)) => builder.with_client_auth_cert(chain, private).map_err(|error| format!("--{cert}, --{key}: {error}")),
            None => Ok(builder.with_no_client_auth()),
        }
    }
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, String> {
    let builder = ClientConfig::builder_with_provider(cryptography()).with_safe_default_protocol_versions();
    builder.map_err(|error| format!("TLS cannot be used: {error}"))
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("--{flag}: {}: {error}", path.display()))
}

fn private_key(flag: &str, path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| format!("--{flag}: {}: no private key in PEM: {error}", path.display()))
}
