//! The filter's configuration in other bytes, for a proxy that has refused it.
//!
//! Envoy remembers the hash of an extension's configuration before it applies it: what it has refused it accepts without applying it when
//! the same bytes come again. A module whose file was missing, or a machine that had no memory for it, would so be refused for ever.

use std::collections::HashMap;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::http::wasm::v3::Wasm;
use envoy_types::pb::envoy::extensions::wasm::v3::plugin_config::Vm;
use envoy_types::pb::envoy::extensions::wasm::v3::{EnvironmentVariables, PluginConfig, VmConfig};
use headgate_xds::{Resource, ResourceType};
use prost::{Message, Name};

/// Environment variable of the module that tells one attempt from another. The filter does not read it.
pub const ATTEMPT_VARIABLE: &str = "HEADGATE_ATTEMPT";

/// The same configuration as `resource`, in bytes that only this attempt has; `None` for what is no configuration of a WebAssembly filter,
/// of which nobody knows what can be added to it without a change.
///
/// An unknown field would not do: Envoy's hash passes over those (`reflectionHashMessage` in its `deterministic_hash.cc`).
pub fn retold(resource: &Resource, attempt: u32) -> Option<Resource> {
    if resource.kind() != ResourceType::ExtensionConfig {
        return None;
    }
    let mut extension = core::TypedExtensionConfig::decode(resource.body().value).ok()?;
    let config = extension.typed_config.as_mut().filter(|config| config.type_url == Wasm::type_url())?;
    // Concatenated encodings of a message merge (protobuf encoding, "Last One Wins").
    config.value.extend(salt(attempt).encode_to_vec());
    let encoded = Bytes::from(extension.encode_to_vec());
    let told = Resource::new(resource.kind(), resource.name().clone(), encoded);
    Some(resource.needs().iter().cloned().fold(told, |told, (kind, name)| told.needing(kind, name)))
}

fn salt(attempt: u32) -> Wasm {
    let key_values = HashMap::from([(ATTEMPT_VARIABLE.to_owned(), attempt.to_string())]);
    let environment_variables = Some(EnvironmentVariables { key_values, ..EnvironmentVariables::default() });
    let vm = VmConfig { environment_variables, ..VmConfig::default() };
    Wasm { config: Some(PluginConfig { vm: Some(Vm::VmConfig(vm)), ..PluginConfig::default() }) }
}
