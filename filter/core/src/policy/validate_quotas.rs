//! Checks of the quotas.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use headgate_protos::v1;

use super::check::{Checker, join};
use super::config::Class;
use super::error::Problem;
use super::quotas::{QuotaConfig, QuotaUnit};
use super::validate_classes::{MAX_TENANTS, TENANT_NAME, class_of};
use super::{Tenant, TenantId};
use crate::quota::{CLASSES, PerClass, Terms};

/// Quotas of one policy.
pub(super) const MAX_QUOTAS: usize = 16;
/// Part by which leases may pass a rate in fast mode.
const FAST: f64 = 0.01;
const MIN_AMOUNT: f64 = 0.001;
const MAX_AMOUNT: f64 = 1e15;

/// What the rest of the policy says that a quota refers to.
struct Context<'a> {
    classes: &'a [Class],
    tenants: &'a [Tenant],
    has_overload: bool,
}

pub(super) fn quotas(check: &mut Checker, wire: &[v1::Quota], known: (&[Class], &[Tenant]), has_overload: bool) -> Vec<QuotaConfig> {
    let context = Context { classes: known.0, tenants: known.1, has_overload };
    let checked = check.count("", "quotas", wire.len(), 0..=MAX_QUOTAS);
    let mut seen = BTreeMap::new();
    let mut quotas = Vec::with_capacity(checked);
    for (index, quota) in wire.iter().take(checked).enumerate() {
        let at = format!("quotas[{index}]");
        check.text(&at, "name", &quota.name, &TENANT_NAME);
        if !quota.name.is_empty() {
            check.unique(join(&at, "name"), &quota.name, &mut seen);
        }
        quotas.push(self::quota(check, &at, quota, &context));
    }
    quotas
}

fn quota(check: &mut Checker, at: &str, wire: &v1::Quota, context: &Context<'_>) -> QuotaConfig {
    let v1::Quota { name, tenants, unit, amount, per, mode, floors, reserve_percent, safe_percent, burst_ms } = wire;
    let tenants = self::tenants(check, at, tenants, context.tenants);
    let unit = self::unit(check, at, *unit, context.has_overload);
    if *amount == 0.0 {
        check.report(join(at, "amount"), Problem::Missing);
    } else {
        check.number(at, "amount", Some(*amount), MIN_AMOUNT, MIN_AMOUNT..=MAX_AMOUNT);
    }
    let period_s = match v1::QuotaPeriod::try_from(*per) {
        Ok(v1::QuotaPeriod::Unspecified | v1::QuotaPeriod::Second) => 1.0,
        Ok(v1::QuotaPeriod::Minute) => 60.0,
        Err(_) => {
            check.unknown(join(at, "per"), &per.to_string(), ["second", "minute"]);
            1.0
        }
    };
    let overbook = match v1::QuotaMode::try_from(*mode) {
        Ok(v1::QuotaMode::Unspecified | v1::QuotaMode::Strict) => 0.0,
        Ok(v1::QuotaMode::Fast) => FAST,
        Err(_) => {
            check.unknown(join(at, "mode"), &mode.to_string(), ["strict", "fast"]);
            0.0
        }
    };
    let floors = self::floors(check, at, floors, context.classes);
    let terms = Terms {
        capacity: amount / period_s,
        overbook,
        floors,
        reserve: check.number(at, "reservePercent", *reserve_percent, 0.25, 0.0..=20.0) / 100.0,
        safe: check.number(at, "safePercent", *safe_percent, 1.0, 0.0..=50.0) / 100.0,
        burst_s: f64::from(check.whole(at, "burstMs", *burst_ms, 1000, 100..=60_000)) / 1000.0,
    };
    QuotaConfig { name: name.clone(), key: format!("{name}/{}", unit.as_str()), unit, tenants, terms }
}

fn unit(check: &mut Checker, at: &str, wire: i32, has_overload: bool) -> QuotaUnit {
    match v1::QuotaUnit::try_from(wire) {
        Ok(v1::QuotaUnit::Requests) => QuotaUnit::Requests,
        Ok(v1::QuotaUnit::Tokens) => QuotaUnit::Tokens,
        Ok(v1::QuotaUnit::WorkTokens) => {
            if !has_overload {
                let rule = "work tokens need `overload`, which says what an output token counts";
                check.report(join(at, "unit"), Problem::Conflict { got: String::from("work_tokens"), rule });
            }
            QuotaUnit::WorkTokens
        }
        Ok(v1::QuotaUnit::Unspecified) => {
            check.report(join(at, "unit"), Problem::Missing);
            QuotaUnit::Requests
        }
        Err(_) => {
            check.unknown(join(at, "unit"), &wire.to_string(), ["requests", "tokens", "work_tokens"]);
            QuotaUnit::Requests
        }
    }
}

fn tenants(check: &mut Checker, at: &str, wire: &[String], known: &[Tenant]) -> Vec<TenantId> {
    let checked = check.count(at, "tenants", wire.len(), 0..=MAX_TENANTS);
    let mut seen = BTreeMap::new();
    let mut tenants = Vec::with_capacity(checked);
    for (index, name) in wire.iter().take(checked).enumerate() {
        let field = join(at, &format!("tenants[{index}]"));
        check.unique(field.clone(), name, &mut seen);
        match known.iter().position(|tenant| tenant.name == *name) {
            Some(position) => tenants.push(TenantId::new(position)),
            None => check.unknown(field, name, known.iter().map(|tenant| tenant.name.as_str())),
        }
    }
    tenants.sort_unstable();
    tenants
}

fn floors(check: &mut Checker, at: &str, wire: &[v1::QuotaFloor], classes: &[Class]) -> PerClass {
    let checked = check.count(at, "floors", wire.len(), 0..=CLASSES);
    let mut seen = BTreeMap::new();
    let mut floors = [0.0; CLASSES];
    let mut sum = 0_u64;
    for (index, v1::QuotaFloor { class, percent }) in wire.iter().take(checked).enumerate() {
        let at = join(at, &format!("floors[{index}]"));
        let class_at = class_of(check, join(&at, "class"), class, classes);
        if !class.is_empty() {
            check.unique(join(&at, "class"), class, &mut seen);
        }
        let percent = match percent {
            0 => {
                check.report(join(&at, "percent"), Problem::Missing);
                0
            }
            _ => check.whole(&at, "percent", Some(*percent), 1, 1..=100),
        };
        sum += u64::from(percent);
        if let Some(floor) = class_at.and_then(|class| floors.get_mut(class.index())) {
            *floor = f64::from(percent) / 100.0;
        }
    }
    if sum > 100 {
        let rule = "the floors of a quota add up to at most 100";
        check.report(join(at, "floors"), Problem::Conflict { got: format!("percent {sum} in sum"), rule });
    }
    floors
}
