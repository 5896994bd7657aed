//! The configuration of the filter as a plugin: JSON, since Istio's `pluginConfig` arrives so.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::envoy_core::{GrpcService, grpc_service};
use crate::{document, v1};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most inline policies.
pub const MAX_POLICIES: usize = 64;
/// Largest message of the control plane that the proxy accepts, in bytes; a larger one closes the stream.
pub const MAX_MESSAGE_BYTES: u32 = 4 << 20;

/// A configuration that could be read. Whether its policies are right is for the validator of `headgate-core` to say.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginConfig {
    /// Prefix of the filter's keys in the proxy's shared data: 1 to 63 characters of `[a-z0-9-]`. Configurations of one instance
    /// follow each other, and the newest governs the requests of all. Default: `default`.
    pub instance: String,
    /// Where policies and limits come from. At least this or one policy is given.
    pub control_plane: Option<ControlPlane>,
    /// Inline policies: each holds until the control plane delivers one of its name. At most [`MAX_POLICIES`], names unique.
    pub policies: Vec<v1::Policy>,
}

/// The control plane as the proxy reaches it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlPlane {
    /// Name of the proxy's cluster: 1 to 255 printable characters. Required.
    pub cluster: String,
    /// `:authority` of the streams. Envoy's own default, the cluster's name, is refused by HTTP libraries when it looks like Istio's
    /// `outbound|9000||…`. Default: `headgate.local`.
    #[serde(default = "default_authority")]
    pub authority: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Raw {
    #[serde(default = "default_instance")]
    instance: String,
    control_plane: Option<ControlPlane>,
    #[serde(default)]
    policies: Vec<RawPolicy>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    name: String,
    spec: Value,
}

fn default_instance() -> String {
    "default".into()
}

fn default_authority() -> String {
    "headgate.local".into()
}

// === impl PluginConfig ===

impl PluginConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// Every field that is wrong, a line each; of text that is no JSON or has fields of a wrong type or name, the first.
    pub fn parse(json: &[u8]) -> Result<Self, Vec<String>> {
        let mut reader = serde_json::Deserializer::from_slice(json);
        let raw = serde_path_to_error::deserialize(&mut reader).map_err(|error| Vec::from([error.to_string()]))?;
        reader.end().map_err(|error| Vec::from([error.to_string()]))?;
        let Raw { instance, control_plane, policies } = raw;
        let mut errors = Vec::new();
        if !is_label(&instance) {
            errors.push("instance: not 1 to 63 characters of [a-z0-9-]".into());
        }
        match &control_plane {
            Some(control_plane) => control_plane.check(&mut errors),
            None if policies.is_empty() => errors.push("controlPlane: missing, and there are no policies either".into()),
            None => {}
        }
        if policies.len() > MAX_POLICIES {
            errors.push(format!("policies: {} is more than {MAX_POLICIES}", policies.len()));
        }
        let policies = read_policies(policies, &mut errors);
        if errors.is_empty() { Ok(Self { instance, control_plane, policies }) } else { Err(errors) }
    }
}

fn read_policies(raw: Vec<RawPolicy>, errors: &mut Vec<String>) -> Vec<v1::Policy> {
    let mut policies: Vec<v1::Policy> = Vec::new();
    for (index, RawPolicy { name, spec }) in raw.into_iter().take(MAX_POLICIES).enumerate() {
        if policies.iter().any(|other| other.name == name) {
            errors.push(format!("policies[{index}].name: `{name}` is there twice"));
        }
        match document::parse_spec(&name, spec) {
            Ok(policy) => policies.push(policy),
            Err(problems) => errors.extend(problems.iter().map(|problem| format!("policies[{index}].{problem}"))),
        }
    }
    policies
}

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

// === impl ControlPlane ===

impl ControlPlane {
    /// The target as the proxy's host calls take it. Never hand them a bare cluster name: one that happens to parse as this message
    /// aborts the whole proxy.
    #[must_use]
    pub fn to_grpc_service(&self) -> GrpcService {
        let target = grpc_service::EnvoyGrpc {
            cluster_name: self.cluster.clone(),
            authority: self.authority.clone(),
            max_receive_message_length: Some(grpc_service::UInt32 { value: MAX_MESSAGE_BYTES }),
            skip_envoy_headers: true,
        };
        GrpcService { envoy_grpc: Some(target), timeout: None, initial_metadata: Vec::new() }
    }

    fn check(&self, errors: &mut Vec<String>) {
        let is_name = |text: &str| (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_name(&self.cluster) {
            errors.push("controlPlane.cluster: not 1 to 255 printable characters".into());
        }
        if !is_name(&self.authority) || self.authority.contains(['|', '/', '@']) {
            errors.push("controlPlane.authority: not a host name".into());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use prost::Message;

    const POLICY: &str = r#"{"name":"demo","spec":{"pool":"demo","classes":[{"name":"all","whenTripped":"refuse"}]}}"#;

    #[test]
    fn reads_a_control_plane_and_inline_policies() {
        let json = format!(r#"{{"instance":"edge","controlPlane":{{"cluster":"outbound|9000||cp"}},"policies":[{POLICY}]}}"#);
        let config = PluginConfig::parse(json.as_bytes()).unwrap();
        assert_eq!(config.instance, "edge");
        assert_eq!(config.policies[0].name, "demo");
        let service = config.control_plane.unwrap().to_grpc_service();
        assert_eq!(service.envoy_grpc.as_ref().unwrap().authority, "headgate.local");
        assert_eq!(GrpcService::decode(service.encode_to_vec().as_slice()), Ok(service));
    }

    #[test]
    fn names_every_wrong_field_at_once() {
        let json = format!(
            r#"{{"instance":"Edge","controlPlane":{{"cluster":"","authority":"a|b"}},"policies":[{POLICY},{POLICY},{{"name":"x","spec":{{"pol":1}}}}]}}"#
        );
        let errors = PluginConfig::parse(json.as_bytes()).unwrap_err().join("\n");
        for field in ["instance:", "controlPlane.cluster:", "controlPlane.authority:", "policies[1].name:", "policies[2].pol"] {
            assert!(errors.contains(field), "{field} is not in {errors}");
        }
    }

    #[test]
    fn refuses_unknown_fields_wrong_types_and_what_governs_nothing() {
        for (json, field) in [
            (r#"{"polices":[]}"#, "polices"),
            (r#"{"controlPlane":{"cluster":1}}"#, "controlPlane.cluster"),
            (r#"{"policies":[{"name":"demo"}]}"#, "policies[0]"),
            ("{}", "controlPlane"),
            ("{} x", "trailing"),
            ("", "EOF"),
        ] {
            let errors = PluginConfig::parse(json.as_bytes()).unwrap_err().join("\n");
            assert!(errors.contains(field), "{field} is not in {errors}");
        }
    }
}
