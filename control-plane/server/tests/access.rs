//! Who may do what: tokens, roles, the names of proxies, bounds, and what the audit log says of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use authority::{Authority, Identity};
use client::connect;
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_client::AccessLogServiceClient;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::Identifier;
use headgate::serve::Running;
use headgate_protos::discovery::DeltaDiscoveryRequest;
use headgate_protos::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use headgate_protos::envoy_core::Node;
use headgate_protos::v1::load_reporting_client::LoadReportingClient;
use headgate_protos::v1::policy_life_client::PolicyLifeClient;
use headgate_protos::v1::policy_service_client::PolicyServiceClient;
use headgate_protos::v1::replication_client::ReplicationClient;
use headgate_protos::{POLICY_TYPE_URL, v1};
use http_body_util::{BodyExt, Empty};
use issuer::TokenIssuer;
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

#[path = "../../../tests/support/src/authority.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with other tests")]
mod authority;
mod client;
#[path = "client/issuer.rs"]
mod issuer;
#[allow(dead_code, unreachable_pub, reason = "shared with other tests")]
mod running;

const ACCESS: &str = "\
tokens:
- {issuer: 'https://issuer.example.com', audiences: [headgate], jwks: keys.json, clockSkewSeconds: 0}
roles:
- {to: {subject: ops}, role: admin, policies: ['*']}
- {to: {claim: groups, value: 'team-{team}'}, role: operate, policies: ['{team}-*']}
- {to: {subject: guest}, role: view, policies: ['search-*']}
proxies:
- {of: {certificate: 'spiffe://headgate/proxy/{id}'}, nodes: ['{id}'], clusters: [edge]}
replicas:
- {of: {certificate: 'spiffe://headgate/replica/*'}}
";
const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    folder: tempfile::TempDir,
    authority: Authority,
    issuer: TokenIssuer,
    running: Running,
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims(subject: &str) -> Value {
    json!({"iss": "https://issuer.example.com", "aud": "headgate", "sub": subject, "exp": now_s() + 600})
}

/// `claims` with one of them changed.
fn with(subject: &str, claim: &str, value: Value) -> Value {
    let mut claims = claims(subject);
    claims[claim] = value;
    claims
}

fn document(name: &str) -> String {
    format!(
        "apiVersion: headgate.dev/v1\nkind: AdmissionPolicy\nmetadata: {{ name: {name} }}\nspec:\n  pool: {name}\n  \
         routes: [{{ pathPrefix: /{name} }}]\n  classes: [{{ name: low, whenTripped: refuse }}]\n"
    )
}

fn bearing<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

impl Bench {
    async fn new(access: &str) -> Self {
        let (folder, authority, issuer) = (tempfile::tempdir().unwrap(), Authority::new("authority"), TokenIssuer::new());
        let running = running::serve(issuer.flags(folder.path(), &authority, access)).await;
        Self { folder, authority, issuer, running }
    }

    async fn channel(&self, identity: Option<&Identity>) -> Channel {
        connect(self.running.grpc, &self.authority, identity).await.unwrap()
    }

    async fn policies(&self) -> PolicyServiceClient<Channel> {
        PolicyServiceClient::new(self.channel(None).await)
    }

    fn token(&self, subject: &str) -> String {
        self.issuer.sign(&claims(subject))
    }

    fn audit(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.path().join("data/audit.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    async fn get(&self, path: &str, token: Option<&str>) -> (u16, String) {
        let mut roots = rustls::RootCertStore::empty();
        use rustls::pki_types::pem::PemObject;
        roots.add(rustls::pki_types::CertificateDer::from_pem_slice(self.authority.pem.as_bytes()).unwrap()).unwrap();
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let connector = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
        let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build(connector);
        let mut request = http::Request::get(format!("https://{}{path}", self.running.http));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = client.request(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        (status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }
}

async fn list(client: &mut PolicyServiceClient<Channel>, token: &str) -> Result<Vec<String>, Status> {
    let listed = client.list_policies(bearing(token, v1::ListPoliciesRequest {})).await?.into_inner().policies;
    Ok(listed.into_iter().filter_map(|status| status.policy).map(|policy| policy.name).collect())
}

async fn apply(client: &mut PolicyServiceClient<Channel>, token: &str, name: &str) -> Result<(), Status> {
    let source = Some(v1::PolicySource { source: Some(v1::policy_source::Source::Document(document(name))) });
    client.apply_policy(bearing(token, v1::ApplyPolicyRequest { source, ..Default::default() })).await.map(drop)
}

#[tokio::test]
async fn only_a_good_token_gets_in_and_a_refusal_says_why() {
    let bench = Bench::new(ACCESS).await;
    let mut client = bench.policies().await;
    assert_eq!(list(&mut client, &bench.token("ops")).await.unwrap(), Vec::<String>::new());

    let sign = |claims: Value| bench.issuer.sign(&claims);
    let (good, now) = (bench.token("ops"), now_s());
    let unsigned = format!("{}.", good.rsplit_once('.').unwrap().0);
    for (token, reason) in [
        (sign(with("ops", "exp", json!(now - 5))), "the token has expired"),
        (sign(with("ops", "nbf", json!(now + 60))), "the token is not valid yet"),
        (sign(with("ops", "aud", json!("other"))), "the token is for another audience"),
        (sign(with("ops", "aud", json!(["a", "b"]))), "the token is for another audience"),
        (sign(with("ops", "iss", json!("https://evil"))), "the token is of another issuer"),
        (sign(with("ops", "exp", Value::Null)), "the token lacks one of the claims iss, aud, exp"),
        (TokenIssuer::new().sign(&claims("ops")), "the token's signature is wrong"),
        (unsigned, "the token's signature is wrong"),
        (bench.issuer.sign_as(&json!({"alg": "EdDSA", "kid": "other"}), &claims("ops")), "no issuer has the key that signed the token"),
        (bench.issuer.sign_as(&json!({"alg": "HS256", "kid": "k"}), &claims("ops")), "no issuer has the key that signed the token"),
        (bench.issuer.sign_as(&json!({"alg": "none"}), &claims("ops")), "the token is malformed"),
        (bench.issuer.sign_as(&json!({"alg": "EdDSA", "crit": ["x"]}), &claims("ops")), "the token is malformed"),
        ("a.b.c".to_owned(), "the token is malformed"),
        ("x".repeat(9000), "the token is longer than 8192 bytes"),
    ] {
        let refused = list(&mut client, &token).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, reason));
    }
    let nobody = client.list_policies(v1::ListPoliciesRequest {}).await.unwrap_err();
    assert_eq!((nobody.code(), nobody.message()), (Code::Unauthenticated, "this needs a client certificate or a bearer token"));
    let mut basic = Request::new(v1::ListPoliciesRequest {});
    basic.metadata_mut().insert("authorization", "Basic b3BzOm9wcw==".parse().unwrap());
    assert_eq!(client.list_policies(basic).await.unwrap_err().code(), Code::Unauthenticated);

    let audit = bench.audit();
    assert_eq!(audit.iter().filter(|line| line["action"] == "authentication" && line["outcome"] == "refused").count(), 16);
    assert!(audit.iter().any(|line| line["reason"] == "the token has expired" && line["from"].as_str().unwrap().starts_with("127.")));
    bench.running.stop().await;
}

#[tokio::test]
async fn a_role_reaches_as_far_as_its_policies() {
    let bench = Bench::new(ACCESS).await;
    let mut client = bench.policies().await;
    let (ops, guest) = (bench.token("ops"), bench.token("guest"));
    let team = bench.issuer.sign(&with("ci", "groups", json!(["all", "team-search"])));
    apply(&mut client, &team, "search-eu").await.unwrap();
    apply(&mut client, &team, "search-eu").await.unwrap();
    apply(&mut client, &ops, "ads-eu").await.unwrap();

    let refused = apply(&mut client, &team, "ads-eu").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.message(), "ci@https://issuer.example.com does not have the role operate for the policy `ads-eu`");
    assert_eq!(apply(&mut client, &guest, "search-eu").await.unwrap_err().code(), Code::PermissionDenied);
    let delete = |token: &str| bearing(token, v1::DeletePolicyRequest { name: "search-eu".to_owned(), ..Default::default() });
    assert_eq!(client.delete_policy(delete(&team)).await.unwrap_err().code(), Code::PermissionDenied, "operate deletes nothing");
    let get = |name: &str| bearing(&guest, v1::GetPolicyRequest { name: name.to_owned() });
    assert!(client.get_policy(get("search-eu")).await.is_ok());
    for name in ["ads-eu", "nothing"] {
        assert_eq!(client.get_policy(get(name)).await.unwrap_err().code(), Code::PermissionDenied, "existing or not");
    }
    assert_eq!(list(&mut client, &guest).await.unwrap(), ["search-eu"]);
    let mut events = client.watch_policies(bearing(&guest, v1::WatchPoliciesRequest {})).await.unwrap().into_inner();
    assert_eq!(events.message().await.unwrap().unwrap().policy.unwrap().name, "search-eu");
    assert_eq!(events.message().await.unwrap().unwrap().kind(), v1::policy_event::Kind::Synced, "ads-eu is not told of");
    client.delete_policy(delete(&ops)).await.unwrap();

    let audit = bench.audit();
    let told: Vec<[&str; 4]> =
        audit.iter().map(|line| ["action", "outcome", "who", "policy"].map(|key| line[key].as_str().unwrap_or(""))).collect();
    assert_eq!(told[0], ["policy.apply", "done", "ci@https://issuer.example.com", "search-eu"]);
    assert_eq!(told[1][1], "unchanged");
    assert_eq!(told[3][..2], ["access", "refused"]);
    assert_eq!(told.last().unwrap(), &["policy.delete", "done", "ops@https://issuer.example.com", "search-eu"]);
    bench.running.stop().await;
}

#[tokio::test]
async fn going_back_needs_rights_for_the_policy_and_for_the_one_that_it_is_tried_beside() {
    let bench = Bench::new(ACCESS).await;
    let mut client = bench.policies().await;
    let mut life = PolicyLifeClient::new(bench.channel(None).await);
    let (ops, guest) = (bench.token("ops"), bench.token("guest"));
    let team = bench.issuer.sign(&with("ci", "groups", json!(["team-search"])));
    apply(&mut client, &ops, "ads-eu").await.unwrap();
    let candidate =
        document("search-next").replace("pool: search-next", "pool: ads-eu") + "  enforcement: shadow\n  candidate: { of: ads-eu }\n";
    for document in [candidate, document("search-next")] {
        let source = Some(v1::PolicySource { source: Some(v1::policy_source::Source::Document(document)) });
        client.apply_policy(bearing(&ops, v1::ApplyPolicyRequest { source, ..Default::default() })).await.unwrap();
    }
    let request = || v1::RollbackPolicyRequest { name: "search-next".to_owned(), ..Default::default() };
    let refused = life.rollback_policy(bearing(&team, request())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.message(), "ci@https://issuer.example.com does not have the role operate for the policy `ads-eu`");
    assert_eq!(life.rollback_policy(bearing(&guest, request())).await.unwrap_err().code(), Code::PermissionDenied);
    life.rollback_policy(bearing(&ops, request())).await.unwrap();
    let revisions = |name: &str| v1::ListPolicyRevisionsRequest { name: name.to_owned() };
    let told = life.list_policy_revisions(bearing(&guest, revisions("search-next"))).await.unwrap().into_inner().revisions;
    assert_eq!((told.len(), told[0].author.as_str()), (3, "ops@https://issuer.example.com"));
    for name in ["ads-eu", "nothing"] {
        let refused = life.list_policy_revisions(bearing(&guest, revisions(name))).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{name}");
    }
    let candidate = v1::PromotePolicyRequest { name: "search-next".to_owned(), ..Default::default() };
    let refused = life.promote_policy(bearing(&team, candidate.clone())).await.unwrap_err();
    assert_eq!(refused.message(), "ci@https://issuer.example.com does not have the role operate for the policy `ads-eu`");
    let abort = v1::AbortPolicyRequest { name: "search-next".to_owned(), ..Default::default() };
    assert_eq!(life.abort_policy(bearing(&team, abort)).await.unwrap_err().code(), Code::PermissionDenied);
    life.promote_policy(bearing(&ops, candidate)).await.unwrap();
    let audit = bench.audit();
    let promoted = audit.iter().find(|line| line["action"] == "policy.promote").unwrap();
    assert_eq!((&promoted["policy"], &promoted["who"]), (&json!("ads-eu"), &json!("ops@https://issuer.example.com")));
    let done = audit.iter().find(|line| line["action"] == "policy.rollback").unwrap();
    assert_eq!((&done["outcome"], &done["policy"], &done["version"]), (&json!("done"), &json!("search-next"), &json!(told[0].version)));
    assert_eq!(done["previous_version"], json!(told[1].version));
    bench.running.stop().await;
}

#[tokio::test]
async fn a_stolen_node_id_is_refused_on_every_stream_and_recorded() {
    let bench = Bench::new(ACCESS).await;
    let identity = bench.authority.client("spiffe://headgate/proxy/a");
    let channel = bench.channel(Some(&identity)).await;
    let discover = async |id: &str, cluster: &str| {
        let request = DeltaDiscoveryRequest {
            node: Some(Node { id: id.to_owned(), cluster: cluster.to_owned(), ..Node::default() }),
            type_url: POLICY_TYPE_URL.to_owned(),
            resource_names_subscribe: vec!["demo".to_owned()],
            ..DeltaDiscoveryRequest::default()
        };
        let requests = tokio_stream::StreamExt::chain(tokio_stream::once(request), tokio_stream::pending());
        let answer = AggregatedDiscoveryServiceClient::new(channel.clone()).delta_aggregated_resources(requests).await;
        answer.unwrap().into_inner().message().await.map(drop).map_err(|status| status.code())
    };
    let report = async |id: &str| {
        let report = v1::LoadReport { node_id: id.to_owned(), sequence: 1, ..Default::default() };
        let reports = tokio_stream::StreamExt::chain(tokio_stream::once(report), tokio_stream::pending());
        let answer = LoadReportingClient::new(channel.clone()).stream_load_reports(reports).await;
        answer.unwrap().into_inner().message().await.map(drop).map_err(|status| status.code())
    };
    let log = async |id: &str| {
        let node = envoy_types::pb::envoy::config::core::v3::Node { id: id.to_owned(), ..Default::default() };
        let identifier = Some(Identifier { node: Some(node), log_name: "l".to_owned() });
        let first = StreamAccessLogsMessage { identifier, log_entries: None };
        let answer = AccessLogServiceClient::new(channel.clone()).stream_access_logs(tokio_stream::once(first)).await;
        answer.map(drop).map_err(|status| status.code())
    };
    assert_eq!(discover("a", "edge").await, Ok(()));
    assert_eq!(report("a").await, Ok(()));
    assert_eq!(log("a").await, Ok(()));
    for (id, cluster) in [("b", "edge"), ("a", "centre"), ("", "edge"), ("A", "edge")] {
        assert_eq!(discover(id, cluster).await, Err(Code::PermissionDenied), "{id} {cluster}");
    }
    assert_eq!(report("b").await, Err(Code::PermissionDenied));
    assert_eq!(log("b").await, Err(Code::PermissionDenied));
    let audit = bench.audit();
    let stolen = audit.iter().find(|line| line["reason"] == "spiffe://headgate/proxy/a may not be the node `b`").unwrap();
    assert_eq!((&stolen["who"], &stolen["proof"]), (&json!("spiffe://headgate/proxy/a"), &json!("certificate")));

    // A proxy is no person, and a person no proxy.
    let refused = PolicyServiceClient::new(channel.clone()).list_policies(v1::ListPoliciesRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let nobody = LoadReportingClient::new(bench.channel(None).await);
    let refused = { nobody }.stream_load_reports(bearing(&bench.token("ops"), tokio_stream::empty())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    bench.running.stop().await;
}

#[tokio::test]
async fn only_a_replica_speaks_for_the_proxies_of_others_and_nobody_follows_one_that_is_alone() {
    let bench = Bench::new(ACCESS).await;
    let follow = async |name: &str| {
        let channel = bench.channel(Some(&bench.authority.client(name))).await;
        let hello = v1::FollowerHello { replica: "b".to_owned(), term: 0 };
        let first = v1::FollowerMessage { message: Some(v1::follower_message::Message::Hello(hello)) };
        let called = ReplicationClient::new(channel.clone()).follow(tokio_stream::once(first)).await;
        let followed = match called {
            Ok(answer) => answer.into_inner().message().await.map(drop),
            Err(status) => Err(status),
        };
        let relayed = ReplicationClient::new(channel).relay_devices(tokio_stream::empty()).await.map(drop);
        (followed.unwrap_err().code(), relayed.unwrap_err().code())
    };
    assert_eq!(follow("spiffe://headgate/proxy/a").await, (Code::PermissionDenied, Code::PermissionDenied));
    assert_eq!(follow("spiffe://headgate/replica/b").await, (Code::FailedPrecondition, Code::FailedPrecondition));
    bench.running.stop().await;
}

#[tokio::test]
async fn the_pages_ask_who_reads_them() {
    let bench = Bench::new(ACCESS).await;
    let mut client = bench.policies().await;
    let (ops, guest) = (bench.token("ops"), bench.token("guest"));
    apply(&mut client, &ops, "search-eu").await.unwrap();
    apply(&mut client, &ops, "ads-eu").await.unwrap();
    for open in ["/healthz", "/readyz", "/"] {
        assert_eq!(bench.get(open, None).await.0, 200, "{open}");
    }
    for closed in ["/metrics", "/throttle/status", "/nothing"] {
        assert_eq!(bench.get(closed, None).await.0, 401, "{closed}");
        assert_eq!(bench.get(closed, Some("a.b.c")).await.0, 401, "{closed}");
        assert_eq!(bench.get(closed, Some(&bench.token("stranger"))).await.0, 403, "{closed}");
    }
    assert_eq!(bench.get("/metrics", Some(&ops)).await.0, 200);
    assert_eq!(bench.get("/metrics", Some(&guest)).await, (403, "needs the role view for all policies (`*`)\n".to_owned()));
    let began = Instant::now();
    let pools = loop {
        let (status, text) = bench.get("/throttle/status", Some(&ops)).await;
        assert_eq!(status, 200);
        let seen: Value = serde_json::from_str(&text).unwrap();
        if seen["pools"].as_array().is_some_and(|pools| pools.len() == 2) {
            break serde_json::from_str::<Value>(&bench.get("/throttle/status", Some(&guest)).await.1).unwrap()["pools"].clone();
        }
        assert!(began.elapsed() < PATIENCE, "{text}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(pools.as_array().unwrap().len(), 1);
    assert_eq!(pools[0]["policy"], "search-eu");
    bench.running.stop().await;
}

/// Decodes as nothing that a service expects: every service's field 1 is a text or a message.
#[derive(Clone, PartialEq, prost::Message)]
struct Wrong {
    #[prost(uint64, tag = "1")]
    number: u64,
}

#[tokio::test]
async fn what_is_too_long_too_much_or_malformed_is_refused_with_its_status() {
    let bench = Bench::new(&format!("{ACCESS}limits: {{requestsPerSecond: 1, burst: 30, streams: 8}}\n")).await;
    let channel = bench.channel(Some(&bench.authority.client("spiffe://headgate/proxy/a"))).await;
    let long = v1::LoadReport { node_id: "a".to_owned(), filter_version: "x".repeat(5 << 20), ..Default::default() };
    let answer = LoadReportingClient::new(channel.clone()).stream_load_reports(tokio_stream::once(long)).await;
    let refused = match answer {
        Ok(answers) => answers.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");

    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/headgate.v1.LoadReporting/StreamLoadReports");
    let codec = tonic_prost::ProstCodec::<Wrong, v1::LoadReportResponse>::default();
    let answers = grpc.streaming(Request::new(tokio_stream::once(Wrong { number: 7 })), path, codec).await.unwrap();
    assert_eq!(answers.into_inner().message().await.unwrap_err().code(), Code::Internal, "malformed");
    for reason in ["bytes is longer than", "failed to decode"] {
        let has_it = |line: &Value| line["action"] == "message" && line["reason"].as_str().is_some_and(|text| text.contains(reason));
        assert!(bench.audit().iter().any(has_it), "the audit log has no message that {reason}");
    }

    let mut client = bench.policies().await;
    let source = Some(v1::PolicySource { source: Some(v1::policy_source::Source::Document("x".repeat(2 << 20))) });
    let request = v1::ApplyPolicyRequest { source, ..Default::default() };
    let refused = client.apply_policy(bearing(&bench.token("ops"), request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");

    let token = bench.token("ops");
    let mut refused = 0;
    for _ in 0..40 {
        match list(&mut client, &token).await {
            Ok(_) => {}
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                refused += 1;
            }
        }
    }
    assert!((5..=12).contains(&refused), "29 of 40 calls had room: {refused} were refused");
    assert!(bench.audit().iter().any(|line| line["action"] == "limit" && line["reason"] == "more than 1 calls a second of one peer"));
    bench.running.stop().await;
}

#[tokio::test]
async fn a_stream_ends_with_its_token_and_new_rules_hold_for_new_calls() {
    let bench = Bench::new(ACCESS).await;
    let mut client = bench.policies().await;
    let short = bench.issuer.sign(&with("ops", "exp", json!(now_s() + 2)));
    let mut events = client.watch_policies(bearing(&short, v1::WatchPoliciesRequest {})).await.unwrap().into_inner();
    assert!(events.message().await.unwrap().is_some());

    fs::write(bench.folder.path().join("access.yaml"), "broken: [").unwrap();
    let ended = events.message().await.unwrap_err();
    assert_eq!((ended.code(), ended.message()), (Code::Unauthenticated, "the token has expired; call again with a new one"));
    let token = bench.token("ops");
    assert!(list(&mut client, &token).await.is_ok(), "a broken file changes nothing");
    fs::write(bench.folder.path().join("access.yaml"), ACCESS.replace("subject: ops", "subject: somebody-else")).unwrap();
    let began = Instant::now();
    while list(&mut client, &token).await.is_ok() {
        assert!(began.elapsed() < PATIENCE, "the new rules are not in force after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(list(&mut client, &token).await.unwrap_err().code(), Code::PermissionDenied);
    bench.running.stop().await;
}

#[tokio::test]
async fn no_log_at_any_level_has_a_token_or_a_key() {
    let (folder, authority, issuer) = (tempfile::tempdir().unwrap(), Authority::new("authority"), TokenIssuer::new());
    let raw = issuer.flags(folder.path(), &authority, ACCESS);
    let file = |path: &Option<std::path::PathBuf>| path.as_ref().unwrap().to_str().unwrap().to_owned();
    let mut child = Command::new(env!("CARGO_BIN_EXE_headgate"))
        .args(["serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--no-nvml", "--log-format", "json"])
        .args(["--data-dir", &file(&raw.data_dir), "--tls-cert", &file(&raw.tls_cert), "--tls-key", &file(&raw.tls_key)])
        .args(["--client-ca", &file(&raw.client_ca), "--access", &file(&raw.access)])
        .env("HEADGATE_LOG", "trace")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut text = String::new();
    let address = loop {
        let line = log.next().unwrap().unwrap();
        text.push_str(&line);
        if line.contains("the control plane is up") {
            let line: Value = serde_json::from_str(&line).unwrap();
            break line["fields"]["grpc"].as_str().unwrap().parse().unwrap();
        }
    };
    let rest = std::thread::spawn(move || log.map_while(Result::ok).collect::<Vec<_>>().join("\n"));
    let mut client = PolicyServiceClient::new(connect(address, &authority, None).await.unwrap());
    let (good, bad) = (issuer.sign(&claims("ops")), issuer.sign(&with("ops", "exp", json!(1))));
    assert!(apply(&mut client, &good, "demo").await.is_ok());
    assert!(list(&mut client, &bad).await.is_err());
    child.kill().unwrap();
    child.wait().unwrap();
    text.push_str(&rest.join().unwrap());
    text.push_str(&fs::read_to_string(folder.path().join("data/audit.jsonl")).unwrap());
    assert!(text.contains("the token has expired") && text.contains("\"level\":\"TRACE\""), "the log is there");
    let key = fs::read_to_string(folder.path().join("server.key")).unwrap();
    let secrets = [&good, &bad].map(|token| token.split('.').next_back().unwrap().to_owned());
    for secret in secrets.iter().map(String::as_str).chain(key.lines().filter(|line| !line.starts_with('-'))) {
        assert!(!text.contains(secret), "{secret} is in the log");
    }
}
