//! The plugin's configuration: read by the wire contract, its policies checked by the one validator.

use headgate_core::policy::Policy;
use headgate_protos::plugin::{ControlPlane, PluginConfig};
use std::sync::Arc;

/// A configuration that has been checked.
pub(crate) struct Config {
    /// Prefix of the keys in shared data; configurations of one instance follow each other.
    pub(crate) instance: String,
    /// Where policies and limits come from.
    pub(crate) control_plane: Option<ControlPlane>,
    /// Policies that hold until the control plane delivers one of the same name.
    pub(crate) policies: Vec<Arc<Policy>>,
}

impl Config {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// A line that names every field that is wrong.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        let PluginConfig { instance, control_plane, policies } = PluginConfig::parse(json).map_err(|errors| errors.join("; "))?;
        let mut errors = Vec::new();
        let mut checked = Vec::new();
        for (index, wire) in policies.iter().enumerate() {
            match Policy::try_from_wire(wire) {
                Ok(policy) => checked.push(Arc::new(policy)),
                Err(problems) => errors.extend(problems.iter().map(|problem| format!("policies[{index}].{problem}"))),
            }
        }
        if errors.is_empty() { Ok(Self { instance, control_plane, policies: checked }) } else { Err(errors.join("; ")) }
    }
}
