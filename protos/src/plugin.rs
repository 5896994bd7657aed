//! The configuration of the filter as a plugin: JSON, since Istio's `pluginConfig` arrives so.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::envoy_core::{GrpcService, grpc_service};
use crate::{document, v1};
use serde_json::{Map, Value};

/// Most inline policies.
pub const MAX_POLICIES: usize = 64;
/// Largest message of the control plane that the proxy accepts, in bytes; a larger one closes the stream.
pub const MAX_MESSAGE_BYTES: u32 = 4 << 20;

/// What the filter calls and is called with, sorted: its `capability_restriction_config`. Envoy makes no callback that is not listed
/// and answers other host calls with an error. The imports of the module and its `proxy_on_*` exports; a test compares them.
pub const CAPABILITIES: &[&str] = &[
    "clock_time_get",
    "proxy_continue_stream",
    "proxy_define_metric",
    "proxy_get_buffer_bytes",
    "proxy_get_header_map_pairs",
    "proxy_get_header_map_value",
    "proxy_get_property",
    "proxy_get_shared_data",
    "proxy_grpc_cancel",
    "proxy_grpc_close",
    "proxy_grpc_send",
    "proxy_grpc_stream",
    "proxy_increment_metric",
    "proxy_log",
    "proxy_on_configure",
    "proxy_on_grpc_close",
    "proxy_on_grpc_receive",
    "proxy_on_log",
    "proxy_on_request_headers",
    "proxy_on_response_body",
    "proxy_on_tick",
    "proxy_record_metric",
    "proxy_remove_header_map_value",
    "proxy_replace_header_map_value",
    "proxy_send_local_response",
    "proxy_set_effective_context",
    "proxy_set_property",
    "proxy_set_shared_data",
    "proxy_set_tick_period_milliseconds",
    "random_get",
];

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
    /// Which requests get the line `wasm.headgate` for access logs: `all` or `refused`. The line of an admitted request costs about a
    /// microsecond, for nothing where no access log shows it. Default: `all`.
    pub access_log: AccessLog,
}

/// Which requests get a line for access logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessLog {
    /// Every request that a policy governs.
    #[default]
    All,
    /// Those that were not simply admitted.
    Refused,
}

/// The control plane as the proxy reaches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPlane {
    /// Name of the proxy's cluster: 1 to 255 printable characters. Required.
    pub cluster: String,
    /// `:authority` of the streams. Envoy's own default, the cluster's name, is refused by HTTP libraries when it looks like Istio's
    /// `outbound|9000||…`. Default: `headgate.local`.
    pub authority: String,
}

// === impl PluginConfig ===

impl PluginConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// Every field that is wrong, a line each; of text that is no JSON, where it stops to be.
    pub fn parse(json: &[u8]) -> Result<Self, Vec<String>> {
        let value = serde_json::from_slice(json).map_err(|error| Vec::from([error.to_string()]))?;
        let mut errors = Vec::new();
        let mut fields = Fields::new("", value, &mut errors);
        let instance = fields.text("instance", &mut errors).unwrap_or_else(|| "default".into());
        if !is_label(&instance) {
            errors.push("instance: not 1 to 63 characters of [a-z0-9-]".into());
        }
        let control_plane = fields.take("controlPlane").map(|value| ControlPlane::read(value, &mut errors));
        let policies = match fields.take("policies") {
            None => Vec::new(),
            Some(Value::Array(policies)) => read_policies(policies, &mut errors),
            Some(_) => {
                errors.push("policies: not a list".into());
                Vec::new()
            }
        };
        let access_log = match fields.text("accessLog", &mut errors).as_deref() {
            None | Some("all") => AccessLog::All,
            Some("refused") => AccessLog::Refused,
            Some(_) => {
                errors.push("accessLog: neither `all` nor `refused`".into());
                AccessLog::All
            }
        };
        fields.refuse_rest(&mut errors);
        if control_plane.is_none() && policies.is_empty() && errors.is_empty() {
            errors.push("controlPlane: missing, and there are no policies either".into());
        }
        if errors.is_empty() { Ok(Self { instance, control_plane, policies, access_log }) } else { Err(errors) }
    }
}

fn read_policies(values: Vec<Value>, errors: &mut Vec<String>) -> Vec<v1::Policy> {
    if values.len() > MAX_POLICIES {
        errors.push(format!("policies: {} is more than {MAX_POLICIES}", values.len()));
    }
    let mut policies: Vec<v1::Policy> = Vec::new();
    for (index, value) in values.into_iter().take(MAX_POLICIES).enumerate() {
        let mut fields = Fields::new(&format!("policies[{index}]"), value, errors);
        let name = fields.required_text("name", errors);
        if policies.iter().any(|other| other.name == name) {
            errors.push(format!("policies[{index}].name: `{name}` is there twice"));
        }
        match fields.take("spec").map(|spec| document::parse_spec(&name, spec)) {
            Some(Ok(policy)) => policies.push(policy),
            Some(Err(problems)) => errors.extend(problems.iter().map(|problem| format!("policies[{index}].{problem}"))),
            None => errors.push(format!("policies[{index}].spec: missing")),
        }
        fields.refuse_rest(errors);
    }
    policies
}

/// The fields of one object that were not taken yet.
struct Fields {
    /// Path of the object; empty for the configuration itself.
    path: String,
    rest: Map<String, Value>,
}

impl Fields {
    fn new(path: &str, value: Value, errors: &mut Vec<String>) -> Self {
        let rest = match value {
            Value::Object(rest) => rest,
            _ => {
                errors.push(format!("{path}: not an object"));
                Map::new()
            }
        };
        Self { path: path.into(), rest }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.rest.remove(name)
    }

    fn text(&mut self, name: &str, errors: &mut Vec<String>) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text),
            _ => {
                errors.push(format!("{}: not a text", self.path_of(name)));
                None
            }
        }
    }

    fn required_text(&mut self, name: &str, errors: &mut Vec<String>) -> String {
        if !self.rest.contains_key(name) {
            errors.push(format!("{}: missing", self.path_of(name)));
        }
        self.text(name, errors).unwrap_or_default()
    }

    fn refuse_rest(self, errors: &mut Vec<String>) {
        errors.extend(self.rest.keys().take(MAX_POLICIES).map(|name| format!("{}: no such field", self.path_of(name))));
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) }
    }
}

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

// === impl ControlPlane ===

impl ControlPlane {
    fn read(value: Value, errors: &mut Vec<String>) -> Self {
        let mut fields = Fields::new("controlPlane", value, errors);
        let cluster = fields.required_text("cluster", errors);
        let authority = fields.text("authority", errors).unwrap_or_else(|| "headgate.local".into());
        fields.refuse_rest(errors);
        let is_name = |text: &str| (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_name(&cluster) {
            errors.push("controlPlane.cluster: not 1 to 255 printable characters".into());
        }
        if !is_name(&authority) || authority.contains(['|', '/', '@']) {
            errors.push("controlPlane.authority: not a host name".into());
        }
        Self { cluster, authority }
    }

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
        assert_eq!(
            PluginConfig::parse(format!(r#"{{"accessLog":"refused","policies":[{POLICY}]}}"#).as_bytes()).unwrap().access_log,
            AccessLog::Refused
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
            (r#"{"accessLog":"some"}"#, "accessLog"),
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
