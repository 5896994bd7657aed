//! Real Envoys on mutual TLS: one is the node that its certificate names, one claims that node with another certificate.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use headgate_test_support::authority::Authority;
use headgate_test_support::envoy::{ControlTls, EnvoyOptions, HttpFilter, Upstream as To, WasmFilter};
use headgate_test_support::{Bootstrap, EnvoyProcess, EnvoyVersion, Process, artefact, wait_until};
use headgate_tests::connection::Connection;
use headgate_tests::documents::{document, key_header, spec};
use headgate_tests::mesh::PATIENCE;
use headgate_tests::upstream::Upstream;
use serde_json::Value;

const ACCESS: &str = "\
roles:
- {to: {certificate: 'spiffe://headgate/person/ops'}, role: admin, policies: ['*']}
proxies:
- {of: {certificate: 'spiffe://headgate/proxy/{id}'}, nodes: ['{id}']}
";

/// A control plane that lets nobody in without a certificate, and the certificates of its callers.
struct Secured {
    folder: tempfile::TempDir,
    process: Process,
    grpc: u16,
}

impl Secured {
    async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let authority = Authority::new("fleet");
        fs::write(folder.path().join("ca.pem"), &authority.pem)?;
        fs::write(folder.path().join("access.yaml"), ACCESS)?;
        authority.server().write(folder.path(), "server");
        for (name, uri) in [("ops", "person/ops"), ("edge", "proxy/test-envoy"), ("thief", "proxy/thief")] {
            authority.client(&format!("spiffe://headgate/{uri}")).write(folder.path(), name);
        }
        let mut command = Command::new(artefact::program("headgate")?);
        command.current_dir(folder.path()).args(["serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--no-nvml"]);
        command.args(["--tls-cert", "server.pem", "--tls-key", "server.key", "--client-ca", "ca.pem", "--client-certificates", "required"]);
        command.args(["--access", "access.yaml", "--data-dir", "data", "--ports-file", "ports.json"]);
        let mut process = Process::spawn("headgate", &mut command, &folder.path().join("log"))?;
        let ports = wait_until("ports of the control plane", Duration::from_secs(20), || {
            let read = || serde_json::from_str::<Value>(&fs::read_to_string(folder.path().join("ports.json")).ok()?).ok();
            std::future::ready(process.still_runs().map(|()| read()))
        })
        .await?;
        let grpc = u16::try_from(ports["grpc"].as_u64().unwrap_or(0))?;
        Ok(Self { folder, process, grpc })
    }

    fn policy(&self, args: &[&str]) -> Result<Value> {
        let mut command = Command::new(artefact::program("headgate")?);
        command.current_dir(self.folder.path()).args(["policy", "--json", "--server", &format!("127.0.0.1:{}", self.grpc)]);
        let output = command.args(["--ca", "ca.pem", "--cert", "ops.pem", "--key", "ops.key"]).args(args).output()?;
        ensure!(output.status.success(), "policy {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An Envoy that says to be `test-envoy` and shows the certificate `name`.
    async fn envoy(&self, version: &EnvoyVersion, name: &str, upstream: &Upstream) -> Result<EnvoyProcess> {
        let filter = HttpFilter::Wasm(WasmFilter::headgate_controlled()?);
        let address = ([127, 0, 0, 1], self.grpc).into();
        let mut bootstrap = Bootstrap::new(filter, To::Endpoint(upstream.address())).with_control_plane(address);
        let pem = |suffix: &str| self.file(&format!("{name}.{suffix}"));
        bootstrap.control_tls = Some(ControlTls { authority: self.file("ca.pem"), certificate: pem("pem"), key: pem("key") });
        let mut options = EnvoyOptions::new(bootstrap);
        options.version = version.clone();
        EnvoyProcess::start(options).await
    }

    fn audit_has(&self, wanted: &str) -> bool {
        fs::read_to_string(self.file("data/audit.jsonl")).is_ok_and(|text| text.contains(wanted))
    }
}

pub(crate) async fn a_proxy_is_the_node_that_its_certificate_names_and_no_other(version: EnvoyVersion) -> Result<()> {
    let mut secured = Secured::start().await?;
    fs::write(secured.file("policy.yaml"), document("test", &spec()))?;
    secured.policy(&["apply", "-f", "policy.yaml"])?;
    let upstream = Upstream::start().await?;

    let thief = secured.envoy(&version, "thief", &upstream).await?;
    wait_until("refusal of the stolen node", PATIENCE, || {
        std::future::ready(Ok(secured.audit_has("spiffe://headgate/proxy/thief may not be the node `test-envoy`").then_some(())))
    })
    .await?;
    let reach = secured.policy(&["get", "test"])?;
    ensure!((reach["proxies_current"].as_u64(), reach["proxies_behind"].as_u64()) == (Some(0), Some(0)), "the thief is counted: {reach}");
    let response = Connection::open(thief.address()).await?.get("/v1/models", &[key_header("high")]).await?;
    ensure!(response.status == 200, "a refused proxy fails no request: {}", response.status);

    let _edge = secured.envoy(&version, "edge", &upstream).await?;
    wait_until("policy in force on the proxy with the right certificate", PATIENCE, || {
        std::future::ready(secured.policy(&["get", "test"]).map(|reach| (reach["proxies_current"] == 1).then_some(())))
    })
    .await?;
    secured.process.still_runs()
}
