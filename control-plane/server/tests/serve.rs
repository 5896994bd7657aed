//! A whole control plane in this process, spoken to over its own listeners.

use std::time::{Duration, Instant};

use headgate::serve::Running;
use headgate_protos::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use headgate_protos::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use headgate_protos::envoy_core::Node;
use headgate_protos::v1::load_reporting_client::LoadReportingClient;
use headgate_protos::v1::policy_life_client::PolicyLifeClient;
use headgate_protos::v1::policy_service_client::PolicyServiceClient;
use headgate_protos::{LIMITS_TYPE_URL, v1};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use running::{apply, get, status_with};

#[allow(dead_code, unreachable_pub, reason = "shared with other tests")]
mod running;

/// Time within which what is to be in the status is there.
const PATIENCE: Duration = Duration::from_secs(10);
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

async fn serve(directory: &tempfile::TempDir) -> (Running, Channel) {
    let running = running::serve(running::flags(directory.path())).await;
    let channel = running::connect(&running).await;
    (running, channel)
}

fn report(sequence: u64, policy: &v1::Policy, offered: u64) -> v1::LoadReport {
    let class = v1::ClassReport { class: "high".to_owned(), offered, admitted: offered, completed: offered, ..Default::default() };
    let pool = v1::PoolReport { policy: policy.name.clone(), pool: "demo".to_owned(), classes: vec![class], ..Default::default() };
    let worker = v1::WorkerReport { slot: 0, vm_epoch: 1, at_ns: sequence * 1_000_000, pools: vec![pool], counters: None };
    let applied = v1::AppliedPolicy { name: policy.name.clone(), version: policy.version.clone(), limits_epoch: 0 };
    v1::LoadReport { node_id: "proxy-1".to_owned(), sequence, workers: vec![worker], policies: vec![applied], ..Default::default() }
}

/// A proxy that hears limits of `demo`.
struct Subscription {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: tonic::Streaming<DeltaDiscoveryResponse>,
}

impl Subscription {
    async fn of(channel: Channel, node: &str) -> Self {
        let request = DeltaDiscoveryRequest {
            node: Some(Node { id: node.to_owned(), ..Node::default() }),
            type_url: LIMITS_TYPE_URL.to_owned(),
            resource_names_subscribe: vec!["demo".to_owned()],
            ..DeltaDiscoveryRequest::default()
        };
        let (requests, stream) = mpsc::channel(4);
        requests.send(request).await.unwrap();
        let mut discovery = AggregatedDiscoveryServiceClient::new(channel);
        let responses = discovery.delta_aggregated_resources(ReceiverStream::new(stream)).await.unwrap().into_inner();
        Self { requests, responses }
    }

    /// The next limits, acknowledged: else there are no others.
    async fn next(&mut self) -> v1::Limits {
        loop {
            let response = self.responses.message().await.unwrap().unwrap();
            let ack = DeltaDiscoveryRequest {
                type_url: LIMITS_TYPE_URL.to_owned(),
                response_nonce: response.nonce,
                ..DeltaDiscoveryRequest::default()
            };
            self.requests.send(ack).await.unwrap();
            // The first answer may be that there are none yet.
            if let Some(resource) = response.resources.first().and_then(|resource| resource.resource.as_ref()) {
                return v1::Limits::decode(resource.value.clone()).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn reports_go_in_and_limits_status_and_metrics_come_out() {
    let directory = tempfile::tempdir().unwrap();
    let (running, channel) = serve(&directory).await;
    let policy = apply(channel.clone(), POLICY).await;

    let (reports, stream) = mpsc::channel(4);
    reports.send(report(1, &policy, 40)).await.unwrap();
    let answers = LoadReportingClient::new(channel.clone()).stream_load_reports(ReceiverStream::new(stream)).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    assert_eq!(answer.report_interval_ms, 100);
    reports.send(report(2, &policy, 50)).await.unwrap();

    let limits = Subscription::of(channel.clone(), "proxy-1").await.next().await;
    assert_eq!((limits.pool.as_str(), limits.policy_version.as_str()), ("demo", policy.version.as_str()));
    assert_eq!(limits.classes.len(), 2);
    assert_eq!(limits.ttl_ms, 3000);

    let status: serde_json::Value = serde_json::from_str(&get(&running, "/throttle/status").await).unwrap();
    assert_eq!(status["pools"][0]["classes"][0]["offered"], 50);
    assert_eq!(status["proxies"][0]["node_id"], "proxy-1");
    assert_eq!(status["proxies"][0]["policies"][0]["version"], policy.version.as_str());
    assert!(status["gpu_source"].as_str().unwrap().starts_with("no device: "), "{status}");
    let request = v1::ListPolicyProxiesRequest { name: "demo".to_owned(), ..Default::default() };
    let answer = PolicyLifeClient::new(channel.clone()).list_policy_proxies(request).await.unwrap().into_inner();
    assert!(!answer.has_more && !answer.is_part && answer.proxies.len() == 1, "{answer:?}");
    let proxy = &answer.proxies[0];
    assert_eq!((proxy.node_id.as_str(), &proxy.version, &proxy.wanted_version), ("proxy-1", &policy.version, &policy.version));
    assert!(proxy.since_unix_ms > 0 && proxy.refused_error.is_empty());
    let metrics = get(&running, "/metrics").await;
    assert!(metrics.contains("headgate_requests_total{pool=\"demo\",class=\"high\",outcome=\"offered\"} 50"), "{metrics}");
    assert!(metrics.ends_with("# EOF\n"));
    assert_eq!(get(&running, "/readyz").await, "ready\n");
    assert!(get(&running, "/").await.contains("<title>Headgate</title>"));
    running.stop().await;
}

/// Reads the status until `wanted` holds, for at most ten seconds.
#[tokio::test]
async fn the_page_of_an_engine_comes_out_in_status_and_metrics() {
    let page = "vllm:num_requests_running 42\nvllm:num_requests_waiting 7\nvllm:kv_cache_usage_perc 0.5\n\
                vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"100\"} 1\n";
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let url = format!("http://{address}/metrics");
    let engine = axum::Router::new().route("/metrics", axum::routing::get(move || async move { page }));
    let engine = tokio::spawn(async move { axum::serve(listener, engine).await });

    let directory = tempfile::tempdir().unwrap();
    let (running, channel) = serve(&directory).await;
    apply(channel.clone(), &format!("{POLICY}  engines: [{{metricsUrl: \"{url}\"}}]\n")).await;
    let status = status_with(&running, PATIENCE, |status| status["pools"][0]["engines"][0]["state"] == "ok").await;
    let seen = &status["pools"][0]["engines"][0];
    assert_eq!((&seen["running"], &seen["waiting"], &seen["kv_total_tokens"]), (&42.into(), &7.into(), &1600.into()));
    assert_eq!((&seen["engine"], &seen["address"], &seen["is_worst"]), (&"vllm".into(), &address.as_str().into(), &true.into()));
    let is_memory = |level: &&serde_json::Value| level["kind"] == "gpu_memory";
    let status = status_with(&running, PATIENCE, |status| status["pools"][0]["levels"][1]["source"] == "kv_cache").await;
    let level = status["pools"][0]["levels"].as_array().unwrap().iter().find(is_memory).unwrap();
    assert_eq!(level["value"], 50.0);
    assert!(level["source_reason"].as_str().unwrap().starts_with("vllm takes its memory at the start"), "{level}");
    let metrics = get(&running, "/metrics").await;
    let line = format!("headgate_engine_kv_used_ratio{{pool=\"demo\",engine=\"{url}\",address=\"{address}\"}} 0.5");
    assert!(metrics.contains(&line), "{metrics}");

    engine.abort();
    let status = status_with(&running, PATIENCE, |status| status["pools"][0]["engines"][0]["state"] == "failing").await;
    assert!(status["pools"][0]["engines"][0]["problem"].as_str().unwrap().starts_with("no answer: "), "{status}");
    let told = |status: &serde_json::Value| status["alarms"].as_array().unwrap().iter().any(|alarm| alarm["alarm"] == "stale_signal");
    let status = status_with(&running, PATIENCE, told).await;
    assert!(status.to_string().contains(&format!("engine {url} is failing")), "{status}");
    apply(channel, &format!("{POLICY}  levels: {{ gpuMemory: {{ enabled: false }} }}\n")).await;
    status_with(&running, PATIENCE, |status| !told(status)).await;
    running.stop().await;
}

#[tokio::test]
async fn work_that_is_reported_comes_out_in_limits_status_and_metrics() {
    let directory = tempfile::tempdir().unwrap();
    let (running, channel) = serve(&directory).await;
    let document = format!("{POLICY}  overload: {{queue: {{}}, ladder: [{{kind: delay, engageAt: 1.5}}]}}\n");
    let policy = apply(channel.clone(), &document).await;
    let loaded = |sequence: u64, requests: u64| {
        let mut report = report(sequence, &policy, requests);
        let work = |requests: u64| v1::Work { prefill_tokens: 100 * requests, kv_tokens: 150 * requests, streams: requests };
        report.workers[0].pools[0].overload = Some(v1::OverloadReport {
            in_flight: Some(work(2)),
            admitted: Some(work(requests)),
            finished: Some(work(requests.saturating_sub(2))),
            queue: Some(v1::QueueReport { requests: 3, work: 600, released: requests, ..Default::default() }),
            ..Default::default()
        });
        report
    };
    let (reports, stream) = mpsc::channel(4);
    reports.send(loaded(1, 10)).await.unwrap();
    let _answers = LoadReportingClient::new(channel.clone()).stream_load_reports(ReceiverStream::new(stream)).await.unwrap();
    reports.send(loaded(2, 40)).await.unwrap();

    let status = status_with(&running, PATIENCE, |status| status["pools"][0]["overload"]["queue"]["released"] == 40).await;
    let overload = &status["pools"][0]["overload"];
    assert_eq!((&overload["in_flight"]["kv_tokens"], &overload["queue"]["requests"]), (&300.into(), &3.into()));
    assert_eq!((&overload["cut_off"]["level"], &overload["rungs"][0]["kind"]), (&1024.into(), &"delay".into()));
    let metrics = get(&running, "/metrics").await;
    for line in [
        "headgate_in_flight_work{pool=\"demo\",kind=\"kv\"} 300",
        "headgate_cut_level{pool=\"demo\"} 1024",
        "headgate_shed_ratio{pool=\"demo\",class=\"low\"} 0",
        "headgate_queue_outcomes_total{pool=\"demo\",outcome=\"released\"} 40",
        "headgate_rung{pool=\"demo\",rung=\"0\",kind=\"delay\",state=\"released\"} 1",
        "headgate_saturation_term{pool=\"demo\",term=\"kv\"} ",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
    running.stop().await;
}

#[tokio::test]
async fn whom_one_proxy_serves_another_hears_with_its_limits() {
    let directory = tempfile::tempdir().unwrap();
    let (running, channel) = serve(&directory).await;
    let tenant = |n: usize| format!("      - {{name: t{n}, class: low, identities: [{{apiKeySha256: \"{n:064x}\"}}]}}\n");
    let tenants: String = (0..64).map(tenant).collect();
    let policy = apply(channel.clone(), &format!("{POLICY}  overload: {{}}\n  classification:\n    tenants:\n{tenants}")).await;
    let mut other = Subscription::of(channel.clone(), "proxy-2").await;
    let (reports, stream) = mpsc::channel(4);
    let mut client = LoadReportingClient::new(channel.clone());
    let answers = tokio::spawn(async move { client.stream_load_reports(ReceiverStream::new(stream)).await });
    let telling = tokio::spawn(async move {
        for sequence in 1.. {
            let mut report = report(sequence, &policy, sequence);
            let pool = &mut report.workers[0].pools[0];
            pool.policy_version.clone_from(&policy.version);
            let served_slot_deltas = (0..64).map(|n| if n == 0 { 1025 } else { 1 }).collect();
            let (served_second, served_work) = (1 + sequence / 15, vec![5000; 64]);
            pool.overload = Some(v1::OverloadReport { served_second, served_slot_deltas, served_work, ..Default::default() });
            reports.send(report).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let heard = async {
        loop {
            let overload = other.next().await.overload.unwrap_or_default();
            if !overload.served_work.is_empty() {
                return overload;
            }
        }
    };
    let heard = tokio::time::timeout(PATIENCE, heard).await.expect("it is told");
    assert_eq!((heard.served_slot_deltas[0], heard.served_work.len()), (1025, 64));
    let seconds = heard.served_work[0] as f64 / 5000.0;
    assert!(heard.served_work.iter().all(|work| *work == heard.served_work[0]) && seconds > 1.9, "{heard:?}");
    assert!((seconds.round() - seconds).abs() < 0.1, "each second counts once, in however many reports it is: {seconds}");
    telling.abort();
    answers.abort();
    running.stop().await;
}

#[tokio::test]
async fn a_stop_ends_open_streams_within_its_bound() {
    let directory = tempfile::tempdir().unwrap();
    let (running, channel) = serve(&directory).await;
    let (reports, stream) = mpsc::channel(4);
    reports.send(report(1, &v1::Policy::default(), 0)).await.unwrap();
    let answers = LoadReportingClient::new(channel.clone()).stream_load_reports(ReceiverStream::new(stream)).await.unwrap();
    let mut answers = answers.into_inner();
    answers.message().await.unwrap();
    let mut events = PolicyServiceClient::new(channel).watch_policies(v1::WatchPoliciesRequest {}).await.unwrap().into_inner();
    events.message().await.unwrap();

    let began = Instant::now();
    running.stop().await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(answers.message().await.unwrap_err().code(), tonic::Code::Unavailable);
}

#[tokio::test]
async fn a_report_without_a_node_or_with_a_changed_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (running, channel) = serve(&directory).await;
    let nameless = v1::LoadReport::default();
    let answers = LoadReportingClient::new(channel.clone()).stream_load_reports(tokio_stream::iter([nameless])).await.unwrap();
    let error = answers.into_inner().message().await.unwrap_err();
    assert_eq!((error.code(), error.message()), (tonic::Code::InvalidArgument, "node_id: is missing"));

    let mut second = report(2, &v1::Policy::default(), 0);
    second.node_id = "other".to_owned();
    let both = tokio_stream::iter([report(1, &v1::Policy::default(), 0), second]);
    let mut answers = LoadReportingClient::new(channel).stream_load_reports(both).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    assert_eq!(answers.message().await.unwrap_err().code(), tonic::Code::InvalidArgument);
    running.stop().await;
}

#[tokio::test]
async fn a_proxy_on_an_old_version_and_a_pool_without_telemetry_are_told_until_it_is_over() {
    let directory = tempfile::tempdir().unwrap();
    let (running, channel) = serve(&directory).await;
    let old = apply(channel.clone(), POLICY).await;
    let watching = format!("{POLICY}  levels: {{ gpuMemory: {{ tripPercent: 60 }} }}\n");
    let blind = format!("{POLICY}  levels: {{ gpuMemory: {{ enabled: false }} }}\n");
    let new = apply(channel.clone(), &watching).await;
    let (reports, stream) = mpsc::channel(4);
    let _answers = LoadReportingClient::new(channel.clone()).stream_load_reports(ReceiverStream::new(stream)).await.unwrap();
    let version = std::sync::Arc::new(std::sync::Mutex::new(old));
    let spoken = version.clone();
    tokio::spawn(async move {
        for sequence in 1.. {
            let report = report(sequence, &spoken.lock().unwrap(), sequence);
            if reports.send(report).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let alarms = |status: &serde_json::Value| -> Vec<String> {
        status["alarms"].as_array().unwrap().iter().map(|alarm| alarm["alarm"].as_str().unwrap().to_owned()).collect()
    };
    let status = status_with(&running, PATIENCE, |status| alarms(status).len() == 2).await;
    assert_eq!(alarms(&status), ["pool_without_telemetry", "proxy_behind"], "{status}");
    let text = status["alarms"][1]["text"].as_str().unwrap();
    assert_eq!(text, format!("1 proxies lack version {}; 0 refuse it", new.version));
    let raised = "headgate_alarm{alarm=\"proxy_behind\",policy=\"demo\",pool=\"demo\"} 1.0";
    assert!(get(&running, "/metrics").await.contains(raised));

    *version.lock().unwrap() = apply(channel.clone(), &blind).await;
    status_with(&running, PATIENCE, |status| alarms(status).is_empty()).await;
    assert!(get(&running, "/metrics").await.contains(&raised.replace("1.0", "0.0")));
    running.stop().await;
}
