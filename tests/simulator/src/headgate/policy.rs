//! The policy of a world: the classes and objectives of its setup, overload control with a queue, and its tenants.

use headgate_protos::v1;

use crate::setup::{Arrivals, Setup};

/// Tenants that a policy can know (`policy.proto`); further ones are strangers of one name.
pub(super) const MAX_TENANTS: u32 = 1024;

/// Certificate of a tenant.
pub(super) fn spiffe_id(tenant: u32) -> String {
    format!("spiffe://sim/tenant/{tenant:04}")
}

/// A policy for the world: overload control with a queue, everything else as the product has it. The objectives are those of the
/// strictest class.
pub fn default_policy(setup: &Setup) -> v1::Policy {
    let ttft = setup.classes.iter().map(|class| class.ttft).min().unwrap_or_default();
    let tpot = setup.classes.iter().map(|class| class.tpot).min().unwrap_or_default();
    let class = |(index, class): (usize, &crate::setup::ClassSpec)| v1::PriorityClass {
        name: class.name.clone(),
        when_tripped: match index {
            0 => v1::WhenTripped::ReservedLane,
            _ if index + 1 < setup.classes.len() => v1::WhenTripped::GradientThrottle,
            _ => v1::WhenTripped::Refuse,
        }
        .into(),
        ..v1::PriorityClass::default()
    };
    let spec = v1::PolicySpec {
        pool: "llm".to_owned(),
        classes: setup.classes.iter().enumerate().map(class).collect(),
        levels: Some(v1::Levels {
            qps: Some(v1::QpsLevel { enabled: Some(false), ..v1::QpsLevel::default() }),
            gpu_memory: Some(v1::GpuMemoryLevel { enabled: Some(false), ..v1::GpuMemoryLevel::default() }),
            p99: Some(v1::P99Level { enabled: Some(false), ..v1::P99Level::default() }),
            hysteresis: None,
        }),
        overload: Some(v1::Overload {
            ttft_slo_ms: u32::try_from(ttft.as_millis()).ok(),
            tpot_slo_ms: u32::try_from(tpot.as_millis()).ok(),
            bytes_per_token: Some(setup.bytes_per_token.0),
            queue: Some(v1::AdmissionQueue::default()),
            picks_endpoint: Some(true),
            ..v1::Overload::default()
        }),
        // Whatever the page is called: the world reads its engines itself.
        engines: vec![v1::Engine { metrics_url: "http://engines/metrics".to_owned() }],
        ..v1::PolicySpec::default()
    };
    v1::Policy { name: "simulated".to_owned(), spec: Some(spec), version: String::new() }
}

/// The policy with the tenants of the world, unless it names its own. Any of them may claim any class; what is beyond
/// [`MAX_TENANTS`] is unknown and may claim any class too.
pub(super) fn with_tenants(policy: &v1::Policy, setup: &Setup) -> v1::Policy {
    let mut policy = policy.clone();
    let Some(spec) = &mut policy.spec else { return policy };
    let classes: Vec<String> = spec.classes.iter().map(|class| class.name.clone()).collect();
    let (Some(first), Some(last)) = (classes.first().cloned(), classes.last().cloned()) else { return policy };
    let classification = spec.classification.get_or_insert_default();
    if classification.tenants.is_empty() {
        let tenant = |tenant: u32| v1::Tenant {
            name: format!("t{tenant:04}"),
            identities: vec![v1::Identity { spiffe_id: spiffe_id(tenant), ..v1::Identity::default() }],
            class: last.clone(),
            may_claim: classes.clone(),
        };
        classification.tenants = (0..tenants(setup).min(MAX_TENANTS)).map(tenant).collect();
        if classification.default_class.is_empty() {
            classification.default_class = first;
        }
    }
    if policy.version.is_empty() {
        "1".clone_into(&mut policy.version);
    }
    policy
}

/// Tenants of the world: one more than the highest.
fn tenants(setup: &Setup) -> u32 {
    let of_sources = setup.sources.iter().filter(|source| match source.arrivals {
        Arrivals::Open { rps, .. } => rps > 0.0,
        Arrivals::Closed { clients, .. } => clients > 0,
    });
    let of_sources = of_sources.map(|source| source.tenants.first + source.tenants.count.max(1));
    of_sources.chain(setup.trace.iter().map(|row| row.tenant + 1)).max().unwrap_or(1)
}
