//! Who leads: the one whose key hangs on a lease in etcd.
//!
//! | key | what |
//! |---|---|
//! | `leader` | the leader, as JSON; on its lease, so that it goes when the leader does not renew it |
//! | `term` | written by every election, so its version is the term |
//!
//! Both are written in one transaction on the condition that there is no leader. The term is what fences: it comes first in the epoch
//! of all limits ([`headgate_core::fleet::first_epoch`]). The leader renews its lease every `RENEWAL`, and takes it for sure from the
//! moment at which it *sent* the last renewal that was answered, for the time to live less `MARGIN`: etcd counts from a later moment.

use std::time::{Duration, Instant};

use headgate_protos::etcd as wire;
use tokio_util::sync::CancellationToken;

use super::{Helm, Peer};
use crate::etcd::{Etcd, EtcdError, Lease, Span, get, if_version, last_read, put};

/// What both keys begin with.
const ELECTION: &str = "/headgate/v1/election/";
const LEADER: &str = "/headgate/v1/election/leader";
const TERM: &str = "/headgate/v1/election/term";
/// Wanted time to live of the lease: the least that etcd gives with its usual timings.
const LEASE: Duration = Duration::from_secs(2);
/// Time between renewals.
const RENEWAL: Duration = Duration::from_millis(400);
/// Part of the lease in which the leader no longer acts: more than clocks drift in two seconds, and than an answer takes to be pushed.
const MARGIN: Duration = Duration::from_millis(400);
/// Longest time between two looks at the keys, should a watch be silent.
const LOOK: Duration = Duration::from_millis(500);
/// Wait after etcd has not answered.
const RETRY: Duration = Duration::from_millis(100);

/// The election, as one replica takes part in it.
pub struct Election {
    /// Where it is held.
    pub etcd: Etcd,
    /// Who steers here.
    pub helm: Helm,
    /// This replica.
    pub me: Peer,
}

/// What the keys say.
struct Seen {
    term: u64,
    leader: Option<wire::KeyValue>,
    revision: i64,
}

// === impl Election ===

impl Election {
    /// Takes part until `shutdown`; a leader then gives the lease back, so that the next one need not wait for its end.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut held = None;
        tokio::select! {
            () = shutdown.cancelled() => {}
            never = self.take_part(&mut held) => match never {},
        }
        let term = self.helm.role().borrow().term();
        self.helm.follow(term, None);
        if let Some(lease) = held
            && let Err(error) = self.etcd.revoke(lease).await
        {
            tracing::warn!(%error, "the lease of the leader could not be given back; it ends by itself");
        }
    }

    async fn take_part(&self, held: &mut Option<i64>) -> std::convert::Infallible {
        let mut is_told = false;
        loop {
            let Err(error) = self.round(held).await else {
                is_told = false;
                continue;
            };
            if !is_told {
                tracing::warn!(%error, "the election cannot go on; what is in force stays");
            }
            is_told = true;
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Follows while there is a leader; else tries to become it, and leads as long as that lasts.
    async fn round(&self, held: &mut Option<i64>) -> Result<(), EtcdError> {
        let seen = self.look().await?;
        if let Some(leader) = &seen.leader {
            self.helm.follow(seen.term, serde_json::from_slice(&leader.value).ok());
            return self.wait(seen.revision).await;
        }
        self.helm.follow(seen.term, None);
        let sent_at = Instant::now();
        let lease = self.etcd.grant(LEASE).await?;
        *held = Some(lease.id);
        match self.campaign(lease).await? {
            Some(term) => self.lead(term, lease, sent_at).await,
            // Another replica was quicker. Without the key the lease is worth nothing, and ends by itself when this fails.
            None => drop(self.etcd.revoke(lease.id).await),
        }
        *held = None;
        Ok(())
    }

    async fn look(&self) -> Result<Seen, EtcdError> {
        let answer = self.etcd.range(&Span::prefix(ELECTION)).await?;
        let find = |key: &str| answer.kvs.iter().find(|pair| pair.key == key.as_bytes());
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        Ok(Seen { term: find(TERM).map_or(0, version), leader: find(LEADER).cloned(), revision })
    }

    /// Waits until a key changes after `revision`, at most [`LOOK`].
    async fn wait(&self, revision: i64) -> Result<(), EtcdError> {
        let mut changes = self.etcd.watch(&Span::prefix(ELECTION), revision + 1).await?;
        let change = async {
            while let Ok(Some(answer)) = changes.message().await {
                if !answer.events.is_empty() || answer.canceled {
                    return;
                }
            }
        };
        // Whatever ends the wait, the next look tells what is.
        let _ = tokio::time::timeout(LOOK, change).await;
        Ok(())
    }

    /// Tries to become the leader; the term when it has.
    async fn campaign(&self, lease: Lease) -> Result<Option<u64>, EtcdError> {
        let me = serde_json::to_vec(&self.me).unwrap_or_default();
        let transaction = wire::TxnRequest {
            compare: vec![if_version(LEADER, 0)],
            success: vec![put(LEADER, me, lease.id), put(TERM, self.me.name.clone().into_bytes(), 0), get(&Span::key(TERM))],
            failure: vec![get(&Span::key(LEADER))],
        };
        let answer = self.etcd.transact(&transaction).await?;
        if answer.succeeded {
            return Ok(last_read(&answer).map(version));
        }
        // The transaction may have been sent twice, and done the first time.
        let is_ours = last_read(&answer).is_some_and(|leader| leader.lease == lease.id);
        if is_ours { Ok(Some(self.look().await?.term)) } else { Ok(None) }
    }

    /// Leads until the lease has ended.
    async fn lead(&self, term: u64, lease: Lease, sent_at: Instant) {
        let sure_until = |sent_at: Instant, ttl: Duration| sent_at + ttl.saturating_sub(MARGIN);
        self.helm.lead(term, sure_until(sent_at, lease.ttl));
        tracing::info!(term, "this replica leads");
        loop {
            tokio::time::sleep(RENEWAL).await;
            let sent_at = Instant::now();
            match self.etcd.renew(lease.id).await {
                Ok(Some(ttl)) => self.helm.lead(term, sure_until(sent_at, ttl)),
                Ok(None) | Err(EtcdError::Refused(_)) => break,
                // The lease may live on; acting has ended by then if it is not renewed in time.
                Err(error @ EtcdError::Unavailable(_)) => tracing::warn!(term, %error, "the lease of the leader is not renewed"),
            }
        }
        tracing::warn!(term, "this replica leads no longer: its lease has ended");
        self.helm.follow(term, None);
    }
}

fn version(pair: &wire::KeyValue) -> u64 {
    u64::try_from(pair.version).unwrap_or(0)
}
