//! `headgate serve`: everything wired together, started and stopped.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::{Config, FilterDelivery, LogFormat};
use crate::control_loop::{ControlLoop, ControlView, SharedLedger};
use crate::device::tape::TapeError;
use crate::device::{self, DeviceBoard, DeviceState, Sampler, SamplerControl};
use crate::device_reporting::DeviceReports;
use crate::dry_run::DryRunServer;
use crate::engine::EngineBoard;
use crate::fleet::Fleet;
use crate::gateway::{EndpointLatencies, GatewayError, GatewayHub, GatewayPublisher};
use crate::gateway_service::GatewayServer;
use crate::http::{self, Observatory};
use crate::identity::FileErrors;
use crate::identity::listener::{Incoming, Peer};
use crate::replica::devices::DeviceRelay;
use crate::rollout::Evaluator;
use crate::store::StoreError;

mod connections;
mod front;
mod grpc;
mod log;
mod replicas;

/// Time that streams and connections get to end after a signal.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(3);

/// Why the control plane could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A listener's address cannot be had.
    #[error("--{flag}: cannot listen on {address}: {source}\nend the program that listens there, or give another address with --{flag}")]
    Bind {
        /// The flag that names the address.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The files of TLS or the access rules cannot be used.
    #[error("{0}")]
    Files(#[from] FileErrors),
    /// The audit log cannot be written.
    #[error("--audit-log: cannot write {path}: {source}")]
    AuditLog {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The policy store cannot be opened.
    #[error("--{flag}: {source}")]
    Store {
        /// The flag that names it.
        flag: &'static str,
        /// Why.
        source: StoreError,
    },
    /// The stored gateway cannot be used.
    #[error("--{flag}: {source}")]
    Gateway {
        /// The flag that names the store.
        flag: &'static str,
        /// Why.
        source: GatewayError,
    },
    /// Files for connections to etcd cannot be used.
    #[error("{0}")]
    Client(String),
    /// The recording of GPUs cannot be used.
    #[error("--device-tape: {0}")]
    Tape(#[from] TapeError),
    /// The ports file cannot be written.
    #[error("--ports-file: cannot write {path}: {source}")]
    PortsFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system gives no thread, signal handler or local address.
    #[error("cannot {what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// gRPC reflection or the gRPC server failed.
    #[error("grpc: {0}")]
    Grpc(String),
    /// A part ended by itself.
    #[error("{part} ended unexpectedly")]
    Ended {
        /// Which.
        part: &'static str,
    },
}

/// A control plane that runs.
pub struct Running {
    /// Address of the gRPC listener.
    pub grpc: SocketAddr,
    /// Address of the HTTP listener.
    pub http: SocketAddr,
    ready: Arc<AtomicBool>,
    shutdown: CancellationToken,
    parts: JoinSet<Result<(), ServeError>>,
    // Kept for its thread, which ends when this is dropped.
    _sampler: Sampler,
}

#[derive(Serialize)]
struct Ports {
    grpc: u16,
    http: u16,
}

/// Runs the control plane until SIGINT or SIGTERM.
///
/// # Errors
/// [`ServeError`] when it cannot start, or when a part ends by itself.
pub async fn run(config: Config) -> Result<(), ServeError> {
    start_log(config.log_format);
    let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt())?;
    // A replica waits for etcd as long as it must, but not beyond a signal.
    let mut running = tokio::select! {
        started = start(config) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        outcome = running.ended() => outcome,
    };
    running.stop().await;
    outcome
}

/// Starts the log on stderr.
pub fn start_log(format: LogFormat) {
    log::start(format);
}

/// Starts all parts; returns when both listeners are bound and the policies are open.
///
/// # Errors
/// [`ServeError`] naming the flag to change.
pub async fn start(config: Config) -> Result<Running, ServeError> {
    let (clock, fleet, ledger, shutdown) = (Clock::start(), Fleet::new(), SharedLedger::default(), CancellationToken::new());
    let front = front::open(&config, &shutdown).await?;
    let (grpc, http) = (front.grpc.address(), front.http.address());
    let replica = replicas::open(&config, grpc, &shutdown).await?;
    let (helm, (store, hub)) = (replica.helm.clone(), replica.stores(config.store.flag(), &fleet)?);
    let telemetry = device::open(&config.devices)?;
    let sampler = Sampler::start(telemetry.source, clock).map_err(|source| system("start the GPU sampling thread", source))?;
    let (devices, (view, control)) = (DeviceBoard::default(), watch::channel(Arc::new(ControlView::default())));
    let mut control_loop = ControlLoop::new((fleet.clone(), ledger.clone(), devices.clone()), clock, config.lifetime, view, helm.clone());
    control_loop.engines.play(telemetry.playback);
    let (engines, dry_run) = (control_loop.engine_board(), DryRunServer::new(control_loop.tape.clone(), fleet.clone()));
    let (access_logs, ready) = (Arc::new(crate::access_log::Counters::default()), Arc::new(AtomicBool::new(false)));
    let observatory = Observatory {
        fleet: fleet.clone(),
        ledger: ledger.clone(),
        devices: devices.clone(),
        control,
        clock,
        ready: ready.clone(),
        connections: front.grpc.ends(),
        access_logs: access_logs.clone(),
        helm: helm.clone(),
        store: replica.records.health(),
    };
    let evaluator = Evaluator::new(store.clone(), fleet.clone(), ledger.clone(), helm.clone(), front.guard.audit().clone());
    let gateway = GatewayServer::new(hub.clone(), fleet.clone());
    let (filter, latencies) = (config.filter.clone(), EndpointLatencies::default());
    let signals = (devices.clone(), latencies.clone(), engines.clone());
    let publisher = gateway_publisher(hub, signals, filter, clock, &fleet);
    publisher.publish();
    let device_reports = DeviceReports::new(devices.clone(), clock, shutdown.clone());
    let relay = DeviceRelay { board: devices.clone(), reports: device_reports.clone(), clock, name: helm.name().to_owned() };
    let services = grpc::Services {
        store,
        gateway,
        dry_run,
        latencies,
        fleet: fleet.clone(),
        ledger,
        devices: device_reports,
        engines,
        clock,
        helm,
        reports: replica.reports.clone(),
        filter: config.filter,
        shutdown: shutdown.clone(),
        access_logs,
        connection_age: config.connection_age,
    };
    let grpc_server = services.serve(front.grpc, front.guard.clone())?;

    let mut parts = JoinSet::new();
    parts.spawn(grpc_server);
    parts.spawn(serve_http(front.http, http::router(observatory, front.guard), shutdown.clone()));
    parts.spawn(run_control_loop(control_loop, shutdown.clone()));
    parts.spawn(run_evaluator(evaluator, shutdown.clone()));
    parts.spawn(run_publisher(publisher, shutdown.clone()));
    for page in config.dcgm_exporters {
        parts.spawn(follow_exporter(page, devices.clone(), clock, shutdown.clone()));
    }
    replica.start(fleet, relay, &mut parts, &shutdown);
    parts.spawn(follow_sampler(sampler.state(), sampler.control(), devices, clock, shutdown.clone()));
    ready.store(true, Ordering::Release);
    if let Some(path) = &config.ports_file {
        write_ports(path, &Ports { grpc: grpc.port(), http: http.port() })?;
    }
    tracing::info!(%grpc, %http, data_dir = %config.data_dir.display(), "the control plane is up");
    Ok(Running { grpc, http, ready, shutdown, parts, _sampler: sampler })
}

// === impl Running ===

impl Running {
    /// Waits until a part ends by itself, which none should.
    async fn ended(&mut self) -> Result<(), ServeError> {
        match self.parts.join_next().await {
            Some(Ok(outcome)) => outcome.and(Err(ServeError::Ended { part: "a listener or the control loop" })),
            Some(Err(_)) | None => Err(ServeError::Ended { part: "a task" }),
        }
    }

    /// Stops: not ready, streams told to end, connections given three seconds.
    pub async fn stop(mut self) {
        tracing::info!("shutting down");
        self.ready.store(false, Ordering::Release);
        self.shutdown.cancel();
        let drained = async { while self.parts.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN_LIMIT, drained).await.is_err() {
            tracing::warn!("connections were still open after {} s and are cut", SHUTDOWN_LIMIT.as_secs());
            self.parts.abort_all();
        }
    }
}

fn gateway_publisher(
    hub: GatewayHub,
    (devices, latencies, engines): (DeviceBoard, EndpointLatencies, EngineBoard),
    filter: FilterDelivery,
    clock: Clock,
    fleet: &Fleet,
) -> GatewayPublisher {
    GatewayPublisher { hub, devices, latencies, engines, filter, clock, fleet: fleet.clone() }
}

async fn serve_http(incoming: Incoming, router: axum::Router, shutdown: CancellationToken) -> Result<(), ServeError> {
    let service = router.into_make_service_with_connect_info::<Peer>();
    let server = axum::serve(incoming, service).with_graceful_shutdown(shutdown.cancelled_owned());
    server.await.map_err(|source| system("serve HTTP", source))
}

async fn run_control_loop(control_loop: ControlLoop, shutdown: CancellationToken) -> Result<(), ServeError> {
    control_loop.run(shutdown).await;
    Ok(())
}

async fn run_evaluator(evaluator: Evaluator, shutdown: CancellationToken) -> Result<(), ServeError> {
    evaluator.run(shutdown).await;
    Ok(())
}

async fn run_publisher(publisher: GatewayPublisher, shutdown: CancellationToken) -> Result<(), ServeError> {
    publisher.run(shutdown).await;
    Ok(())
}

async fn follow_exporter(page: hyper::Uri, board: DeviceBoard, clock: Clock, shutdown: CancellationToken) -> Result<(), ServeError> {
    device::dcgm::follow(page, board, clock, shutdown).await;
    Ok(())
}

/// Brings this machine's devices to the board, and the board's period to the sampler.
async fn follow_sampler(
    mut states: watch::Receiver<Arc<DeviceState>>,
    sampler: SamplerControl,
    board: DeviceBoard,
    clock: Clock,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let mut period = board.period();
    states.mark_changed();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Ok(()) = period.changed() => sampler.set_period(*period.borrow_and_update()),
            Ok(()) = states.changed() => {
                let state = states.borrow_and_update().clone();
                // This machine's own place is never one too many.
                let _ = board.publish(clock.now(), state);
            }
        }
    }
}

/// Writes the file under another name first: who waits for it never reads half of it.
fn write_ports(path: &Path, ports: &Ports) -> Result<(), ServeError> {
    let failed = |source| ServeError::PortsFile { path: path.to_owned(), source };
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let text = serde_json::to_vec(ports).map_err(|error| failed(io::Error::other(error)))?;
    std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, path)).map_err(failed)
}

fn signal(kind: tokio::signal::unix::SignalKind) -> Result<tokio::signal::unix::Signal, ServeError> {
    tokio::signal::unix::signal(kind).map_err(|source| system("listen for signals", source))
}

fn bind(flag: &'static str, address: SocketAddr, source: io::Error) -> ServeError {
    ServeError::Bind { flag, address, source }
}

fn system(what: &'static str, source: io::Error) -> ServeError {
    ServeError::System { what, source }
}
