//! The gRPC service for the gateway's resources: [`GatewayServer`] over the [`GatewayHub`].

use headgate_protos::document::gateway::kind_of;
use headgate_protos::v1;
use headgate_protos::v1::gateway_service_server::GatewayService;
use tonic::{Code, Request, Response, Status};

use crate::document::Violations;
use crate::fleet::{Fleet, Refusal};
use crate::gateway::{Checked, EndpointView, GatewayError, GatewayHub, documents};
use crate::identity::Caller;
use crate::identity::access::Role;
use crate::identity::audit::{Entry, Outcome};
use crate::policy_service::{invalid, off_the_loop};

/// `headgate.v1.GatewayService`. A role for a policy's name is one for the resources of that name.
#[derive(Clone)]
pub struct GatewayServer {
    hub: GatewayHub,
    fleet: Fleet,
}

// === impl GatewayServer ===

impl GatewayServer {
    /// A service over `hub`, which tells of the state in `fleet`.
    pub fn new(hub: GatewayHub, fleet: Fleet) -> Self {
        Self { hub, fleet }
    }

    async fn on_hub<T: Send + 'static>(
        &self,
        call: impl FnOnce(&GatewayHub) -> Result<T, GatewayError> + Send + 'static,
    ) -> Result<T, Status> {
        let hub = self.hub.clone();
        off_the_loop(move || call(&hub)).await?.map_err(|error| refused(&error))
    }

    async fn apply(&self, caller: &Caller, given: Vec<Checked>) -> Result<v1::ApplyGatewayResponse, Status> {
        for checked in &given {
            caller.require(Role::Operate, &checked.wire().name)?;
        }
        let (resources, author) = (wires(&given), caller.name().to_owned());
        let changed = self.on_hub(move |hub| hub.apply(&given, &author)).await?;
        tracing::info!(resources = resources.len(), changed, by = caller.name(), "gateway applied");
        Ok(v1::ApplyGatewayResponse { resources, changed: u32::try_from(changed).unwrap_or(u32::MAX) })
    }

    async fn delete(&self, caller: &Caller, request: &v1::DeleteGatewayRequest) -> Result<(), Status> {
        let v1::DeleteGatewayRequest { kind, name } = request.clone();
        if kind.is_empty() || name.is_empty() {
            return Err(invalid(&Violations::of(if kind.is_empty() { "kind" } else { "name" }, "is required")));
        }
        caller.require(Role::Admin, &name)?;
        let author = caller.name().to_owned();
        self.on_hub(move |hub| hub.delete(&kind, &name, &author)).await
    }
}

#[tonic::async_trait]
impl GatewayService for GatewayServer {
    async fn apply_gateway(&self, request: Request<v1::ApplyGatewayRequest>) -> Result<Response<v1::ApplyGatewayResponse>, Status> {
        let caller = Caller::of(request.extensions())?;
        let given = checked(request.into_inner())?;
        let names = names(&given);
        let outcome = self.apply(&caller, given).await;
        let recorded = outcome.as_ref().map(|applied| if applied.changed > 0 { Outcome::Done } else { Outcome::Unchanged });
        record(&caller, "gateway.apply", &names, recorded);
        outcome.map(Response::new)
    }

    async fn validate_gateway(&self, request: Request<v1::ApplyGatewayRequest>) -> Result<Response<v1::ApplyGatewayResponse>, Status> {
        let given = checked(request.into_inner())?;
        let resources = wires(&given);
        let changed = self.on_hub(move |hub| hub.check(&given)).await?;
        Ok(Response::new(v1::ApplyGatewayResponse { resources, changed: u32::try_from(changed).unwrap_or(u32::MAX) }))
    }

    async fn list_gateway(&self, request: Request<v1::ListGatewayRequest>) -> Result<Response<v1::ListGatewayResponse>, Status> {
        let caller = Caller::of(request.extensions())?;
        let stored = self.hub.current().borrow().clone();
        let may_see = |name: &str| caller.may(Role::View, name);
        let endpoints = self.fleet.endpoints().iter().filter(|endpoint| may_see(&endpoint.pool)).map(status_of).collect();
        // A refusal tells of a proxy, and of resources whatever their names.
        let refusals = if caller.may_everywhere(Role::View) { self.fleet.refusals().list() } else { Vec::new() };
        let refusals = refusals.into_iter().map(refusal_of).collect();
        let resources = stored.resources.iter().filter(|resource| may_see(&resource.name)).cloned().collect();
        Ok(Response::new(v1::ListGatewayResponse { resources, endpoints, refusals }))
    }

    async fn delete_gateway(&self, request: Request<v1::DeleteGatewayRequest>) -> Result<Response<v1::DeleteGatewayResponse>, Status> {
        let caller = Caller::of(request.extensions())?;
        let request = request.into_inner();
        let outcome = self.delete(&caller, &request).await;
        // What nobody has stored is not worth room in the log.
        let name = if outcome.is_ok() { format!("{} {}", request.kind, request.name) } else { String::new() };
        record(&caller, "gateway.delete", &name, outcome.as_ref().map(|()| Outcome::Done));
        outcome.map(|()| Response::new(v1::DeleteGatewayResponse {}))
    }
}

fn checked(request: v1::ApplyGatewayRequest) -> Result<Vec<Checked>, Status> {
    let v1::ApplyGatewayRequest { documents, resources } = request;
    let checked = match (documents.is_empty(), resources.is_empty()) {
        (false, true) => documents::read(&documents),
        (true, false) => documents::check(resources),
        _ => Err(Violations::of("documents", "exactly one of documents and resources is given")),
    };
    checked.map_err(|violations| invalid(&violations))
}

fn status_of(view: &EndpointView) -> v1::EndpointStatus {
    let EndpointView { pool, address, weight, out_because } = view.clone();
    v1::EndpointStatus { pool, address: address.to_string(), weight, out_because }
}

fn refusal_of(refusal: Refusal) -> v1::GatewayRefusal {
    let Refusal { node_id, kind, name, error } = refusal;
    v1::GatewayRefusal { node_id, r#type: kind.to_string(), name, error }
}

fn wires(given: &[Checked]) -> Vec<v1::GatewayResource> {
    given.iter().map(|checked| checked.wire().clone()).collect()
}

/// Kinds and names, for the audit log.
fn names(given: &[Checked]) -> String {
    let names: Vec<String> = given.iter().map(|checked| format!("{} {}", kind_of(checked.wire()), checked.wire().name)).collect();
    names.join(", ")
}

/// Records what came of a change. A missing role has been recorded by the caller itself.
fn record(caller: &Caller, action: &'static str, names: &str, outcome: Result<Outcome, &Status>) {
    let (outcome, reason) = match outcome {
        Ok(outcome) => (outcome, None),
        Err(status) if status.code() == Code::PermissionDenied => return,
        Err(status) => (Outcome::Refused, Some(status.message())),
    };
    let policy = Some(names).filter(|names| !names.is_empty());
    caller.audit(&Entry { action, outcome, policy, reason, ..Entry::default() });
}

fn refused(error: &GatewayError) -> Status {
    match error {
        GatewayError::NotFound { .. } => Status::not_found(error.to_string()),
        GatewayError::Refused(violations) => invalid(violations),
        GatewayError::Store(error) => {
            tracing::error!(%error, "the store failed");
            Status::unavailable(error.to_string())
        }
    }
}
