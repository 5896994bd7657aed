//! The gRPC service for policies: [`PolicyServer`] over the [`Store`].

mod change;
mod watch;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use futures::StreamExt;
use headgate_protos::v1::policy_service_server::PolicyService;
use headgate_protos::v1::policy_source::Source;
use headgate_protos::v1::{self, PolicySource};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::document::{CheckedPolicy, Violation, Violations};
use crate::fleet::{Fleet, PolicyReach, StoredPolicy};
use crate::identity::Caller;
use crate::identity::access::Role;
use crate::identity::audit::Outcome;
use crate::store::{Applied, ChangeError, Expected, Store};
pub(crate) use change::Change;
use watch::Watch;

/// Bytes that violations may take in a status. It travels in a header block, of which clients accept 16 KiB.
const MAX_STATUS_BYTES: usize = 14_000;

/// `headgate.v1.PolicyService`.
#[derive(Clone)]
pub struct PolicyServer {
    store: Store,
    fleet: Fleet,
    shutdown: CancellationToken,
}

// === impl PolicyServer ===

impl PolicyServer {
    /// A service over `store`, which tells of the state in `fleet`. Watches end when `shutdown` is cancelled.
    pub fn new(store: Store, fleet: Fleet, shutdown: CancellationToken) -> Self {
        Self { store, fleet, shutdown }
    }

    async fn on_store<T: Send + 'static>(&self, call: impl FnOnce(&Store) -> T + Send + 'static) -> Result<T, Status> {
        let store = self.store.clone();
        off_the_loop(move || call(&store)).await
    }

    async fn apply(
        &self,
        caller: &Caller,
        request: v1::ApplyPolicyRequest,
        change: &mut Change,
    ) -> Result<v1::ApplyPolicyResponse, Status> {
        let v1::ApplyPolicyRequest { source, expected_version } = request;
        let checked = checked(source)?;
        let name = checked.wire().name.clone();
        change.policy = Some(name.clone());
        caller.require(Role::Operate, &name)?;
        // A candidate is tried on the requests of another policy.
        if let Some(of) = checked.policy().stage().of() {
            caller.require(Role::Operate, of)?;
        }
        change.previous_version = self.version_of(&name);
        let expected = Expected::parse(&expected_version);
        let author = caller.name().to_owned();
        let applied = self.on_store(move |store| store.apply(&checked, &expected, &author)).await?;
        let Applied { stored, changed } = applied.map_err(|error| refused_change(&error))?;
        change.version = Some(stored.policy.version.clone());
        tracing::info!(policy = stored.policy.name, version = stored.policy.version, changed, by = caller.name(), "policy applied");
        Ok(v1::ApplyPolicyResponse { policy: Some(stored.policy.clone()), changed })
    }

    async fn delete(&self, caller: &Caller, request: v1::DeletePolicyRequest, change: &mut Change) -> Result<(), Status> {
        let v1::DeletePolicyRequest { name, expected_version } = request;
        let name = required_name(name)?;
        caller.require(Role::Admin, &name)?;
        change.previous_version = self.version_of(&name);
        // A name that no policy has is not worth more room in the log than one that a policy has.
        change.policy = change.previous_version.as_ref().map(|_| name.clone());
        let expected = Expected::parse(&expected_version);
        let (deleted, author) = (name.clone(), caller.name().to_owned());
        self.on_store(move |store| store.delete(&name, &expected, &author)).await?.map_err(|error| refused_change(&error))?;
        tracing::info!(policy = deleted, by = caller.name(), "policy deleted");
        Ok(())
    }

    fn version_of(&self, name: &str) -> Option<String> {
        self.fleet.policies().borrow().policies.get(name).map(|stored| stored.policy.version.clone())
    }

    fn status_of(&self, stored: &StoredPolicy) -> v1::PolicyStatus {
        let PolicyReach { proxies_current, proxies_behind, rejections } = self.fleet.proxies().reach(&stored.policy);
        v1::PolicyStatus {
            policy: Some(stored.policy.clone()),
            proxies_current,
            proxies_behind,
            rejections,
            changed_at_unix_ms: stored.changed_at_unix_ms,
            rollout: self.fleet.rollouts().iter().find(|rollout| is_of(rollout, &stored.policy)).cloned(),
        }
    }
}

#[tonic::async_trait]
impl PolicyService for PolicyServer {
    type WatchPoliciesStream = Watch;

    async fn apply_policy(&self, request: Request<v1::ApplyPolicyRequest>) -> Result<Response<v1::ApplyPolicyResponse>, Status> {
        let caller = Caller::of(request.extensions())?;
        let mut change = Change::new("policy.apply");
        let outcome = self.apply(&caller, request.into_inner(), &mut change).await;
        let recorded = outcome.as_ref().map(|applied| if applied.changed { Outcome::Done } else { Outcome::Unchanged });
        change.record(&caller, recorded);
        outcome.map(Response::new)
    }

    async fn validate_policy(&self, request: Request<v1::ValidatePolicyRequest>) -> Result<Response<v1::ValidatePolicyResponse>, Status> {
        let checked = checked(request.into_inner().source)?;
        let policy = checked.wire().clone();
        self.on_store(move |store| store.check(&checked)).await?.map_err(|error| refused_change(&error))?;
        Ok(Response::new(v1::ValidatePolicyResponse { policy: Some(policy) }))
    }

    async fn get_policy(&self, request: Request<v1::GetPolicyRequest>) -> Result<Response<v1::PolicyStatus>, Status> {
        let caller = Caller::of(request.extensions())?;
        let name = required_name(request.into_inner().name)?;
        caller.require(Role::View, &name)?;
        let stored = self.fleet.policies().borrow().policies.get(&name).cloned();
        match stored {
            Some(stored) => Ok(Response::new(self.status_of(&stored))),
            None => Err(refused_change(&ChangeError::NotFound { name })),
        }
    }

    async fn list_policies(&self, request: Request<v1::ListPoliciesRequest>) -> Result<Response<v1::ListPoliciesResponse>, Status> {
        let caller = Caller::of(request.extensions())?;
        let set = self.fleet.policies().borrow().clone();
        let visible = set.policies.values().filter(|stored| caller.may(Role::View, &stored.policy.name));
        let policies = visible.map(|stored| self.status_of(stored)).collect();
        Ok(Response::new(v1::ListPoliciesResponse { policies }))
    }

    async fn delete_policy(&self, request: Request<v1::DeletePolicyRequest>) -> Result<Response<v1::DeletePolicyResponse>, Status> {
        let caller = Caller::of(request.extensions())?;
        let mut change = Change::new("policy.delete");
        let outcome = self.delete(&caller, request.into_inner(), &mut change).await;
        change.record(&caller, outcome.as_ref().map(|()| Outcome::Done));
        outcome.map(|()| Response::new(v1::DeletePolicyResponse {}))
    }

    async fn watch_policies(&self, request: Request<v1::WatchPoliciesRequest>) -> Result<Response<Watch>, Status> {
        let caller = Caller::of(request.extensions())?;
        let (existing, changes) = self.on_store(Store::watch).await?;
        let events = watch::events(existing, changes, self.shutdown.clone());
        // `SYNCED` has no policy; everybody hears it.
        let may_see = move |event: &v1::PolicyEvent| event.policy.as_ref().is_none_or(|policy| caller.may(Role::View, &policy.name));
        let visible = move |event: &Result<v1::PolicyEvent, Status>| event.as_ref().map_or(true, &may_see);
        Ok(Response::new(Box::pin(events.filter(move |event| std::future::ready(visible(event))))))
    }
}

pub(crate) fn checked(source: Option<PolicySource>) -> Result<CheckedPolicy, Status> {
    let checked = match source.and_then(|source| source.source) {
        Some(Source::Policy(policy)) => CheckedPolicy::from_wire(policy),
        Some(Source::Document(text)) => CheckedPolicy::from_document(&text),
        None => Err(Violations::of("source", "is required")),
    };
    checked.map_err(|violations| invalid(&violations))
}

fn is_of(rollout: &v1::RolloutStatus, policy: &v1::Policy) -> bool {
    rollout.state.as_ref().is_some_and(|state| state.candidate == policy.name && state.candidate_version == policy.version)
}

pub(crate) fn required_name(name: String) -> Result<String, Status> {
    if name.is_empty() { Err(invalid(&Violations::of("name", "is required"))) } else { Ok(name) }
}

pub(crate) fn refused_change(error: &ChangeError) -> Status {
    match error {
        ChangeError::NotFound { .. } | ChangeError::NoRevision { .. } => Status::not_found(error.to_string()),
        ChangeError::Deletion { .. } => Status::failed_precondition(error.to_string()),
        ChangeError::Conflict { .. } => Status::aborted(error.to_string()),
        ChangeError::Refused(violations) => invalid(violations),
        ChangeError::Full => Status::resource_exhausted(error.to_string()),
        ChangeError::Store(error) => {
            tracing::error!(%error, "the policy store failed");
            Status::unavailable(error.to_string())
        }
    }
}

/// Runs a call to the store, which waits for disk or network, where it holds up no other request.
pub(crate) async fn off_the_loop<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(call).await.map_err(|_| Status::internal("the store panicked"))
}

/// `INVALID_ARGUMENT` with a line and a `BadRequest.FieldViolation` for every violation, as many as fit.
pub(crate) fn invalid(violations: &Violations) -> Status {
    let mut room = MAX_STATUS_BYTES;
    let fitting: Vec<&Violation> = violations
        .iter()
        .take_while(|violation| {
            let left = room.checked_sub(size_in_status(violation));
            room = left.unwrap_or(0);
            left.is_some()
        })
        .collect();
    let mut lines: Vec<String> = fitting.iter().map(ToString::to_string).collect();
    let left = violations.iter().count() - fitting.len();
    if left > 0 {
        lines.push(format!("… and {left} more errors; correct these first"));
    }
    let fields: Vec<FieldViolation> = fitting.iter().map(|violation| FieldViolation::new(&violation.field, &violation.problem)).collect();
    // The text once is enough: the details, which would repeat it, get none.
    let details = Status::with_error_details(Code::InvalidArgument, "", ErrorDetails::with_bad_request(fields));
    Status::with_details(Code::InvalidArgument, lines.join("\n"), Bytes::copy_from_slice(details.details()))
}

/// Bytes that a violation takes in the headers: percent-encoded in `grpc-message`, in base64 in `grpc-status-details-bin`.
fn size_in_status(violation: &Violation) -> usize {
    let plain = violation.field.len() + violation.problem.len();
    let escaped = |byte: u8| !(byte.is_ascii_alphanumeric() || b"-_.,:;=/()[]'".contains(&byte));
    let n_escaped = violation.field.bytes().chain(violation.problem.bytes()).filter(|byte| escaped(*byte)).count();
    // What joins field and problem, ends a line, and frames both in the details.
    let framing = 32;
    plain + 2 * n_escaped + plain * 4 / 3 + framing
}
