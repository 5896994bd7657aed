#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use headgate_protos::v1;

use super::*;
use crate::document::CheckedPolicy;
use crate::fleet::{PoolLimits, ProxyShare, StoredPolicy};

fn filter() -> FilterDelivery {
    FilterDelivery {
        wasm: "/etc/envoy/headgate.wasm".into(),
        control_cluster: "headgate-control".into(),
        control_authority: "headgate.local".into(),
    }
}

fn policies(names: &[&str]) -> Arc<PolicySet> {
    let stored = |name: &str| {
        let text = format!(
            "{{apiVersion: headgate.dev/v1, kind: AdmissionPolicy, metadata: {{name: {name}}}, spec: {{pool: {name}-pool, classes: [{{name: low, whenTripped: refuse}}]}}}}"
        );
        let policy = CheckedPolicy::from_document(&text).unwrap().wire().clone();
        (name.to_owned(), Arc::new(StoredPolicy { policy, changed_at_unix_ms: 1 }))
    };
    Arc::new(PolicySet { policies: names.iter().map(|name| stored(name)).collect() })
}

fn limits(pool: &str, rate_rps: f64) -> LimitsTable {
    let class = v1::ClassLimit { class: "low".into(), rate_rps, ..v1::ClassLimit::default() };
    let fleet = v1::Limits { pool: pool.into(), classes: vec![class], ..v1::Limits::default() };
    let shares = [("node-1".to_owned(), ProxyShare { rate: 0.25, safe: 0.5, ..ProxyShare::default() })].into();
    let newcomer = ProxyShare { rate: 0.5, safe: 0.5, ..ProxyShare::default() };
    LimitsTable {
        pools: [(pool.to_owned(), Arc::new(PoolLimits { fleet, shares, newcomer, overload: None, grants: Arc::default() }))].into(),
    }
}

fn get<'a>(snapshot: &'a Snapshot, kind: ResourceType, name: &str) -> Option<&'a Resource> {
    snapshot.set(kind).get(&ResourceName::new(name).unwrap())
}

#[test]
fn every_proxy_is_told_every_policy_by_the_version_of_its_content() {
    let set = policies(&["a", "b"]);
    let snapshot = SharedResources::new(set.clone(), &Snapshot::default(), &filter())
        .unwrap()
        .snapshot_for("node-1", &LimitsTable::default())
        .unwrap();
    for (name, stored) in &set.policies {
        let resource = get(&snapshot, ResourceType::HeadgatePolicy, name).unwrap();
        assert_eq!(resource.version().to_string(), stored.policy.version);
        assert_eq!(v1::Policy::decode(resource.body().value.clone()).unwrap(), stored.policy);
    }
    assert_eq!(snapshot.set(ResourceType::HeadgateLimits).iter().count(), 0);
}

#[test]
fn a_proxy_is_told_its_own_part_of_the_limits() {
    let shared = SharedResources::new(policies(&["a"]), &Snapshot::default(), &filter()).unwrap();
    for (node, rate_rps) in [("node-1", 25.0), ("another", 50.0)] {
        let snapshot = shared.snapshot_for(node, &limits("a-pool", 100.0)).unwrap();
        let resource = get(&snapshot, ResourceType::HeadgateLimits, "a-pool").unwrap();
        let told = v1::Limits::decode(resource.body().value.clone()).unwrap();
        assert_eq!(told.classes.first().map(|class| class.rate_rps), Some(rate_rps), "{node}");
    }
}

#[test]
fn limits_of_a_pool_without_a_policy_are_not_told() {
    let shared = SharedResources::new(policies(&["a"]), &Snapshot::default(), &filter()).unwrap();
    let snapshot = shared.snapshot_for("node-1", &limits("other-pool", 1.0)).unwrap();
    assert_eq!(snapshot.set(ResourceType::HeadgateLimits).iter().count(), 0);
}

#[test]
fn the_filter_is_delivered_as_the_bootstrap_has_it() {
    let snapshot =
        SharedResources::new(policies(&[]), &Snapshot::default(), &filter()).unwrap().snapshot_for("", &LimitsTable::default()).unwrap();
    let resource = get(&snapshot, ResourceType::ExtensionConfig, FILTER_NAME).unwrap();
    let extension = core::TypedExtensionConfig::decode(resource.body().value.clone()).unwrap();
    assert_eq!(extension.name, "headgate");
    let typed = extension.typed_config.unwrap();
    assert_eq!(typed.type_url, "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm");
    let plugin = Wasm::decode(typed.value.as_slice()).unwrap().config.unwrap();
    assert_eq!((plugin.name.as_str(), plugin.failure_policy()), ("headgate", FailurePolicy::FailReload));
    let configuration = plugin.configuration.as_ref().unwrap();
    assert_eq!(configuration.type_url, "type.googleapis.com/google.protobuf.StringValue");
    let json = StringValue::decode(configuration.value.as_slice()).unwrap().value;
    assert_eq!(json, r#"{"controlPlane":{"authority":"headgate.local","cluster":"headgate-control"}}"#);
    let Some(Vm::VmConfig(vm)) = plugin.vm else { unreachable!() };
    assert_eq!((vm.vm_id.as_str(), vm.runtime.as_str()), ("headgate", "envoy.wasm.runtime.v8"));
    let Some(core::async_data_source::Specifier::Local(code)) = vm.code.unwrap().specifier else { unreachable!() };
    assert_eq!(code.specifier, Some(core::data_source::Specifier::Filename("/etc/envoy/headgate.wasm".into())));
}

#[test]
fn the_capabilities_are_those_of_the_bootstrap() {
    let bootstrap = include_str!("../../../../envoy/ecds.yaml");
    let listed: BTreeSet<&str> = bootstrap
        .lines()
        .skip_while(|line| !line.contains("allowed_capabilities:"))
        .skip(1)
        .map_while(|line| line.split_once(": {}").map(|(name, _)| name.trim()))
        .collect();
    let wasm = Wasm::decode(encoded_wasm(&filter()).as_slice()).unwrap();
    #[allow(deprecated)]
    let allowed = wasm.config.unwrap().capability_restriction_config.unwrap().allowed_capabilities;
    assert_eq!(allowed.keys().map(String::as_str).collect::<BTreeSet<_>>(), listed);
}

#[test]
fn the_same_delivery_has_the_same_bytes_in_every_process() {
    let wasm = encoded_wasm(&filter());
    let capabilities: Vec<usize> =
        CAPABILITIES.iter().map(|name| wasm.windows(name.len()).rposition(|window| window == name.as_bytes()).unwrap()).collect();
    assert!(capabilities.is_sorted_by(|one, next| one < next), "a map in the order of its hashes would differ from process to process");
}

#[test]
fn what_is_no_resource_name_is_an_error() {
    let mut set = PolicySet { policies: BTreeMap::new() };
    set.policies.insert(String::new(), Arc::new(StoredPolicy { policy: v1::Policy::default(), changed_at_unix_ms: 0 }));
    assert!(matches!(SharedResources::new(Arc::new(set), &Snapshot::default(), &filter()), Err(ResourceError::Name(InvalidName::Empty))));
}

#[test]
fn what_was_rendered_is_told_with_the_policies_and_may_bring_the_filter() {
    let resource = |kind, name| Resource::new(kind, ResourceName::new(name).unwrap(), Bytes::from_static(b"rendered"));
    let rendered = [resource(ResourceType::Cluster, "pool"), resource(ResourceType::ExtensionConfig, FILTER_NAME)];
    let rendered = Snapshot::try_new(rendered).unwrap();
    let snapshot = SharedResources::new(policies(&["a"]), &rendered, &filter()).unwrap().snapshot_for("", &LimitsTable::default()).unwrap();
    for (kind, name) in [(ResourceType::Cluster, "pool"), (ResourceType::ExtensionConfig, FILTER_NAME)] {
        assert_eq!(get(&snapshot, kind, name).unwrap().body().value.as_ref(), b"rendered");
    }
    assert!(get(&snapshot, ResourceType::HeadgatePolicy, "a").is_some());
}
