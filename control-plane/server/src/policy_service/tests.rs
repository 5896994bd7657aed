#![allow(clippy::unwrap_used)]

use std::time::Instant;

use headgate_protos::v1::policy_event::Kind;
use headgate_protos::v1::policy_service_client::PolicyServiceClient;
use headgate_protos::v1::policy_service_server::PolicyServiceServer;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint, Server, Uri};

use super::*;

/// A service on a connection in memory.
struct Bench {
    client: PolicyServiceClient<Channel>,
    fleet: Fleet,
    shutdown: CancellationToken,
    _directory: TempDir,
}

async fn bench() -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let (fleet, shutdown) = (Fleet::new(), CancellationToken::new());
    let store = Store::open(crate::records::Records::open(directory.path()).unwrap(), fleet.clone()).unwrap();
    let service = PolicyServiceServer::new(PolicyServer::new(store, fleet.clone(), shutdown.clone()));
    let (near, far) = tokio::io::duplex(1 << 16);
    let connections = tokio_stream::once(Ok::<_, std::io::Error>(far)).chain(tokio_stream::pending());
    tokio::spawn(Server::builder().layer(crate::identity::Guard::open()).add_service(service).serve_with_incoming(connections));
    let mut near = Some(near);
    let connector = tower::service_fn(move |_: Uri| {
        let near = near.take().map(TokioIo::new).ok_or_else(|| std::io::Error::other("one connection only"));
        async move { near }
    });
    let channel = Endpoint::from_static("http://headgate.local").connect_with_connector(connector).await.unwrap();
    Bench { client: PolicyServiceClient::new(channel), fleet, shutdown, _directory: directory }
}

fn document(name: &str, pool: &str, rest: &str) -> String {
    format!(
        "apiVersion: headgate.dev/v1\nkind: AdmissionPolicy\nmetadata: {{ name: {name} }}\nspec:\n  pool: {pool}\n  \
         routes: [{{ pathPrefix: /{name} }}]\n  classes: [{{ name: low, whenTripped: refuse }}]\n{rest}"
    )
}

fn source(text: &str) -> Option<PolicySource> {
    Some(PolicySource { source: Some(Source::Document(text.to_owned())) })
}

impl Bench {
    async fn apply(&mut self, text: &str, expected_version: &str) -> Result<v1::ApplyPolicyResponse, Status> {
        let request = v1::ApplyPolicyRequest { source: source(text), expected_version: expected_version.to_owned() };
        Ok(self.client.apply_policy(request).await?.into_inner())
    }

    async fn names(&mut self) -> Vec<String> {
        let listed = self.client.list_policies(v1::ListPoliciesRequest {}).await.unwrap().into_inner();
        listed.policies.into_iter().filter_map(|status| status.policy).map(|policy| policy.name).collect()
    }
}

fn violations(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let details = status.get_details_bad_request().unwrap();
    details.field_violations.into_iter().map(|violation| format!("{}: {}", violation.field, violation.description)).collect()
}

#[tokio::test]
async fn a_policy_is_applied_read_and_deleted() {
    let mut bench = bench().await;
    let applied = bench.apply(&document("demo", "llm", ""), "none").await.unwrap();
    let policy = applied.policy.unwrap();
    assert!(applied.changed && policy.version.len() == 16);
    let read = bench.client.get_policy(v1::GetPolicyRequest { name: "demo".into() }).await.unwrap().into_inner();
    assert_eq!(read.policy.as_ref(), Some(&policy));
    assert!(read.changed_at_unix_ms > 0);
    bench.client.delete_policy(v1::DeletePolicyRequest { name: "demo".into(), expected_version: policy.version }).await.unwrap();
    assert!(bench.names().await.is_empty());
    let status = bench.client.get_policy(v1::GetPolicyRequest { name: "demo".into() }).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "policy `demo` does not exist"));
}

#[tokio::test]
async fn a_policy_can_be_given_as_a_message() {
    let mut bench = bench().await;
    let policy = CheckedPolicy::from_document(&document("demo", "llm", "")).unwrap().wire().clone();
    let source = Some(PolicySource { source: Some(Source::Policy(v1::Policy { version: "claimed".into(), ..policy.clone() })) });
    let applied = bench.client.apply_policy(v1::ApplyPolicyRequest { source, expected_version: String::new() }).await.unwrap().into_inner();
    assert_eq!(applied.policy, Some(policy));
}

#[tokio::test]
async fn a_broken_policy_is_refused_with_every_error_and_changes_nothing() {
    let mut bench = bench().await;
    bench.apply(&document("demo", "llm", ""), "").await.unwrap();
    let broken = "  levels: { gpuMemory: { tripPercent: 140, sampleMs: fast }, qps: { sigma: 2 } }\n  concurrency: { maxInFlight: 0 }\n";
    for status in [
        bench.apply(&document("demo", "'9 9'", broken), "").await.unwrap_err(),
        bench.client.validate_policy(v1::ValidatePolicyRequest { source: source(&document("demo", "'9 9'", broken)) }).await.unwrap_err(),
    ] {
        let found = violations(&status);
        let fields: std::collections::BTreeSet<&str> =
            found.iter().filter_map(|line| line.split_once(": ")).map(|(field, _)| field).collect();
        assert_eq!(
            fields.into_iter().collect::<Vec<_>>(),
            ["concurrency.maxInFlight", "levels.gpuMemory.sampleMs", "levels.gpuMemory.tripPercent", "levels.qps.sigma", "pool"]
        );
        assert_eq!(status.message(), found.join("\n"));
    }
    let read = bench.client.get_policy(v1::GetPolicyRequest { name: "demo".into() }).await.unwrap().into_inner();
    assert_eq!(read.policy.unwrap().spec.unwrap().pool, "llm");
}

#[tokio::test]
async fn more_errors_than_a_status_holds_are_counted() {
    let mut bench = bench().await;
    let unknown: String = (0..60).map(|n| format!("  {n}{}: 1\n", "é{".repeat(200))).collect();
    let status = bench.apply(&document("demo", "llm", &unknown), "").await.unwrap_err();
    let found = violations(&status);
    assert!(!found.is_empty() && found.len() < 60, "{}", found.len());
    let last = status.message().lines().last().unwrap();
    assert_eq!(last, format!("… and {} more errors; correct these first", 60 - found.len()));
}

#[tokio::test]
async fn a_request_without_its_required_fields_is_refused() {
    let mut bench = bench().await;
    let status = bench.client.apply_policy(v1::ApplyPolicyRequest::default()).await.unwrap_err();
    assert_eq!(violations(&status), ["source: is required"]);
    let status = bench.client.get_policy(v1::GetPolicyRequest::default()).await.unwrap_err();
    assert_eq!(violations(&status), ["name: is required"]);
    let status = bench.client.delete_policy(v1::DeletePolicyRequest::default()).await.unwrap_err();
    assert_eq!(violations(&status), ["name: is required"]);
}

#[tokio::test]
async fn another_version_than_expected_aborts() {
    let mut bench = bench().await;
    let first = bench.apply(&document("demo", "llm", ""), "none").await.unwrap().policy.unwrap();
    let status = bench.apply(&document("demo", "llm2", ""), "none").await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    assert_eq!(status.message(), format!("policy `demo`: expected no policy, found version {}", first.version));
    let delete = v1::DeletePolicyRequest { name: "demo".into(), expected_version: "other".into() };
    assert_eq!(bench.client.delete_policy(delete).await.unwrap_err().code(), Code::Aborted);
    bench.apply(&document("demo", "llm2", ""), &first.version).await.unwrap();
}

#[tokio::test]
async fn a_conflict_with_another_policy_names_field_and_policy() {
    let mut bench = bench().await;
    bench.apply(&document("one", "llm", ""), "").await.unwrap();
    let expected = ["pool: \"llm\" is already protected by policy `one`"];
    assert_eq!(violations(&bench.apply(&document("two", "llm", ""), "").await.unwrap_err()), expected);
    let request = v1::ValidatePolicyRequest { source: source(&document("two", "llm", "")) };
    assert_eq!(violations(&bench.client.validate_policy(request).await.unwrap_err()), expected);
    assert_eq!(bench.names().await, ["one"]);
}

#[tokio::test]
async fn the_state_in_the_fleet_is_told() {
    let mut bench = bench().await;
    let policy = bench.apply(&document("demo", "llm", ""), "").await.unwrap().policy.unwrap();
    let applied = |version: &str| vec![v1::AppliedPolicy { name: "demo".into(), version: version.into(), limits_epoch: 0 }];
    for (node_id, version) in [("a", policy.version.as_str()), ("b", "older")] {
        let report = v1::LoadReport { node_id: node_id.into(), policies: applied(version), ..v1::LoadReport::default() };
        bench.fleet.proxies().record_report(Instant::now(), &report);
    }
    let rejection = v1::RejectedPolicy { name: "demo".into(), version: policy.version.clone(), error: "pool: no".into() };
    bench.fleet.proxies().record_nack(Instant::now(), "b", rejection);
    let status = bench.client.get_policy(v1::GetPolicyRequest { name: "demo".into() }).await.unwrap().into_inner();
    assert_eq!((status.proxies_current, status.proxies_behind), (1, 1));
    assert_eq!(status.rejections, [v1::PolicyRejection { node_id: "b".into(), version: policy.version, error: "pool: no".into() }]);
}

#[tokio::test]
async fn a_watch_tells_what_is_there_and_every_change_and_ends_with_the_server() {
    let mut bench = bench().await;
    bench.apply(&document("demo", "llm", ""), "").await.unwrap();
    let mut events = bench.client.watch_policies(v1::WatchPoliciesRequest {}).await.unwrap().into_inner();
    let told = |event: v1::PolicyEvent| (event.kind(), event.policy.map(|policy| policy.name).unwrap_or_default());
    assert_eq!(told(events.message().await.unwrap().unwrap()), (Kind::Existing, "demo".into()));
    assert_eq!(told(events.message().await.unwrap().unwrap()), (Kind::Synced, String::new()));
    bench.apply(&document("other", "llm2", ""), "").await.unwrap();
    bench.client.delete_policy(v1::DeletePolicyRequest { name: "demo".into(), expected_version: String::new() }).await.unwrap();
    assert_eq!(told(events.message().await.unwrap().unwrap()), (Kind::Applied, "other".into()));
    assert_eq!(told(events.message().await.unwrap().unwrap()), (Kind::Deleted, "demo".into()));
    bench.shutdown.cancel();
    assert_eq!(events.message().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_watch_that_falls_behind_is_told_to_begin_anew() {
    let (sender, receiver) = tokio::sync::broadcast::channel(2);
    for n in 0..5 {
        sender.send(crate::store::PolicyChange::Deleted(n.to_string())).unwrap();
    }
    let events: Vec<_> = watch::events(Vec::new(), receiver, CancellationToken::new()).collect().await;
    let [Ok(synced), Err(status)] = events.as_slice() else { unreachable!("{events:?}") };
    assert_eq!((synced.kind(), status.code()), (Kind::Synced, Code::Aborted));
}
