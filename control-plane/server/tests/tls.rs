//! TLS of the listeners, spoken to as clients speak to them.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use authority::{Authority, Identity};
use client::connect;
use headgate::config::{Config, RawConfig};
use headgate::serve::{Running, ServeError, start};
use headgate_protos::v1;
use headgate_protos::v1::policy_service_client::PolicyServiceClient;
use tonic::transport::Channel;

#[path = "../../../tests/support/src/authority.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with other tests")]
mod authority;
mod client;
#[allow(dead_code, unreachable_pub, reason = "shared with other tests")]
mod running;

const POLICY: &str = "\
apiVersion: headgate.dev/v1
kind: AdmissionPolicy
metadata: {name: demo}
spec:
  pool: demo
  classes:
    - {name: high, whenTripped: reserved_lane}
    - {name: low, whenTripped: refuse}
";
/// A change of files is seen within a second; a busy machine takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    folder: tempfile::TempDir,
    authority: Authority,
    raw: RawConfig,
}

impl Bench {
    fn new(client_certificates: &str) -> Self {
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new("first"));
        let (certificate, key) = authority.server().write(folder.path(), "server");
        let ca = folder.path().join("ca.pem");
        fs::write(&ca, &authority.pem).unwrap();
        let raw = RawConfig {
            tls_cert: Some(certificate),
            tls_key: Some(key),
            client_ca: Some(ca),
            client_certificates: Some(client_certificates.to_owned()),
            ..running::flags(&folder.path().join("data"))
        };
        Self { folder, authority, raw }
    }

    async fn serve(&self) -> Running {
        running::serve(self.raw.clone()).await
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

async fn list(channel: Channel) -> Result<usize, tonic::Status> {
    Ok(PolicyServiceClient::new(channel).list_policies(v1::ListPoliciesRequest {}).await?.into_inner().policies.len())
}

/// Whether a call gets through. With TLS 1.3 a refused client certificate shows only after the handshake.
async fn reaches(address: SocketAddr, authority: &Authority, identity: Option<&Identity>) -> bool {
    match connect(address, authority, identity).await {
        Ok(channel) => list(channel).await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn only_certificates_of_the_client_authority_get_in() {
    let bench = Bench::new("required");
    let running = bench.serve().await;
    let stranger = Authority::new("stranger");
    let name = "spiffe://headgate/proxy/a";
    assert!(reaches(running.grpc, &bench.authority, Some(&bench.authority.client(name))).await);
    assert!(!reaches(running.grpc, &bench.authority, None).await, "none");
    assert!(!reaches(running.grpc, &bench.authority, Some(&stranger.client(name))).await, "of another authority");
    assert!(!reaches(running.grpc, &bench.authority, Some(&bench.authority.expired_client(name))).await, "expired");
    assert!(!reaches(running.grpc, &bench.authority, Some(&bench.authority.server())).await, "a server's");
    let plain = Channel::from_shared(format!("http://{}", running.grpc)).unwrap().connect_lazy();
    assert!(list(plain).await.is_err(), "plain text");
    running.stop().await;
}

#[tokio::test]
async fn a_certificate_that_was_revoked_gets_in_no_more_once_the_list_says_so() {
    let mut bench = Bench::new("required");
    let list = bench.file("crl.pem");
    fs::write(&list, bench.authority.revocation_list(&[7])).unwrap();
    bench.raw.client_crl = Some(list.clone());
    let running = bench.serve().await;
    let name = "spiffe://headgate/proxy/a";
    let [revoked, sound] = [7, 8].map(|serial| bench.authority.numbered_client(name, serial));
    assert!(!reaches(running.grpc, &bench.authority, Some(&revoked)).await);
    assert!(reaches(running.grpc, &bench.authority, Some(&sound)).await);

    fs::write(&list, bench.authority.revocation_list(&[8])).unwrap();
    let began = Instant::now();
    while reaches(running.grpc, &bench.authority, Some(&sound)).await {
        assert!(began.elapsed() < PATIENCE, "the new list is not in use after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(reaches(running.grpc, &bench.authority, Some(&revoked)).await, "the list is the whole list");
    running.stop().await;
}

#[tokio::test]
async fn a_file_without_revocation_lists_stops_the_start() {
    let mut bench = Bench::new("required");
    bench.raw.client_crl = Some(bench.file("ca.pem"));
    let error = start(Config::try_from(bench.raw.clone()).unwrap()).await.err().unwrap();
    assert!(error.to_string().starts_with("--client-crl: ") && error.to_string().contains("ca.pem"), "{error}");
}

#[tokio::test]
async fn a_client_refuses_a_server_that_it_does_not_trust() {
    let bench = Bench::new("optional");
    let running = bench.serve().await;
    assert!(reaches(running.grpc, &bench.authority, None).await);
    assert!(!reaches(running.grpc, &Authority::new("other"), None).await);
    running.stop().await;
}

#[tokio::test]
async fn a_new_certificate_serves_new_connections_and_ends_no_stream() {
    let bench = Bench::new("optional");
    let running = bench.serve().await;
    let channel = connect(running.grpc, &bench.authority, None).await.unwrap();
    let watch = PolicyServiceClient::new(channel.clone()).watch_policies(v1::WatchPoliciesRequest {}).await.unwrap();
    let mut events = watch.into_inner();
    events.message().await.unwrap();

    // Half of the new pair is no pair: the old one stays in use.
    let next = Authority::new("next");
    let identity = next.server();
    fs::write(bench.file("server.pem"), &identity.certificate).unwrap();
    assert!(reaches(running.grpc, &bench.authority, None).await);
    identity.write(bench.folder.path(), "server");
    let began = Instant::now();
    while !reaches(running.grpc, &next, None).await {
        assert!(began.elapsed() < PATIENCE, "the new certificate is not in use after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!reaches(running.grpc, &bench.authority, None).await, "the old authority no longer fits");

    running::apply(channel, POLICY).await;
    let event = events.message().await.unwrap().unwrap();
    assert_eq!(event.policy.unwrap().name, "demo", "the stream from before goes on");
    running.stop().await;
}

#[tokio::test]
async fn files_that_cannot_be_used_stop_the_start_and_are_all_named() {
    let bench = Bench::new("optional");
    fs::write(bench.file("server.key"), "nothing").unwrap();
    fs::remove_file(bench.file("server.pem")).unwrap();
    let error = start(Config::try_from(bench.raw.clone()).unwrap()).await.err().unwrap();
    assert!(matches!(error, ServeError::Files(_)));
    assert!(error.to_string().starts_with("--tls-cert: ") && error.to_string().contains("server.pem"), "{error}");
    bench.authority.server().write(bench.folder.path(), "server");
    fs::write(bench.file("server.key"), bench.authority.server().key).unwrap();
    let error = start(Config::try_from(bench.raw.clone()).unwrap()).await.err().unwrap();
    assert!(error.to_string().starts_with("--tls-cert, --tls-key: "), "a key of another certificate: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_speaks_tls_to_both_listeners() {
    let bench = Bench::new("required");
    let running = bench.serve().await;
    let (certificate, key) = bench.authority.client("ops.example.com").write(bench.folder.path(), "ops");
    let run = move |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headgate"));
        for name in ["HEADGATE_SERVER", "HEADGATE_STATUS_URL", "HEADGATE_CA", "HEADGATE_CERT", "HEADGATE_KEY", "HEADGATE_TOKEN_FILE"] {
            command.env_remove(name);
        }
        command.args(args).output().unwrap()
    };
    let (grpc, http) = (running.grpc.to_string(), running.http.to_string());
    let files = [bench.file("ca.pem"), certificate, key].map(|path| path.to_str().unwrap().to_owned());
    tokio::task::spawn_blocking(move || {
        let [ca, cert, key] = &files;
        let output = run(&["policy", "list", "--server", &grpc, "--ca", ca, "--cert", cert, "--key", key]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        // Probes and people with a token have no certificate, so HTTP asks for none.
        let output = run(&["status", "--url", &http, "--ca", ca]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let output = run(&["policy", "list", "--server", &grpc, "--ca", ca]);
        assert_eq!(output.status.code(), Some(4), "without a certificate: {}", String::from_utf8_lossy(&output.stderr));
        let output = run(&["status", "--url", &format!("https://{http}")]);
        assert_eq!(output.status.code(), Some(2), "no authority to trust");
        assert!(String::from_utf8_lossy(&output.stderr).contains("--ca: is needed for https"));
    })
    .await
    .unwrap();
    running.stop().await;
}
