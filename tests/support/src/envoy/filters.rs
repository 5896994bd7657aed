//! The HTTP filters that tests and benchmarks put in front of the router.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::bootstrap::{CONTROL_AUTHORITY, CONTROL_CLUSTER, seconds, typed};
use crate::artefact::{FloorStep, Module};
use headgate_protos::plugin::CAPABILITIES;

/// The filter in front of the router.
#[derive(Clone, Debug)]
pub enum HttpFilter {
    /// None: what Envoy itself costs.
    None,
    /// A wasm filter with its configuration in the bootstrap.
    Wasm(WasmFilter),
    /// Headgate's filter as the control plane delivers it by ECDS; this one serves until then.
    Ecds(WasmFilter),
    /// Envoy's own `local_ratelimit`.
    LocalRateLimit {
        /// Size of the bucket.
        burst: u32,
        /// Tokens per fill.
        fill: u32,
        /// Time between fills.
        fill_interval: Duration,
    },
    /// Envoy's own `adaptive_concurrency`.
    AdaptiveConcurrency(Gradient),
    /// Envoy's own `admission_control` with its defaults.
    AdmissionControl,
    /// A Lua filter that looks at one header and answers 403 to one value of it.
    LuaHeaderCheck,
}

/// How Envoy's gradient controller is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradient {
    /// So high that it never limits: what it costs.
    NeverLimits,
    /// Its defaults: a median, and a minimum round trip time measured anew every 60 s with 3 requests at once.
    Defaults,
}

/// One wasm filter.
#[derive(Clone, Debug)]
pub struct WasmFilter {
    /// Its module.
    pub module: PathBuf,
    /// Its plugin configuration.
    pub configuration: Value,
    /// What it may call and what calls it.
    pub capabilities: Capabilities,
    /// Least time between a load and the reload after a trap.
    pub reload_after: Duration,
}

/// What a filter may call and what calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capabilities {
    /// Everything: Envoy makes every callback that the module exports.
    All,
    /// These alone.
    Only(Vec<String>),
}

impl Capabilities {
    /// [`CAPABILITIES`]: those of Headgate's filter.
    #[must_use]
    pub fn of_filter() -> Self {
        Self::Only(CAPABILITIES.iter().map(|&name| name.to_owned()).collect())
    }
}

impl WasmFilter {
    /// Headgate's filter with `configuration` as users write it: JSON with `controlPlane`, `policies` or both.
    ///
    /// # Errors
    /// When the filter is not built.
    pub fn headgate(configuration: Value) -> Result<Self> {
        Ok(Self {
            module: Module::Headgate.path()?,
            configuration,
            capabilities: Capabilities::of_filter(),
            reload_after: Duration::from_millis(100),
        })
    }

    /// Headgate's filter with the control plane of [`super::Bootstrap::control_plane`] and no inline policy.
    ///
    /// # Errors
    /// When the filter is not built.
    pub fn headgate_controlled() -> Result<Self> {
        Self::headgate(json!({"controlPlane": {"cluster": CONTROL_CLUSTER, "authority": CONTROL_AUTHORITY}}))
    }

    /// The filter that does nothing, with every default of the SDK.
    ///
    /// # Errors
    /// When it is not built.
    pub fn empty() -> Result<Self> {
        Self::idle(Module::Empty)
    }

    /// The filter that does nothing but what Headgate must ask of its host, up to `step`.
    ///
    /// # Errors
    /// When it is not built.
    pub fn floor(step: FloorStep) -> Result<Self> {
        Self::idle(Module::Floor(step))
    }

    fn idle(module: Module) -> Result<Self> {
        Ok(Self {
            module: module.path()?,
            configuration: json!({}),
            capabilities: Capabilities::All,
            reload_after: Duration::from_millis(100),
        })
    }

    /// The same with another module, for example [`Module::HeadgateWithFaults`].
    ///
    /// # Errors
    /// When it is not built.
    pub fn with_module(mut self, module: Module) -> Result<Self> {
        self.module = module.path()?;
        Ok(self)
    }

    /// `envoy.extensions.filters.http.wasm.v3.Wasm`.
    fn render(&self) -> Value {
        let mut plugin = json!({
            "name": "headgate",
            "failure_policy": "FAIL_RELOAD",
            "reload_config": {"backoff": {"base_interval": seconds(self.reload_after)}},
            "configuration": typed("google.protobuf.StringValue", json!({"value": self.configuration.to_string()})),
            "vm_config": {
                "vm_id": "headgate",
                "runtime": "envoy.wasm.runtime.v8",
                "code": {"local": {"filename": self.module}},
            },
        });
        if let Capabilities::Only(names) = &self.capabilities {
            // At this level 1.36 and 1.40 both read it; 1.40 alone also reads it in vm_config.
            let allowed: Map<String, Value> = names.iter().map(|name| (name.clone(), json!({}))).collect();
            plugin["capability_restriction_config"] = json!({"allowed_capabilities": allowed});
        }
        typed(WASM, json!({"config": plugin}))
    }

    /// The same, delivered by ECDS and with these settings until the first delivery.
    fn render_discovered(&self) -> Value {
        let service = json!({"envoy_grpc": {"cluster_name": CONTROL_CLUSTER, "authority": CONTROL_AUTHORITY}});
        json!({
            "config_source": {
                "api_config_source": {"api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": [service]},
                "resource_api_version": "V3",
                "initial_fetch_timeout": "5s",
            },
            "type_urls": [format!("type.googleapis.com/{WASM}")],
            "default_config": self.render(),
            "apply_default_config_without_warming": true,
        })
    }
}

const WASM: &str = "envoy.extensions.filters.http.wasm.v3.Wasm";

impl HttpFilter {
    /// The entries of `http_filters` before the router.
    pub(crate) fn render(&self) -> Result<Vec<Value>> {
        Ok(match self {
            Self::None => Vec::new(),
            Self::Wasm(filter) => vec![json!({"name": "headgate", "typed_config": filter.render()})],
            Self::Ecds(default) => vec![json!({"name": "headgate", "config_discovery": default.render_discovered()})],
            Self::LocalRateLimit { burst, fill, fill_interval } => vec![local_rate_limit(*burst, *fill, *fill_interval)],
            Self::AdaptiveConcurrency(gradient) => vec![adaptive_concurrency(*gradient)],
            Self::AdmissionControl => vec![admission_control()],
            Self::LuaHeaderCheck => vec![lua_header_check()],
        })
    }
}

fn local_rate_limit(burst: u32, fill: u32, fill_interval: Duration) -> Value {
    let always = |key: &str| json!({"runtime_key": key, "default_value": {"numerator": 100, "denominator": "HUNDRED"}});
    let config = json!({
        "stat_prefix": "local_rate_limit",
        "token_bucket": {"max_tokens": burst, "tokens_per_fill": fill, "fill_interval": seconds(fill_interval)},
        "filter_enabled": always("local_rate_limit_enabled"),
        "filter_enforced": always("local_rate_limit_enforced"),
    });
    json!({
        "name": "envoy.filters.http.local_ratelimit",
        "typed_config": typed("envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit", config),
    })
}

fn adaptive_concurrency(gradient: Gradient) -> Value {
    let gradient = match gradient {
        Gradient::NeverLimits => json!({
            "sample_aggregate_percentile": {"value": 90},
            "concurrency_limit_params": {"concurrency_update_interval": "0.1s", "max_concurrency_limit": 10_000},
            "min_rtt_calc_params": {"interval": "60s", "request_count": 50, "min_concurrency": 1_000, "jitter": {"value": 10}},
        }),
        // The two intervals have no default; these are those of Envoy's documentation.
        Gradient::Defaults => json!({
            "concurrency_limit_params": {"concurrency_update_interval": "0.1s"},
            "min_rtt_calc_params": {"interval": "60s"},
        }),
    };
    let config = json!({
        "gradient_controller_config": gradient,
        "enabled": {"default_value": true, "runtime_key": "adaptive_concurrency.enabled"},
    });
    json!({
        "name": "envoy.filters.http.adaptive_concurrency",
        "typed_config": typed("envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency", config),
    })
}

fn admission_control() -> Value {
    // `enabled` and the criteria of success have no default; a refusal of the engine itself (503) is no success.
    let config = json!({
        "enabled": {"default_value": true, "runtime_key": "admission_control.enabled"},
        "success_criteria": {"http_criteria": {"http_success_status": [{"start": 100, "end": 500}]}},
    });
    json!({
        "name": "envoy.filters.http.admission_control",
        "typed_config": typed("envoy.extensions.filters.http.admission_control.v3.AdmissionControl", config),
    })
}

fn lua_header_check() -> Value {
    let code = "function envoy_on_request(handle)\n\
                \x20 if handle:headers():get(\"x-headgate-priority\") == \"forbidden\" then\n\
                \x20   handle:respond({[\":status\"] = \"403\"}, \"forbidden\")\n\
                \x20 end\n\
                end\n";
    let config = json!({"default_source_code": {"inline_string": code}});
    json!({"name": "envoy.filters.http.lua", "typed_config": typed("envoy.extensions.filters.http.lua.v3.Lua", config)})
}
