//! What goes wrong.

use std::fmt;

use anyhow::Result;
use rand::Rng;

use crate::replicas::Replicas;

/// One thing that goes wrong, and is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A replica is killed (SIGKILL), and started again.
    KillReplica(usize),
    /// A replica is stopped (SIGSTOP), and goes on.
    PauseReplica(usize),
    /// A replica reaches no member of etcd.
    CutFromStore(usize),
    /// The others do not reach a replica.
    CutFromPeers(usize),
    /// A member of etcd is killed, and started again.
    KillMember(usize),
    /// A member of etcd is stopped, and goes on.
    PauseMember(usize),
}

impl Fault {
    /// Any of them; every other one that can hit the `leader` does.
    pub fn any(rng: &mut impl Rng, leader: usize) -> Self {
        let replica = if rng.random_bool(0.5) { leader } else { rng.random_range(0..3) };
        let member = rng.random_range(0..3);
        match rng.random_range(0..6) {
            0 => Self::KillReplica(replica),
            1 => Self::PauseReplica(replica),
            2 => Self::CutFromStore(replica),
            3 => Self::CutFromPeers(replica),
            4 => Self::KillMember(member),
            _ => Self::PauseMember(member),
        }
    }

    /// Whether another replica than `leader` must lead because of it.
    #[must_use]
    pub fn takes_the_lead(self, leader: usize) -> bool {
        matches!(self, Self::KillReplica(n) | Self::PauseReplica(n) | Self::CutFromStore(n) if n == leader)
    }

    /// Makes it happen.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn begin(self, replicas: &mut Replicas) -> Result<()> {
        match self {
            Self::KillReplica(n) => replicas.control[n].kill_9(),
            Self::PauseReplica(n) => replicas.control[n].process().freeze(),
            Self::CutFromStore(n) => {
                replicas.to_etcd[n].iter().for_each(|link| link.cut());
                Ok(())
            }
            Self::CutFromPeers(n) => {
                replicas.to_peer[n].cut();
                Ok(())
            }
            Self::KillMember(n) => replicas.etcd.process(n).kill_9(),
            Self::PauseMember(n) => replicas.etcd.process(n).freeze(),
        }
    }

    /// Mends it.
    ///
    /// # Errors
    /// When what was killed does not start again.
    pub async fn end(self, replicas: &mut Replicas) -> Result<()> {
        match self {
            Self::KillReplica(n) => replicas.control[n].restart().await,
            Self::PauseReplica(n) => replicas.control[n].process().thaw(),
            Self::CutFromStore(n) => {
                replicas.to_etcd[n].iter().for_each(|link| link.mend());
                Ok(())
            }
            Self::CutFromPeers(n) => {
                replicas.to_peer[n].mend();
                Ok(())
            }
            Self::KillMember(n) => replicas.etcd.restart(n),
            Self::PauseMember(n) => replicas.etcd.process(n).thaw(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillReplica(n) => write!(f, "replica {n} killed"),
            Self::PauseReplica(n) => write!(f, "replica {n} stopped"),
            Self::CutFromStore(n) => write!(f, "replica {n} cut from etcd"),
            Self::CutFromPeers(n) => write!(f, "replica {n} cut from the others"),
            Self::KillMember(n) => write!(f, "etcd {n} killed"),
            Self::PauseMember(n) => write!(f, "etcd {n} stopped"),
        }
    }
}
