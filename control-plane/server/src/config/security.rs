//! The part of the configuration that says who can listen in and who may do what.
//!
//! A listener that other machines reach needs TLS and a file of access rules; whoever wants neither has to say so.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::{ConfigError, Errors};
use crate::identity::tls::{ClientAuthority, ClientCertificates, TlsFiles};

/// How the listeners are protected.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Security {
    /// Files of TLS, for both listeners; `None`: plain text.
    pub tls: Option<TlsFiles>,
    /// The access file; `None`: everybody may do everything.
    pub access: Option<PathBuf>,
    /// The audit log.
    pub audit: AuditTarget,
}

/// Where the audit log goes, beside the program's own log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AuditTarget {
    /// Nowhere else.
    #[default]
    LogOnly,
    /// A file that begins anew at a size.
    File {
        /// The file.
        path: PathBuf,
        /// The size, in bytes.
        max_bytes: u64,
    },
}

/// The settings of [`Security`] as they were given.
pub(super) struct RawSecurity {
    pub(super) tls_cert: Option<PathBuf>,
    pub(super) tls_key: Option<PathBuf>,
    pub(super) client_ca: Option<PathBuf>,
    pub(super) client_crl: Option<PathBuf>,
    pub(super) client_certificates: Option<String>,
    pub(super) insecure_plaintext: bool,
    pub(super) access: Option<PathBuf>,
    pub(super) insecure_open: bool,
    pub(super) audit_log: Option<PathBuf>,
    pub(super) audit_max_mib: Option<u64>,
}

// === impl Errors ===

impl Errors {
    /// Checks the settings against each other and against the addresses, given with their flags.
    pub(super) fn security(&mut self, raw: RawSecurity, data_dir: &Path, listeners: &[(&'static str, SocketAddr)]) -> Security {
        let audit = self.audit(raw.audit_log, raw.audit_max_mib, data_dir);
        let exposed = || listeners.iter().filter(|(_, address)| !address.ip().is_loopback());
        if raw.access.is_none() && !raw.insecure_open {
            self.0.extend(exposed().map(|(flag, address)| ConfigError::OpenToAll { flag, address: *address }));
        }
        let clients = self.clients(raw.client_ca, raw.client_crl, raw.client_certificates.as_deref());
        let tls = match (raw.tls_cert, raw.tls_key) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key, clients }),
            (None, None) => {
                if clients.is_some() {
                    self.0.push(ConfigError::Needs { flag: "client-ca", other: "--tls-cert and --tls-key" });
                }
                None
            }
            (Some(_), None) => self.needs("tls-cert", "--tls-key"),
            (None, Some(_)) => self.needs("tls-key", "--tls-cert"),
        };
        // Half of a pair is reported as what it is.
        let half = self.0.iter().any(|error| matches!(error, ConfigError::Needs { flag: "tls-cert" | "tls-key", .. }));
        if tls.is_none() && !half && !raw.insecure_plaintext {
            self.0.extend(exposed().map(|(flag, address)| ConfigError::PlainText { flag, address: *address }));
        }
        Security { tls, access: raw.access, audit }
    }

    fn audit(&mut self, path: Option<PathBuf>, max_mib: Option<u64>, data_dir: &Path) -> AuditTarget {
        let mib = max_mib.unwrap_or(16);
        if !(1..=4096).contains(&mib) {
            self.0.push(ConfigError::OutOfRange { flag: "audit-max-mib", got: mib, min: 1, max: 4096 });
        }
        match path {
            Some(path) if path.as_os_str() == "off" => AuditTarget::LogOnly,
            path => AuditTarget::File { path: path.unwrap_or_else(|| data_dir.join("audit.jsonl")), max_bytes: mib << 20 },
        }
    }

    fn needs<T>(&mut self, flag: &'static str, other: &'static str) -> Option<T> {
        self.0.push(ConfigError::Needs { flag, other });
        None
    }

    fn clients(&mut self, file: Option<PathBuf>, revoked: Option<PathBuf>, certificates: Option<&str>) -> Option<ClientAuthority> {
        let certificates = match certificates {
            None => None,
            Some("optional") => Some(ClientCertificates::Optional),
            Some("required") => Some(ClientCertificates::Required),
            Some(got) => {
                self.0.push(ConfigError::NoneOf { flag: "client-certificates", got: got.to_owned(), allowed: "optional, required" });
                None
            }
        };
        match file {
            Some(file) => Some(ClientAuthority { file, revoked, certificates: certificates.unwrap_or_default() }),
            None => {
                let _: Option<()> = revoked.and_then(|_| self.needs("client-crl", "--client-ca"));
                certificates.and_then(|_| self.needs("client-certificates", "--client-ca"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, RawConfig};
    use super::*;

    fn listening(grpc: &str) -> RawConfig {
        RawConfig { grpc: Some(grpc.to_owned()), ..RawConfig::default() }
    }

    #[test]
    fn plain_text_beyond_loopback_is_refused_with_what_to_do() {
        let raw = RawConfig { http: Some("[::]:18080".to_owned()), ..listening("0.0.0.0:18000") };
        let errors = Config::try_from(raw.clone()).unwrap_err().to_string();
        let lines: Vec<&str> = errors.lines().collect();
        assert_eq!(lines.len(), 4, "{errors}");
        assert!(
            lines[0]
                .starts_with("--grpc: 0.0.0.0:18000 is reachable from other machines, and everybody could do everything: give --access")
        );
        assert!(lines[1].starts_with("--http: [::]:18080") && lines[1].contains("--insecure-open"), "{errors}");
        assert!(lines[2].starts_with("--grpc: 0.0.0.0:18000 is reachable from other machines and would be plain text: give --tls-cert"));
        assert!(lines[3].starts_with("--http: [::]:18080") && lines[3].contains("--insecure-plaintext"), "{errors}");
        let insecure = RawConfig { insecure_plaintext: Some(true), insecure_open: Some(true), ..raw };
        assert_eq!(Config::try_from(insecure).unwrap().security.tls, None);
    }

    #[test]
    fn loopback_needs_nothing() {
        assert!(Config::try_from(listening("127.0.0.1:1")).is_ok());
        assert!(Config::try_from(listening("[::1]:1")).is_ok());
    }

    #[test]
    fn a_half_pair_and_clients_without_tls_are_refused() {
        let half = RawConfig { tls_cert: Some("a.pem".into()), access: Some("access.yaml".into()), ..listening("0.0.0.0:1") };
        assert_eq!(Config::try_from(half).unwrap_err().to_string(), "--tls-cert: needs --tls-key");
        let clients = RawConfig { client_ca: Some("ca.pem".into()), ..RawConfig::default() };
        assert_eq!(Config::try_from(clients).unwrap_err().to_string(), "--client-ca: needs --tls-cert and --tls-key");
        let mode = RawConfig { client_certificates: Some("required".to_owned()), ..RawConfig::default() };
        assert_eq!(Config::try_from(mode).unwrap_err().to_string(), "--client-certificates: needs --client-ca");
        let revoked = RawConfig { client_crl: Some("crl.pem".into()), ..RawConfig::default() };
        assert_eq!(Config::try_from(revoked).unwrap_err().to_string(), "--client-crl: needs --client-ca");
    }

    #[test]
    fn the_audit_log_is_beside_the_policies_unless_it_is_off() {
        let target = |log: Option<&str>| {
            let raw = RawConfig { audit_log: log.map(PathBuf::from), data_dir: Some("data".into()), ..RawConfig::default() };
            Config::try_from(raw).unwrap().security.audit
        };
        assert_eq!(target(None), AuditTarget::File { path: "data/audit.jsonl".into(), max_bytes: 16 << 20 });
        assert_eq!(target(Some("off")), AuditTarget::LogOnly);
    }

    #[test]
    fn tls_lets_a_listener_out() {
        let raw = RawConfig {
            tls_cert: Some("a.pem".into()),
            tls_key: Some("a.key".into()),
            client_ca: Some("ca.pem".into()),
            client_certificates: Some("required".to_owned()),
            access: Some("access.yaml".into()),
            ..listening("0.0.0.0:1")
        };
        let tls = Config::try_from(raw).unwrap().security.tls.unwrap();
        assert_eq!(tls.clients.unwrap().certificates, ClientCertificates::Required);
    }
}
