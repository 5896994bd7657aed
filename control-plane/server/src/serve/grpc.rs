//! The gRPC listener and its services.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::AccessLogServiceServer;
use headgate_protos::FILE_DESCRIPTOR_SET;
use headgate_protos::v1;
use headgate_protos::v1::device_reporting_server::DeviceReportingServer;
use headgate_protos::v1::gateway_service_server::GatewayServiceServer;
use headgate_protos::v1::load_reporting_server::LoadReportingServer;
use headgate_protos::v1::policy_life_server::PolicyLifeServer;
use headgate_protos::v1::policy_service_server::PolicyServiceServer;
use headgate_protos::v1::policy_trial_server::PolicyTrialServer;
use headgate_protos::v1::replication_server::ReplicationServer as ReplicationServiceServer;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::ServingStatus;

use super::{ServeError, connections};
use crate::access_log::{self, AccessLogs, Counters};
use crate::clock::Clock;
use crate::config::FilterDelivery;
use crate::control_loop::SharedLedger;
use crate::device_reporting::DeviceReports;
use crate::discovery::Discovery;
use crate::dry_run::DryRunServer;
use crate::engine::EngineBoard;
use crate::fleet::Fleet;
use crate::gateway::EndpointLatencies;
use crate::gateway_service::GatewayServer;
use crate::identity::Guard;
use crate::identity::listener::Incoming;
use crate::load_reporting::{Books, LoadReports};
use crate::policy_life::LifeServer;
use crate::policy_service::PolicyServer;
use crate::replica::Helm;
use crate::replica::service::ReplicationServer;
use crate::store::Store;

/// A dead peer is noticed after at most the interval and the timeout.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams of one connection at a time. A proxy has six.
const MAX_STREAMS: u32 = 1000;
/// Time in which an answer must begin, the request's messages included where the answer waits for them.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// What the services share.
pub(super) struct Services {
    pub(super) store: Store,
    pub(super) gateway: GatewayServer,
    pub(super) dry_run: DryRunServer,
    pub(super) latencies: EndpointLatencies,
    pub(super) fleet: Fleet,
    pub(super) ledger: SharedLedger,
    pub(super) devices: DeviceReports,
    pub(super) engines: EngineBoard,
    pub(super) clock: Clock,
    pub(super) helm: Helm,
    pub(super) reports: broadcast::Sender<Arc<v1::LoadReport>>,
    pub(super) filter: FilterDelivery,
    pub(super) shutdown: CancellationToken,
    pub(super) access_logs: Arc<Counters>,
    /// Age at which connections are to be replaced.
    pub(super) connection_age: Option<Duration>,
}

// === impl Services ===

impl Services {
    /// The server as a future that ends after `shutdown`.
    pub(super) fn serve(
        self,
        incoming: Incoming,
        guard: Guard,
    ) -> Result<impl Future<Output = Result<(), ServeError>> + Send + 'static, ServeError> {
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|error| ServeError::Grpc(format!("reflection: {error}")))?;
        let (health, health_service) = tonic_health::server::health_reporter();
        let shutdown = self.shutdown.clone();
        let access_logs =
            AccessLogs::new(&self.fleet, self.ledger.clone(), self.clock, self.access_logs, self.shutdown.clone()).timing(self.latencies);
        let access_logs = AccessLogServiceServer::new(access_logs).max_decoding_message_size(access_log::MAX_MESSAGE_BYTES);
        let books = Books { fleet: self.fleet.clone(), ledger: self.ledger, engines: self.engines, clock: self.clock };
        let life = LifeServer::new(self.store.clone(), self.fleet.clone(), self.helm.clone());
        let replication = ReplicationServer {
            helm: self.helm,
            fleet: self.fleet.clone(),
            books: books.clone(),
            devices: self.devices.clone(),
            shutdown: self.shutdown.clone(),
        };
        let reports = LoadReports::new(books, self.reports, self.shutdown.clone());
        let discovery = Discovery::new(self.fleet.clone(), self.filter, self.shutdown.clone());
        let policies = PolicyServer::new(self.store, self.fleet, self.shutdown);
        let routes = discovery
            .routes()
            .add_service(health_service)
            .add_service(reflection)
            .add_service(LoadReportingServer::new(reports))
            .add_service(DeviceReportingServer::new(self.devices))
            .add_service(ReplicationServiceServer::new(replication))
            .add_service(access_logs)
            .add_service(PolicyServiceServer::new(policies))
            .add_service(PolicyLifeServer::new(life))
            .add_service(PolicyTrialServer::new(self.dry_run))
            .add_service(GatewayServiceServer::new(self.gateway));
        Ok(async move {
            health.set_service_status("", ServingStatus::Serving).await;
            let stopping = shutdown.clone();
            let stopping = async move {
                stopping.cancelled().await;
                health.set_service_status("", ServingStatus::NotServing).await;
                Ok(())
            };
            let lane = |lane, age| {
                server(age)
                    .layer(guard.clone())
                    .add_routes(routes.clone())
                    .serve_with_incoming_shutdown(lane, shutdown.clone().cancelled_owned())
            };
            let serving = connections::serve(incoming, self.connection_age, lane);
            futures::future::try_join(serving, stopping).await.map(drop).map_err(|error| ServeError::Grpc(error.to_string()))
        })
    }
}

/// A server whose connections are told to go away at `age`, if it is given.
fn server(age: Option<Duration>) -> Server {
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS)
        .timeout(ANSWER_LIMIT);
    match age {
        Some(age) => server.max_connection_age(age),
        None => server,
    }
}
