//! Sends the requests of a plan and notes how each ends.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::{Buf as _, Bytes};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use super::connections::{Connection, Connections};
use super::recorder::{Kind, Outcome};
use super::{Plan, Shared, Template};

const REASON: &str = "x-headgate-reason";
/// Longest time to notice that the load was stopped during a pause of the schedule.
const STOP_CHECK: Duration = Duration::from_millis(50);

/// A request made from `template`.
pub(crate) fn build(plan: &Plan, template: &Template) -> Result<Request<Full<Bytes>>> {
    let mut request = Request::builder().method(template.method.clone()).uri(template.path.as_str());
    if !template.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("host", plan.target.to_string());
    }
    for (name, value) in &template.headers {
        request = request.header(name.as_str(), value.as_str());
    }
    Ok(request.body(Full::new(template.body.clone()))?)
}

/// Runs all traffic of the plan until its schedules have ended and every request has been answered.
pub(crate) async fn run(shared: Arc<Shared>) {
    let connections = Rc::new(Connections::new(shared.plan.target));
    let mut streams = JoinSet::new();
    for index in 0..shared.plan.traffic.len() {
        streams.spawn_local(stream(Arc::clone(&shared), Rc::clone(&connections), index));
    }
    while streams.join_next().await.is_some() {}
}

/// One stream of requests. Each leaves at its time; the task does not wait for answers until the end.
async fn stream(shared: Arc<Shared>, connections: Rc<Connections>, index: usize) {
    let Some(traffic) = shared.plan.traffic.get(index) else { return };
    let mut requests = JoinSet::new();
    for at in shared.plan.schedule(index) {
        if !wait_for(&shared, shared.started + at).await {
            break;
        }
        let class = &traffic.class;
        if shared.in_flight.load(Ordering::Relaxed) >= shared.plan.max_in_flight {
            shared.recorder().overrun(class);
            continue;
        }
        shared.in_flight.fetch_add(1, Ordering::Relaxed);
        shared.recorder().offered(class);
        requests.spawn_local(one(Arc::clone(&shared), Rc::clone(&connections), index, at));
        while requests.try_join_next().is_some() {}
    }
    while requests.join_next().await.is_some() {}
}

/// Waits for an arrival; false when the load was stopped before it.
async fn wait_for(shared: &Shared, at: Instant) -> bool {
    loop {
        if shared.is_stopped() {
            return false;
        }
        let next_check = Instant::now() + STOP_CHECK;
        if at <= next_check {
            sleep_until(at.into()).await;
            return !shared.is_stopped();
        }
        sleep_until(next_check.into()).await;
    }
}

/// One request, from its scheduled time to its end.
async fn one(shared: Arc<Shared>, connections: Rc<Connections>, index: usize, at: Duration) {
    let Some(traffic) = shared.plan.traffic.get(index) else { return };
    let progress = Progress::default();
    let exchange = exchange(&shared, &connections, &traffic.request, &progress);
    let kind = match timeout(shared.plan.request_timeout, exchange).await {
        Ok(Ok(Some(kind))) => kind,
        Ok(Err(error)) => Kind::Failed { cause: cause(&error) },
        Ok(Ok(None)) | Err(_) => Kind::Failed { cause: "timeout".to_owned() },
    };
    let since_start = |instant: Instant| instant.saturating_duration_since(shared.started);
    let ended_at = since_start(Instant::now());
    let outcome = Outcome {
        class: index,
        scheduled_at: at,
        decided_at: progress.headers.get().map_or(ended_at, since_start),
        first_byte_at: progress.first_byte.get().map(since_start),
        ended_at,
        worker: progress.worker.get(),
        kind,
    };
    shared.in_flight.fetch_sub(1, Ordering::Relaxed);
    shared.recorder().ended(&traffic.class, outcome);
}

/// How far a request has come; it outlives an exchange that is cut off.
#[derive(Default)]
struct Progress {
    headers: Cell<Option<Instant>>,
    first_byte: Cell<Option<Instant>>,
    worker: Cell<u64>,
}

/// What came of a request; `None` when its first byte did not come in time.
async fn exchange(shared: &Shared, connections: &Connections, template: &Template, progress: &Progress) -> Result<Option<Kind>> {
    let patience = shared.plan.first_byte_timeout.unwrap_or(shared.plan.request_timeout);
    let Ok(begun) = timeout(patience, begin(shared, connections, template, progress)).await else { return Ok(None) };
    let (connection, kind, mut body) = begun?;
    while let Some(frame) = body.frame().await {
        frame?;
    }
    connections.put(connection);
    Ok(Some(kind))
}

/// Sends a request and reads to the first byte of the body, or to the end of one that is empty.
async fn begin(
    shared: &Shared,
    connections: &Connections,
    template: &Template,
    progress: &Progress,
) -> Result<(Connection, Kind, Incoming)> {
    let request = build(&shared.plan, template)?;
    let mut connection = connections.take().await?;
    progress.worker.set(u64::from(connection.number));
    let response = connection.sender.send_request(request).await?;
    progress.headers.set(Some(Instant::now()));
    if let Some(worker) = shared.plan.worker_header.and_then(|name| response.headers().get(name)?.to_str().ok()?.parse().ok()) {
        progress.worker.set(worker);
    }
    let kind = classify(&response);
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        if frame?.data_ref().is_some_and(bytes::Bytes::has_remaining) {
            progress.first_byte.set(Some(Instant::now()));
            break;
        }
    }
    Ok((connection, kind, body))
}

/// A refusal is what says so itself; any other status that is no success is a failure.
fn classify(response: &Response<Incoming>) -> Kind {
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let status = response.status().as_u16();
    if let Some(reason) = header(REASON) {
        let name = reason.split(';').next().unwrap_or(reason).trim().to_owned();
        return Kind::Refused { reason: name, status, retry_after: header("retry-after").is_some() };
    }
    match status {
        200..=399 => Kind::Admitted,
        // Envoy's own limiters give no reason.
        429 => Kind::Refused { reason: "none_given".to_owned(), status, retry_after: header("retry-after").is_some() },
        _ => Kind::Failed { cause: format!("status {status}") },
    }
}

/// A short name, so that failures can be counted.
fn cause(error: &anyhow::Error) -> String {
    match error.downcast_ref::<hyper::Error>() {
        Some(error) if error.is_incomplete_message() => "connection closed".to_owned(),
        Some(error) if error.is_body_write_aborted() => "body aborted".to_owned(),
        _ => format!("{error:#}"),
    }
}
