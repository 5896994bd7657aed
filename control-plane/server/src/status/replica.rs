//! What a replica is among others, for people.

use serde::{Deserialize, Serialize};

use crate::records::StoreHealth;
use crate::replica::{Helm, Role};

/// What a replica is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Its name; empty when there are no others.
    pub name: String,
    /// `alone`, `leader` or `follower`.
    pub role: String,
    /// Whether it computes limits now: a leader that is not sure of its lease does not.
    pub is_acting: bool,
    /// Newest term that it knows of; 0: none.
    pub term: u64,
    /// Name of the leader; empty while nobody leads.
    pub leader: String,
    /// URL of the leader's gRPC listener; empty while nobody leads, and for the leader itself.
    pub leader_address: String,
    /// Why the store cannot be reached; empty when it can.
    pub store_problem: String,
}

// === impl ReplicaStatus ===

impl ReplicaStatus {
    /// As it is now.
    pub fn of(helm: &Helm, store: &StoreHealth) -> Self {
        let role = helm.role().borrow().clone();
        let (leader, leader_address) = match &role {
            Role::Follower { leader: Some(peer), .. } => (peer.name.clone(), peer.address.clone()),
            Role::Leader { .. } => (helm.name().to_owned(), String::new()),
            Role::Follower { leader: None, .. } | Role::Alone => Default::default(),
        };
        Self {
            name: helm.name().to_owned(),
            role: role.as_str().to_owned(),
            is_acting: helm.acting_term() == Some(role.term()),
            term: role.term(),
            leader,
            leader_address,
            store_problem: match store {
                StoreHealth::Ok => String::new(),
                StoreHealth::Failing { problem } => problem.clone(),
            },
        }
    }

    /// One line for people; `None` when there are no other replicas.
    pub fn line(&self) -> Option<String> {
        let Self { name, role, is_acting, term, leader, leader_address, store_problem } = self;
        if name.is_empty() {
            return None;
        }
        let mut line = format!("Replica {name}: {role}, term {term}");
        match role.as_str() {
            "leader" if !is_acting => line.push_str("; it is not sure of its lease and does not act"),
            "leader" => {}
            _ if leader.is_empty() => line.push_str("; nobody leads, the limits hold for their time"),
            _ => line.push_str(&format!("; {leader} leads at {leader_address}, and has the figures of the pools")),
        }
        if !store_problem.is_empty() {
            line.push_str(&format!("\nthe store cannot be reached, policies cannot be changed: {store_problem}"));
        }
        Some(line)
    }
}
