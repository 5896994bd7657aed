//! A bootstrap that knows nothing but where the control plane is.

use std::net::SocketAddr;

use headgate_test_support::envoy::{CONTROL_AUTHORITY, CONTROL_CLUSTER};
use headgate_xds::ResourceType;
use serde_json::{Value, json};

use crate::world::RUNTIME_LAYER;

/// How an Envoy is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Everything on one stream, the state of the world.
    AggregatedSotw,
    /// Everything on one stream, deltas.
    AggregatedDelta,
    /// A stream for each type, some in either variant.
    Split,
}

impl Mode {
    /// Whether a type is told by deltas.
    pub(crate) fn is_delta(self, kind: ResourceType) -> bool {
        match self {
            Self::AggregatedSotw => false,
            Self::AggregatedDelta => true,
            Self::Split => matches!(kind, ResourceType::Endpoint | ResourceType::Route | ResourceType::ExtensionConfig),
        }
    }

    /// A config source for a type.
    fn source(self, kind: ResourceType) -> Value {
        match self {
            Self::AggregatedSotw | Self::AggregatedDelta => json!({"ads": {}, "resource_api_version": "V3"}),
            Self::Split => json!({"api_config_source": api(self.is_delta(kind)), "resource_api_version": "V3"}),
        }
    }
}

fn api(is_delta: bool) -> Value {
    json!({
        "api_type": if is_delta { "DELTA_GRPC" } else { "GRPC" },
        "transport_api_version": "V3",
        "set_node_on_first_message_only": true,
        "grpc_services": [{"envoy_grpc": {"cluster_name": CONTROL_CLUSTER, "authority": CONTROL_AUTHORITY}}],
    })
}

/// The bootstrap.
pub(crate) fn bootstrap(mode: Mode, control: SocketAddr) -> Value {
    let mut dynamic = json!({"cds_config": mode.source(ResourceType::Cluster), "lds_config": mode.source(ResourceType::Listener)});
    if mode != Mode::Split {
        dynamic["ads_config"] = api(mode == Mode::AggregatedDelta);
    }
    let socket = |address: SocketAddr| json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}});
    let http2 = json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    });
    let endpoint = json!({"endpoint": {"address": socket(control)}});
    json!({
        "node": {"id": "fleet-1", "cluster": "fleet"},
        "admin": {"address": socket(SocketAddr::from(([127, 0, 0, 1], 0)))},
        "layered_runtime": {"layers": [
            {"name": "told", "rtds_layer": {"name": RUNTIME_LAYER, "rtds_config": mode.source(ResourceType::Runtime)}},
        ]},
        "dynamic_resources": dynamic,
        "static_resources": {"clusters": [{
            "name": CONTROL_CLUSTER,
            "type": "STATIC",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
            "load_assignment": {"cluster_name": CONTROL_CLUSTER, "endpoints": [{"lb_endpoints": [endpoint]}]},
        }]},
    })
}
