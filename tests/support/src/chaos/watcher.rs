//! Who acts, and what every replica pushes, looked at without pause.
//!
//! What must never be seen: two replicas that act in one term; a replica that acts in an older term after another one was seen to act
//! in a newer one; limits with an older epoch on the same replica after newer ones; two limits with one epoch that differ.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use headgate_protos::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use headgate_protos::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use headgate_protos::{LIMITS_TYPE_URL, envoy_core, v1};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use super::{Findings, Running};
use crate::http_client;
use crate::replicas::Replicas;

/// Time between two looks at a replica, and between two attempts to reach one.
const PACE: Duration = Duration::from_millis(50);
/// How long a replica has to say what it is.
const LOOK_LIMIT: Duration = Duration::from_millis(300);
/// Epochs whose content is remembered, of each pool.
const EPOCHS: usize = 10_000;

/// The watchers.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    /// Which replica acted in each term.
    acted: BTreeMap<u64, usize>,
    /// The newest term in which one was seen to act, and when that was over at the latest.
    newest: Option<(u64, Instant)>,
    /// By pool and epoch: what was pushed.
    limits: BTreeMap<String, BTreeMap<u64, Bytes>>,
    /// By replica and pool: the newest epoch.
    epochs: BTreeMap<(usize, String), u64>,
    n_limits: u64,
    violations: Vec<String>,
}

impl Watch {
    /// Watches every replica until told to end.
    #[must_use]
    pub fn start(replicas: &Replicas, running: Running) -> Self {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let mut tasks = JoinSet::new();
        for (index, control) in replicas.control.iter().enumerate() {
            tasks.spawn(look(index, control.http(), seen.clone(), running.clone()));
            tasks.spawn(follow(index, control.grpc(), seen.clone(), running.clone()));
        }
        Self { seen, tasks }
    }

    /// Ends, and says what was seen.
    pub async fn finish(mut self, findings: &mut Findings) {
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        findings.terms = seen.acted.len() as u64;
        findings.limits_seen = seen.n_limits;
        findings.violations.extend(seen.violations.iter().cloned());
    }
}

impl Seen {
    /// A replica was seen to act; it was asked at `asked_at`.
    fn acts(&mut self, index: usize, term: u64, asked_at: Instant) {
        let first = *self.acted.entry(term).or_insert(index);
        if first != index {
            self.violations.push(format!("replicas {first} and {index} have acted in the term {term}"));
        }
        match self.newest {
            Some((newest, seen_at)) if term < newest => {
                if asked_at > seen_at {
                    self.violations.push(format!("replica {index} acts in the term {term} after the term {newest} had begun"));
                }
            }
            Some((newest, _)) if term == newest => {}
            _ => self.newest = Some((term, Instant::now())),
        }
    }

    /// A replica has pushed limits.
    fn pushed(&mut self, index: usize, limits: &v1::Limits, content: Bytes) {
        self.n_limits += 1;
        let newest = self.epochs.entry((index, limits.pool.clone())).or_default();
        if limits.epoch < *newest {
            self.violations.push(format!("replica {index}, pool {}: epoch {} after {newest}", limits.pool, limits.epoch));
        }
        *newest = limits.epoch.max(*newest);
        let known = self.limits.entry(limits.pool.clone()).or_default();
        if known.insert(limits.epoch, content.clone()).is_some_and(|other| other != content) {
            self.violations.push(format!("replica {index}, pool {}: two limits with the epoch {}", limits.pool, limits.epoch));
        }
        if known.len() > EPOCHS {
            known.pop_first();
        }
    }
}

async fn look(index: usize, http: SocketAddr, seen: Arc<Mutex<Seen>>, running: Running) {
    let mut pace = tokio::time::interval(PACE);
    while !running.has_ended() {
        pace.tick().await;
        let asked_at = Instant::now();
        let Ok(Ok(page)) = tokio::time::timeout(LOOK_LIMIT, http_client::get(http, "/throttle/status")).await else { continue };
        let Ok(status) = page.json() else { continue };
        if let (Some(true), Some(term)) = (status["replica"]["is_acting"].as_bool(), status["replica"]["term"].as_u64()) {
            seen.lock().unwrap_or_else(PoisonError::into_inner).acts(index, term, asked_at);
        }
    }
}

async fn follow(index: usize, grpc: SocketAddr, seen: Arc<Mutex<Seen>>, running: Running) {
    while !running.has_ended() {
        // A replica that is killed ends the stream; it is asked again until it is back.
        let _ = stream(index, grpc, &seen).await;
        tokio::time::sleep(PACE).await;
    }
}

/// Takes the limits of one replica as a proxy that reports no load: all replicas push the same to it.
async fn stream(index: usize, grpc: SocketAddr, seen: &Mutex<Seen>) -> Result<()> {
    let channel = Endpoint::from_shared(format!("http://{grpc}"))?.connect_timeout(LOOK_LIMIT).connect().await?;
    let (requests, stream) = mpsc::channel(4);
    let node = envoy_core::Node { id: "watcher".to_owned(), ..envoy_core::Node::default() };
    let first = DeltaDiscoveryRequest {
        node: Some(node),
        type_url: LIMITS_TYPE_URL.to_owned(),
        resource_names_subscribe: vec!["*".to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(first).await?;
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let mut responses = client.delta_aggregated_resources(ReceiverStream::new(stream)).await?.into_inner();
    while let Some(response) = responses.message().await? {
        let DeltaDiscoveryResponse { nonce, resources, .. } = response;
        for resource in resources {
            let content = resource.resource.context("a resource without content")?.value;
            let limits = v1::Limits::decode(content.clone())?;
            seen.lock().unwrap_or_else(PoisonError::into_inner).pushed(index, &limits, content);
        }
        let type_url = LIMITS_TYPE_URL.to_owned();
        requests.send(DeltaDiscoveryRequest { type_url, response_nonce: nonce, ..DeltaDiscoveryRequest::default() }).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(epoch: u64) -> v1::Limits {
        v1::Limits { pool: "p".to_owned(), epoch, ..v1::Limits::default() }
    }

    #[test]
    fn two_leaders_are_seen_in_one_term_and_in_two() {
        let mut seen = Seen::default();
        let earlier = Instant::now();
        seen.acts(0, 1, earlier);
        seen.acts(1, 2, Instant::now());
        seen.acts(0, 1, earlier);
        assert!(seen.violations.is_empty(), "an answer to an earlier question: {:?}", seen.violations);
        seen.acts(0, 1, Instant::now() + PACE);
        seen.acts(2, 2, Instant::now());
        assert_eq!(seen.violations.len(), 2, "{:?}", seen.violations);
    }

    #[test]
    fn older_and_differing_limits_are_seen() {
        let mut seen = Seen::default();
        seen.pushed(0, &limits(5), Bytes::from_static(b"a"));
        seen.pushed(1, &limits(5), Bytes::from_static(b"a"));
        assert!(seen.violations.is_empty());
        seen.pushed(0, &limits(4), Bytes::from_static(b"c"));
        seen.pushed(1, &limits(5), Bytes::from_static(b"b"));
        assert_eq!(seen.violations.len(), 2, "{:?}", seen.violations);
    }
}
