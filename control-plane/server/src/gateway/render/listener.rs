//! A gateway as its listeners: one for TCP, and one for QUIC where it serves HTTP/3.

use std::time::Duration;

use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog, access_log};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::extensions::access_loggers::grpc::v3::{CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use hcm::HttpConnectionManager;
use hcm::http_connection_manager::{CodecType, PathWithEscapedSlashesAction, RouteSpecifier, UpgradeConfig};

use super::super::config::{Entry, EntryTls};
use super::wrap::{any, duration, from_ads, socket, whole, yes};
use super::{filters, tls};
use crate::config::FilterDelivery;

pub(super) const HTTP_MANAGER: &str = "envoy.filters.network.http_connection_manager";
/// What one connection may keep in memory where no body has to be held, in bytes.
const BUFFER_BYTES: u32 = 65_536;
const STREAM_WINDOW_BYTES: u32 = 65_536;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// Streams of one HTTP/2 connection at a time.
const MAX_STREAMS: u32 = 1024;
/// Headers of one request.
const MAX_HEADERS: u32 = 100;
const HEADERS_LIMIT: Duration = Duration::from_secs(10);
/// For the whole request to arrive: one that trickles in keeps its permit.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// How old a latency can be before it is sent.
const LOG_PERIOD: Duration = Duration::from_millis(250);
/// For a stream on which nothing moves; a rule of a route has its own.
const IDLE_LIMIT: Duration = Duration::from_secs(300);

/// The listeners of a gateway.
pub(super) fn of_entry(entry: &Entry, log: Option<&AccessLog>) -> Vec<Listener> {
    let secure = entry.tls.as_ref();
    let tcp = with_chain(
        entry,
        entry.name.clone(),
        core::socket_address::Protocol::Tcp,
        listener::FilterChain {
            filters: vec![manager(entry, CodecType::Auto, log)],
            transport_socket: secure.map(tls::downstream),
            ..listener::FilterChain::default()
        },
    );
    let quic = secure.filter(|tls| tls.http3).map(|tls| over_quic(entry, tls, log));
    [Some(tcp), quic].into_iter().flatten().collect()
}

/// Tells the control plane how long each endpoint took, without anybody waiting for it.
pub(super) fn latency_log(filter: &FilterDelivery) -> AccessLog {
    let service = core::grpc_service::EnvoyGrpc {
        cluster_name: filter.control_cluster.clone(),
        authority: filter.control_authority.clone(),
        ..core::grpc_service::EnvoyGrpc::default()
    };
    let common = CommonGrpcAccessLogConfig {
        log_name: "headgate-gateway".to_owned(),
        grpc_service: Some(core::GrpcService {
            target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(service)),
            ..core::GrpcService::default()
        }),
        transport_api_version: core::ApiVersion::V3.into(),
        buffer_flush_interval: duration(LOG_PERIOD),
        ..CommonGrpcAccessLogConfig::default()
    };
    let config = HttpGrpcAccessLogConfig { common_config: Some(common), ..HttpGrpcAccessLogConfig::default() };
    AccessLog {
        name: "envoy.access_loggers.http_grpc".to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(any(&config))),
        ..AccessLog::default()
    }
}

fn over_quic(entry: &Entry, tls: &EntryTls, log: Option<&AccessLog>) -> Listener {
    let chain = listener::FilterChain {
        filters: vec![manager(entry, CodecType::Http3, log)],
        transport_socket: Some(tls::quic(tls)),
        ..listener::FilterChain::default()
    };
    let options = listener::UdpListenerConfig {
        quic_options: Some(listener::QuicProtocolOptions::default()),
        ..listener::UdpListenerConfig::default()
    };
    let udp = with_chain(entry, format!("{}-http3", entry.name), core::socket_address::Protocol::Udp, chain);
    Listener { udp_listener_config: Some(options), ..udp }
}

fn with_chain(entry: &Entry, name: String, protocol: core::socket_address::Protocol, chain: listener::FilterChain) -> Listener {
    let holds_bodies = entry.model_from_body || entry.signatures.is_some();
    Listener {
        name,
        address: Some(socket(&entry.address.to_string(), entry.port, protocol)),
        filter_chains: vec![chain],
        per_connection_buffer_limit_bytes: whole(if holds_bodies { entry.max_body_bytes.max(BUFFER_BYTES) } else { BUFFER_BYTES }),
        ..Listener::default()
    }
}

fn manager(entry: &Entry, codec: CodecType, log: Option<&AccessLog>) -> listener::Filter {
    let is_http3 = codec == CodecType::Http3;
    let manager = HttpConnectionManager {
        codec_type: codec.into(),
        stat_prefix: entry.name.clone(),
        http_filters: filters::chain(entry),
        route_specifier: Some(RouteSpecifier::Rds(hcm::Rds { config_source: Some(from_ads()), route_config_name: entry.name.clone() })),
        // A client's own x-forwarded-for and x-envoy-* count for nothing.
        use_remote_address: yes(),
        xff_num_trusted_hops: entry.trusted_hops,
        early_header_mutation_extensions: vec![filters::early(entry)],
        // Routes and policies match path prefixes: one spelling for one path.
        normalize_path: yes(),
        merge_slashes: true,
        path_with_escaped_slashes_action: PathWithEscapedSlashesAction::UnescapeAndForward.into(),
        strip_port_mode: Some(hcm::http_connection_manager::StripPortMode::StripAnyHostPort(true)),
        common_http_protocol_options: Some(core::HttpProtocolOptions {
            // Some servers read x_headgate_… as x-headgate-….
            headers_with_underscores_action: core::http_protocol_options::HeadersWithUnderscoresAction::DropHeader.into(),
            max_headers_count: whole(MAX_HEADERS),
            ..core::HttpProtocolOptions::default()
        }),
        http2_protocol_options: Some(core::Http2ProtocolOptions {
            max_concurrent_streams: whole(MAX_STREAMS),
            initial_stream_window_size: whole(STREAM_WINDOW_BYTES),
            initial_connection_window_size: whole(CONNECTION_WINDOW_BYTES),
            ..core::Http2ProtocolOptions::default()
        }),
        http3_protocol_options: is_http3.then(core::Http3ProtocolOptions::default),
        max_request_headers_kb: whole(entry.max_header_kib),
        request_headers_timeout: duration(HEADERS_LIMIT),
        request_timeout: duration(REQUEST_LIMIT),
        stream_idle_timeout: duration(IDLE_LIMIT),
        access_log: log.cloned().into_iter().collect(),
        upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".to_owned(), ..UpgradeConfig::default() }],
        ..HttpConnectionManager::default()
    };
    listener::Filter { name: HTTP_MANAGER.to_owned(), config_type: Some(listener::filter::ConfigType::TypedConfig(any(&manager))) }
}
