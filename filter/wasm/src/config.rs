//! The plugin's configuration: read by the wire contract, its policies checked by the one validator.

use headgate_core::policy::Policy;
use headgate_protos::plugin::PluginConfig;
use std::sync::Arc;

/// Reads and checks a configuration.
///
/// # Errors
/// A line that names every field that is wrong.
pub(crate) fn parse(json: &[u8]) -> Result<(PluginConfig, Vec<Arc<Policy>>), String> {
    let config = PluginConfig::parse(json).map_err(|errors| errors.join("; "))?;
    let mut errors = Vec::new();
    let mut policies = Vec::new();
    for (index, wire) in config.policies.iter().enumerate() {
        match Policy::try_from_wire(wire) {
            Ok(policy) => policies.push(Arc::new(policy)),
            Err(problems) => errors.extend(problems.iter().map(|problem| format!("policies[{index}].{problem}"))),
        }
    }
    if errors.is_empty() { Ok((config, policies)) } else { Err(errors.join("; ")) }
}
