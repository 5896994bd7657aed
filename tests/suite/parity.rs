//! One tape through the native core and through the built module: every effect, access-log line and report is the same, bit for bit.
//!
//! The tape is drawn from a seed: requests of known, unknown and hostile clients, responses, failures, ticks, and limits that the
//! control plane pushes over the discovery stream. The native side makes the calls that `filter/wasm` makes, and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use headgate_core::envoy::DESTINATION_ENDPOINT;
use headgate_core::in_band::{LoadHeader, LoadSeen, TAIL_BYTES};
use headgate_core::policy::Policy;
use headgate_core::request::{HeaderView, RequestInfo, VerifiedIdentity};
use headgate_core::resume::{RESUMES_PER_CALLBACK, Resumed};
use headgate_core::shared::{self, Keys};
use headgate_core::stream::{Event, HeaderOp, Outcome, Stream, StreamEnd};
use headgate_core::time::Timestamp;
use headgate_core::worker::Worker;
use headgate_protos::discovery::{DeltaDiscoveryResponse, Resource};
use headgate_protos::{Any, LIMITS_TYPE_URL, document, v1};
use headgate_test_support::artefact::Module;
use headgate_tests::documents::{KEYS, document as render, spec};
use headgate_tests::wasm_host::{Effect, Pairs, WasmHost, serialize};
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

const EVENTS: usize = 120_000;
const SEED: u64 = 0x7a9e;
const ROOT: u32 = 1;
/// Random number of the VM: its identity, and the seed of its jitter.
const OWNER: u64 = 0x0123_4567_89ab_cdef;
const TICK: Duration = Duration::from_millis(20);
const SHARE_EVERY: Duration = Duration::from_millis(100);
const LEASE_AGAIN: Duration = Duration::from_millis(5);

/// One thing that happens.
#[derive(Debug)]
enum Happening {
    Tick,
    Limits(Box<v1::Limits>),
    Request { id: u32, headers: Pairs },
    ResponseHeaders { id: u32, status: u16, failed_dependency: bool },
    ResponseBody { id: u32, len: u32, is_last: bool },
    Over { id: u32, flags: u64 },
}

fn policy_spec() -> Value {
    let mut spec = spec();
    spec["levels"]["qps"] = json!({"enabled": true, "minSamples": 5, "floorRps": 50});
    spec["levels"]["p99"] = json!({"enabled": true, "windowMs": 1000, "limitMs": 400, "floorMs": 100, "periods": 2});
    spec["concurrency"] = json!({"maxInFlight": 40});
    spec["classes"][0]["reservedPercent"] = json!(25);
    spec["classification"]["caps"] = json!([{"class": "medium", "model": "large"}, {"class": "low", "minContentLength": 100_000}]);
    spec["breaker"] = json!({
        "consecutiveFailures": 8, "openMs": 500, "rampMs": 1000, "scopes": ["endpoint", "dependency"],
        "errorRates": [{"percent": 50, "windowMs": 5000}],
    });
    spec
}

/// The same under overload control: a queue, every kind of rung, and permits besides the budgets.
fn overload_spec() -> Value {
    let mut spec = policy_spec();
    spec["classes"][1]["maxQueueMs"] = json!(40);
    spec["overload"] = json!({
        "ttftSloMs": 200, "tpotSloMs": 50, "picksEndpoint": true, "queue": {"maxDepthFactor": 2.0, "maxRequests": 20},
        "retries": {"percent": 10, "minRps": 0.5},
        "ladder": [
            {"kind": "delay", "engageAt": 0.8, "classes": ["low"], "delayMs": 100},
            {"kind": "switch_model", "engageAt": 1.2, "classes": ["medium"], "pool": "small"},
            {"kind": "cache_first", "engageAt": 1.5, "classes": ["low"]},
        ],
    });
    spec["orca"] = json!(true);
    let others = (0..70).map(|n| json!({"name": format!("t{n}"), "class": "low", "identities": [{"apiKeySha256": format!("{n:064x}")}]}));
    spec["classification"]["tenants"].as_array_mut().expect("a list").extend(others);
    spec
}

/// The same with quotas: of everybody's requests, and of a tenant's tokens.
fn quota_spec() -> Value {
    let mut spec = policy_spec();
    spec["quotas"] = json!([
        {"name": "all", "unit": "requests", "amount": 1000, "burstMs": 300, "floors": [{"class": "low", "percent": 20}]},
        {"name": "gold", "unit": "tokens", "amount": 1_000_000, "tenants": ["tenant-high"]},
    ]);
    spec
}

// === the tape ===

struct Draw {
    rng: StdRng,
    now: u64,
    next_tick: u64,
    next_id: u32,
    epoch: u64,
    /// Requests that are not over: id and how far they are.
    open: Vec<(u32, u8)>,
}

impl Draw {
    fn next(&mut self) -> (u64, Happening) {
        self.now += self.rng.random_range(10_000..400_000);
        if self.now >= self.next_tick {
            self.next_tick = self.now + TICK.as_nanos() as u64;
            return (self.now, Happening::Tick);
        }
        let happening = match self.rng.random_range(0..200) {
            0 => Happening::Limits(Box::new(self.limits())),
            1..70 if self.open.len() < 120 => self.request(),
            _ if self.open.is_empty() => self.request(),
            _ => self.step(),
        };
        (self.now, happening)
    }

    fn limits(&mut self) -> v1::Limits {
        self.epoch += 1;
        let classes = ["high", "medium", "low"].map(|class| v1::ClassLimit {
            class: class.to_owned(),
            action: self.rng.random_range(1..4),
            rate_rps: self.rng.random_range(0.0..300.0),
            burst: self.rng.random_range(1.0..20.0),
            drain_rps: self.rng.random_range(0.0..100.0),
            safe_rps: self.rng.random_range(0.0..50.0),
            because: v1::LevelKind::GpuMemory.into(),
        });
        let level = v1::LevelStatus {
            kind: v1::LevelKind::GpuMemory.into(),
            state: v1::LevelState::Tripped.into(),
            value: self.rng.random_range(75.0..100.0),
            threshold: 75.0,
            recovery_remaining_ms: Some(500),
            source: "nvml".to_owned(),
            age_ms: 3,
        };
        v1::Limits {
            pool: "llm".to_owned(),
            epoch: self.epoch,
            // That of a policy in a file: tenants are told of it alone.
            policy_version: String::new(),
            // Short, so that expiry, decay and the worker's own levels are on the tape too.
            ttl_ms: self.rng.random_range(10..300),
            decay_ms: self.rng.random_range(0..300),
            levels: vec![level],
            classes: classes.to_vec(),
            drain_rps: 50.0,
            overload: Some(self.overload_limits()),
            quotas: self.grants(),
        }
    }

    /// Leases of quotas: new ones, repeated ones, those of an earlier leader or another process, and for some seconds of each dozen none, so
    /// that they end. Ignored where the policy has no quotas.
    fn grants(&mut self) -> Vec<v1::QuotaGrant> {
        if (self.now / 1_000_000_000) % 12 >= 5 {
            return Vec::new();
        }
        let grant = |(quota, most): (&str, f64)| v1::QuotaGrant {
            quota: quota.to_owned(),
            holder: if self.rng.random_range(0..10) == 0 { 7 } else { OWNER },
            fence: 1 + self.epoch / 200,
            sequence: self.epoch - self.rng.random_range(0..2).min(self.epoch),
            reported_at_ns: self.now - self.rng.random_range(0..300_000_000),
            lease: (self.rng.random_range(0..8) > 0).then(|| v1::QuotaLease {
                rates: (0..3).map(|_| self.rng.random_range(0.0..most)).collect(),
                safe: self.rng.random_range(0.0..most / 10.0),
                burst: self.rng.random_range(0.0..most),
            }),
        };
        [("all/requests", 200.0), ("gold/tokens", 500_000.0)].map(grant).to_vec()
    }

    /// Ignored where the policy has no overload control.
    fn overload_limits(&mut self) -> v1::OverloadLimits {
        let work = |rng: &mut StdRng| v1::Work {
            prefill_tokens: rng.random_range(0..400_000),
            kv_tokens: rng.random_range(0..1_000_000),
            streams: rng.random_range(0..40),
        };
        v1::OverloadLimits {
            budgets: Some(work(&mut self.rng)),
            cut_level: self.rng.random_range(100..1100),
            cut_fraction: self.rng.random_range(0.0..1.0),
            saturation: self.rng.random_range(0.0..2.0),
            binding: self.rng.random_range(0..8),
            sample_epoch: self.epoch,
            drain_work_per_s: self.rng.random_range(0.0..500_000.0),
            expected_ttft_ms: self.rng.random_range(0.0..150.0),
            safe_budgets: Some(work(&mut self.rng)),
            rungs: (0..3).filter(|_| self.rng.random_range(0..6) == 0).collect(),
            retry_ratio: self.rng.random_range(0.0..0.2),
            prompt_factor: self.rng.random_range(0.5..2.0),
            output_tokens: self.rng.random_range(0.0..500.0),
            floor_work_per_s: (0..3).map(|_| self.rng.random_range(0.0..20_000.0)).collect(),
            engines: (0..5).map(|index| format!("10.0.0.{index}:8000")).collect(),
            engine_bounds: self.engine_bounds(),
            served_slot_deltas: vec![self.epoch as u32 % 3, 1025, 1023],
            served_work: (1..4).map(|slot| self.epoch * slot % 7 * 30_000).collect(),
        }
    }

    /// Where five engines of an aperture begin and end, of which some reach beyond it.
    fn engine_bounds(&self) -> Vec<f64> {
        let (shift, width) = (0.05 * (self.epoch % 7) as f64, 0.15 + 0.03 * (self.epoch % 5) as f64);
        (0..6).map(|index| f64::from(index) * width - shift).collect()
    }

    fn request(&mut self) -> Happening {
        self.next_id += 1;
        self.open.push((self.next_id, 0));
        let paths = ["/v1/chat/completions", "/v1/messages", "/v1/models", "/other", "/v1"];
        let mut headers: Pairs = vec![
            (b":method".to_vec(), b"POST".to_vec()),
            (b":path".to_vec(), paths[self.rng.random_range(0..paths.len())].into()),
            (b":authority".to_vec(), b"host:1".to_vec()),
            (b"content-length".to_vec(), self.rng.random_range(0..200_000).to_string().into_bytes()),
        ];
        let mut add = |name: &str, value: &[u8]| headers.push((name.as_bytes().to_vec(), value.to_vec()));
        match self.rng.random_range(0..8) {
            0 => add("x-api-key", b"nobody"),
            1 => add("authorization", &[b"Bearer ", KEYS[0].0.as_bytes()].concat()),
            2 => add("authorization", b"\xff\xfe\x80"),
            choice => add("x-api-key", KEYS[choice % 3].0.as_bytes()),
        }
        match self.rng.random_range(0..8) {
            0 => add("x-priority", b"low"),
            1 => add("x-priority", b"high"),
            2 => {
                add("x-priority", b"high");
                add("x-priority", b"low");
            }
            3 => add("x-headgate-class", b"forged"),
            4 => add("x-model", b"large"),
            5 => add("x-envoy-attempt-count", b"2"),
            _ => {}
        }
        Happening::Request { id: self.next_id, headers }
    }

    /// The next thing that happens to one of the open requests.
    fn step(&mut self) -> Happening {
        let index = self.rng.random_range(0..self.open.len());
        let (id, phase) = self.open[index];
        let is_cut = self.rng.random_range(0..20) == 0;
        if is_cut || phase >= 3 {
            self.open.swap_remove(index);
            let flags = if is_cut { [0, 1 << 14, 1 << 6][self.rng.random_range(0..3)] } else { 0 };
            return Happening::Over { id, flags };
        }
        self.open[index].1 += 1;
        let is_last = self.rng.random_range(0..4) == 0;
        if is_last {
            self.open[index].1 = 3;
        }
        match phase {
            0 => {
                // Every fourth second the upstream fails, so that breakers open, probe and close.
                let is_down = (self.now / 1_000_000_000).is_multiple_of(4);
                let status = if is_down || self.rng.random_range(0..20) == 0 { 503 } else { 200 };
                Happening::ResponseHeaders { id, status, failed_dependency: self.rng.random_range(0..30) == 0 }
            }
            _ => Happening::ResponseBody { id, len: self.rng.random_range(0..3) * 100, is_last },
        }
    }
}

// === the module ===

struct Built {
    host: WasmHost,
    discovery: Option<u32>,
    /// Response headers by request.
    responses: BTreeMap<u32, Pairs>,
}

impl Built {
    fn start(policy: &Value, now: u64) -> Result<Self> {
        let bytes = std::fs::read(Module::Headgate.path()?)?;
        let mut host = WasmHost::new(&bytes, OWNER)?;
        let configuration = json!({"controlPlane": {"cluster": "c"}, "policies": [{"name": "test", "spec": policy}]}).to_string();
        host.world().now_ns = now;
        host.world().buffer = configuration.clone().into_bytes();
        let accepted = host.call("proxy_on_configure", &[ROOT, configuration.len() as u32])?;
        ensure!(accepted == 1, "the module refuses its configuration: {:?}", host.world().log);
        Ok(Self { host, discovery: None, responses: BTreeMap::new() })
    }

    fn happen(&mut self, now: u64, happening: &Happening) -> Result<Vec<Effect>> {
        let host = &mut self.host;
        host.world().now_ns = now;
        match happening {
            Happening::Tick => {
                host.call("proxy_on_tick", &[ROOT])?;
                host.world().sent.clear();
                let streams = &host.world().streams;
                self.discovery = streams.iter().find(|(_, method)| method.contains("DeltaAggregated")).map(|(token, _)| *token);
            }
            Happening::Limits(limits) => {
                let token = self.discovery.context("the module has opened its discovery stream")?;
                let message = discovery_response(limits);
                host.world().buffer = message.clone();
                host.call("proxy_on_grpc_receive", &[ROOT, token, message.len() as u32])?;
            }
            Happening::Request { id, headers } => {
                host.world().request_headers = headers.clone();
                host.call("proxy_on_request_headers", &[*id + ROOT, headers.len() as u32, 0])?;
            }
            Happening::ResponseHeaders { id, status, failed_dependency } => {
                let mut headers = vec![(b":status".to_vec(), status.to_string().into_bytes())];
                if *failed_dependency {
                    headers.push((b"x-headgate-failed-dependency".to_vec(), b"tokenizer".to_vec()));
                }
                headers.push((LoadHeader::Text.name().as_bytes().to_vec(), load(*id)));
                // Envoy shows them again in the log; the module has no callback for them.
                self.responses.insert(*id, headers);
            }
            Happening::ResponseBody { id, len, is_last } => {
                host.world().buffer = body(*id, *len as usize);
                host.call("proxy_on_response_body", &[*id + ROOT, *len, u32::from(*is_last)])?;
            }
            Happening::Over { id, flags } => {
                host.world().response_headers = self.responses.remove(id).unwrap_or_default();
                let properties = &mut host.world().properties;
                properties.insert(b"response\0flags".to_vec(), flags.to_le_bytes().to_vec());
                properties.insert(b"upstream\0address".to_vec(), endpoint(*id));
                host.call("proxy_on_log", &[*id + ROOT])?;
            }
        }
        Ok(host.take_effects())
    }

    /// The report in the VM's slot.
    fn report(&mut self) -> Result<v1::WorkerReport> {
        let (bytes, _) = self.host.world().shared.get(b"hg/default/slot/0".as_slice()).cloned().context("the VM has published a report")?;
        Ok(v1::WorkerReport::decode(bytes.as_slice())?)
    }
}

/// What the access log gets.
fn line(stream: &Stream) -> Option<Effect> {
    Some(Effect::FilterState(b"headgate".to_vec(), stream.summary()?.to_string().into_bytes()))
}

fn endpoint(id: u32) -> Vec<u8> {
    format!("10.0.0.{}:8000", id % 3).into_bytes()
}

/// The piece of a response's body: the end of an event, which for some requests says how many tokens there were.
fn body(id: u32, len: usize) -> Vec<u8> {
    let text =
        if id.is_multiple_of(3) { format!("{{\"usage\":{{\"completion_tokens\":{}}}}}\n\n", id % 90 + 1) } else { "\n\n".to_owned() };
    let mut body = vec![b'.'; len.saturating_sub(text.len())];
    body.extend_from_slice(text.as_bytes());
    body.truncate(len);
    body
}

/// What the engine of a request says of its load; some say nonsense.
fn load(id: u32) -> Vec<u8> {
    format!("TEXT named_metrics.kv_cache_usage_perc={},named_metrics.num_requests_waiting={id}", f64::from(id % 11) / 10.0 - 0.05)
        .into_bytes()
}

fn discovery_response(limits: &v1::Limits) -> Vec<u8> {
    let resource = Resource {
        name: limits.pool.clone(),
        version: limits.epoch.to_string(),
        resource: Some(Any { type_url: LIMITS_TYPE_URL.to_owned(), value: limits.encode_to_vec().into() }),
        ttl: None,
    };
    let response = DeltaDiscoveryResponse {
        resources: vec![resource],
        type_url: LIMITS_TYPE_URL.to_owned(),
        nonce: limits.epoch.to_string(),
        ..DeltaDiscoveryResponse::default()
    };
    response.encode_to_vec()
}

// === the native core, called as the adapter calls it ===

/// One admitted request, as the adapter follows it.
#[derive(Default)]
struct Exchange {
    stream: Stream,
    response: Option<(u16, bool)>,
    has_ended: bool,
    ended_at: Option<(Timestamp, usize)>,
    resumed: Resumed,
}

struct Native {
    worker: Worker,
    streams: BTreeMap<u32, Exchange>,
    keys: Keys,
    /// What the VMs of a proxy share, by key.
    shared: BTreeMap<String, Vec<u8>>,
    /// Permits since the first request.
    held: Option<u32>,
    leased_at: Timestamp,
    reported_at: Timestamp,
    pushed: Option<(Timestamp, v1::Limits)>,
    report: v1::WorkerReport,
    ticks: u32,
}

impl Native {
    fn start(policy: Policy, now: u64) -> Self {
        let mut worker = Worker::new(OWNER);
        worker.set_process(OWNER);
        worker.set_policies(Timestamp::from_nanos(now), vec![Arc::new(policy)]);
        Self {
            worker,
            streams: BTreeMap::new(),
            keys: Keys::new("default"),
            shared: BTreeMap::new(),
            held: None,
            leased_at: Timestamp::ZERO,
            reported_at: Timestamp::ZERO,
            pushed: None,
            report: v1::WorkerReport::default(),
            ticks: 0,
        }
    }

    fn happen(&mut self, now: u64, happening: &Happening) -> Vec<Effect> {
        let now = Timestamp::from_nanos(now);
        match happening {
            Happening::Tick => {
                self.ticks += 1;
                self.tick(now);
                self.resume(now, Resumed::default())
            }
            Happening::Limits(limits) => {
                self.pushed = Some((now, (**limits).clone()));
                Vec::new()
            }
            Happening::Request { id, headers } => self.request(now, *id, headers),
            Happening::ResponseHeaders { id, status, failed_dependency } => {
                if let Some(exchange) = self.streams.get_mut(id) {
                    exchange.response = Some((*status, *failed_dependency));
                }
                Vec::new()
            }
            Happening::ResponseBody { id, len, is_last } => {
                let Some(exchange) = self.streams.get_mut(id) else { return self.resume(now, Resumed::default()) };
                exchange.has_ended |= is_last;
                let len = *len as usize;
                if len > 0 && exchange.ended_at.is_none() {
                    if exchange.stream.looks_at_pieces() {
                        let body = body(*id, len);
                        exchange.stream.note_tail(&body[len - len.min(TAIL_BYTES)..]);
                    }
                    if !exchange.stream.awaits_first_byte() {
                        exchange.stream.count_pieces(1, len as u64);
                    } else if *is_last {
                        exchange.ended_at = Some((now, len));
                    } else {
                        exchange.stream.handle(&mut self.worker, now, Event::ResponseBody { len, end_of_stream: false });
                    }
                }
                let resumed = exchange.resumed;
                self.resume(now, resumed)
            }
            Happening::Over { id, flags } => self.over(now, *id, *flags),
        }
    }

    fn request(&mut self, now: Timestamp, id: u32, headers: &Pairs) -> Vec<Effect> {
        if self.held.is_none() || (self.is_short() && now.since(self.leased_at) >= LEASE_AGAIN) {
            self.lease(now);
        }
        let bytes = serialize(headers);
        let view = HeaderView::from_serialized(&bytes).expect("serialized as the host does");
        let info = RequestInfo::new(view, VerifiedIdentity { spiffe: None, jwt_claims: &[] });
        let mut stream = Stream::identified(id + ROOT);
        let mut effects = effects_of(stream.handle(&mut self.worker, now, Event::RequestHeaders(&info)));
        if stream.is_waiting() {
            effects.push(Effect::TurnTo(id + ROOT));
        }
        if stream.is_open() {
            self.streams.insert(id, Exchange { stream, ..Exchange::default() });
        } else {
            effects.extend(line(&stream));
        }
        effects
    }

    fn over(&mut self, now: Timestamp, id: u32, flags: u64) -> Vec<Effect> {
        let Some(exchange) = self.streams.remove(&id) else { return Vec::new() };
        let Exchange { mut stream, response, has_ended, ended_at, resumed } = exchange;
        let callback_at = now;
        let now = ended_at.map_or(now, |(at, _)| at);
        if let Some((_, len)) = ended_at {
            stream.handle(&mut self.worker, now, Event::ResponseBody { len, end_of_stream: true });
        }
        // Without a breaker most would be presumed good; this policy has one, so every status is read.
        let _ = has_ended && !self.worker.looks_at_status(now);
        if let Some((status, failed_dependency)) = response {
            let failed_dependency = failed_dependency.then_some(b"tokenizer".as_slice());
            stream.handle(&mut self.worker, now, Event::ResponseHeaders { status, failed_dependency });
        }
        let end = match flags {
            _ if has_ended => StreamEnd::Complete,
            flags if flags == 1 << 14 => StreamEnd::ByClient,
            flags if flags == 1 << 6 => StreamEnd::ByUpstream,
            _ => StreamEnd::Complete,
        };
        let endpoint = endpoint(id);
        if response.is_some() && stream.wants_load(&mut self.worker, now, LoadSeen::AtEnd) {
            stream.note_load(&mut self.worker, now, LoadSeen::AtEnd, &endpoint, (LoadHeader::Text, &load(id)));
        }
        stream.handle(&mut self.worker, now, Event::Log { endpoint: Some(&endpoint), end });
        line(&stream).into_iter().chain(self.resume(callback_at, resumed)).collect()
    }

    /// Continues those who waited and have an answer.
    fn resume(&mut self, now: Timestamp, by: Resumed) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(resumed) = by.next(self.ticks) else { return effects };
        for _ in 0..RESUMES_PER_CALLBACK {
            let Some(context) = self.worker.next_released() else { break };
            let Some(exchange) = self.streams.get_mut(&(context - ROOT)) else { continue };
            exchange.resumed = resumed;
            effects.push(Effect::TurnTo(context));
            let outcome = exchange.stream.release(&mut self.worker, now);
            let is_refused = matches!(outcome, Outcome::Reply(_));
            effects.extend(effects_of(outcome));
            if is_refused {
                effects.extend(line(&exchange.stream));
                exchange.stream = Stream::new();
            } else {
                effects.push(Effect::Continue);
            }
        }
        effects
    }

    fn tick(&mut self, now: Timestamp) {
        self.worker.on_tick(now);
        if let Some((at, limits)) = self.pushed.take() {
            self.worker.set_limits(at, &limits);
        }
        if self.held.is_some() && (now.since(self.leased_at) >= SHARE_EVERY || self.is_short()) {
            self.lease(now);
        }
        if now.since(self.reported_at) >= SHARE_EVERY {
            self.reported_at = now;
            self.report = self.worker.report(now, 0);
        }
    }

    fn is_short(&self) -> bool {
        self.held.is_some_and(|held| self.worker.wants(0).permits_in_use >= held)
    }

    fn lease(&mut self, now: Timestamp) {
        self.leased_at = now;
        for lease in self.worker.sub_leases(&self.keys) {
            let record = self.shared.entry(lease.key.clone()).or_default();
            let (bytes, (_, holding)) = shared::refresh_lease(record, now, OWNER, lease.want, lease.grant).expect("a slot is free");
            *record = bytes;
            self.worker.take_holding(&lease, holding);
            if lease.is_of_policy() {
                self.held = holding.permits;
            }
        }
    }
}

fn effects_of(outcome: Outcome) -> Vec<Effect> {
    match outcome {
        Outcome::Continue => Vec::new(),
        Outcome::ContinueWith(changes) | Outcome::Wait(changes) => changes.iter().map(effect).collect(),
        Outcome::Reply(reply) => vec![Effect::Reply {
            status: u32::from(reply.status),
            details: reply.details.as_bytes().to_vec(),
            headers: reply.headers.into_iter().map(|(name, value)| (name.as_bytes().to_vec(), value.into_bytes())).collect(),
            body: reply.body,
        }],
    }
}

fn effect(change: &HeaderOp) -> Effect {
    match change {
        HeaderOp::Set { name, value } => Effect::SetHeader(name.as_bytes().to_vec(), value.as_bytes().to_vec()),
        HeaderOp::Remove { name } => Effect::RemoveHeader(name.clone()),
    }
}

#[test]
fn native_and_wasm_agree_on_every_event_of_a_tape() -> Result<()> {
    agree(&policy_spec(), EVENTS, &["admit", "gpu_memory", "concurrency", "breaker_open", "remove"]).map(drop)
}

#[test]
fn native_and_wasm_agree_under_overload_control() -> Result<()> {
    let kinds = ["admit", "cut_off", "deadline", "queue_full", "expired", "retry_budget", "continue", "wait", "set", "pick"];
    let report = agree(&overload_spec(), EVENTS / 2, &kinds)?;
    let load = report.pools[0].overload.as_ref().context("overload control reports")?;
    ensure!(load.served_second > 5 && !load.served_work.is_empty(), "whom it served is told: {load:?}");
    Ok(())
}

#[test]
fn native_and_wasm_agree_on_leases_of_quotas() -> Result<()> {
    agree(&quota_spec(), EVENTS / 2, &["admit", "quota", "concurrency", "breaker_open"]).map(drop)
}

/// Plays a tape for a policy through both, and sees that it holds enough of `kinds`: it is worth something only then. The report that both
/// made last.
fn agree(spec: &Value, events: usize, kinds: &[&str]) -> Result<v1::WorkerReport> {
    let parsed = document::parse(serde_json::from_str(&render("test", spec))?).expect("the document is good");
    let policy = Policy::try_from_wire(&parsed).expect("the policy is good");
    let mut draw = Draw { rng: StdRng::seed_from_u64(SEED), now: 5_000_000_000, next_tick: 0, next_id: 0, epoch: 0, open: Vec::new() };
    let mut wasm = Built::start(spec, draw.now)?;
    let mut native = Native::start(policy, draw.now);
    let mut seen = BTreeMap::<String, usize>::new();
    for number in 0..events {
        let (now, happening) = draw.next();
        let expected = native.happen(now, &happening);
        let got = wasm.happen(now, &happening)?;
        ensure!(got == expected, "event {number} at {now} ns, seed {SEED:#x}: {happening:?}\nnative {expected:?}\nwasm   {got:?}");
        for effect in &got {
            *seen.entry(kind_of(effect)).or_default() += 1;
        }
    }
    let report = wasm.report()?;
    ensure!(report == native.report, "reports differ:\nnative {:?}\nwasm   {report:?}", native.report);
    println!("{events} events, no difference: {seen:?}");
    for kind in kinds {
        ensure!(seen.get(*kind).is_some_and(|count| *count > 20), "the tape has too little of {kind}: {seen:?}");
    }
    Ok(report)
}

#[test]
fn a_decision_costs_one_read_of_headers_and_clock() -> Result<()> {
    let mut draw = Draw { rng: StdRng::seed_from_u64(SEED), now: 5_000_000_000, next_tick: 0, next_id: 0, epoch: 0, open: Vec::new() };
    // Without permits: those are leased from shared data, at most every 5 ms and not for a request.
    let mut wasm = Built::start(&spec(), draw.now)?;
    for number in 0..1_000 {
        let request = draw.request();
        draw.now += 1_000_000;
        if number == 1 {
            // The first request took up the worker's part of the rates.
            wasm.host.world().reads.clear();
        }
        wasm.happen(draw.now, &request)?;
    }
    let reads = wasm.host.world().reads.clone();
    assert_eq!(reads, BTreeMap::from([("headers", 999), ("clock", 999)]), "reads of 999 decisions");
    Ok(())
}

/// What an effect shows, for counting.
fn kind_of(effect: &Effect) -> String {
    match effect {
        Effect::SetHeader(name, _) if name == DESTINATION_ENDPOINT.as_bytes() => "pick".to_owned(),
        Effect::SetHeader(..) => "set".to_owned(),
        Effect::RemoveHeader(_) => "remove".to_owned(),
        Effect::Reply { headers, .. } => {
            let reason = headers.iter().find(|(name, _)| name == b"x-headgate-reason").map(|(_, value)| value.as_slice());
            let word = reason.and_then(|reason| reason.split(|byte| *byte == b';').next()).unwrap_or_default();
            String::from_utf8_lossy(word).into_owned()
        }
        Effect::FilterState(_, line) if line.starts_with(b"decision=admit") => "admit".to_owned(),
        Effect::FilterState(_, line) if line.starts_with(b"decision=wait") => "wait".to_owned(),
        Effect::TurnTo(_) => "turn".to_owned(),
        Effect::Continue => "continue".to_owned(),
        Effect::FilterState(..) => "other".to_owned(),
    }
}
