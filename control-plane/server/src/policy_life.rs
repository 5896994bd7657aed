//! The gRPC service for what became of policies: [`LifeServer`] over the [`Store`] and what is known of the proxies.

pub mod diff;

use std::time::Instant;

use headgate_protos::v1;
use headgate_protos::v1::policy_life_server::PolicyLife;
use tonic::{Request, Response, Status};

use self::diff::differences;
use crate::clock::unix_ms;
use crate::document::Violations;
use crate::fleet::{Fleet, PolicyHolding};
use crate::identity::Caller;
use crate::identity::access::Role as Rights;
use crate::identity::audit::Outcome;
use crate::policy_service::{Change, invalid, off_the_loop, refused_change, required_name};
use crate::replica::{Helm, Role};
use crate::store::{Applied, ChangeError, Expected, PolicyRevision, Store};

/// Longest reason that somebody gives for an abort, in bytes (`policy_life.proto`).
const MAX_REASON_BYTES: usize = 512;
/// Fields that are named of one revision (`policy_life.proto`).
const MAX_CHANGED: usize = 16;
/// Proxies in one answer (`policy_life.proto`).
const MAX_PROXIES_IN_ANSWER: usize = 1000;

/// `headgate.v1.PolicyLife`.
#[derive(Clone)]
pub struct LifeServer {
    store: Store,
    fleet: Fleet,
    helm: Helm,
}

// === impl LifeServer ===

impl LifeServer {
    /// A service over `store`, which tells of the proxies in `fleet` as the replica at `helm` knows them.
    pub fn new(store: Store, fleet: Fleet, helm: Helm) -> Self {
        Self { store, fleet, helm }
    }

    /// What `read` makes of the revisions of a policy, of which there are some. Long policies take their time to read, so it is done where
    /// it holds up no other request.
    async fn of_history<T: Send + 'static>(
        &self,
        name: &str,
        read: impl FnOnce(&str, &[PolicyRevision]) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let (store, name) = (self.store.clone(), name.to_owned());
        off_the_loop(move || {
            let history = store.history(&name).map_err(|error| refused_change(&error.into()))?;
            if history.is_empty() { Err(refused_change(&ChangeError::NotFound { name })) } else { read(&name, &history) }
        })
        .await?
    }

    async fn rollback(
        &self,
        caller: &Caller,
        request: v1::RollbackPolicyRequest,
        change: &mut Change,
    ) -> Result<v1::RollbackPolicyResponse, Status> {
        let v1::RollbackPolicyRequest { name, to, expected_version } = request;
        let name = required_name(name)?;
        caller.require(Rights::Operate, &name)?;
        let (current, target) =
            self.of_history(&name, move |name, history| Ok((history.last().cloned(), target(name, history, to)))).await?;
        change.policy = Some(name.clone());
        change.previous_version = current.as_ref().and_then(version).map(str::to_owned);
        let target = target?;
        // A candidate is tried on the requests of another policy.
        if let Some(of) = candidate_of(&target) {
            caller.require(Rights::Operate, of)?;
        }
        // What is gone back to was chosen in view of what is in force.
        let expected = match (Expected::parse(&expected_version), to) {
            (Expected::Any, 0) => change.previous_version.clone().map_or(Expected::Absent, Expected::Version),
            (expected, _) => expected,
        };
        let (restored, author) = (target.revision, caller.name().to_owned());
        let applied = self.on_store(move |store| store.rollback(&name, restored, &expected, &author)).await?;
        let Applied { stored, changed } = applied;
        change.version = Some(stored.policy.version.clone());
        tracing::info!(policy = stored.policy.name, version = stored.policy.version, restored, by = caller.name(), "policy rolled back");
        Ok(v1::RollbackPolicyResponse { policy: Some(stored.policy.clone()), restored, changed })
    }

    async fn on_store<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Store) -> Result<T, ChangeError> + Send + 'static,
    ) -> Result<T, Status> {
        let store = self.store.clone();
        off_the_loop(move || change(&store)).await?.map_err(|error| refused_change(&error))
    }

    /// Name and policy of a candidate that `caller` may promote or abort.
    fn candidate(&self, caller: &Caller, name: String, change: &mut Change) -> Result<(String, String), Status> {
        let name = required_name(name)?;
        caller.require(Rights::Operate, &name)?;
        let stored = self.store.get(&name).ok_or_else(|| refused_change(&ChangeError::NotFound { name: name.clone() }))?;
        (change.policy, change.previous_version) = (Some(name.clone()), Some(stored.policy.version.clone()));
        let of = stored.policy.spec.as_ref().and_then(|spec| spec.candidate.as_ref()).map(|candidate| candidate.of.clone());
        let of = of.ok_or_else(|| Status::failed_precondition(format!("policy `{name}` is no candidate")))?;
        // What it governs is the other policy's.
        caller.require(Rights::Operate, &of)?;
        Ok((name, of))
    }

    async fn promote(
        &self,
        caller: &Caller,
        request: v1::PromotePolicyRequest,
        change: &mut Change,
    ) -> Result<v1::PromotePolicyResponse, Status> {
        let v1::PromotePolicyRequest { name, expected_version } = request;
        let (name, of) = self.candidate(caller, name, change)?;
        let (expected, author) = (Expected::parse(&expected_version), caller.name().to_owned());
        let promoted = self.on_store(move |store| store.promote(&name, &expected, &author)).await?;
        let policy = promoted.applied.stored.policy.clone();
        (change.policy, change.version, change.previous_version) =
            (Some(of), Some(policy.version.clone()), Some(promoted.before.version.clone()));
        tracing::info!(policy = policy.name, version = policy.version, by = caller.name(), "a candidate was promoted");
        let changed: Vec<String> = differences(&promoted.before, &policy).iter().map(ToString::to_string).collect();
        let changed_total = u32::try_from(changed.len()).unwrap_or(u32::MAX);
        Ok(v1::PromotePolicyResponse { policy: Some(policy), changed: changed.into_iter().take(MAX_CHANGED).collect(), changed_total })
    }

    async fn abort(
        &self,
        caller: &Caller,
        request: v1::AbortPolicyRequest,
        change: &mut Change,
    ) -> Result<v1::AbortPolicyResponse, Status> {
        let v1::AbortPolicyRequest { name, reason } = request;
        if reason.len() > MAX_REASON_BYTES {
            let problem = format!("{} bytes are more than {MAX_REASON_BYTES}", reason.len());
            return Err(invalid(&Violations::of("reason", problem)));
        }
        let (name, _) = self.candidate(caller, name, change)?;
        let author = caller.name().to_owned();
        let reason = if reason.is_empty() { format!("by {author}") } else { format!("by {author}: {reason}") };
        let aborted = self.on_store(move |store| store.abort(&name, &reason, &author)).await?;
        change.version = Some(aborted.stored.policy.version.clone());
        Ok(v1::AbortPolicyResponse { policy: Some(aborted.stored.policy.clone()) })
    }

    /// The leader's address, unless this replica is the one to ask; and whether it knows a part of the proxies only.
    fn whom_to_ask(&self) -> (String, bool) {
        match &*self.helm.role().borrow() {
            Role::Alone | Role::Leader { .. } => (String::new(), false),
            Role::Follower { leader, .. } => (leader.as_ref().map(|leader| leader.address.clone()).unwrap_or_default(), true),
        }
    }
}

#[tonic::async_trait]
impl PolicyLife for LifeServer {
    async fn list_policy_revisions(
        &self,
        request: Request<v1::ListPolicyRevisionsRequest>,
    ) -> Result<Response<v1::ListPolicyRevisionsResponse>, Status> {
        let caller = Caller::of(request.extensions())?;
        let name = required_name(request.into_inner().name)?;
        caller.require(Rights::View, &name)?;
        let all = |_: &str, history: &[PolicyRevision]| Ok((0..history.len()).rev().map(|at| told(&history[..=at])).collect());
        Ok(Response::new(v1::ListPolicyRevisionsResponse { revisions: self.of_history(&name, all).await? }))
    }

    async fn get_policy_revision(&self, request: Request<v1::GetPolicyRevisionRequest>) -> Result<Response<v1::PolicyRevision>, Status> {
        let caller = Caller::of(request.extensions())?;
        let v1::GetPolicyRevisionRequest { name, revision } = request.into_inner();
        let name = required_name(name)?;
        caller.require(Rights::View, &name)?;
        let one = move |name: &str, history: &[PolicyRevision]| {
            let at = match revision {
                0 => history.len() - 1,
                wanted => history.iter().position(|kept| kept.revision == wanted).ok_or_else(|| missing(name, wanted))?,
            };
            Ok(v1::PolicyRevision { policy: history[at].policy.clone(), ..told(&history[..=at]) })
        };
        Ok(Response::new(self.of_history(&name, one).await?))
    }

    async fn rollback_policy(&self, request: Request<v1::RollbackPolicyRequest>) -> Result<Response<v1::RollbackPolicyResponse>, Status> {
        let caller = Caller::of(request.extensions())?;
        let mut change = Change::new("policy.rollback");
        let outcome = self.rollback(&caller, request.into_inner(), &mut change).await;
        let recorded = outcome.as_ref().map(|rolled| if rolled.changed { Outcome::Done } else { Outcome::Unchanged });
        change.record(&caller, recorded);
        outcome.map(Response::new)
    }

    async fn promote_policy(&self, request: Request<v1::PromotePolicyRequest>) -> Result<Response<v1::PromotePolicyResponse>, Status> {
        let caller = Caller::of(request.extensions())?;
        let mut change = Change::new("policy.promote");
        let outcome = self.promote(&caller, request.into_inner(), &mut change).await;
        change.record(&caller, outcome.as_ref().map(|_| Outcome::Done));
        outcome.map(Response::new)
    }

    async fn abort_policy(&self, request: Request<v1::AbortPolicyRequest>) -> Result<Response<v1::AbortPolicyResponse>, Status> {
        let caller = Caller::of(request.extensions())?;
        let mut change = Change::new("policy.abort");
        let outcome = self.abort(&caller, request.into_inner(), &mut change).await;
        change.record(&caller, outcome.as_ref().map(|_| Outcome::Done));
        outcome.map(Response::new)
    }

    async fn list_policy_proxies(
        &self,
        request: Request<v1::ListPolicyProxiesRequest>,
    ) -> Result<Response<v1::ListPolicyProxiesResponse>, Status> {
        let caller = Caller::of(request.extensions())?;
        let v1::ListPolicyProxiesRequest { name, after } = request.into_inner();
        let name = required_name(name)?;
        caller.require(Rights::View, &name)?;
        let stored = self.fleet.policies().borrow().policies.get(&name).cloned();
        let stored = stored.ok_or_else(|| refused_change(&ChangeError::NotFound { name }))?;
        let (now, now_unix_ms) = (Instant::now(), unix_ms());
        // One more than fits tells that there is one.
        let mut holdings = self.fleet.proxies().holdings(now, &stored.policy, &after, MAX_PROXIES_IN_ANSWER + 1);
        let has_more = holdings.len() > MAX_PROXIES_IN_ANSWER;
        holdings.truncate(MAX_PROXIES_IN_ANSWER);
        let proxies = holdings.into_iter().map(|holding| proxy(holding, now_unix_ms)).collect();
        let (ask_leader, is_part) = self.whom_to_ask();
        let replica = self.helm.name().to_owned();
        Ok(Response::new(v1::ListPolicyProxiesResponse { proxies, has_more, replica, ask_leader, is_part }))
    }
}

fn proxy(holding: PolicyHolding, now_unix_ms: u64) -> v1::PolicyProxy {
    let PolicyHolding { node_id, version, wanted_version, held_for, refused, last_report_age } = holding;
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (refused_version, refused_error) = refused.map(|refused| (refused.version, refused.error)).unwrap_or_default();
    v1::PolicyProxy {
        node_id,
        version,
        wanted_version,
        since_unix_ms: now_unix_ms.saturating_sub(millis(held_for)),
        refused_version,
        refused_error,
        last_report_age_ms: millis(last_report_age),
    }
}

/// The last revision of `history`, without what it says.
fn told(history: &[PolicyRevision]) -> v1::PolicyRevision {
    let Some((last, earlier)) = history.split_last() else { return v1::PolicyRevision::default() };
    let before = earlier.last().and_then(|before| before.policy.as_ref());
    let changed: Vec<String> = match (before, &last.policy) {
        (Some(before), Some(policy)) => differences(before, policy).into_iter().map(|difference| difference.field).collect(),
        _ => Vec::new(),
    };
    let same = earlier.iter().rev().find(|before| version(before).is_some() && version(before) == version(last));
    v1::PolicyRevision {
        revision: last.revision,
        author: last.author.clone(),
        at_unix_ms: last.at_unix_ms,
        version: version(last).unwrap_or_default().to_owned(),
        changed_total: u32::try_from(changed.len()).unwrap_or(u32::MAX),
        changed: changed.into_iter().take(MAX_CHANGED).collect(),
        same_as: same.map_or(0, |same| same.revision),
        policy: None,
    }
}

/// The revision to go back to; `history` is not empty. 0: the newest that says something else than the last one.
fn target(name: &str, history: &[PolicyRevision], to: u64) -> Result<PolicyRevision, Status> {
    let current = history.last().and_then(version);
    let says_something_else = |kept: &&PolicyRevision| version(kept).is_some() && version(kept) != current;
    if to == 0 {
        let nothing = || Status::failed_precondition(format!("policy `{name}`: no earlier revision says anything else"));
        return history.iter().rev().find(says_something_else).cloned().ok_or_else(nothing);
    }
    history.iter().find(|kept| kept.revision == to).cloned().ok_or_else(|| missing(name, to))
}

fn missing(name: &str, revision: u64) -> Status {
    refused_change(&ChangeError::NoRevision { name: name.to_owned(), revision })
}

fn version(revision: &PolicyRevision) -> Option<&str> {
    revision.policy.as_ref().map(|policy| policy.version.as_str())
}

fn candidate_of(revision: &PolicyRevision) -> Option<&str> {
    Some(revision.policy.as_ref()?.spec.as_ref()?.candidate.as_ref()?.of.as_str())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::records::Records;
    use crate::replica::Peer;

    #[test]
    fn a_follower_says_that_it_knows_its_own_proxies_alone_and_who_knows_all() {
        let (directory, fleet) = (tempfile::tempdir().unwrap(), Fleet::new());
        let store = Store::open(Records::open(directory.path()).unwrap(), fleet.clone()).unwrap();
        let asked = |helm: &Helm| LifeServer::new(store.clone(), fleet.clone(), helm.clone()).whom_to_ask();
        assert_eq!(asked(&Helm::alone()), (String::new(), false));
        let helm = Helm::of_replica("a".to_owned());
        assert_eq!(asked(&helm), (String::new(), true), "nobody leads");
        helm.follow(1, Some(Peer { name: "b".to_owned(), address: "http://b:18000".to_owned() }));
        assert_eq!(asked(&helm), ("http://b:18000".to_owned(), true));
        helm.lead(2, Instant::now());
        assert_eq!(asked(&helm), (String::new(), false));
    }
}
