//! The one who calls: name, address, rights.

use std::net::SocketAddr;
use std::sync::Arc;

use http::Extensions;
use tonic::Status;

use super::access::{Rights, Role};
use super::audit::{Audit, Entry, Outcome};
use super::rpcs::Need;

/// How a caller made itself known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Not at all.
    None,
    /// By a client certificate.
    Certificate,
    /// By a bearer token.
    Token,
}

/// Who calls. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Caller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    proof: Proof,
    address: Option<SocketAddr>,
    // Without rules everybody may do everything.
    rights: Option<Rights>,
    audit: Audit,
}

// === impl Proof ===

impl Proof {
    /// Its name in the audit log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Certificate => "certificate",
            Self::Token => "token",
        }
    }
}

// === impl Caller ===

impl Caller {
    /// A caller; `rights` of `None` are all of them.
    pub(super) fn new(name: String, proof: Proof, address: Option<SocketAddr>, rights: Option<Rights>, audit: Audit) -> Self {
        Self(Arc::new(Inner { name, proof, address, rights, audit }))
    }

    /// This program itself, in what it changes without being asked.
    pub fn itself(audit: Audit) -> Self {
        Self::new("headgate".to_owned(), Proof::None, None, None, audit)
    }

    /// The caller of a request, as the guard in front of the services found it.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` when no guard stands in front: then nobody is known, and nobody gets in.
    pub fn of(extensions: &Extensions) -> Result<Self, Status> {
        extensions.get::<Self>().cloned().ok_or_else(|| Status::unauthenticated("nobody has said who calls"))
    }

    /// What logs call it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How it made itself known.
    pub fn proof(&self) -> Proof {
        self.0.proof
    }

    /// Where it calls from.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.address
    }

    /// Whether it has `role` for the policy `name`.
    pub fn may(&self, role: Role, name: &str) -> bool {
        self.0.rights.as_ref().is_none_or(|rights| rights.allow(role, name))
    }

    /// Whether it has `role` for every policy.
    pub fn may_everywhere(&self, role: Role) -> bool {
        self.0.rights.as_ref().is_none_or(|rights| rights.allow_everywhere(role))
    }

    /// Refuses a caller without `role` for the policy `name`; the audit log has it.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`, the same whether the policy exists or not.
    pub fn require(&self, role: Role, name: &str) -> Result<(), Status> {
        if self.may(role, name) {
            return Ok(());
        }
        Err(self.refuse(format!("{} does not have the role {} for the policy `{name}`", self.name(), role.as_str())))
    }

    /// Refuses a caller that speaks for a node that it may not be; the audit log has it.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`.
    pub fn require_node(&self, node_id: &str, cluster: Option<&str>) -> Result<(), Status> {
        if self.0.rights.as_ref().is_none_or(|rights| rights.allow_node(node_id, cluster)) {
            return Ok(());
        }
        let of = cluster.map(|cluster| format!(" of the cluster `{}`", shortened(cluster))).unwrap_or_default();
        Err(self.refuse(format!("{} may not be the node `{}`{of}", self.name(), shortened(node_id))))
    }

    /// Whether it may be let through to a method that needs `need`.
    pub(super) fn meets(&self, need: Need) -> bool {
        let Some(rights) = &self.0.rights else { return true };
        match need {
            Need::Open => true,
            Need::View => rights.allow_somewhere(Role::View),
            Need::Operate => rights.allow_somewhere(Role::Operate),
            Need::Admin => rights.allow_somewhere(Role::Admin),
            Need::Proxy => rights.allow_some_node(),
            Need::Replica => rights.allow_replica(),
        }
    }

    /// Puts an entry about this caller into the audit log.
    pub fn audit(&self, entry: &Entry<'_>) {
        self.0.audit.record(self, entry);
    }

    fn refuse(&self, reason: String) -> Status {
        self.audit(&Entry { action: "access", outcome: Outcome::Refused, reason: Some(&reason), ..Entry::default() });
        Status::permission_denied(reason)
    }
}

/// The beginning of what a stranger wrote.
pub(super) fn shortened(text: &str) -> &str {
    let end = (0..=text.len().min(256)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}
