//! Every method of every service: who may call it, and how long its messages are.
//!
//! A method that is not in the table is refused, so a service that is forgotten here is closed, not open.

/// What a caller must be for a call to reach its service, which may ask for more: the role for the very policy, the very node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nobody in particular.
    Open,
    /// Somebody who may read some policy.
    View,
    /// Somebody who may apply some policy.
    Operate,
    /// Somebody who may delete some policy.
    Admin,
    /// A proxy, or another machine that speaks for one of the fleet's nodes.
    Proxy,
    /// Another replica of the control plane.
    Replica,
}

/// A method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rpc {
    /// `/package.Service/Method`, or `/package.Service/` for all methods of a service.
    pub path: &'static str,
    /// Who may call it.
    pub need: Need,
    /// Longest message of the caller, in bytes.
    pub max_message_bytes: usize,
}

/// Requests that name something.
const SMALL: usize = 64 << 10;
/// A policy document has at most 1 MiB, which its message frames.
const DOCUMENT: usize = (1 << 20) + (64 << 10);
/// What machines send: a client's whole state of resources, a report of all workers, pools and tenants.
const LARGE: usize = 4 << 20;

const fn rpc(path: &'static str, need: Need, max_message_bytes: usize) -> Rpc {
    Rpc { path, need, max_message_bytes }
}

/// The table.
pub const RPCS: &[Rpc] = &[
    rpc("/headgate.v1.PolicyService/ApplyPolicy", Need::Operate, DOCUMENT),
    rpc("/headgate.v1.PolicyService/ValidatePolicy", Need::View, DOCUMENT),
    rpc("/headgate.v1.PolicyService/GetPolicy", Need::View, SMALL),
    rpc("/headgate.v1.PolicyService/ListPolicies", Need::View, SMALL),
    rpc("/headgate.v1.PolicyService/DeletePolicy", Need::Admin, SMALL),
    rpc("/headgate.v1.PolicyService/WatchPolicies", Need::View, SMALL),
    rpc("/headgate.v1.PolicyLife/ListPolicyRevisions", Need::View, SMALL),
    rpc("/headgate.v1.PolicyLife/GetPolicyRevision", Need::View, SMALL),
    rpc("/headgate.v1.PolicyLife/RollbackPolicy", Need::Operate, SMALL),
    rpc("/headgate.v1.PolicyLife/PromotePolicy", Need::Operate, SMALL),
    rpc("/headgate.v1.PolicyLife/AbortPolicy", Need::Operate, SMALL),
    rpc("/headgate.v1.PolicyLife/ListPolicyProxies", Need::View, SMALL),
    rpc("/headgate.v1.PolicyTrial/DryRunPolicy", Need::View, DOCUMENT),
    rpc("/headgate.v1.GatewayService/ApplyGateway", Need::Operate, DOCUMENT),
    rpc("/headgate.v1.GatewayService/ValidateGateway", Need::View, DOCUMENT),
    rpc("/headgate.v1.GatewayService/ListGateway", Need::View, SMALL),
    rpc("/headgate.v1.GatewayService/DeleteGateway", Need::Admin, SMALL),
    rpc("/headgate.v1.LoadReporting/StreamLoadReports", Need::Proxy, LARGE),
    rpc("/headgate.v1.DeviceReporting/", Need::Proxy, LARGE),
    rpc("/headgate.v1.Replication/", Need::Replica, LARGE),
    rpc("/envoy.service.discovery.v3.AggregatedDiscoveryService/", Need::Proxy, LARGE),
    rpc("/envoy.service.cluster.v3.ClusterDiscoveryService/", Need::Proxy, LARGE),
    rpc("/envoy.service.endpoint.v3.EndpointDiscoveryService/", Need::Proxy, LARGE),
    rpc("/envoy.service.listener.v3.ListenerDiscoveryService/", Need::Proxy, LARGE),
    rpc("/envoy.service.route.v3.RouteDiscoveryService/", Need::Proxy, LARGE),
    rpc("/envoy.service.runtime.v3.RuntimeDiscoveryService/", Need::Proxy, LARGE),
    rpc("/envoy.service.extension.v3.ExtensionConfigDiscoveryService/", Need::Proxy, LARGE),
    rpc("/envoy.service.accesslog.v3.AccessLogService/", Need::Proxy, LARGE),
    rpc("/grpc.reflection.v1.ServerReflection/", Need::View, SMALL),
    rpc("/grpc.health.v1.Health/", Need::Open, SMALL),
];

/// The row of a path.
pub fn rpc_of(path: &str) -> Option<&'static Rpc> {
    RPCS.iter().find(|rpc| if rpc.path.ends_with('/') { path.starts_with(rpc.path) } else { path == rpc.path })
}

/// Who may read a page of the HTTP listener.
pub fn page_need(path: &str) -> Need {
    match path {
        // The page itself has no figures; it fetches them.
        "/" | "/healthz" | "/readyz" => Need::Open,
        _ => Need::View,
    }
}

#[cfg(test)]
mod tests {
    use headgate_protos::FILE_DESCRIPTOR_SET;
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_method_that_is_described_has_a_row() {
        let mut missing = Vec::new();
        for file in FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap().file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    if rpc_of(&path).is_none() {
                        missing.push(path);
                    }
                }
            }
        }
        assert!(missing.is_empty(), "methods without a row in RPCS: {missing:#?}");
    }

    #[test]
    fn a_prefix_is_a_whole_service() {
        assert_eq!(rpc_of("/grpc.health.v1.Health/Check").unwrap().need, Need::Open);
        assert_eq!(rpc_of("/grpc.health.v1.HealthX/Check"), None);
        assert_eq!(rpc_of("/headgate.v1.PolicyService/ApplyPolicyX"), None);
        assert_eq!(rpc_of(""), None);
    }
}
