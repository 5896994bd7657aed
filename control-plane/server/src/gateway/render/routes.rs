//! Routes as the route configuration of a gateway.

use std::collections::BTreeMap;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::v3::Int64Range;
use route::header_matcher::HeaderMatchSpecifier;
use route::route_action::ClusterSpecifier;

use super::super::config::{Backend, Balancing, Entry, ModelMatch, Pool, Rule};
use super::super::set::GatewaySet;
use super::wrap::{any, duration, header, text, whole};
use super::{MODEL_HEADER, POOL_HEADER};

const VERSION_HEADER: &str = "x-model-version";
/// What cannot have had an effect: no connection, a stream that was refused, a reset before the request went out.
const RETRY_ON: &str = "connect-failure,refused-stream,reset-before-request";
/// Other endpoints that are looked at for one that was not tried yet.
const HOST_ATTEMPTS: i64 = 5;
/// Attempts after which the next tier is tried.
const ATTEMPTS_PER_TIER: i32 = 2;
/// How long a client may remember that there is HTTP/3, in seconds.
const ALT_SVC_S: u32 = 86_400;
/// Longest silence of a request that the filter sends to another pool.
const IDLE: Duration = Duration::from_secs(300);

/// All routes of a gateway, by host.
pub(super) fn configuration(entry: &Entry, set: &GatewaySet) -> RouteConfiguration {
    let mut hosts: BTreeMap<&str, Vec<route::Route>> = BTreeMap::new();
    for part in set.routes_of(entry) {
        for host in &part.hosts {
            let rules = part.rules.iter().enumerate().map(|(index, rule)| of_rule(&format!("{}[{index}]", part.name), rule, set));
            hosts.entry(host).or_default().extend(rules);
        }
    }
    let diverted: Vec<route::Route> = if entry.admission { set.pools().map(|pool| to_pool(pool, set)).collect() } else { Vec::new() };
    let virtual_hosts = hosts.into_iter().map(|(host, routes)| route::VirtualHost {
        name: host.to_owned(),
        domains: vec![host.to_owned()],
        routes: diverted.iter().cloned().chain(routes).collect(),
        ..route::VirtualHost::default()
    });
    let alternative = entry.tls.as_ref().filter(|tls| tls.http3).map(|_| {
        let value = format!("h3=\":{}\"; ma={ALT_SVC_S}", entry.port);
        header("alt-svc", &value, HeaderAppendAction::OverwriteIfExistsOrAdd)
    });
    RouteConfiguration {
        name: entry.name.clone(),
        virtual_hosts: virtual_hosts.collect(),
        response_headers_to_add: alternative.into_iter().collect(),
        ..RouteConfiguration::default()
    }
}

/// Where the filter's fallback sends a request. Clients cannot: the header is taken off at the entry.
fn to_pool(pool: &Pool, set: &GatewaySet) -> route::Route {
    let matched = route::RouteMatch {
        headers: vec![is(POOL_HEADER, MatchPattern::Exact(pool.name.clone()))],
        path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".to_owned())),
        ..route::RouteMatch::default()
    };
    let backend = [Backend { pool: pool.name.clone(), weight: 1 }];
    route::Route {
        name: format!("to-{}", pool.name),
        r#match: Some(matched),
        action: Some(route::route::Action::Route(action(&backend, None, IDLE, set))),
        ..route::Route::default()
    }
}

fn of_rule(name: &str, rule: &Rule, set: &GatewaySet) -> route::Route {
    let mut headers = Vec::new();
    if !rule.models.is_empty() {
        let one = |model: &ModelMatch| match model {
            ModelMatch::Exact(name) => MatchPattern::Exact(name.clone()),
            ModelMatch::Prefix(prefix) => MatchPattern::Prefix(prefix.clone()),
        };
        headers.push(is(MODEL_HEADER, any_of(rule.models.iter().map(one).collect())));
    }
    if !rule.versions.is_empty() {
        headers.push(is(VERSION_HEADER, any_of(rule.versions.iter().cloned().map(MatchPattern::Exact).collect())));
    }
    if let Some((from, to)) = rule.input_bytes {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let range = HeaderMatchSpecifier::RangeMatch(Int64Range { start: signed(from), end: signed(to).saturating_add(1) });
        headers.push(matching("content-length", range));
    }
    let matched = route::RouteMatch {
        headers,
        path_specifier: Some(route::route_match::PathSpecifier::Prefix(rule.path_prefix.clone())),
        ..route::RouteMatch::default()
    };
    route::Route {
        name: name.to_owned(),
        r#match: Some(matched),
        action: Some(route::route::Action::Route(action(&rule.backends, rule.timeout, rule.idle_timeout, set))),
        ..route::Route::default()
    }
}

fn action(backends: &[Backend], timeout: Option<Duration>, idle: Duration, set: &GatewaySet) -> route::RouteAction {
    let cluster = match backends {
        [only] => ClusterSpecifier::Cluster(only.pool.clone()),
        several => ClusterSpecifier::WeightedClusters(route::WeightedCluster {
            clusters: several.iter().map(weighted).collect(),
            ..route::WeightedCluster::default()
        }),
    };
    let pools: Vec<&Pool> = backends.iter().filter_map(|backend| set.pool(&backend.pool)).collect();
    route::RouteAction {
        cluster_specifier: Some(cluster),
        // Zero: none. Envoy's own of 15 s would cut answers off.
        timeout: duration(timeout.unwrap_or_default()),
        idle_timeout: duration(idle),
        hash_policy: hash_policies(&pools),
        retry_policy: pools.iter().filter_map(|pool| pool.retries.as_ref()).map(|retries| retries.attempts).max().map(retry_policy),
        ..route::RouteAction::default()
    }
}

fn weighted(backend: &Backend) -> route::weighted_cluster::ClusterWeight {
    route::weighted_cluster::ClusterWeight {
        name: backend.pool.clone(),
        weight: whole(backend.weight),
        ..route::weighted_cluster::ClusterWeight::default()
    }
}

/// One for each header by which a pool chooses; pools that choose otherwise do not look.
fn hash_policies(pools: &[&Pool]) -> Vec<route::route_action::HashPolicy> {
    use route::route_action::hash_policy::{Header, PolicySpecifier};
    let mut headers: Vec<&str> = Vec::new();
    for pool in pools {
        if let Balancing::ConsistentHash { header, .. } = &pool.balancing
            && !headers.contains(&header.as_str())
        {
            headers.push(header);
        }
    }
    let policy = |name: &&str| route::route_action::HashPolicy {
        policy_specifier: Some(PolicySpecifier::Header(Header { header_name: (*name).to_owned(), ..Header::default() })),
        ..route::route_action::HashPolicy::default()
    };
    headers.iter().map(policy).collect()
}

fn retry_policy(attempts: u32) -> route::RetryPolicy {
    use route::retry_policy::{RetryHostPredicate, RetryPriority, retry_host_predicate, retry_priority};
    route::RetryPolicy {
        retry_on: RETRY_ON.to_owned(),
        num_retries: whole(attempts),
        retry_host_predicate: vec![RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
            config_type: Some(retry_host_predicate::ConfigType::TypedConfig(any(&PreviousHostsPredicate {}))),
        }],
        host_selection_retry_max_attempts: HOST_ATTEMPTS,
        retry_priority: Some(RetryPriority {
            name: "envoy.retry_priorities.previous_priorities".to_owned(),
            config_type: Some(retry_priority::ConfigType::TypedConfig(any(&PreviousPrioritiesConfig {
                update_frequency: ATTEMPTS_PER_TIER,
            }))),
        }),
        ..route::RetryPolicy::default()
    }
}

fn is(name: &str, pattern: MatchPattern) -> route::HeaderMatcher {
    matching(name, HeaderMatchSpecifier::StringMatch(text(pattern)))
}

fn matching(name: &str, specifier: HeaderMatchSpecifier) -> route::HeaderMatcher {
    route::HeaderMatcher { name: name.to_owned(), header_match_specifier: Some(specifier), ..route::HeaderMatcher::default() }
}

/// One pattern for several: Envoy's matchers know no "or" for a header but a regular expression, which has to match as a whole.
fn any_of(patterns: Vec<MatchPattern>) -> MatchPattern {
    if let [only] = patterns.as_slice() {
        return only.clone();
    }
    let branches: Vec<String> = patterns
        .iter()
        .map(|pattern| match pattern {
            MatchPattern::Prefix(prefix) => regex::escape(prefix) + ".*",
            MatchPattern::Exact(exact) => regex::escape(exact),
            _ => String::new(),
        })
        .collect();
    MatchPattern::SafeRegex(matcher::RegexMatcher { regex: branches.join("|"), ..matcher::RegexMatcher::default() })
}
