//! The part of the configuration that says where policies are kept, and so whether there are other replicas.

use std::path::PathBuf;

use hyper::Uri;

use super::{ConfigError, Errors};
use crate::identity::client::ClientFiles;
use crate::identity::tls::TlsFiles;
use crate::replica::service::MAX_REPLICA_NAME_BYTES;

/// What `--store` begins with.
const SCHEME: &str = "etcd://";
/// Most members of a cluster that are named.
const MAX_MEMBERS: usize = 16;

/// Where policies are kept.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreOrigin {
    /// In the data directory; there are no other replicas.
    Embedded,
    /// In etcd, with other replicas.
    Etcd(Box<Replication>),
}

/// What makes a control plane one of several replicas.
#[derive(Clone, Debug, PartialEq)]
pub struct Replication {
    /// URLs of etcd's members.
    pub members: Vec<String>,
    /// How etcd is spoken to.
    pub etcd: ClientFiles,
    /// Name of this replica, which no other one has.
    pub name: String,
    /// URL by which the others reach its gRPC listener; `None`: the address that it listens on.
    pub advertise: Option<String>,
    /// How the others are spoken to; `None`: in plain text, as this one's own listener.
    pub peers: Option<ClientFiles>,
}

/// The settings of [`StoreOrigin`] as they were given.
pub(super) struct RawStore {
    pub(super) store: Option<String>,
    pub(super) store_ca: Option<PathBuf>,
    pub(super) store_cert: Option<PathBuf>,
    pub(super) store_key: Option<PathBuf>,
    pub(super) replica: Option<String>,
    pub(super) advertise: Option<String>,
}

// === impl StoreOrigin ===

impl StoreOrigin {
    /// The flag to change when the store cannot be opened.
    pub const fn flag(&self) -> &'static str {
        match self {
            Self::Embedded => "data-dir",
            Self::Etcd(_) => "store",
        }
    }
}

// === impl Errors ===

impl Errors {
    /// Checks the settings, those of the listeners' TLS included: replicas reach each other as their clients do.
    pub(super) fn store(&mut self, raw: RawStore, tls: Option<&TlsFiles>) -> StoreOrigin {
        let RawStore { store, store_ca, store_cert, store_key, replica, advertise } = raw;
        let Some(store) = store else {
            let given = [
                ("store-ca", store_ca.is_some()),
                ("store-cert", store_cert.is_some()),
                ("store-key", store_key.is_some()),
                ("replica", replica.is_some()),
                ("advertise", advertise.is_some()),
            ];
            let alone = given.into_iter().filter(|(_, is_given)| *is_given);
            self.0.extend(alone.map(|(flag, _)| ConfigError::Needs { flag, other: "--store" }));
            return StoreOrigin::Embedded;
        };
        let scheme = if store_ca.is_some() { "https" } else { "http" };
        let members = self.members(&store, scheme);
        for (flag, file) in [("store-cert", &store_cert), ("store-key", &store_key)] {
            if file.is_some() && store_ca.is_none() {
                self.0.push(ConfigError::Needs { flag, other: "--store-ca" });
            }
        }
        let name = replica.unwrap_or_default();
        if !(1..=MAX_REPLICA_NAME_BYTES).contains(&name.len()) {
            self.0.push(ConfigError::Needs { flag: "store", other: "--replica with a name of 1 to 253 bytes that no other replica has" });
        }
        let peers = tls.map(|files| ClientFiles {
            ca: ("client-ca", files.clients.as_ref().map(|clients| clients.file.clone())),
            cert: ("tls-cert", Some(files.certificate.clone())),
            key: ("tls-key", Some(files.key.clone())),
        });
        if peers.as_ref().is_some_and(|files| files.ca.1.is_none()) {
            self.0
                .push(ConfigError::Needs { flag: "store", other: "--client-ca beside --tls-cert: replicas show each other certificates" });
        }
        StoreOrigin::Etcd(Box::new(Replication {
            members,
            etcd: ClientFiles { ca: ("store-ca", store_ca), cert: ("store-cert", store_cert), key: ("store-key", store_key) },
            name,
            advertise: advertise.map(|address| self.advertised(address, tls.is_some())),
            peers,
        }))
    }

    fn members(&mut self, store: &str, scheme: &str) -> Vec<String> {
        let hosts = store.strip_prefix(SCHEME).map(|hosts| hosts.split(',').collect::<Vec<_>>()).unwrap_or_default();
        let members: Vec<String> = hosts.iter().map(|host| format!("{scheme}://{host}")).collect();
        let is_address = |member: &String| {
            let uri = member.parse::<Uri>();
            uri.is_ok_and(|uri| uri.port_u16().is_some() && uri.host().is_some_and(|host| !host.is_empty()) && uri.path() == "/")
        };
        if !(1..=MAX_MEMBERS).contains(&members.len()) || !members.iter().all(is_address) {
            self.0.push(ConfigError::Store { got: store.to_owned() });
        }
        members
    }

    fn advertised(&mut self, address: String, is_tls: bool) -> String {
        let url = format!("{}://{address}", if is_tls { "https" } else { "http" });
        if !url.parse::<Uri>().is_ok_and(|uri| uri.port_u16().is_some_and(|port| port > 0) && uri.path() == "/") {
            self.0.push(ConfigError::Address { flag: "advertise", got: address, example: "10.0.0.7:18000" });
        }
        url
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, RawConfig};
    use super::*;

    fn store(url: &str) -> RawConfig {
        RawConfig { store: Some(url.to_owned()), replica: Some("a".to_owned()), ..RawConfig::default() }
    }

    fn etcd(raw: RawConfig) -> Replication {
        match Config::try_from(raw).unwrap().store {
            StoreOrigin::Etcd(replication) => *replication,
            StoreOrigin::Embedded => unreachable!(),
        }
    }

    #[test]
    fn every_member_of_the_store_is_an_address() {
        assert_eq!(etcd(store("etcd://a:1,[::1]:2")).members, ["http://a:1", "http://[::1]:2"]);
        let encrypted = RawConfig { store_ca: Some("ca.pem".into()), ..store("etcd://a:1") };
        assert_eq!(etcd(encrypted).members, ["https://a:1"]);
        for wrong in ["a:1", "etcd://", "etcd://a", "etcd://a:1,", "etcd://a:1/x", "redis://a:1"] {
            let errors = Config::try_from(store(wrong)).unwrap_err().to_string();
            assert!(errors.starts_with(&format!("--store: `{wrong}` is no list of the form etcd://HOST:PORT")), "{errors}");
        }
    }

    #[test]
    fn what_belongs_to_a_store_means_nothing_without_one() {
        let raw = RawConfig { store_key: Some("k".into()), replica: Some("a".into()), ..RawConfig::default() };
        assert_eq!(Config::try_from(raw).unwrap_err().to_string(), "--store-key: needs --store\n--replica: needs --store");
        let nameless = RawConfig { replica: None, ..store("etcd://a:1") };
        assert!(Config::try_from(nameless).unwrap_err().to_string().starts_with("--store: needs --replica"));
        let half = RawConfig { store_cert: Some("c".into()), ..store("etcd://a:1") };
        assert_eq!(Config::try_from(half).unwrap_err().to_string(), "--store-cert: needs --store-ca");
    }

    #[test]
    fn replicas_reach_each_other_as_they_are_reached() {
        let tls = RawConfig {
            tls_cert: Some("c".into()),
            tls_key: Some("k".into()),
            client_ca: Some("ca".into()),
            advertise: Some("host:1".to_owned()),
            ..store("etcd://a:1")
        };
        let replication = etcd(tls.clone());
        assert_eq!(replication.advertise.as_deref(), Some("https://host:1"));
        assert_eq!(replication.peers.unwrap().ca.1, Some("ca".into()));
        let without = Config::try_from(RawConfig { client_ca: None, ..tls }).unwrap_err().to_string();
        assert!(without.starts_with("--store: needs --client-ca"), "{without}");
        let plain = RawConfig { advertise: Some("host".to_owned()), ..store("etcd://a:1") };
        assert!(Config::try_from(plain).unwrap_err().to_string().starts_with("--advertise: `host` is not an address"));
    }
}
