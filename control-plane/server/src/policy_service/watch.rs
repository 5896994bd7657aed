//! The stream of a watch: what is there, `SYNCED`, every change; it ends with the server, or when the watcher falls too far behind.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use headgate_protos::v1;
use headgate_protos::v1::policy_event::Kind;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::fleet::StoredPolicy;
use crate::store::PolicyChange;

/// Events of one watch.
pub(super) type Watch = Pin<Box<dyn Stream<Item = Result<v1::PolicyEvent, Status>> + Send>>;

/// What is still to come after the existing policies.
enum Source {
    Open(Receiver<PolicyChange>, CancellationToken),
    Ended,
}

pub(super) fn events(existing: Vec<Arc<StoredPolicy>>, changes: Receiver<PolicyChange>, shutdown: CancellationToken) -> Watch {
    let existing = existing.into_iter().map(|stored| Ok(event(Kind::Existing, Some(stored.policy.clone()))));
    let synced = Ok(event(Kind::Synced, None));
    let changes = stream::unfold(Source::Open(changes, shutdown), next);
    Box::pin(stream::iter(existing.chain([synced])).chain(changes))
}

async fn next(source: Source) -> Option<(Result<v1::PolicyEvent, Status>, Source)> {
    let Source::Open(mut changes, shutdown) = source else { return None };
    let change = tokio::select! {
        () = shutdown.cancelled() => return Some((Err(Status::unavailable("the server is shutting down")), Source::Ended)),
        change = changes.recv() => change,
    };
    match change {
        Ok(PolicyChange::Applied(stored)) => Some((Ok(event(Kind::Applied, Some(stored.policy.clone()))), Source::Open(changes, shutdown))),
        Ok(PolicyChange::Deleted(name)) => {
            let policy = v1::Policy { name, ..v1::Policy::default() };
            Some((Ok(event(Kind::Deleted, Some(policy))), Source::Open(changes, shutdown)))
        }
        Err(RecvError::Lagged(missed)) => {
            let status = Status::aborted(format!("the watch fell behind and missed {missed} changes; begin a new one"));
            Some((Err(status), Source::Ended))
        }
        Err(RecvError::Closed) => None,
    }
}

fn event(kind: Kind, policy: Option<v1::Policy>) -> v1::PolicyEvent {
    v1::PolicyEvent { kind: kind.into(), policy }
}
