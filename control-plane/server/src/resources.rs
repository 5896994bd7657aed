//! What each proxy is told over discovery, as a pure function of policies, limits and the filter's delivery.

mod retold;
#[cfg(test)]
mod tests;

pub use self::retold::{ATTEMPT_VARIABLE, retold};

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::http::wasm::v3::Wasm;
use envoy_types::pb::envoy::extensions::wasm::v3::plugin_config::Vm;
use envoy_types::pb::envoy::extensions::wasm::v3::{
    CapabilityRestrictionConfig, FailurePolicy, PluginConfig, SanitizationConfig, VmConfig,
};
use envoy_types::pb::google::protobuf::{Any, StringValue};
use headgate_core::policy::books_name;
use headgate_protos::plugin::CAPABILITIES;
use headgate_protos::v1;
use headgate_xds::{Inconsistent, InvalidName, Resource, ResourceName, ResourceType, Snapshot, Version};
use prost::{Message, Name};

use crate::config::FilterDelivery;
use crate::fleet::{LimitsTable, PolicySet};
use crate::rollout;

/// Name of the filter and of its ECDS resource, as the bootstraps in `envoy/` have it.
pub const FILTER_NAME: &str = "headgate";

/// What a snapshot cannot be made of.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// A policy or pool whose name is no resource name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Resources that do not fit together.
    #[error(transparent)]
    Inconsistent(#[from] Inconsistent),
}

/// What every proxy of an audience is told: encoded once for one set of policies, then shared.
#[derive(Clone, Debug)]
pub struct SharedResources {
    policies: Arc<PolicySet>,
    snapshot: Snapshot,
    /// Candidates that are for a part of the proxies, by name.
    chosen: BTreeMap<String, Resource>,
}

// === impl SharedResources ===

impl SharedResources {
    /// Encodes the policies and the filter's configuration, which join what was rendered for these proxies. A rendered configuration of
    /// the filter takes the place of that one.
    pub fn new(policies: Arc<PolicySet>, rendered: &Snapshot, filter: &FilterDelivery) -> Result<Self, ResourceError> {
        let mut resources = Vec::with_capacity(policies.policies.len() + 1);
        let mut chosen = BTreeMap::new();
        let filter = filter_configuration(filter)?;
        if rendered.set(filter.kind()).get(filter.name()).is_none() {
            resources.push(filter);
        }
        for (name, stored) in &policies.policies {
            let encoded = Bytes::from(rollout::told_to(&stored.policy).encode_to_vec());
            let mut resource = Resource::new(ResourceType::HeadgatePolicy, ResourceName::new(name)?, encoded);
            // A filter that takes over from another one knows of its policies only the version that they carry.
            if let Some(version) = Version::parse(&stored.policy.version) {
                resource = resource.versioned(version);
            }
            if is_for_a_part(&stored.policy) {
                chosen.insert(name.clone(), resource);
            } else {
                resources.push(resource);
            }
        }
        Ok(Self { policies, snapshot: rendered.with(resources)?, chosen })
    }

    /// What every proxy of the audience is told.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Everything that the proxy `node_id` is told: the shared resources, and its limits of each pool that has a policy.
    pub fn snapshot_for(&self, node_id: &str, limits: &LimitsTable) -> Result<Snapshot, ResourceError> {
        let mut own = Vec::new();
        for (name, stored) in &self.policies.policies {
            if !rollout::has_candidate(&stored.policy, node_id) {
                continue;
            }
            own.extend(self.chosen.get(name).cloned());
            let pool = stored.policy.spec.as_ref().map(books_name).unwrap_or_default();
            let Some(limits) = limits.for_node(node_id, &pool) else { continue };
            let encoded = Bytes::from(limits.encode_to_vec());
            let resource = Resource::new(ResourceType::HeadgateLimits, ResourceName::new(&pool)?, encoded);
            own.push(resource.needing(ResourceType::HeadgatePolicy, ResourceName::new(name)?));
        }
        Ok(self.snapshot.with(own)?)
    }
}

/// Whether it is for some of the proxies, or none.
fn is_for_a_part(policy: &v1::Policy) -> bool {
    let candidate = policy.spec.as_ref().and_then(|spec| spec.candidate.as_ref());
    candidate.is_some_and(|candidate| candidate.proxies_percent.is_some() || !candidate.halted.is_empty())
}

/// The filter as ECDS delivers it: local code, reload after a trap, nothing allowed that it does not need.
fn filter_configuration(filter: &FilterDelivery) -> Result<Resource, InvalidName> {
    let extension = core::TypedExtensionConfig { name: FILTER_NAME.into(), typed_config: Some(filter_message(filter)) };
    Ok(Resource::new(ResourceType::ExtensionConfig, ResourceName::new(FILTER_NAME)?, Bytes::from(extension.encode_to_vec())))
}

/// The filter's configuration as a message of Envoy's.
pub fn filter_message(filter: &FilterDelivery) -> Any {
    Any { type_url: Wasm::type_url(), value: encoded_wasm(filter) }
}

/// The `Wasm` message, the same bytes in every process.
///
/// The capabilities are a protobuf map, which prost writes in an order that differs from process to process, so that Envoy would
/// see another version after each restart. Concatenated encodings of a message merge (protobuf encoding, "Last One Wins"), so each
/// capability is written as a message of its own, in order.
fn encoded_wasm(filter: &FilterDelivery) -> Vec<u8> {
    let mut bytes = Wasm { config: Some(plugin(filter)) }.encode_to_vec();
    for capability in CAPABILITIES {
        let allowed_capabilities = [((*capability).to_owned(), SanitizationConfig {})].into();
        // Envoy 1.40 calls this place deprecated in favour of one in `VmConfig`, which 1.36 to 1.39 do not know; 1.40 obeys both.
        #[allow(deprecated)]
        let config = PluginConfig {
            capability_restriction_config: Some(CapabilityRestrictionConfig { allowed_capabilities }),
            ..PluginConfig::default()
        };
        bytes.extend(Wasm { config: Some(config) }.encode_to_vec());
    }
    bytes
}

fn plugin(filter: &FilterDelivery) -> PluginConfig {
    let FilterDelivery { wasm, control_cluster, control_authority } = filter;
    let configuration = serde_json::json!({ "controlPlane": { "cluster": control_cluster, "authority": control_authority } }).to_string();
    let code = core::DataSource {
        specifier: Some(core::data_source::Specifier::Filename(wasm.display().to_string())),
        ..core::DataSource::default()
    };
    PluginConfig {
        name: FILTER_NAME.into(),
        configuration: Some(Any { type_url: StringValue::type_url(), value: StringValue { value: configuration }.encode_to_vec() }),
        failure_policy: FailurePolicy::FailReload.into(),
        vm: Some(Vm::VmConfig(VmConfig {
            vm_id: FILTER_NAME.into(),
            runtime: "envoy.wasm.runtime.v8".into(),
            code: Some(core::AsyncDataSource { specifier: Some(core::async_data_source::Specifier::Local(code)) }),
            ..VmConfig::default()
        })),
        ..PluginConfig::default()
    }
}
