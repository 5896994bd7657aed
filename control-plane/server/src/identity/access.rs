//! Who may do what: the rules of the access file, and what they grant to a caller.
//!
//! [`AccessFile`] is what people write, [`Access`] cannot be wrong; every error is reported at once.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::raw::AccessFile;
use super::certificate::PeerCertificate;
use super::files::{self, FileErrors, Source};
use super::pattern::{Captures, Pattern};
use super::token::{self, Claims, Issuer, TokenError};

mod raw;
#[cfg(test)]
mod tests;

/// What a person or a program may do with policies. Each role includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read policies, status and figures.
    View,
    /// Apply policies.
    Operate,
    /// Delete policies.
    Admin,
}

/// Bounds on one peer, which is an address with its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerLimits {
    /// Calls a second in the long run.
    pub requests_per_s: u32,
    /// Calls at once.
    pub burst: u32,
    /// Calls that are open at a time.
    pub streams: u32,
}

/// Rules that hold together.
#[derive(Debug)]
pub struct Access {
    issuers: Vec<Issuer>,
    roles: Vec<RoleRule>,
    proxies: Vec<ProxyRule>,
    replicas: Vec<Who>,
    /// Bounds on one peer.
    pub limits: PeerLimits,
}

/// To whom a rule applies.
#[derive(Debug)]
enum Who {
    Certificate(Pattern),
    Subject { subject: Pattern, issuer: Option<String> },
    Claim { claim: String, value: Pattern, issuer: Option<String> },
    Anyone,
}

#[derive(Debug)]
struct RoleRule {
    who: Who,
    role: Role,
    policies: Arc<[Pattern]>,
}

#[derive(Debug)]
struct ProxyRule {
    who: Who,
    nodes: Arc<[Pattern]>,
    clusters: Arc<[Pattern]>,
}

/// What the rules grant to one caller.
#[derive(Clone, Debug, Default)]
pub struct Rights {
    roles: Vec<GrantedRole>,
    proxies: Vec<GrantedNodes>,
    is_replica: bool,
}

#[derive(Clone, Debug)]
struct GrantedRole {
    role: Role,
    policies: Arc<[Pattern]>,
    captures: Captures,
}

#[derive(Clone, Debug)]
struct GrantedNodes {
    nodes: Arc<[Pattern]>,
    clusters: Arc<[Pattern]>,
    captures: Captures,
}

// === impl Role ===

impl Role {
    /// Its name in the access file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

impl Default for PeerLimits {
    /// A proxy makes four calls when it connects; a fleet behind one address comes back within some seconds.
    fn default() -> Self {
        Self { requests_per_s: 500, burst: 2000, streams: 4096 }
    }
}

// === impl Access ===

impl Access {
    /// Checks a token.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        token::verify(&self.issuers, token)
    }

    /// What a caller with this certificate and this token may do: all that either may.
    pub fn rights(&self, certificate: Option<&PeerCertificate>, claims: Option<&Claims>) -> Rights {
        let mut rights = Rights::default();
        for rule in &self.roles {
            for captures in rule.who.matches(certificate, claims) {
                rights.roles.push(GrantedRole { role: rule.role, policies: rule.policies.clone(), captures });
            }
        }
        for rule in &self.proxies {
            for captures in rule.who.matches(certificate, claims) {
                rights.proxies.push(GrantedNodes { nodes: rule.nodes.clone(), clusters: rule.clusters.clone(), captures });
            }
        }
        rights.is_replica = self.replicas.iter().any(|who| !who.matches(certificate, claims).is_empty());
        rights
    }
}

// === impl Who ===

impl Who {
    /// What the names in braces stand for, once for each of the caller's names that fits.
    fn matches(&self, certificate: Option<&PeerCertificate>, claims: Option<&Claims>) -> Vec<Captures> {
        let of_issuer = |issuer: &Option<String>| claims.filter(|claims| issuer.as_ref().is_none_or(|issuer| *issuer == claims.issuer));
        match self {
            Self::Anyone => vec![Captures::new()],
            Self::Certificate(pattern) => {
                certificate.into_iter().flat_map(|certificate| &certificate.names).filter_map(|name| pattern.captures(name)).collect()
            }
            Self::Subject { subject, issuer } => {
                of_issuer(issuer).and_then(|claims| subject.captures(&claims.subject)).into_iter().collect()
            }
            Self::Claim { claim, value, issuer } => {
                of_issuer(issuer).into_iter().flat_map(|claims| claims.texts(claim)).filter_map(|text| value.captures(text)).collect()
            }
        }
    }
}

// === impl Rights ===

impl Rights {
    /// Whether `role` is granted for the policy `name`.
    pub fn allow(&self, role: Role, name: &str) -> bool {
        self.roles.iter().any(|granted| granted.role >= role && any_matches(&granted.policies, name, &granted.captures))
    }

    /// Whether `role` is granted for any policy at all.
    pub fn allow_somewhere(&self, role: Role) -> bool {
        self.roles.iter().any(|granted| granted.role >= role)
    }

    /// Whether `role` is granted for every policy.
    pub fn allow_everywhere(&self, role: Role) -> bool {
        self.roles.iter().any(|granted| granted.role >= role && granted.policies.iter().any(Pattern::is_any))
    }

    /// Whether the caller is another replica of the control plane: it speaks for all proxies and nodes.
    pub fn allow_replica(&self) -> bool {
        self.is_replica
    }

    /// Whether the caller may be some proxy.
    pub fn allow_some_node(&self) -> bool {
        !self.proxies.is_empty()
    }

    /// Whether the caller may be the proxy `node_id`, in `cluster` where it names one.
    pub fn allow_node(&self, node_id: &str, cluster: Option<&str>) -> bool {
        self.proxies.iter().any(|granted| {
            any_matches(&granted.nodes, node_id, &granted.captures)
                && cluster.is_none_or(|cluster| any_matches(&granted.clusters, cluster, &granted.captures))
        })
    }
}

fn any_matches(patterns: &[Pattern], text: &str, captures: &Captures) -> bool {
    patterns.iter().any(|pattern| pattern.matches(text, captures))
}

/// Where the rules are, and which kinds of callers there can be.
#[derive(Clone, Debug)]
pub struct AccessSource {
    /// The access file.
    pub file: PathBuf,
}

impl AccessSource {
    /// Reads the file and the key sets that it names once, then again whenever one of them changes, until `shutdown`.
    ///
    /// # Errors
    /// Everything that is wrong with them at the start.
    pub async fn watch(self, shutdown: CancellationToken) -> Result<watch::Receiver<Arc<Access>>, FileErrors> {
        files::watch(self, shutdown).await
    }
}

/// The text of the access file, and the key sets in the order of its issuers.
#[derive(PartialEq)]
pub(super) struct AccessContents {
    text: Vec<u8>,
    key_sets: Vec<Result<Vec<u8>, String>>,
}

impl Source for AccessSource {
    type Contents = AccessContents;
    type Value = Arc<Access>;
    const NAME: &'static str = "access rules";

    async fn read(&self) -> Result<AccessContents, FileErrors> {
        let text = files::read("access", &self.file).await.map_err(|error| FileErrors(vec![error]))?;
        let mut key_sets = Vec::new();
        // A file that cannot be parsed has no key sets; what is wrong with it is said when it is parsed.
        for path in AccessFile::parse(&text).map(|file| file.key_sets(&self.file)).unwrap_or_default() {
            key_sets.push(files::read("access", &path).await);
        }
        Ok(AccessContents { text, key_sets })
    }

    fn parse(&self, contents: &AccessContents) -> Result<Arc<Access>, FileErrors> {
        let named = |problems: Vec<String>| {
            let path = self.file.display();
            FileErrors(problems.into_iter().map(|problem| format!("--access: {path}: {problem}")).collect())
        };
        let file = AccessFile::parse(&contents.text).map_err(|problem| named(vec![problem]))?;
        file.compile(&contents.key_sets).map(Arc::new).map_err(named)
    }
}
