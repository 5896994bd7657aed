//! What a client shows to the control plane, and how it knows that it talks to the right one.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::pki_types::ServerName;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::CliError;
use crate::identity::client::ClientFiles;

/// Longest token that is sent, in bytes; the control plane reads no longer one.
const MAX_TOKEN_BYTES: usize = 8 << 10;

/// Certificates and token of a client.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct CredentialArgs {
    /// PEM file with the authorities that sign the control plane's certificate; with it, an address without a scheme means TLS
    #[arg(long, env = "HEADGATE_CA", value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
    /// PEM file with this client's certificate
    #[arg(long, env = "HEADGATE_CERT", value_name = "FILE", global = true)]
    cert: Option<PathBuf>,
    /// PEM file with the private key of --cert
    #[arg(long, env = "HEADGATE_KEY", value_name = "FILE", global = true)]
    key: Option<PathBuf>,
    /// File with a bearer token (JWT)
    #[arg(long, env = "HEADGATE_TOKEN_FILE", value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
    /// Name that the control plane's certificate must have, where it is not the one in the address
    #[arg(long, env = "HEADGATE_SERVER_NAME", value_name = "NAME", global = true)]
    server_name: Option<String>,
}

/// Puts the token into every call. Its value is marked sensitive, so that it is printed nowhere.
#[derive(Clone, Debug)]
pub(super) struct Bearer(Option<MetadataValue<Ascii>>);

// === impl CredentialArgs ===

impl CredentialArgs {
    /// `address` with its scheme: as it is given, else the one that the credentials call for.
    pub(super) fn with_scheme(&self, address: &str) -> String {
        match (address.contains("://"), &self.ca) {
            (true, _) => address.to_owned(),
            (false, Some(_)) => format!("https://{address}"),
            (false, None) => format!("http://{address}"),
        }
    }

    /// A connector for `http` and `https` addresses. Every file that cannot be used is named at once.
    pub(super) fn connector(&self, address: &str) -> Result<HttpsConnector<HttpConnector>, CliError> {
        let parse = |name: &String| {
            ServerName::try_from(name.clone())
                .map_err(|_| CliError::Usage(format!("--server-name: `{name}` is neither a host name nor an IP address")))
        };
        let files = ClientFiles { ca: ("ca", self.ca.clone()), cert: ("cert", self.cert.clone()), key: ("key", self.key.clone()) };
        let is_https = address.starts_with("https://");
        let server_name = self.server_name.as_ref().filter(|_| is_https).map(parse).transpose()?;
        files.connector(is_https, server_name).map_err(CliError::Usage)
    }

    /// The token as a header.
    pub(super) fn bearer(&self) -> Result<Bearer, CliError> {
        let Some(file) = &self.token_file else { return Ok(Bearer(None)) };
        let wrong = |problem: &str| CliError::Usage(format!("--token-file: {}: {problem}", file.display()));
        let text = fs::read_to_string(file).map_err(|error| wrong(&error.to_string()))?;
        let token = text.trim();
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return Err(wrong(&format!("{} bytes is outside 1..={MAX_TOKEN_BYTES}", token.len())));
        }
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {token}").parse().map_err(|_| wrong("has characters that no token has; it must hold the token alone"))?;
        value.set_sensitive(true);
        Ok(Bearer(Some(value)))
    }
}

// === impl Bearer ===

impl Bearer {
    /// The value of the call's metadata.
    pub(super) fn value(self) -> Option<MetadataValue<Ascii>> {
        self.0
    }

    /// The header's value.
    pub(super) fn header(&self) -> Option<hyper::header::HeaderValue> {
        let mut value = hyper::header::HeaderValue::from_bytes(self.0.as_ref()?.as_bytes()).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_scheme_follows_the_credentials() {
        let none = CredentialArgs::default();
        assert_eq!(none.with_scheme("127.0.0.1:1"), "http://127.0.0.1:1");
        assert_eq!(none.with_scheme("https://host:1"), "https://host:1");
        let with_ca = CredentialArgs { ca: Some("ca.pem".into()), ..CredentialArgs::default() };
        assert_eq!(with_ca.with_scheme("host:1"), "https://host:1");
    }

    #[test]
    fn every_file_that_cannot_be_used_is_named_at_once() {
        let missing = |name: &str| Some(PathBuf::from("/nowhere").join(name));
        let args = CredentialArgs { ca: missing("ca"), cert: missing("cert"), key: missing("key"), ..CredentialArgs::default() };
        let error = args.connector("https://host:1").unwrap_err().to_string();
        let flags: Vec<&str> = error.lines().filter_map(|line| line.split(": ").next()).collect();
        assert_eq!(flags, ["--ca", "--cert", "--key"], "{error}");
        let half = CredentialArgs { cert: missing("cert"), ..CredentialArgs::default() };
        let error = half.connector("https://host:1").unwrap_err().to_string();
        assert!(error.contains("--ca: is needed") && error.contains("--cert: needs --key"), "{error}");
    }

    #[test]
    fn a_token_is_in_no_debug_output() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "very.secret.token\n").unwrap();
        let args = CredentialArgs { token_file: Some(file.path().to_owned()), ..CredentialArgs::default() };
        let bearer = args.bearer().unwrap();
        assert!(bearer.header().is_some());
        assert!(!format!("{bearer:?} {:?} {args:?}", bearer.header()).contains("secret"), "{bearer:?}");
    }
}
