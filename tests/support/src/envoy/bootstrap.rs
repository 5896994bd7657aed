//! A bootstrap as a value, rendered to the JSON that Envoy reads.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use headgate_core::envoy::DESTINATION_ENDPOINT;
use serde_json::{Value, json};

use super::filters::HttpFilter;

/// The cluster by which Envoy and the filter reach the control plane.
pub const CONTROL_CLUSTER: &str = "headgate-control";
/// The `:authority` on that cluster: hyper refuses cluster names such as Istio's.
pub const CONTROL_AUTHORITY: &str = "headgate.local";

/// What one Envoy with one listener does.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// `node.id`.
    pub node_id: String,
    /// The filter in front of the router.
    pub filter: HttpFilter,
    /// What requests reach behind it.
    pub upstream: Upstream,
    /// The gRPC addresses of the control plane's replicas; without one there is no such cluster.
    pub control_plane: Vec<SocketAddr>,
    /// How the proxy shows who it is to the control plane; without it they speak plain text.
    pub control_tls: Option<ControlTls>,
    /// How connections are spread over the workers.
    pub balance: ConnectionBalance,
    /// Bound on a stream on which nothing moves, one that the filter holds included.
    pub stream_idle_timeout: Duration,
    /// Bound on what is buffered for one connection.
    pub per_connection_buffer_limit_bytes: u32,
    /// Whether each request is logged.
    pub access_log: AccessLog,
    /// Further filters between `filter` and the router.
    pub inner_filters: Vec<Value>,
    /// `response_headers_to_remove` of the route.
    pub removed_response_headers: Vec<String>,
}

/// PEM files for mutual TLS with the control plane, whose certificate is for [`CONTROL_AUTHORITY`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlTls {
    /// The authority of the control plane's certificate.
    pub authority: PathBuf,
    /// The proxy's certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What requests reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// One endpoint.
    Endpoint(SocketAddr),
    /// Several, of which Envoy takes the less busy of two, or the one that a request names.
    Endpoints {
        /// Where they are.
        addresses: Vec<SocketAddr>,
        /// Whether the header of the picked endpoint is followed (`override_host`).
        follows_picks: bool,
    },
    /// Envoy itself answers 200 with a short body, so nothing but Envoy is measured.
    Direct,
}

/// How connections are spread over the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionBalance {
    /// By the kernel, as in production: uneven when there are few.
    Kernel,
    /// Evenly: of N connections to W workers each worker has N / W.
    Exact,
}

/// Whether each request is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// A line in a file, with the filter's own decision.
    File,
    /// An entry by gRPC to the control plane, which names the pool `llm`, the class by `x-class` and the model by `x-model`.
    Grpc,
    /// None.
    Off,
}

impl Bootstrap {
    /// `filter` in front of `upstream`, connections spread evenly, an access log, and no control plane.
    #[must_use]
    pub fn new(filter: HttpFilter, upstream: Upstream) -> Self {
        Self {
            node_id: "test-envoy".to_owned(),
            filter,
            upstream,
            control_plane: Vec::new(),
            control_tls: None,
            balance: ConnectionBalance::Exact,
            stream_idle_timeout: Duration::from_secs(30),
            per_connection_buffer_limit_bytes: 64 * 1024,
            access_log: AccessLog::File,
            inner_filters: Vec::new(),
            removed_response_headers: Vec::new(),
        }
    }

    /// With a control plane.
    #[must_use]
    pub fn with_control_plane(mut self, grpc: SocketAddr) -> Self {
        self.control_plane = vec![grpc];
        self
    }

    /// With several replicas of a control plane, any of which will do.
    #[must_use]
    pub fn with_replicas(mut self, grpc: Vec<SocketAddr>) -> Self {
        self.control_plane = grpc;
        self
    }

    /// The JSON that Envoy reads. Every port is free, so Envoys can run side by side.
    ///
    /// # Errors
    /// When a filter's module is not built.
    pub fn render(&self, access_log: &Path) -> Result<Value> {
        let mut clusters = Vec::new();
        match &self.upstream {
            Upstream::Endpoint(address) => clusters.push(upstream_cluster(&[*address], false)),
            Upstream::Endpoints { addresses, follows_picks } => clusters.push(upstream_cluster(addresses, *follows_picks)),
            Upstream::Direct => {}
        }
        if !self.control_plane.is_empty() {
            clusters.push(control_cluster(&self.control_plane, self.control_tls.as_ref()));
        }
        Ok(json!({
            "node": {"id": self.node_id, "cluster": "headgate-test"},
            "admin": {"address": socket_address("127.0.0.1", 0)},
            "static_resources": {"listeners": [self.listener(access_log)?], "clusters": clusters},
        }))
    }

    fn listener(&self, access_log: &Path) -> Result<Value> {
        let mut listener = json!({
            "name": "main",
            "address": socket_address("127.0.0.1", 0),
            "per_connection_buffer_limit_bytes": self.per_connection_buffer_limit_bytes,
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": self.connection_manager(access_log)?,
            }]}],
        });
        if self.balance == ConnectionBalance::Exact {
            // Envoy can balance only what one socket accepts.
            listener["enable_reuse_port"] = json!(false);
            listener["connection_balance_config"] = json!({"exact_balance": {}});
        }
        Ok(listener)
    }

    fn connection_manager(&self, access_log: &Path) -> Result<Value> {
        let mut filters = self.filter.render()?;
        filters.extend(self.inner_filters.iter().cloned());
        filters.push(json!({
            "name": "envoy.filters.http.router",
            "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({})),
        }));
        let logs = match self.access_log {
            AccessLog::File => vec![file_log(access_log)],
            AccessLog::Grpc => vec![grpc_log()],
            AccessLog::Off => Vec::new(),
        };
        Ok(typed(
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            json!({
                "stat_prefix": "main",
                "codec_type": "AUTO",
                "stream_idle_timeout": seconds(self.stream_idle_timeout),
                "use_remote_address": true,
                "access_log": logs,
                "route_config": self.routes(),
                "http_filters": filters,
            }),
        ))
    }

    fn routes(&self) -> Value {
        let mut route = match self.upstream {
            // Streams of tokens last as long as they last; what stands still is bounded by the idle timeout.
            Upstream::Endpoint(_) | Upstream::Endpoints { .. } => {
                json!({"match": {"prefix": "/"}, "route": {"cluster": "inference", "timeout": "0s"}})
            }
            Upstream::Direct => json!({"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "ok\n"}}}),
        };
        if !self.removed_response_headers.is_empty() {
            route["response_headers_to_remove"] = json!(self.removed_response_headers);
        }
        json!({"name": "main", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]})
    }
}

/// Wraps `config` as an `Any` of `message`.
pub(crate) fn typed(message: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("type.googleapis.com/{message}"));
    config
}

/// A duration as protobuf's JSON has it.
pub(crate) fn seconds(duration: Duration) -> Value {
    json!(format!("{}s", duration.as_secs_f64()))
}

fn socket_address(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

fn file_log(path: &Path) -> Value {
    let format = "%START_TIME% %REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %RESPONSE_FLAGS% %DURATION% \
                  %FILTER_STATE(wasm.headgate:PLAIN)%\n";
    json!({
        "name": "envoy.access_loggers.file",
        "typed_config": typed("envoy.extensions.access_loggers.file.v3.FileAccessLog", json!({
            "path": path,
            "log_format": {"text_format_source": {"inline_string": format}},
        })),
    })
}

fn grpc_log() -> Value {
    let header = |tag: &str, name: &str| json!({"tag": tag, "request_header": {"name": name}});
    let config = json!({"common_config": {
        "log_name": "headgate",
        "transport_api_version": "V3",
        "grpc_service": {"envoy_grpc": {"cluster_name": CONTROL_CLUSTER, "authority": CONTROL_AUTHORITY}},
        "buffer_flush_interval": "0.05s",
        "custom_tags": [
            {"tag": "headgate.pool", "literal": {"value": "llm"}},
            header("headgate.class", "x-class"),
            header("headgate.model", "x-model"),
        ],
    }});
    json!({
        "name": "envoy.access_loggers.http_grpc",
        "typed_config": typed("envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig", config),
    })
}

fn endpoints(name: &str, addresses: &[SocketAddr]) -> Value {
    let endpoint = |address: &SocketAddr| json!({"endpoint": {"address": socket_address(&address.ip().to_string(), address.port())}});
    let endpoints: Vec<Value> = addresses.iter().map(endpoint).collect();
    json!({"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]})
}

fn upstream_cluster(addresses: &[SocketAddr], follows_picks: bool) -> Value {
    // Envoy's own limits lie above all that a test sends, so every refusal is the filter's.
    let thresholds = json!({"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000});
    let policy = |name: &str, kind: &str, config: Value| {
        let typed_config = typed(&format!("envoy.extensions.load_balancing_policies.{name}.v3.{kind}"), config);
        json!({"policies": [{"typed_extension_config": {"name": format!("envoy.load_balancing_policies.{name}"), "typed_config": typed_config}}]})
    };
    let least_request = policy("least_request", "LeastRequest", json!({}));
    let follows = json!({"override_host_sources": [{"header": DESTINATION_ENDPOINT}], "fallback_policy": least_request});
    json!({
        "name": "inference",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [thresholds]},
        "load_balancing_policy": if follows_picks { policy("override_host", "OverrideHost", follows) } else { least_request },
        "load_assignment": endpoints("inference", addresses),
    })
}

fn control_cluster(addresses: &[SocketAddr], tls: Option<&ControlTls>) -> Value {
    let mut cluster = plain_control_cluster(addresses);
    if let Some(tls) = tls {
        cluster["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": typed("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", json!({
                "sni": CONTROL_AUTHORITY,
                "common_tls_context": {
                    "tls_certificates": [{
                        "certificate_chain": {"filename": tls.certificate},
                        "private_key": {"filename": tls.key},
                    }],
                    "validation_context": {
                        "trusted_ca": {"filename": tls.authority},
                        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": CONTROL_AUTHORITY}}],
                    },
                },
            })),
        });
    }
    cluster
}

fn plain_control_cluster(addresses: &[SocketAddr]) -> Value {
    let http2 = json!({"connection_keepalive": {"interval": "5s", "timeout": "2s"}});
    json!({
        "name": CONTROL_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                json!({"explicit_http_config": {"http2_protocol_options": http2}}),
            ),
        },
        "load_assignment": endpoints(CONTROL_CLUSTER, addresses),
    })
}
