//! Configuration as people give it: flags, environment, file.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

/// Settings of `headgate serve`, each perhaps given. The file has the same names as the flags, without the dashes in front.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RawConfig {
    /// Address of the gRPC listener: discovery, load reports, policies, health, reflection [default: 127.0.0.1:18000]
    #[arg(long, env = "HEADGATE_GRPC", value_name = "ADDR")]
    pub grpc: Option<String>,
    /// Address of the HTTP listener: status page, /metrics, /throttle/status, /healthz, /readyz [default: 127.0.0.1:18080]
    #[arg(long, env = "HEADGATE_HTTP", value_name = "ADDR")]
    pub http: Option<String>,
    /// Directory of the policy store; made if missing [default: headgate-data]
    #[arg(long, env = "HEADGATE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Cluster in which policies are kept, for several replicas: etcd://HOST:PORT,HOST:PORT; without it they are kept in --data-dir
    #[arg(long, env = "HEADGATE_STORE", value_name = "URL")]
    pub store: Option<String>,
    /// PEM file with the authorities that sign etcd's certificates; with it etcd is reached by TLS
    #[arg(long, env = "HEADGATE_STORE_CA", value_name = "FILE")]
    pub store_ca: Option<PathBuf>,
    /// PEM file with this replica's certificate for etcd
    #[arg(long, env = "HEADGATE_STORE_CERT", value_name = "FILE")]
    pub store_cert: Option<PathBuf>,
    /// PEM file with the private key of --store-cert
    #[arg(long, env = "HEADGATE_STORE_KEY", value_name = "FILE")]
    pub store_key: Option<PathBuf>,
    /// Name of this replica among those of --store
    #[arg(long, env = "HEADGATE_REPLICA", value_name = "NAME")]
    pub replica: Option<String>,
    /// Address by which the other replicas reach this one's gRPC listener [default: that of --grpc]
    #[arg(long, env = "HEADGATE_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// NVML library: a path, `auto` (the driver's), or `off` [default: auto]
    #[arg(long, env = "HEADGATE_NVML_LIB", value_name = "PATH|auto|off")]
    pub nvml_lib: Option<String>,
    /// Recording to play over and over: its GPUs instead of NVML's, its engines instead of the pages of the same addresses;
    /// `headgate gpu --record` makes one
    #[arg(long, env = "HEADGATE_DEVICE_TAPE", value_name = "FILE")]
    pub device_tape: Option<PathBuf>,
    /// Page of a dcgm-exporter to read GPUs from, where no agent can run; several with commas
    #[arg(long, env = "HEADGATE_DCGM_EXPORTERS", value_name = "URL", value_delimiter = ',')]
    pub dcgm_exporter: Option<Vec<String>>,
    /// Path of the filter's .wasm file as Envoy sees it, for the filter configuration served by ECDS
    /// [default: /etc/headgate/headgate.wasm]
    #[arg(long, env = "HEADGATE_FILTER_WASM", value_name = "PATH")]
    pub filter_wasm: Option<PathBuf>,
    /// Envoy cluster by which the filter reaches this control plane [default: headgate-control]
    #[arg(long, env = "HEADGATE_CONTROL_CLUSTER", value_name = "NAME")]
    pub control_cluster: Option<String>,
    /// `:authority` that the filter sends to this control plane [default: headgate.local]
    #[arg(long, env = "HEADGATE_CONTROL_AUTHORITY", value_name = "HOST")]
    pub control_authority: Option<String>,
    /// File to which the bound ports are written as {"grpc":N,"http":N} once both listen
    #[arg(long, env = "HEADGATE_PORTS_FILE", value_name = "FILE")]
    pub ports_file: Option<PathBuf>,
    /// Format of the log on stderr: text or json [default: text]
    #[arg(long, env = "HEADGATE_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Time for which pushed limits hold when this control plane is gone, in milliseconds, 200..=600000 [default: 3000]
    #[arg(long, env = "HEADGATE_LIMITS_TTL_MS", value_name = "MS")]
    pub limits_ttl_ms: Option<u64>,
    /// Time over which they then decay to the safe share, in milliseconds, 0..=600000 [default: 10000]
    #[arg(long, env = "HEADGATE_DECAY_MS", value_name = "MS")]
    pub decay_ms: Option<u64>,
    /// Age at which a proxy's connection is replaced, give or take a quarter, in seconds, 0..=86400; 0: never [default: 1800]
    #[arg(long, env = "HEADGATE_CONNECTION_AGE_S", value_name = "S")]
    pub connection_age_s: Option<u64>,
    /// TLS of both listeners: PEM file with the certificate and its intermediates; read again when it changes
    #[arg(long, env = "HEADGATE_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the private key of --tls-cert
    #[arg(long, env = "HEADGATE_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// PEM file with the authorities that sign the certificates of proxies and other clients
    #[arg(long, env = "HEADGATE_CLIENT_CA", value_name = "FILE")]
    pub client_ca: Option<PathBuf>,
    /// PEM file with the revocation lists of those authorities, one of each; read again when it changes
    #[arg(long, env = "HEADGATE_CLIENT_CRL", value_name = "FILE")]
    pub client_crl: Option<PathBuf>,
    /// Whether a gRPC client must have a certificate: optional or required [default: optional]
    #[arg(long, env = "HEADGATE_CLIENT_CERTIFICATES", value_name = "MODE")]
    pub client_certificates: Option<String>,
    /// Plain text on addresses that other machines reach. Only where something else encrypts, for example a mesh's sidecar
    #[arg(long, env = "HEADGATE_INSECURE_PLAINTEXT", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub insecure_plaintext: Option<bool>,
    /// File that says who may do what, and which proxy is which node; read again when it changes
    #[arg(long, env = "HEADGATE_ACCESS", value_name = "FILE")]
    pub access: Option<PathBuf>,
    /// Everybody may do everything, also from other machines. Only where something else decides who may call
    #[arg(long, env = "HEADGATE_INSECURE_OPEN", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub insecure_open: Option<bool>,
    /// File of the audit log, one JSON object a line, or `off` [default: audit.jsonl in --data-dir]
    #[arg(long, env = "HEADGATE_AUDIT_LOG", value_name = "FILE|off")]
    pub audit_log: Option<PathBuf>,
    /// Size at which the audit log begins anew, in MiB, 1..=4096; seven old files are kept [default: 16]
    #[arg(long, env = "HEADGATE_AUDIT_MAX_MIB", value_name = "MIB")]
    pub audit_max_mib: Option<u64>,
}

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no YAML, or a key is unknown or of the wrong type.
    #[error("{path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_yaml_ng::Error,
    },
}

// === impl RawConfig ===

impl RawConfig {
    /// Reads a configuration file. An empty file gives nothing.
    ///
    /// # Errors
    /// [`FileError`] when it cannot be read or parsed.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let text = std::fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|source| FileError::Parse { path: path.to_owned(), source })
    }

    fn parse(text: &str) -> Result<Self, serde_yaml_ng::Error> {
        serde_yaml_ng::from_str::<Option<Self>>(text).map(Option::unwrap_or_default)
    }

    /// These settings, and those of `fallback` where these are silent.
    #[must_use]
    pub fn or(self, fallback: Self) -> Self {
        Self {
            grpc: self.grpc.or(fallback.grpc),
            http: self.http.or(fallback.http),
            data_dir: self.data_dir.or(fallback.data_dir),
            store: self.store.or(fallback.store),
            store_ca: self.store_ca.or(fallback.store_ca),
            store_cert: self.store_cert.or(fallback.store_cert),
            store_key: self.store_key.or(fallback.store_key),
            replica: self.replica.or(fallback.replica),
            advertise: self.advertise.or(fallback.advertise),
            nvml_lib: self.nvml_lib.or(fallback.nvml_lib),
            device_tape: self.device_tape.or(fallback.device_tape),
            dcgm_exporter: self.dcgm_exporter.or(fallback.dcgm_exporter),
            filter_wasm: self.filter_wasm.or(fallback.filter_wasm),
            control_cluster: self.control_cluster.or(fallback.control_cluster),
            control_authority: self.control_authority.or(fallback.control_authority),
            ports_file: self.ports_file.or(fallback.ports_file),
            log_format: self.log_format.or(fallback.log_format),
            limits_ttl_ms: self.limits_ttl_ms.or(fallback.limits_ttl_ms),
            decay_ms: self.decay_ms.or(fallback.decay_ms),
            connection_age_s: self.connection_age_s.or(fallback.connection_age_s),
            tls_cert: self.tls_cert.or(fallback.tls_cert),
            tls_key: self.tls_key.or(fallback.tls_key),
            client_ca: self.client_ca.or(fallback.client_ca),
            client_crl: self.client_crl.or(fallback.client_crl),
            client_certificates: self.client_certificates.or(fallback.client_certificates),
            insecure_plaintext: self.insecure_plaintext.or(fallback.insecure_plaintext),
            access: self.access.or(fallback.access),
            insecure_open: self.insecure_open.or(fallback.insecure_open),
            audit_log: self.audit_log.or(fallback.audit_log),
            audit_max_mib: self.audit_max_mib.or(fallback.audit_max_mib),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_wins_over_the_file() {
        let flags = RawConfig { grpc: Some("127.0.0.1:1".to_owned()), ..RawConfig::default() };
        let file = RawConfig::parse("grpc: 127.0.0.1:2\nlimits-ttl-ms: 700\n").unwrap();
        let merged = flags.or(file);
        assert_eq!(merged.grpc.as_deref(), Some("127.0.0.1:1"));
        assert_eq!(merged.limits_ttl_ms, Some(700));
    }

    #[test]
    fn an_unknown_key_in_the_file_is_refused_by_name() {
        let error = RawConfig::parse("grcp: 127.0.0.1:2\n").unwrap_err().to_string();
        assert!(error.contains("unknown field `grcp`"), "{error}");
    }

    #[test]
    fn an_empty_file_gives_nothing() {
        assert_eq!(RawConfig::parse("").unwrap(), RawConfig::default());
        assert_eq!(RawConfig::parse("# nothing yet\n").unwrap(), RawConfig::default());
    }
}
