#![allow(clippy::unwrap_used, clippy::panic)]

use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;

use super::*;
use crate::gateway::documents;

const DOCUMENTS: &str = "
apiVersion: headgate.dev/v1
kind: Pool
metadata: { name: large }
spec: { endpoints: [{ address: 10.0.0.1, port: 8000 }, { address: 10.1.0.1, port: 8000, tier: 1 }], retries: { attempts: 3 } }
---
apiVersion: headgate.dev/v1
kind: Pool
metadata: { name: small }
spec:
  endpoints: [{ address: 10.0.0.2, port: 8000 }]
  balancing: { algorithm: consistent_hash, hashHeader: x-user }
  retries: { enabled: false }
---
apiVersion: headgate.dev/v1
kind: Route
metadata: { name: chat }
spec:
  rules:
  - { models: [llama-70b, 'llama-8*'], maxInputBytes: 4096, backends: [{ pool: large, weight: 90 }, { pool: small, weight: 10 }] }
  - { pathPrefix: /v1/, backends: [{ pool: large }] }
---
apiVersion: headgate.dev/v1
kind: Gateway
metadata: { name: public }
spec:
  port: 10000
  jwt:
  - { name: b, issuer: b, jwks: '{\"keys\": [{\"kty\": \"oct\", \"k\": \"c2VjcmV0\"}]}' }
  - { name: a, issuer: a, jwksUri: https://idp.example.org/keys }
";

fn filter() -> FilterDelivery {
    FilterDelivery { wasm: "/headgate.wasm".into(), control_cluster: "headgate-control".into(), control_authority: "headgate.local".into() }
}

fn rendered(documents: &str) -> Rendered {
    let set = GatewaySet::try_new(&documents::read(documents).unwrap()).unwrap();
    render(&set, &EndpointStates::default(), &filter())
}

fn manager(rendered: &Rendered) -> HttpConnectionManager {
    use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
    let network = &rendered.gateways[0].listeners[0].filter_chains[0].filters[0];
    let Some(ConfigType::TypedConfig(any)) = &network.config_type else { panic!("a typed config") };
    HttpConnectionManager::decode(any.value.as_slice()).unwrap()
}

#[test]
fn every_resource_finds_what_it_refers_to() {
    let resources = rendered(DOCUMENTS).resources().unwrap();
    let (audience, snapshot) = resources.for_cluster("anything");
    let names = |kind| snapshot.set(kind).iter().map(|resource| resource.name().to_string()).collect::<Vec<_>>();
    assert_eq!(audience, None);
    assert_eq!(names(ResourceType::Cluster), ["https:idp.example.org:443", "large", "small"]);
    assert_eq!(names(ResourceType::Endpoint), ["large", "small"]);
    assert_eq!(names(ResourceType::Route), ["public"]);
    assert_eq!(names(ResourceType::Listener), ["public"]);
}

#[test]
fn a_gateway_with_a_cluster_of_proxies_is_told_to_them_alone() {
    let resources = rendered(&DOCUMENTS.replace("port: 10000", "port: 10000\n  nodeCluster: edge")).resources().unwrap();
    let listeners = |cluster: &str| resources.for_cluster(cluster).1.set(ResourceType::Listener).iter().count();
    assert_eq!((listeners("edge"), listeners("other")), (1, 0));
}

#[test]
fn the_same_documents_have_the_same_bytes() {
    // A map in the order of its hashes would differ between two of its instances.
    let (one, other) = (rendered(DOCUMENTS), rendered(DOCUMENTS));
    assert_eq!(one.bootstrap(None), other.bootstrap(None));
    let providers = manager(&one).http_filters.into_iter().find(|filter| filter.name.ends_with("jwt_authn")).unwrap();
    let bytes = providers.encode_to_vec();
    let at = |issuer: &[u8]| bytes.windows(issuer.len()).position(|window| window == issuer).unwrap();
    assert!(at(b"idp.example.org") > at(b"\"keys\""), "in the order of the document");
}

#[test]
fn what_the_filter_diverts_comes_before_the_rules_and_clients_cannot_ask_for_it() {
    let rendered = rendered(DOCUMENTS);
    let routes = &rendered.gateways[0].routes.virtual_hosts[0].routes;
    let names: Vec<&str> = routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["to-large", "to-small", "chat[0]", "chat[1]"]);
    assert_eq!(routes[0].r#match.as_ref().unwrap().headers[0].name, POOL_HEADER);
    let early = &manager(&rendered).early_header_mutation_extensions[0];
    let bytes = early.encode_to_vec();
    assert!(bytes.windows(11).any(|window| window == b"x-headgate-"), "the entry takes our headers off");
}

#[test]
fn backends_share_by_weight_and_only_pools_that_want_retries_pay_for_them() {
    let rendered = rendered(DOCUMENTS);
    let Some(Action::Route(action)) = &rendered.gateways[0].routes.virtual_hosts[0].routes[2].action else { panic!("a route") };
    let Some(ClusterSpecifier::WeightedClusters(clusters)) = &action.cluster_specifier else { panic!("weights") };
    let weights: Vec<u32> = clusters.clusters.iter().map(|cluster| cluster.weight.unwrap().value).collect();
    assert_eq!(weights, [90, 10]);
    assert_eq!(action.retry_policy.as_ref().unwrap().num_retries.unwrap().value, 3);
    assert_eq!(action.timeout.unwrap(), envoy_types::pb::google::protobuf::Duration::default(), "streams have no end in time");
    assert_eq!(action.hash_policy.len(), 1);
    let retries = |name: &str| {
        let cluster = rendered.clusters.iter().find(|cluster| cluster.name == name).unwrap();
        let thresholds = &cluster.circuit_breakers.as_ref().unwrap().thresholds[0];
        (thresholds.max_retries.map(|most| most.value), thresholds.retry_budget.is_some())
    };
    assert_eq!((retries("large"), retries("small")), ((None, true), (Some(0), false)));
}

#[test]
fn named_endpoints_are_followed_before_the_algorithm_and_only_where_the_pool_says_so() {
    use envoy_types::pb::envoy::config::cluster::v3::LoadBalancingPolicy;
    use envoy_types::pb::envoy::extensions::load_balancing_policies::override_host::v3::OverrideHost;
    let only = |policy: &LoadBalancingPolicy| policy.policies[0].typed_extension_config.clone().unwrap();
    let of_small = |documents: &str| only(rendered(documents).clusters[1].load_balancing_policy.as_ref().unwrap());
    let ring = of_small(DOCUMENTS);
    assert_eq!(ring.name, "envoy.load_balancing_policies.ring_hash");
    let follows = of_small(&DOCUMENTS.replace("hashHeader: x-user", "hashHeader: x-user, followPicks: true"));
    assert_eq!(follows.name, "envoy.load_balancing_policies.override_host");
    let policy = OverrideHost::decode(follows.typed_config.unwrap().value.as_slice()).unwrap();
    let headers: Vec<&str> = policy.override_host_sources.iter().map(|source| source.header.as_str()).collect();
    assert_eq!(headers, ["x-gateway-destination-endpoint"]);
    assert_eq!(only(&policy.fallback_policy.unwrap()), ring, "the algorithm as it would be by itself");
}

#[test]
fn tiers_are_priorities() {
    let rendered = rendered(DOCUMENTS);
    let priorities: Vec<u32> = rendered.assignments[0].endpoints.iter().map(|group| group.priority).collect();
    assert_eq!(priorities, [0, 1]);
}

#[test]
fn where_telemetry_weighs_endpoints_their_latencies_are_logged() {
    assert!(manager(&rendered(DOCUMENTS)).access_log.is_empty());
    let measured = DOCUMENTS.replace("hashHeader: x-user", "hashHeader: x-user, weights: telemetry");
    assert_eq!(manager(&rendered(&measured)).access_log.len(), 1);
}

#[test]
fn headers_are_kept_for_the_filter_and_taken_off_the_answer_as_in_the_file_for_users() {
    use envoy_types::pb::envoy::extensions::filters::http::header_to_metadata::v3::Config;
    use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
    let filters = manager(&rendered(DOCUMENTS)).http_filters;
    let at = |end: &str| filters.iter().position(|filter| filter.name.ends_with(end)).unwrap();
    assert_eq!(at("header_to_metadata"), at("headgate") + 1, "responses pass it before the filter");
    let Some(ConfigType::TypedConfig(config)) = &filters[at("header_to_metadata")].config_type else { panic!("a configuration") };
    let config = Config::decode(config.value.as_slice()).unwrap();
    let rules: Vec<_> =
        config.response_rules.iter().map(|rule| (rule.header.clone(), rule.on_header_present.clone(), rule.remove)).collect();
    let file: serde_json::Value = serde_json::from_str(include_str!("../../../../../envoy/response-headers.json")).unwrap();
    let copied: Vec<_> = file["typed_config"]["response_rules"].as_array().unwrap().iter().collect();
    assert_eq!(rules.len(), copied.len());
    for ((header, kept, remove), copied) in rules.iter().zip(copied) {
        let kept = kept.as_ref().unwrap();
        let to = &copied["on_header_present"];
        assert_eq!((header.as_str(), *remove), (copied["header"].as_str().unwrap(), copied["remove"].as_bool().unwrap()));
        assert_eq!((&*kept.metadata_namespace, &*kept.key), (to["metadata_namespace"].as_str().unwrap(), to["key"].as_str().unwrap()));
    }
}
