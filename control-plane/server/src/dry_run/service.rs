//! The gRPC service: [`DryRunServer`] over the [`Tape`].

use std::time::Duration;

use headgate_protos::v1;
use headgate_protos::v1::policy_trial_server::PolicyTrial;
use tonic::{Request, Response, Status};

use super::answer::answer;
use super::play::play;
use super::tape::Tape;
use crate::fleet::Fleet;
use crate::identity::Caller;
use crate::identity::access::Role;
use crate::policy_service::checked;

/// Least length of a tape that says something.
const LEAST_WINDOW: Duration = Duration::from_secs(5);

/// `headgate.v1.PolicyTrial`.
#[derive(Clone)]
pub struct DryRunServer {
    tape: Tape,
    fleet: Fleet,
}

// === impl DryRunServer ===

impl DryRunServer {
    /// A service over what the control loop records on `tape`; the policies in force are the fleet's.
    pub fn new(tape: Tape, fleet: Fleet) -> Self {
        Self { tape, fleet }
    }

    /// The policy in force for the pool of `policy`.
    fn in_force(&self, policy: &v1::Policy) -> Option<v1::Policy> {
        let pool = &policy.spec.as_ref()?.pool;
        let policies = self.fleet.policies().borrow().clone();
        let is_meant = |other: &v1::Policy| other.spec.as_ref().is_some_and(|spec| spec.pool == *pool && spec.candidate.is_none());
        policies.policies.values().map(|stored| &stored.policy).find(|other| is_meant(other)).cloned()
    }
}

#[tonic::async_trait]
impl PolicyTrial for DryRunServer {
    async fn dry_run_policy(&self, request: Request<v1::DryRunPolicyRequest>) -> Result<Response<v1::DryRunPolicyResponse>, Status> {
        let caller = Caller::of(request.extensions())?;
        let policy = checked(request.into_inner().source)?.wire().clone();
        caller.require(Role::View, &policy.name)?;
        let pool = policy.spec.as_ref().map_or("", |spec| spec.pool.as_str()).to_owned();
        let missing = || Status::failed_precondition(format!("no policy is in force for pool {pool:?}, so nothing is recorded of it"));
        let in_force = self.in_force(&policy).ok_or_else(missing)?;
        caller.require(Role::View, &in_force.name)?;
        let frames = self.tape.frames();
        let window = frames.first().zip(frames.last()).map_or(Duration::ZERO, |(first, last)| last.at.since(first.at));
        if window < LEAST_WINDOW {
            return Err(Status::failed_precondition(format!(
                "only {:.1} s are recorded here, at least {} s are wanted: try again in a moment; of several replicas ask the one that leads",
                window.as_secs_f64(),
                LEAST_WINDOW.as_secs()
            )));
        }
        let played = tokio::task::spawn_blocking(move || {
            let given = play(&frames, &as_if_in_force(&policy));
            let present = play(&frames, &as_if_in_force(&in_force));
            answer(&policy, &given, &in_force, &present)
        });
        Ok(Response::new(played.await.map_err(|_| Status::internal("the dry run panicked"))?))
    }
}

/// A candidate has books of its own, which are not recorded before it exists; it is played on those of its pool.
fn as_if_in_force(policy: &v1::Policy) -> v1::Policy {
    let mut policy = policy.clone();
    if let Some(spec) = &mut policy.spec {
        spec.candidate = None;
        spec.enforcement = v1::Enforcement::Enforce.into();
    }
    policy
}
