//! Resources: their types, names, versions and bodies.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headgate_protos::{Any, LIMITS_TYPE_URL, POLICY_TYPE_URL};
use sha2::{Digest, Sha256};

use crate::wire::Encoded;

/// Type of a resource. The order is that in which types are sent: what others refer to comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// `envoy.config.cluster.v3.Cluster` (CDS).
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment` (EDS).
    Endpoint,
    /// `envoy.config.listener.v3.Listener` (LDS).
    Listener,
    /// `envoy.config.route.v3.RouteConfiguration` (RDS).
    Route,
    /// `envoy.service.runtime.v3.Runtime` (RTDS).
    Runtime,
    /// `envoy.config.core.v3.TypedExtensionConfig` (ECDS).
    ExtensionConfig,
    /// `headgate.v1.Policy`.
    HeadgatePolicy,
    /// `headgate.v1.Limits`.
    HeadgateLimits,
}

/// Name of a resource: 1 to [`ResourceName::MAX_BYTES`] bytes, never the wildcard `*`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceName(Arc<str>);

/// A text that cannot name a resource.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// It is empty.
    #[error("a resource name is empty")]
    Empty,
    /// It is the wildcard.
    #[error("`*` is the wildcard and names no resource")]
    Wildcard,
    /// It is too long.
    #[error("a resource name of {got} bytes is longer than {max}")]
    TooLong {
        /// Its length, in bytes.
        got: usize,
        /// The longest allowed, in bytes.
        max: usize,
    },
}

/// Version of a resource or of a set of resources: the first 64 bits of the SHA-256 of the content, so that all replicas of a
/// control plane give equal content the same version. Displayed as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(u64);

/// A resource: encoded once, its bytes shared by every stream that sends it. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    kind: ResourceType,
    name: ResourceName,
    version: Version,
    ttl: Option<Duration>,
    encoded: Encoded,
    needs: Arc<[(ResourceType, ResourceName)]>,
}

// === impl ResourceType ===

impl ResourceType {
    /// Every type, in the order in which they are sent.
    pub const ALL: [Self; 8] = [
        Self::Cluster,
        Self::Endpoint,
        Self::Listener,
        Self::Route,
        Self::Runtime,
        Self::ExtensionConfig,
        Self::HeadgatePolicy,
        Self::HeadgateLimits,
    ];

    /// Type URL as it stands in requests, responses and `Any`.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Runtime => "type.googleapis.com/envoy.service.runtime.v3.Runtime",
            Self::ExtensionConfig => "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            Self::HeadgatePolicy => POLICY_TYPE_URL,
            Self::HeadgateLimits => LIMITS_TYPE_URL,
        }
    }

    /// The type with this URL, if we serve it.
    pub fn from_type_url(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// Whether an empty list of names in the first request of a stream means every resource.
    ///
    /// "Legacy" wildcard of the specification: for Envoy only CDS and LDS have it. Our own two types have it as well, since the
    /// filter wants whatever its node is given.
    pub const fn has_legacy_wildcard(self) -> bool {
        match self {
            Self::Cluster | Self::Listener | Self::HeadgatePolicy | Self::HeadgateLimits => true,
            Self::Endpoint | Self::Route | Self::Runtime | Self::ExtensionConfig => false,
        }
    }

    /// Most resources that a delta response of this type carries.
    ///
    /// Envoy refuses all extension configurations of a response when it refuses one, and takes the same bytes for applied when they
    /// come again, so the others could not be told apart afterwards. A policy that one filter refuses must not keep another from
    /// it either. Both travel alone.
    pub(crate) const fn resources_per_response(self) -> usize {
        match self {
            Self::ExtensionConfig | Self::HeadgatePolicy => 1,
            Self::Cluster | Self::Endpoint | Self::Listener | Self::Route | Self::Runtime | Self::HeadgateLimits => usize::MAX,
        }
    }

    /// Whether a client that refused content takes it for applied when it comes again, and accepts it without applying it.
    ///
    /// Envoy does so with extension configurations, whose hash it remembers before it applies them.
    pub(crate) const fn is_applied_once(self) -> bool {
        matches!(self, Self::ExtensionConfig)
    }

    /// Whether a resource that a state-of-the-world response leaves out is thereby deleted.
    ///
    /// Envoy deletes only clusters and listeners so; for every other type of its own, absence means nothing. For our own types
    /// we define it as deletion.
    pub const fn absence_deletes(self) -> bool {
        self.has_legacy_wildcard()
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.type_url().rsplit_once('/').map_or(self.type_url(), |(_, name)| name))
    }
}

// === impl ResourceName ===

impl ResourceName {
    /// Longest name, in bytes.
    pub const MAX_BYTES: usize = 1024;
    /// What a client subscribes to in order to get every resource of a type.
    pub const WILDCARD: &str = "*";

    /// Checks a name. Errs when it is empty, the wildcard, or longer than [`Self::MAX_BYTES`].
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        match name {
            "" => Err(InvalidName::Empty),
            Self::WILDCARD => Err(InvalidName::Wildcard),
            name if name.len() > Self::MAX_BYTES => Err(InvalidName::TooLong { got: name.len(), max: Self::MAX_BYTES }),
            name => Ok(Self(name.into())),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Version ===

impl Version {
    /// Version of some content.
    pub fn of(content: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(content))
    }

    /// Version of a set of named versions, given in the order of names.
    pub(crate) fn of_set<'a>(entries: impl IntoIterator<Item = (&'a ResourceName, Version)>) -> Self {
        let mut hash = Sha256::new();
        for (name, version) in entries {
            // The length keeps ("ab", v) and ("a", …) apart.
            hash.update((name.as_str().len() as u64).to_be_bytes());
            hash.update(name.as_str());
            hash.update(version.0.to_be_bytes());
        }
        Self::finish(hash)
    }

    /// Reads what [`fmt::Display`] wrote; `None` for any other text, which then is nobody's version.
    pub fn parse(text: &str) -> Option<Self> {
        let canonical = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !canonical {
            return None;
        }
        u64::from_str_radix(text, 16).ok().map(Self)
    }

    fn finish(hash: Sha256) -> Self {
        let digest = hash.finalize();
        Self(digest.iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte)))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

// === impl Resource ===

impl Resource {
    /// A resource from its encoded message. Its version is the hash of the bytes.
    pub fn new(kind: ResourceType, name: ResourceName, encoded: Bytes) -> Self {
        let version = Version::of(&encoded);
        let encoded = Encoded::new(kind, &name, version, None, encoded);
        Self { kind, name, version, ttl: None, encoded, needs: Arc::default() }
    }

    /// Gives the resource a version that its content already carries, the same on every replica, instead of the hash of its bytes.
    #[must_use]
    pub fn versioned(self, version: Version) -> Self {
        let ttl = self.ttl;
        self.encoded_anew(version, ttl)
    }

    /// Lets the resource expire with a client that hears nothing of it for `ttl`, as a fault that is injected should when whoever
    /// injects it dies. Streams renew it with heartbeats of a third of that. Another `ttl` is another version.
    ///
    /// Clients that do not know what that is are sent the resource without it.
    #[must_use]
    pub fn expiring(self, ttl: Duration) -> Self {
        let version = Version::of(&[&self.version.0.to_be_bytes()[..], &ttl.as_nanos().to_be_bytes()[..]].concat());
        self.encoded_anew(version, Some(ttl))
    }

    fn encoded_anew(self, version: Version, ttl: Option<Duration>) -> Self {
        let encoded = Encoded::new(self.kind, &self.name, version, ttl, self.encoded.body());
        Self { version, ttl, encoded, ..self }
    }

    /// Says that this resource refers to another one, which a snapshot must then contain too.
    #[must_use]
    pub fn needing(mut self, kind: ResourceType, name: ResourceName) -> Self {
        self.needs = self.needs.iter().cloned().chain([(kind, name)]).collect();
        self
    }

    /// Its type.
    pub fn kind(&self) -> ResourceType {
        self.kind
    }

    /// Its name.
    pub fn name(&self) -> &ResourceName {
        &self.name
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Time after which a client that hears nothing of it drops it.
    pub fn ttl(&self) -> Option<Duration> {
        self.ttl
    }

    /// Its type URL and encoded message.
    pub fn body(&self) -> Any {
        Any { type_url: self.kind.type_url().into(), value: self.encoded.body() }
    }

    pub(crate) fn encoded(&self) -> &Encoded {
        &self.encoded
    }

    /// What it refers to.
    pub fn needs(&self) -> &[(ResourceType, ResourceName)] {
        &self.needs
    }
}
