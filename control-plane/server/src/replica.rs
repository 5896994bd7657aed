//! Several replicas of one control plane: who leads, and what the others do meanwhile.
//!
//! One replica leads: it alone computes limits. It holds a lease in etcd, and stops acting before the lease can end there. Everybody
//! else follows: proxies may connect to any replica, which sends their reports to the leader and pushes the limits that it has from
//! there. A control plane without other replicas leads itself, in the term 0.
//!
//! | part | what |
//! |---|---|
//! | [`election`] | the lease, and the role that follows from it |
//! | [`following`] | a follower's stream to the leader |
//! | [`devices`] | the devices of the follower's nodes, on streams of their own |
//! | [`service`] | the leader's side of both |

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use headgate_core::fleet::Term;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub mod devices;
pub mod election;
pub mod following;
pub mod service;

/// A replica, as the others reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// URL of its gRPC listener.
    pub address: String,
}

/// What a replica is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// There are no others.
    Alone,
    /// It has won the election of this term, and acts as long as its lease is sure.
    Leader {
        /// The term.
        term: Term,
    },
    /// Another one has, or nobody at the moment.
    Follower {
        /// Newest term that is known of; 0: none.
        term: Term,
        /// The leader, when there is one.
        leader: Option<Peer>,
    },
}

/// Who steers. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Helm(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    role: watch::Sender<Role>,
    /// Until when the lease is sure.
    acts_until: Mutex<Option<Instant>>,
}

// === impl Role ===

impl Role {
    /// Its name for people.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Leader { .. } => "leader",
            Self::Follower { .. } => "follower",
        }
    }

    /// Newest term that is known of.
    pub const fn term(&self) -> Term {
        match self {
            Self::Alone => 0,
            Self::Leader { term } | Self::Follower { term, .. } => *term,
        }
    }
}

// === impl Helm ===

impl Helm {
    /// Of a control plane without other replicas.
    pub fn alone() -> Self {
        Self::new(String::new(), Role::Alone)
    }

    /// Of the replica `name`, which has not been elected.
    pub fn of_replica(name: String) -> Self {
        Self::new(name, Role::Follower { term: 0, leader: None })
    }

    fn new(name: String, role: Role) -> Self {
        Self(Arc::new(Inner { name, role: watch::Sender::new(role), acts_until: Mutex::default() }))
    }

    /// Name of this replica; empty when there are no others.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What this replica is, and changes of that.
    pub fn role(&self) -> watch::Receiver<Role> {
        self.0.role.subscribe()
    }

    /// The term in which this replica may act at this very moment; `None` when it may not. Ask right before acting.
    pub fn acting_term(&self) -> Option<Term> {
        match *self.0.role.borrow() {
            Role::Alone => Some(0),
            Role::Leader { term } => self.acts_until().is_some_and(|until| Instant::now() < until).then_some(term),
            Role::Follower { .. } => None,
        }
    }

    /// This replica leads, surely until then.
    pub(crate) fn lead(&self, term: Term, until: Instant) {
        *self.0.acts_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        self.set(Role::Leader { term });
    }

    /// This replica does not lead.
    pub(crate) fn follow(&self, term: Term, leader: Option<Peer>) {
        *self.0.acts_until.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.set(Role::Follower { term, leader });
    }

    fn acts_until(&self) -> Option<Instant> {
        *self.0.acts_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, role: Role) {
        self.0.role.send_if_modified(|old| {
            let is_new = *old != role;
            *old = role;
            is_new
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_leader_acts_as_long_as_its_lease_is_sure_and_no_moment_longer() {
        let helm = Helm::of_replica("a".to_owned());
        assert_eq!(helm.acting_term(), None);
        helm.lead(3, Instant::now() + Duration::from_secs(60));
        assert_eq!(helm.acting_term(), Some(3));
        helm.lead(3, Instant::now());
        assert_eq!(helm.acting_term(), None, "it still is the leader, but does not act");
        assert_eq!(*helm.role().borrow(), Role::Leader { term: 3 });
        helm.lead(3, Instant::now() + Duration::from_secs(60));
        helm.follow(4, None);
        assert_eq!(helm.acting_term(), None);
    }

    #[test]
    fn a_control_plane_without_others_always_acts() {
        assert_eq!(Helm::alone().acting_term(), Some(0));
    }
}
