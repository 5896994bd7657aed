//! Connections are replaced at an age, each at its own time, and nobody misses anything by it.

use std::time::{Duration, Instant};

use headgate::config::RawConfig;
use headgate::serve::Running;
use headgate_protos::discovery::DeltaDiscoveryRequest;
use headgate_protos::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use headgate_protos::envoy_core::Node;
use headgate_protos::v1::policy_service_client::PolicyServiceClient;
use headgate_protos::{POLICY_TYPE_URL, v1};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};

use running::{apply, connect};

#[allow(dead_code, unreachable_pub, reason = "shared with other tests")]
mod running;

const CLIENTS: usize = 96;
/// In the middle; the ages themselves are 1.5 to 2.5 s.
const AGE: Duration = Duration::from_secs(2);
/// Time that the server gives a client to hear that it is to go.
const NOTICE: Duration = Duration::from_millis(500);
/// What the machine may be late by.
const LATE: Duration = Duration::from_millis(1500);

const POLICY: &str = "\
apiVersion: headgate.dev/v1
kind: AdmissionPolicy
metadata: {name: demo}
spec:
  pool: demo
  classes:
    - {name: low, whenTripped: refuse}
";

async fn serve(directory: &tempfile::TempDir, connection_age_s: u64) -> Running {
    running::serve(RawConfig { connection_age_s: Some(connection_age_s), ..running::flags(directory.path()) }).await
}

/// Names of the policies that a new stream brings, and how that stream ends.
async fn follow(channel: Channel, id: String) -> (Vec<String>, Status) {
    let request = DeltaDiscoveryRequest {
        node: Some(Node { id, ..Node::default() }),
        type_url: POLICY_TYPE_URL.to_owned(),
        resource_names_subscribe: vec!["*".to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    let requests = futures::StreamExt::chain(futures::stream::iter([request]), futures::stream::pending());
    let responses = AggregatedDiscoveryServiceClient::new(channel).delta_aggregated_resources(requests).await;
    let mut responses = match responses {
        Ok(responses) => responses.into_inner(),
        Err(status) => return (Vec::new(), status),
    };
    let mut names = Vec::new();
    loop {
        match responses.message().await {
            Ok(Some(response)) => names.extend(response.resources.into_iter().map(|resource| resource.name)),
            Ok(None) => return (names, Status::ok("")),
            Err(status) => return (names, status),
        }
    }
}

#[tokio::test]
async fn a_fleet_that_connected_at_once_is_moved_one_by_one() {
    let directory = tempfile::tempdir().unwrap();
    let running = serve(&directory, AGE.as_secs()).await;
    apply(connect(&running).await, POLICY).await;
    let mut clients = JoinSet::new();
    let began = Instant::now();
    for client in 0..CLIENTS {
        let channel = connect(&running).await;
        clients.spawn(async move {
            let connected = Instant::now();
            let (names, status) = follow(channel.clone(), format!("proxy-{client}")).await;
            let lived = connected.elapsed();
            // The same client opens another stream at once, for which its connection is no longer good.
            let again = tokio::time::timeout(AGE.mul_f64(0.5), follow(channel, format!("proxy-{client}"))).await;
            (names, status, lived, again.is_err())
        });
    }
    let connecting = began.elapsed();
    let mut lives = Vec::new();
    for (names, status, lived, is_followed_on) in clients.join_all().await {
        assert_eq!((names, status.code()), (vec!["demo".to_owned()], Code::Unavailable), "{status:?}");
        assert!(lived > AGE.mul_f64(0.75) && lived < AGE.mul_f64(1.25) + NOTICE + LATE, "{lived:?}");
        assert!(is_followed_on, "a new stream lives on a new connection, not on the old one");
        lives.push(lived);
    }
    lives.sort();
    // Of 96 ages drawn from a second, the chance that the middle eight tenths lie within 0.6 s is below one in a million.
    let spread = lives[CLIENTS * 9 / 10] - lives[CLIENTS / 10];
    assert!(spread > Duration::from_millis(600), "{spread:?}, connected within {connecting:?}");
    running.stop().await;
}

#[tokio::test]
async fn what_was_sent_is_answered_while_their_connections_are_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let running = serve(&directory, 1).await;
    let channel = connect(&running).await;
    apply(channel.clone(), POLICY).await;
    let mut policies = PolicyServiceClient::new(channel);
    let began = Instant::now();
    let (mut calls, mut unsent) = (0, 0);
    // At least two replacements, and at most four.
    while began.elapsed() < Duration::from_secs(3) {
        match policies.list_policies(v1::ListPoliciesRequest::default()).await {
            Ok(answer) => assert_eq!(answer.into_inner().policies.len(), 1),
            // The client's own: it had not sent the call yet when it heard that it is to go.
            Err(status) if status.code() == Code::Cancelled && format!("{status:?}").contains("Canceled") => unsent += 1,
            Err(status) => panic!("a call that was sent must be answered: {status:?}"),
        }
        calls += 1;
    }
    assert!(calls > 10 && unsent <= 4, "{unsent} of {calls} were not sent");
    running.stop().await;
}

#[tokio::test]
async fn without_an_age_streams_live_on() {
    let directory = tempfile::tempdir().unwrap();
    let running = serve(&directory, 0).await;
    let stream = follow(connect(&running).await, "proxy".to_owned());
    assert!(tokio::time::timeout(Duration::from_secs(3), stream).await.is_err());
    running.stop().await;
}
