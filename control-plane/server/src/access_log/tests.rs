use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{Metadata, Node};
use envoy_types::pb::envoy::data::accesslog::v3::{AccessLogCommon, AccessLogType, HttpRequestProperties, HttpResponseProperties};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Any, Duration, Struct, UInt32Value, Value};
use headgate_core::fleet::StoredPolicy;
use headgate_core::latency::Metric;
use headgate_protos::v1;
use prost::Message;

use super::*;

fn policies() -> PolicySet {
    let classes = [("high", v1::WhenTripped::ReservedLane), ("low", v1::WhenTripped::Refuse)];
    let class = |(name, when): (&str, v1::WhenTripped)| v1::PriorityClass {
        name: name.to_owned(),
        when_tripped: when.into(),
        ..v1::PriorityClass::default()
    };
    let spec = v1::PolicySpec { pool: "chat".to_owned(), classes: classes.map(class).to_vec(), ..v1::PolicySpec::default() };
    let policy = v1::Policy { name: "demo".to_owned(), version: "1".to_owned(), spec: Some(spec) };
    PolicySet { policies: [("demo".to_owned(), Arc::new(StoredPolicy { policy, changed_at_unix_ms: 0 }))].into() }
}

fn after(micros: i32) -> Option<Duration> {
    Some(Duration { seconds: 1, nanos: micros * 1000 })
}

/// An entry of the cluster `chat`: sent upstream after 1.0001 s, first byte after 1.0003 s, over after 1.0009 s.
fn entry() -> HttpAccessLogEntry {
    let common = AccessLogCommon {
        upstream_cluster: "chat".to_owned(),
        time_to_first_upstream_tx_byte: after(100),
        time_to_first_upstream_rx_byte: after(300),
        time_to_last_upstream_rx_byte: after(800),
        time_to_last_downstream_tx_byte: after(900),
        ..AccessLogCommon::default()
    };
    let response = HttpResponseProperties { response_code: Some(UInt32Value { value: 200 }), ..HttpResponseProperties::default() };
    let request = HttpRequestProperties::default();
    HttpAccessLogEntry {
        common_properties: Some(common),
        request: Some(request),
        response: Some(response),
        ..HttpAccessLogEntry::default()
    }
}

/// The entry after `change` of its properties.
fn changed(change: impl Fn(&mut AccessLogCommon)) -> HttpAccessLogEntry {
    let mut entry = entry();
    change(entry.common_properties.as_mut().unwrap());
    entry
}

fn class_of(entry: &HttpAccessLogEntry) -> String {
    Pools::of(&policies()).read(entry).unwrap().class.to_owned()
}

#[test]
fn times_become_the_metrics_of_the_filter() {
    let (pools, entry) = (Pools::of(&policies()), entry());
    let reading = pools.read(&entry).unwrap();
    assert_eq!((reading.pool, reading.class, reading.model), ("chat", "low", ""));
    let expected = [(Metric::Ttft, 1_000_300), (Metric::Queue, 1_000_100), (Metric::Total, 1_000_900), (Metric::Upstream, 700)];
    assert_eq!(reading.samples, expected);
}

#[test]
fn the_pool_is_that_of_the_tag_the_metadata_the_route_or_the_cluster() {
    let pools = Pools::of(&policies());
    let pool = |change: &dyn Fn(&mut AccessLogCommon)| pools.read(&changed(change)).map(|reading| reading.pool.to_owned());
    let elsewhere = |common: &mut AccessLogCommon| common.upstream_cluster = "outbound|8000||llm".to_owned();
    assert_eq!(pool(&elsewhere), Err(Outcome::NoPool));
    let chat = || Ok("chat".to_owned());
    assert_eq!(pool(&|common| (elsewhere(common), common.route_name = "chat".to_owned()).1), chat());
    assert_eq!(
        pool(&|common| (elsewhere(common), common.custom_tags = HashMap::from([("headgate.pool".to_owned(), "chat".to_owned())])).1),
        chat()
    );
    let metadata = |common: &mut AccessLogCommon| {
        elsewhere(common);
        let fields = HashMap::from([("pool".to_owned(), Value { kind: Some(Kind::StringValue("chat".to_owned())) })]);
        common.metadata =
            Some(Metadata { filter_metadata: HashMap::from([("headgate".to_owned(), Struct { fields })]), ..Metadata::default() });
    };
    assert_eq!(pool(&metadata), chat());
}

#[test]
fn the_class_is_that_of_the_tag_the_filters_decision_or_the_header_and_else_the_default() {
    assert_eq!(class_of(&entry()), "low");
    let tagged =
        |class: &'static str| changed(move |common| drop(common.custom_tags.insert("headgate.class".to_owned(), class.to_owned())));
    assert_eq!(class_of(&tagged("high")), "high");
    assert_eq!(class_of(&tagged("made-up")), "low", "only classes of the policy");
    let decided = changed(|common| {
        let line = b"decision=admit class=high tenant=gold".to_vec();
        let state = Any { type_url: "type.googleapis.com/google.protobuf.BytesValue".to_owned(), value: line.encode_to_vec() };
        common.filter_state_objects.insert("wasm.headgate".to_owned(), state);
    });
    assert_eq!(class_of(&decided), "high");
    let mut by_header = entry();
    let policy = headgate_core::policy::Policy::try_from_wire(&policies().policies["demo"].policy).unwrap();
    let header = policy.classification().priority_header.clone();
    by_header.request.as_mut().unwrap().request_headers =
        HashMap::from([(header, "high".to_owned()), ("x-model".to_owned(), "m".to_owned())]);
    assert_eq!(class_of(&by_header), "high");
    assert_eq!(Pools::of(&policies()).read(&by_header).unwrap().model, "m");
}

/// The entry after dynamic metadata `headgate`/`streamed_tokens` is `value`.
fn with_tokens(value: Kind) -> HttpAccessLogEntry {
    changed(move |common| {
        let fields = HashMap::from([("streamed_tokens".to_owned(), Value { kind: Some(value.clone()) })]);
        let filter_metadata = HashMap::from([("headgate".to_owned(), Struct { fields })]);
        common.metadata = Some(Metadata { filter_metadata, ..Metadata::default() });
    })
}

fn tpot(entry: &HttpAccessLogEntry) -> Option<u64> {
    let samples = Pools::of(&policies()).read(entry).unwrap().samples;
    samples.into_iter().find(|(metric, _)| *metric == Metric::Tpot).map(|(_, micros)| micros)
}

#[test]
fn time_between_tokens_is_the_streams_time_over_its_gaps_where_their_number_is_known() {
    // First byte after 300 µs, last after 800 µs of the second.
    assert_eq!(tpot(&entry()), None, "an access log alone has no tokens");
    assert_eq!(tpot(&with_tokens(Kind::NumberValue(6.0))), Some(100));
    assert_eq!(tpot(&with_tokens(Kind::StringValue("11".to_owned()))), Some(50));
    let tagged = changed(|common| drop(common.custom_tags.insert("headgate.streamed_tokens".to_owned(), "2".to_owned())));
    assert_eq!(tpot(&tagged), Some(500));
    for none in [0.0, 1.0, -3.0, 2.5, f64::NAN, f64::INFINITY, 1e300] {
        assert_eq!(tpot(&with_tokens(Kind::NumberValue(none))), None, "{none}");
    }
    for none in ["", "-1", "many", "99999999999999999999", "4294967296"] {
        assert_eq!(tpot(&with_tokens(Kind::StringValue(none.to_owned()))), None, "{none}");
    }
    let mut backwards = with_tokens(Kind::NumberValue(6.0));
    backwards.common_properties.as_mut().unwrap().time_to_last_upstream_rx_byte = after(200);
    assert_eq!(tpot(&backwards), None);
}

#[test]
fn errors_refusals_and_requests_that_go_on_say_nothing() {
    let pools = Pools::of(&policies());
    let mut failed = entry();
    failed.response.as_mut().unwrap().response_code = Some(UInt32Value { value: 503 });
    assert_eq!(pools.read(&failed), Err(Outcome::NoResponse));
    assert_eq!(pools.read(&changed(|common| common.time_to_first_upstream_rx_byte = None)), Err(Outcome::NoResponse));
    let periodic = changed(|common| common.access_log_type = AccessLogType::DownstreamPeriodic as i32);
    assert_eq!(pools.read(&periodic), Err(Outcome::Intermediate));
    assert_eq!(
        pools.read(&changed(|common| common.time_to_first_upstream_rx_byte = Some(Duration { seconds: -5, nanos: 0 }))),
        Err(Outcome::NoResponse)
    );
}

#[test]
fn a_proxy_whose_filter_reports_the_pool_counts_once() {
    let (fleet, ledger, clock) = (Fleet::new(), SharedLedger::default(), Clock::start());
    fleet.publish_policies(policies());
    ledger.lock().set_policies(&policies());
    let pool = v1::PoolReport { policy: "demo".to_owned(), pool: "chat".to_owned(), ..v1::PoolReport::default() };
    let worker = v1::WorkerReport { at_ns: 1, pools: vec![pool], ..v1::WorkerReport::default() };
    ledger
        .lock()
        .record(clock.now(), &v1::LoadReport { node_id: "with-filter".to_owned(), workers: vec![worker], ..v1::LoadReport::default() });
    let counters = Arc::new(Counters::default());
    let service = AccessLogs::new(&fleet, ledger.clone(), clock, counters.clone(), CancellationToken::new());
    for node in ["with-filter", "without"] {
        service.book(node, &Pools::of(&policies()), &[entry(), entry()]);
    }
    let outcomes: Vec<_> = counters.outcomes().filter(|(_, count)| *count > 0).collect();
    assert_eq!(outcomes, [("booked", 2), ("reported_by_filter", 2)]);
    assert_eq!(ledger.lock().latencies(clock.now(), "chat").streams[0].totals.of(Metric::Total).count(), 2);
}

#[test]
fn a_stream_without_a_node_or_with_names_without_end_is_refused_by_field() {
    let named = |id: &str, log_name: &str| {
        let node = Some(Node { id: id.to_owned(), ..Node::default() });
        checked_node(Some(Identifier { node, log_name: log_name.to_owned() })).map_err(|status| status.message().to_owned())
    };
    assert_eq!(checked_node(None).unwrap_err().message(), "identifier: is missing");
    assert_eq!(named("", "l"), Err("identifier.node.id: is missing".to_owned()));
    assert_eq!(named("n", &"l".repeat(600)), Err("identifier.log_name: 600 bytes is above 512".to_owned()));
    assert_eq!(named(&"n".repeat(600), "l"), Err("identifier.node.id: 600 bytes is outside 1..=512".to_owned()));
    assert_eq!(named("n", "l"), Ok("n".to_owned()));
}
