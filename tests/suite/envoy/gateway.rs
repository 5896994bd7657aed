//! Gateway mode on a real Envoy that was started with nothing but a bootstrap.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use headgate_test_support::artefact::{Module, workspace_root};
use headgate_test_support::authority::Authority;
use headgate_test_support::control_plane::ControlPlaneOptions;
use headgate_test_support::http_client::{self, Response};
use headgate_test_support::inference_sim::InferenceSimProcess;
use headgate_test_support::ports::free_address;
use headgate_test_support::{ControlPlaneProcess, EnvoyProcess, EnvoyVersion, NvmlDevice, NvmlState, wait_until};
use headgate_tests::mesh::PATIENCE;
use headgate_tests::upstream::Upstream;
use http::Request;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::{Value, json};

const EVERY_OPTION: &str = include_str!("gateway/every_option.yaml");
const SECRETS: [&str; 2] = ["token", "hmac"];

/// Every option, on and off, in one bootstrap; and the examples that users copy.
pub(crate) async fn every_option_renders_to_what_envoy_takes(version: EnvoyVersion) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let authority = Authority::new("authority");
    fs::write(folder.path().join("ca.pem"), &authority.pem)?;
    authority.server().write(folder.path(), "server");
    fs::write(folder.path().join("jwks.json"), Key::read()?.jwks().to_string())?;
    for name in SECRETS {
        let secret = json!({"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "name": name,
            "generic_secret": {"secret": {"inline_string": "secret"}}});
        fs::write(folder.path().join(format!("{name}.yaml")), json!({"resources": [secret]}).to_string())?;
    }
    let control = ControlPlaneProcess::start(ControlPlaneOptions::new(None)?).await?;
    let mut tables = vec![("every_option".to_owned(), EVERY_OPTION.to_owned())];
    for entry in fs::read_dir(workspace_root().join("examples/gateway"))?.flatten() {
        tables.push((entry.file_name().to_string_lossy().into_owned(), fs::read_to_string(entry.path())?));
    }
    ensure!(tables.len() >= 3, "the examples are there: {tables:?}");
    for (name, documents) in tables {
        let documents = documents
            .replace("FOLDER", &folder.path().to_string_lossy())
            .replace("PUBLIC_KEY", &Key::read()?.public_key)
            .replace("JWKS", &Key::read()?.jwks().to_string())
            .replace("/etc/envoy/jwks.json", &folder.path().join("jwks.json").to_string_lossy())
            .replace("/etc/ssl/certs/ca-certificates.crt", &folder.path().join("ca.pem").to_string_lossy())
            .replace("/etc/envoy/tls/proxy", &folder.path().join("server").to_string_lossy());
        let (file, bootstrap) = (folder.path().join("documents.yaml"), folder.path().join("envoy.pb"));
        fs::write(&file, documents)?;
        let (file, out, wasm) = (file.to_string_lossy(), bootstrap.to_string_lossy(), Module::Headgate.path()?);
        let wasm = wasm.to_string_lossy();
        let rendered = control.command(&["gateway", "render", "-f", &file, "--out", &out, "--filter-wasm", &wasm])?;
        ensure!(rendered.status.success(), "{name}: {}", String::from_utf8_lossy(&rendered.stderr));
        version.validate(&bootstrap).with_context(|| name)?;
    }
    Ok(())
}

/// A control plane with gateway resources, and an Envoy that knows nothing but it.
pub(crate) struct Gateway {
    pub(crate) control: ControlPlaneProcess,
    pub(crate) envoy: EnvoyProcess,
    folder: tempfile::TempDir,
}

impl Gateway {
    pub(crate) async fn start(version: EnvoyVersion, nvml: Option<&NvmlState>, documents: &[Value]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let control = ControlPlaneProcess::start(ControlPlaneOptions::new(nvml.map(NvmlState::path))?).await?;
        apply(&control, &folder, documents)?;
        let bootstrap = fs::read_to_string(workspace_root().join("envoy/gateway.yaml"))?;
        let bootstrap = bootstrap
            .replace("port_value: 18000", &format!("port_value: {}", control.grpc().port()))
            .replace("port_value: 9901", "port_value: 0");
        let envoy = EnvoyProcess::start_yaml(version, 2, &bootstrap).await?;
        Ok(Self { control, envoy, folder })
    }

    pub(crate) fn apply(&self, documents: &[Value]) -> Result<()> {
        apply(&self.control, &self.folder, documents)
    }

    /// Who of several engines answers a request with these headers.
    async fn model(&self, path: &str, headers: &[(&str, &str)]) -> Result<String> {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = http_client::send(self.envoy.address(), request.body(Bytes::new())?).await?;
        ensure!(response.status.is_success(), "{}: {}", response.status, response.text());
        Ok(response.json()?["data"][0]["id"].as_str().unwrap_or_default().to_owned())
    }

    pub(crate) async fn wait_for_endpoints(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let wanted = &wanted;
        wait_until(what, PATIENCE, || async {
            let page = self.envoy.admin_get("/clusters").await?.text();
            Ok(wanted(&page).then_some(()))
        })
        .await
    }

    /// A control plane that is killed and started again takes nothing away, no request fails, and what it is told then comes through.
    async fn survives_a_restart_of_its_control_plane(&mut self, then: Value) -> Result<()> {
        self.control.kill_9()?;
        wait_until("notice of the loss", PATIENCE, || async {
            self.model("/v1/models", &[]).await.context("without a control plane")?;
            Ok((self.envoy.stat("control_plane.connected_state").await? == 0).then_some(()))
        })
        .await?;
        self.control.restart().await?;
        self.apply(&[then])?;
        wait_until("word of the new control plane", PATIENCE, || async {
            let model = self.model("/v1/models", &[]).await.context("while the proxy comes back")?;
            Ok((model == "large").then_some(()))
        })
        .await?;
        let removed = self.envoy.stat("listener_manager.listener_removed").await?;
        ensure!(removed == 0, "{removed} listeners were removed");
        Ok(())
    }

    async fn get(&self, path: &str) -> Result<Response> {
        http_client::get(self.envoy.address(), path).await
    }
}

fn apply(control: &ControlPlaneProcess, folder: &tempfile::TempDir, documents: &[Value]) -> Result<()> {
    let file = folder.path().join("gateway.yaml");
    let text: Vec<String> = documents.iter().map(Value::to_string).collect();
    fs::write(&file, text.join("\n---\n"))?;
    let output = control.command(&["gateway", "apply", "-f", &file.to_string_lossy()])?;
    ensure!(output.status.success(), "gateway apply: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

pub(crate) fn document(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "headgate.dev/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

pub(crate) fn endpoint(address: SocketAddr) -> Value {
    json!({"address": address.ip().to_string(), "port": address.port()})
}

/// Health is looked at every 100 ms, and what is away is asked after as often.
pub(crate) fn pool(name: &str, endpoints: &[Value]) -> Value {
    document(
        "Pool",
        name,
        &json!({"endpoints": endpoints, "healthCheck": {"intervalMs": 100, "timeoutMs": 1000, "probeMs": 100},
        "balancing": {"algorithm": "round_robin", "slowStartMs": 0}}),
    )
}

/// On a port of its own: a document has to name one.
pub(crate) fn entry(options: Value) -> Result<Value> {
    let port = free_address()?.port();
    let mut spec = json!({"address": "127.0.0.1", "port": port, "nodeCluster": "gateway"});
    if let (Some(spec), Value::Object(options)) = (spec.as_object_mut(), options) {
        spec.extend(options);
    }
    Ok(document("Gateway", "public", &spec))
}

pub(crate) fn healthy(page: &str, pool: &str, count: usize) -> bool {
    page.lines().filter(|line| line.starts_with(&format!("{pool}::")) && line.ends_with("::health_flags::healthy")).count() == count
}

pub(crate) async fn an_envoy_with_nothing_but_a_bootstrap_routes_by_model_version_and_length(version: EnvoyVersion) -> Result<()> {
    let large = InferenceSimProcess::start(None, &["--model", "large"]).await?;
    let small = InferenceSimProcess::start(None, &["--model", "small"]).await?;
    let backend = |pool: &str, weight: u32| json!({"pool": pool, "weight": weight});
    let rules = |weights: [u32; 2]| {
        document(
            "Route",
            "chat",
            &json!({"rules": [
                {"models": ["llama-70b*"], "modelVersions": ["v2"], "backends": [backend("small", 1)]},
                {"models": ["llama-70b*", "other"], "backends": [backend("large", 1)]},
                {"pathPrefix": "/v1/chat", "maxInputBytes": 99, "backends": [backend("small", 1)]},
                {"pathPrefix": "/v1/models", "backends": [backend("large", weights[0]), backend("small", weights[1])]},
                {"pathPrefix": "/v1/chat", "backends": [backend("large", 1)]},
            ]}),
        )
    };
    let parts = [
        pool("large", &[endpoint(large.address())]),
        pool("small", &[endpoint(small.address())]),
        rules([4, 1]),
        entry(json!({"modelFromBody": true, "gzip": true}))?,
    ];
    let mut gateway = Gateway::start(version, None, &parts).await?;
    gateway.wait_for_endpoints("both engines", |page| healthy(page, "large", 1) && healthy(page, "small", 1)).await?;
    // The model of a request with a body is the body's, whatever the header says.
    let ask = async |model: &str, length: usize, version: &str| {
        let body = json!({"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "x".repeat(length)}]});
        let headers = [("x-model", "other"), ("x-model-version", version)];
        let response = http_client::post_json(gateway.envoy.address(), "/v1/chat/completions", &headers, &body).await?;
        // The engine does not have the model, and says which one it has.
        let text = response.text();
        let engine = text.split("this server has `").nth(1).and_then(|rest| rest.split('`').next());
        Ok::<_, anyhow::Error>(engine.with_context(|| format!("{}: {text}", response.status))?.to_owned())
    };
    ensure!(ask("llama-70b-instruct", 1, "").await? == "large", "by a prefix of the model");
    ensure!(ask("llama-70b-instruct", 1, "v2").await? == "small", "by the version");
    ensure!(ask("q", 1, "").await? == "small", "a short input");
    ensure!(ask("q", 1000, "").await? == "large", "a long input");
    let status = gateway.get("/elsewhere").await?.status;
    ensure!(status == 404, "what no rule matches: {status}");
    let mut larges = 0;
    for _ in 0..100 {
        larges += usize::from(gateway.model("/v1/models", &[]).await? == "large");
    }
    ensure!((65..=93).contains(&larges), "{larges} of 100 at weights of 4 to 1: 3.3 standard deviations around 80");
    // A change of the route is in force without a restart, and no request fails meanwhile.
    gateway.apply(&[rules([0, 1])])?;
    wait_until("new weights in force", PATIENCE, || async {
        let mut all = true;
        for _ in 0..10 {
            all &= gateway.model("/v1/models", &[]).await? == "small";
        }
        Ok(all.then_some(()))
    })
    .await?;
    gateway.survives_a_restart_of_its_control_plane(rules([1, 0])).await
}

pub(crate) async fn an_endpoint_that_dies_fails_no_request_but_those_in_flight(version: EnvoyVersion) -> Result<()> {
    let mut dies = InferenceSimProcess::start(None, &["--model", "edge"]).await?;
    let stays = InferenceSimProcess::start(None, &["--model", "centre"]).await?;
    let mut second = endpoint(stays.address());
    second["tier"] = json!(1);
    let parts = [
        pool("llm", &[endpoint(dies.address()), second]),
        document("Route", "all", &json!({"rules": [{"backends": [{"pool": "llm"}]}]})),
        entry(json!({}))?,
    ];
    let gateway = Gateway::start(version, None, &parts).await?;
    gateway.wait_for_endpoints("both engines", |page| healthy(page, "llm", 2)).await?;
    ensure!(gateway.model("/v1/models", &[]).await? == "edge", "the first tier while it is able");
    dies.process().kill_9()?;
    // Before any health check has seen it: each of these meets the dead endpoint first and is sent on.
    for n in 0..50 {
        let model = gateway.model("/v1/models", &[]).await.with_context(|| format!("request {n} after the kill"))?;
        ensure!(model == "centre", "request {n} went to {model}");
    }
    Ok(())
}

pub(crate) async fn an_endpoint_whose_gpu_is_ejected_leaves_the_balancing(version: EnvoyVersion) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [sound, breaks] = [0, 1].map(|index| NvmlDevice::with_memory_used(index, 10.0));
    let gpus = NvmlState::create(&folder.path().join("nvml.json"), &[sound.clone(), breaks.clone()])?;
    let [one, other] = [Upstream::start().await?, Upstream::start().await?];
    let on = |upstream: &Upstream, gpu: &NvmlDevice| {
        let mut endpoint = endpoint(upstream.address());
        endpoint["gpus"] = json!([gpu.uuid]);
        endpoint
    };
    let mut weighted = pool("llm", &[on(&one, &sound), on(&other, &breaks)]);
    // Without health checks nothing but the requests of this test is counted.
    weighted["spec"]["healthCheck"] = json!({"enabled": false});
    weighted["spec"]["balancing"] = json!({"algorithm": "weighted", "weights": "telemetry", "slowStartMs": 0});
    let parts = [weighted, document("Route", "all", &json!({"rules": [{"backends": [{"pool": "llm"}]}]})), entry(json!({}))?];
    let gateway = Gateway::start(version, Some(&gpus), &parts).await?;
    gateway.wait_for_endpoints("both endpoints", |page| healthy(page, "llm", 2)).await?;
    let other_address = other.address();
    let share = async || {
        let before = other.total();
        for _ in 0..40 {
            let status = gateway.get("/v1/models").await?.status;
            ensure!(status == 200, "{status}");
        }
        Ok(other.total() - before)
    };
    let weighs = |weight: u32| move |page: &str| page.contains(&format!("::{}::weight::{weight}", other_address));
    // A tenth less is not told.
    gateway.wait_for_endpoints("weight of a GPU that is 10 % busy", weighs(100)).await?;
    ensure!((15..=25).contains(&share().await?), "equal GPUs serve alike");
    gpus.set(&[sound.clone(), NvmlDevice { gpu_utilization_percent: 90, ..breaks.clone() }])?;
    gateway.wait_for_endpoints("weight of a GPU that is 90 % busy", weighs(30)).await?;
    let busy = share().await?;
    ensure!((4..=16).contains(&busy), "{busy} of 40 at weights of 100 to 30");
    gpus.set(&[sound.clone(), NvmlDevice { xid_errors: vec![79], ..breaks.clone() }])?;
    let flag = |page: &str| page.contains("/failed_eds_health") || page.contains("::failed_eds_health");
    gateway.wait_for_endpoints("endpoint told to be out", flag).await?;
    let before = [one.total(), other.total()];
    let listed = gateway.control.command(&["gateway", "list", "--json"])?;
    let listed: Value = serde_json::from_slice(&listed.stdout)?;
    let because: Vec<&str> = listed["endpoints"].as_array().into_iter().flatten().filter_map(|one| one["out_because"].as_str()).collect();
    ensure!(because.iter().any(|text| text.contains("XID 79")), "{because:?}");
    share().await?;
    let after = [one.total() - before[0], other.total() - before[1]];
    ensure!(after == [40, 0], "the sound GPU serves everything: {after:?}");
    Ok(())
}

pub(crate) async fn what_a_proxy_refuses_is_seen_and_changes_nothing(version: EnvoyVersion) -> Result<()> {
    let upstream = Upstream::start().await?;
    let parts = [
        pool("llm", &[endpoint(upstream.address())]),
        document("Route", "all", &json!({"rules": [{"backends": [{"pool": "llm"}]}]})),
        entry(json!({}))?,
    ];
    let gateway = Gateway::start(version, None, &parts).await?;
    gateway.wait_for_endpoints("the endpoint", |page| healthy(page, "llm", 1)).await?;
    let refusals = async || {
        let listed = gateway.control.command(&["gateway", "list", "--json"])?;
        let listed: Value = serde_json::from_slice(&listed.stdout)?;
        Ok::<_, anyhow::Error>(listed["refusals"].as_array().cloned().unwrap_or_default())
    };
    // The control plane cannot know which files the proxy has.
    let mut broken = entry(json!({"tls": {"certificateFile": "/none/tls.pem", "keyFile": "/none/tls.key"}}))?;
    broken["metadata"]["name"] = json!("broken");
    gateway.apply(&[broken])?;
    let refusal = wait_until("refusal", PATIENCE, || async { Ok(refusals().await?.first().cloned()) }).await?;
    ensure!(refusal["name"] == "broken" && refusal["node_id"] == "gateway-1", "{refusal}");
    ensure!(refusal["error"].as_str().is_some_and(|error| error.contains("/none/tls")), "{refusal}");
    let status = gateway.get("/v1/models").await?.status;
    ensure!(status == 200, "the other gateway serves on: {status}");
    let deleted = gateway.control.command(&["gateway", "delete", "Gateway", "broken"])?;
    ensure!(deleted.status.success(), "{}", String::from_utf8_lossy(&deleted.stderr));
    wait_until("end of the refusal", PATIENCE, || async { Ok(refusals().await?.is_empty().then_some(())) }).await
}

/// The RSA key of these tests.
struct Key {
    pair: RsaKeyPair,
    public_key: String,
    n: String,
}

impl Key {
    fn read() -> Result<Self> {
        let key: Value = serde_json::from_str(include_str!("gateway/key.json"))?;
        let text = |field: &str| key[field].as_str().unwrap_or_default().to_owned();
        let pair = RsaKeyPair::from_pkcs8(&STANDARD.decode(text("pkcs8"))?).map_err(|error| anyhow::anyhow!("the key: {error}"))?;
        Ok(Self { pair, public_key: text("public_key"), n: text("n") })
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        let mut signature = vec![0; self.pair.public().modulus_len()];
        self.pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).map_err(|_| anyhow::anyhow!("cannot sign"))?;
        Ok(signature)
    }

    fn jwks(&self) -> Value {
        json!({"keys": [{"kty": "RSA", "alg": "RS256", "kid": "k", "n": self.n, "e": "AQAB"}]})
    }

    fn token(&self, issuer: &str) -> Result<String> {
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let head = part(json!({"alg": "RS256", "kid": "k", "typ": "JWT"}));
        let signed = format!("{head}.{}", part(json!({"iss": issuer, "sub": "ann", "exp": 4_000_000_000_u64})));
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(self.sign(signed.as_bytes())?)))
    }
}

pub(crate) async fn who_shows_no_token_or_signature_gets_nothing(version: EnvoyVersion) -> Result<()> {
    let key = Key::read()?;
    let upstream = Upstream::start().await?;
    let options = json!({
        "allow": ["127.0.0.0/8"],
        "jwt": [{"name": "idp", "issuer": "idp", "jwks": key.jwks().to_string()}],
        "signatures": {"keys": [{"name": "ci", "publicKey": key.public_key}], "maxSkewS": 60},
    });
    let parts = [
        pool("llm", &[endpoint(upstream.address())]),
        document("Route", "all", &json!({"rules": [{"backends": [{"pool": "llm"}]}]})),
        entry(options)?,
    ];
    let gateway = Gateway::start(version, None, &parts).await?;
    gateway.wait_for_endpoints("the endpoint", |page| healthy(page, "llm", 1)).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let call = async |issuer: &str, at: Duration, body: &str, signed: &str| {
        let at = at.as_secs().to_string();
        let signature = key.sign(format!("{at}\nPOST\n/v1/chat?a=1\n{signed}").as_bytes())?;
        let hexadecimal: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
        let request = Request::post("/v1/chat?a=1")
            .header("authorization", format!("Bearer {}", key.token(issuer)?))
            .header("x-signature-key", "ci")
            .header("x-signature-time", at)
            .header("x-signature", hexadecimal)
            // Nobody but the filter may say this.
            .header("x-headgate-pool", "llm")
            .body(Bytes::from(body.to_owned()))?;
        let response = http_client::send(gateway.envoy.address(), request).await?;
        Ok::<_, anyhow::Error>((response.status.as_u16(), response.text()))
    };
    let long_ago = now - Duration::from_secs(3600);
    let answers = [
        (call("idp", now, "hello", "hello").await?, 200, "a token and a signature"),
        (call("idp", now, "hello", "other").await?, 401, "a body that was not signed"),
        (call("idp", long_ago, "hello", "hello").await?, 401, "a signature of an hour ago"),
        (call("another", now, "hello", "hello").await?, 401, "a token of another issuer"),
    ];
    for ((status, text), expected, what) in answers {
        ensure!(status == expected, "{what}: {status} {text}");
    }
    let bare = gateway.get("/v1/chat").await?.status;
    ensure!(bare == 401, "neither token nor signature: {bare}");
    ensure!(upstream.forged() == 0, "no header of ours came from a client");
    Ok(())
}
