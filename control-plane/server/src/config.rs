//! Configuration of `headgate serve`: flags win over the environment, the environment over the file.
//!
//! [`RawConfig`] is what people give; [`Config`] cannot be wrong. [`Config::try_from`] reports every error at once.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

mod raw;
mod security;
mod store;

pub use headgate_core::fleet::LimitsLifetime;
use hyper::Uri;

pub use self::raw::{FileError, RawConfig};
use self::security::RawSecurity;
pub use self::security::{AuditTarget, Security};
use self::store::RawStore;
pub use self::store::{Replication, StoreOrigin};

/// A valid configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Address of the gRPC listener; port 0 takes any.
    pub grpc: SocketAddr,
    /// Address of the HTTP listener; port 0 takes any.
    pub http: SocketAddr,
    /// Directory of the policy store.
    pub data_dir: PathBuf,
    /// Where policies are kept.
    pub store: StoreOrigin,
    /// Where GPU telemetry comes from.
    pub devices: DeviceOrigin,
    /// Pages of dcgm-exporters to read GPUs from.
    pub dcgm_exporters: Vec<Uri>,
    /// How Envoy gets the filter.
    pub filter: FilterDelivery,
    /// File to which the bound ports are written.
    pub ports_file: Option<PathBuf>,
    /// Format of the log.
    pub log_format: LogFormat,
    /// How long limits hold without this control plane.
    pub lifetime: LimitsLifetime,
    /// Age at which a connection of the gRPC listener is to be replaced, about; `None`: never.
    pub connection_age: Option<Duration>,
    /// How the listeners are protected.
    pub security: Security,
}

/// Who answers for the GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceOrigin {
    /// The driver's NVML library, by its usual name.
    Driver,
    /// This NVML library.
    Library(PathBuf),
    /// This recording, played over and over.
    Tape(PathBuf),
    /// Nobody: there is no GPU telemetry.
    Off,
}

/// What the filter configuration served by ECDS says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterDelivery {
    /// Path of the `.wasm` file as Envoy sees it.
    pub wasm: PathBuf,
    /// Envoy cluster by which the filter reaches this control plane.
    pub control_cluster: String,
    /// `:authority` that the filter sends.
    pub control_authority: String,
}

/// Format of the log on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A line of text for each event.
    Text,
    /// A JSON object for each event.
    Json,
}

/// All that is wrong with a configuration, in the order of the flags. `Display` gives one error a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

/// One setting that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not an address.
    #[error("--{flag}: `{got}` is not an address of the form IP:PORT, for example {example}")]
    Address {
        /// The flag.
        flag: &'static str,
        /// What was given.
        got: String,
        /// What would do.
        example: &'static str,
    },
    /// Both listeners want one port.
    #[error("--http: {0} is the address of --grpc too; give one of them another port")]
    SameAddress(SocketAddr),
    /// Outside its range.
    #[error("--{flag}: {got} is outside {min}..={max}")]
    OutOfRange {
        /// The flag.
        flag: &'static str,
        /// What was given.
        got: u64,
        /// Smallest value.
        min: u64,
        /// Largest value.
        max: u64,
    },
    /// None of the allowed values.
    #[error("--{flag}: `{got}` is none of {allowed}")]
    NoneOf {
        /// The flag.
        flag: &'static str,
        /// What was given.
        got: String,
        /// What would do.
        allowed: &'static str,
    },
    /// Means nothing without another one.
    #[error("--{flag}: needs {other}")]
    Needs {
        /// The flag.
        flag: &'static str,
        /// What is missing.
        other: &'static str,
    },
    /// Reachable from other machines, and not encrypted.
    #[error(
        "--{flag}: {address} is reachable from other machines and would be plain text: give --tls-cert and --tls-key, listen on \
         127.0.0.1, or say --insecure-plaintext where something else encrypts"
    )]
    PlainText {
        /// The flag that names the listener.
        flag: &'static str,
        /// Its address.
        address: SocketAddr,
    },
    /// No page that can be read.
    #[error("--{flag}: `{got}` is no address of the form http://HOST:PORT/metrics")]
    Page {
        /// The flag.
        flag: &'static str,
        /// What was given.
        got: String,
    },
    /// Reachable from other machines, and without rules.
    #[error(
        "--{flag}: {address} is reachable from other machines, and everybody could do everything: give --access, listen on 127.0.0.1, or \
         say --insecure-open where something else decides who may call"
    )]
    OpenToAll {
        /// The flag that names the listener.
        flag: &'static str,
        /// Its address.
        address: SocketAddr,
    },
    /// No list of members.
    #[error("--store: `{got}` is no list of the form etcd://HOST:PORT,HOST:PORT with 1 to 16 members")]
    Store {
        /// What was given.
        got: String,
    },
    /// Given, but empty.
    #[error("--{flag}: is empty")]
    Empty {
        /// The flag.
        flag: &'static str,
    },
}

// === impl Config ===

impl TryFrom<RawConfig> for Config {
    type Error = ConfigErrors;

    fn try_from(raw: RawConfig) -> Result<Self, ConfigErrors> {
        // Exhaustive: a new setting does not compile until it is read here.
        let RawConfig {
            grpc,
            http,
            data_dir,
            nvml_lib,
            device_tape,
            dcgm_exporter,
            filter_wasm,
            control_cluster,
            control_authority,
            ports_file,
            log_format,
            limits_ttl_ms,
            decay_ms,
            connection_age_s,
            tls_cert,
            tls_key,
            client_ca,
            client_crl,
            client_certificates,
            insecure_plaintext,
            access,
            insecure_open,
            audit_log,
            audit_max_mib,
            store,
            store_ca,
            store_cert,
            store_key,
            replica,
            advertise,
        } = raw;
        let mut errors = Errors::default();
        let security = RawSecurity {
            tls_cert,
            tls_key,
            client_ca,
            client_crl,
            client_certificates,
            insecure_plaintext: insecure_plaintext.unwrap_or(false),
            access,
            insecure_open: insecure_open.unwrap_or(false),
            audit_log,
            audit_max_mib,
        };
        let (grpc, http) = (errors.address("grpc", grpc, "127.0.0.1:18000"), errors.address("http", http, "127.0.0.1:18080"));
        let data_dir = errors.path("data-dir", data_dir, "headgate-data");
        let mut config = Self {
            grpc,
            http,
            data_dir: data_dir.clone(),
            store: StoreOrigin::Embedded,
            devices: errors.devices(nvml_lib, device_tape),
            dcgm_exporters: errors.pages("dcgm-exporter", dcgm_exporter.unwrap_or_default()),
            filter: errors.filter(filter_wasm, control_cluster, control_authority),
            ports_file,
            log_format: errors.log_format(log_format),
            lifetime: LimitsLifetime {
                ttl: errors.millis("limits-ttl-ms", limits_ttl_ms.unwrap_or(3000), 200, 600_000),
                decay: errors.millis("decay-ms", decay_ms.unwrap_or(10_000), 0, 600_000),
            },
            connection_age: errors.seconds("connection-age-s", connection_age_s.unwrap_or(1800), 86_400),
            security: errors.security(security, &data_dir, &[("grpc", grpc), ("http", http)]),
        };
        config.store = errors.store(RawStore { store, store_ca, store_cert, store_key, replica, advertise }, config.security.tls.as_ref());
        errors.two_ports(grpc, http);
        if errors.0.is_empty() { Ok(config) } else { Err(ConfigErrors(errors.0)) }
    }
}

// === impl ConfigErrors ===

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, error) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Collects errors; each method gives a value that stands in for a wrong one until all are known.
#[derive(Default)]
struct Errors(Vec<ConfigError>);

// === impl Errors ===

impl Errors {
    fn address(&mut self, flag: &'static str, given: Option<String>, default: &'static str) -> SocketAddr {
        let text = given.unwrap_or_else(|| default.to_owned());
        text.parse().unwrap_or_else(|_| {
            self.0.push(ConfigError::Address { flag, got: text, example: default });
            SocketAddr::from(([127, 0, 0, 1], 0))
        })
    }

    fn two_ports(&mut self, grpc: SocketAddr, http: SocketAddr) {
        if grpc == http && grpc.port() != 0 {
            self.0.push(ConfigError::SameAddress(http));
        }
    }

    fn path(&mut self, flag: &'static str, given: Option<PathBuf>, default: &str) -> PathBuf {
        let path = given.unwrap_or_else(|| PathBuf::from(default));
        if path.as_os_str().is_empty() {
            self.0.push(ConfigError::Empty { flag });
        }
        path
    }

    fn text(&mut self, flag: &'static str, given: Option<String>, default: &str) -> String {
        let text = given.unwrap_or_else(|| default.to_owned());
        if text.is_empty() {
            self.0.push(ConfigError::Empty { flag });
        }
        text
    }

    fn filter(&mut self, wasm: Option<PathBuf>, control_cluster: Option<String>, control_authority: Option<String>) -> FilterDelivery {
        FilterDelivery {
            wasm: self.path("filter-wasm", wasm, "/etc/headgate/headgate.wasm"),
            control_cluster: self.text("control-cluster", control_cluster, "headgate-control"),
            control_authority: self.text("control-authority", control_authority, "headgate.local"),
        }
    }

    fn pages(&mut self, flag: &'static str, given: Vec<String>) -> Vec<Uri> {
        let mut pages = Vec::new();
        for got in given {
            match got.parse::<Uri>() {
                Ok(page) if page.scheme_str() == Some("http") && page.authority().is_some() => pages.push(page),
                _ => self.0.push(ConfigError::Page { flag, got }),
            }
        }
        pages
    }

    /// A tape stands instead of NVML, whatever the environment says of the library.
    fn devices(&mut self, library: Option<String>, tape: Option<PathBuf>) -> DeviceOrigin {
        if let Some(tape) = tape {
            return DeviceOrigin::Tape(self.path("device-tape", Some(tape), ""));
        }
        match library.as_deref() {
            None | Some("auto") => DeviceOrigin::Driver,
            Some("off") => DeviceOrigin::Off,
            Some("") => {
                self.0.push(ConfigError::Empty { flag: "nvml-lib" });
                DeviceOrigin::Off
            }
            Some(path) => DeviceOrigin::Library(PathBuf::from(path)),
        }
    }

    fn log_format(&mut self, given: Option<String>) -> LogFormat {
        match given.as_deref() {
            None | Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            Some(got) => {
                self.0.push(ConfigError::NoneOf { flag: "log-format", got: got.to_owned(), allowed: "text, json" });
                LogFormat::Text
            }
        }
    }

    /// None for 0: never.
    fn seconds(&mut self, flag: &'static str, got: u64, max: u64) -> Option<Duration> {
        if got > max {
            self.0.push(ConfigError::OutOfRange { flag, got, min: 0, max });
        }
        (got > 0).then(|| Duration::from_secs(got))
    }

    fn millis(&mut self, flag: &'static str, got: u64, min: u64, max: u64) -> Duration {
        if !(min..=max).contains(&got) {
            self.0.push(ConfigError::OutOfRange { flag, got, min, max });
        }
        Duration::from_millis(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_given_is_the_documented_default() {
        let config = Config::try_from(RawConfig::default()).unwrap();
        assert_eq!(config.grpc.to_string(), "127.0.0.1:18000");
        assert_eq!(config.http.to_string(), "127.0.0.1:18080");
        assert_eq!(config.devices, DeviceOrigin::Driver);
        assert_eq!(config.lifetime.ttl, Duration::from_secs(3));
        assert_eq!(config.connection_age, Some(Duration::from_secs(1800)));
    }

    #[test]
    fn every_error_is_reported_at_once_in_the_order_of_the_flags() {
        let raw = RawConfig {
            grpc: Some("localhost".to_owned()),
            nvml_lib: Some(String::new()),
            log_format: Some("xml".to_owned()),
            limits_ttl_ms: Some(10),
            connection_age_s: Some(86_401),
            ..RawConfig::default()
        };
        let errors = Config::try_from(raw).unwrap_err().to_string();
        assert_eq!(
            errors.lines().collect::<Vec<_>>(),
            [
                "--grpc: `localhost` is not an address of the form IP:PORT, for example 127.0.0.1:18000",
                "--nvml-lib: is empty",
                "--log-format: `xml` is none of text, json",
                "--limits-ttl-ms: 10 is outside 200..=600000",
                "--connection-age-s: 86401 is outside 0..=86400",
            ]
        );
    }

    #[test]
    fn a_tape_stands_instead_of_the_library() {
        let raw = RawConfig { nvml_lib: Some("off".to_owned()), device_tape: Some("a.jsonl".into()), ..RawConfig::default() };
        assert_eq!(Config::try_from(raw).unwrap().devices, DeviceOrigin::Tape("a.jsonl".into()));
        let nameless = RawConfig { device_tape: Some(PathBuf::new()), ..RawConfig::default() };
        assert_eq!(Config::try_from(nameless).unwrap_err().to_string(), "--device-tape: is empty");
    }

    #[test]
    fn two_listeners_on_one_port_are_refused_unless_any_port_will_do() {
        let raw = |port: u16| RawConfig {
            grpc: Some(format!("127.0.0.1:{port}")),
            http: Some(format!("127.0.0.1:{port}")),
            ..RawConfig::default()
        };
        assert!(Config::try_from(raw(9000)).unwrap_err().to_string().contains("give one of them another port"));
        assert!(Config::try_from(raw(0)).is_ok());
    }
}
