//! The HTTP filters of a gateway, in the order in which a request meets them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use envoy_types::pb::envoy::config::common::mutation_rules::v3 as mutation;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::rbac::v3 as rules;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::compression::gzip::compressor::v3::Gzip;
use envoy_types::pb::envoy::extensions::filters::http as filter;
use envoy_types::pb::envoy::extensions::filters::http::wasm::v3::Wasm;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::SdsSecretConfig;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::google::protobuf::Any;
use headgate_core::in_band::LoadHeader;
use headgate_core::stream::FAILED_DEPENDENCY_HEADER;
use prost::{Message, Name};

use super::super::config::{Entry, Jwt, Keys, Network, Oauth2, RemoteFile, Signatures};
use super::wrap::{any, duration, extension, file, folder, from_ads, header, source, text, whole};
use super::{MODEL_HEADER, remote_name};
use crate::resources::FILTER_NAME;

/// Namespace and key of the dynamic metadata in which the body's model travels between two filters.
const METADATA: &str = "headgate.gateway";
const MODEL_KEY: &str = "model";
/// Where a policy's tenants look for claims (`JwtClaim.payload`).
const PAYLOAD: &str = "jwt_payload";
/// For which keys of tokens are believed without asking again.
const KEYS_FOR: Duration = Duration::from_secs(600);
const FETCH_LIMIT: Duration = Duration::from_secs(5);
/// Answers shorter than this are longer compressed.
const MIN_COMPRESSED_BYTES: u32 = 1024;
const CALLBACK_PATH: &str = "/oauth2/callback";
const SIGN_OUT_PATH: &str = "/oauth2/signout";

/// The chain.
pub(super) fn chain(entry: &Entry) -> Vec<HttpFilter> {
    let mut chain = Vec::new();
    if !entry.allow.is_empty() {
        chain.push(typed("envoy.filters.http.rbac", any(&networks(&entry.allow))));
    }
    if entry.gzip {
        chain.push(typed("envoy.filters.http.compressor", any(&gzip())));
    }
    if let Some(config) = &entry.oauth2 {
        chain.push(typed("envoy.filters.http.oauth2", any(&oauth2(config))));
    }
    if !entry.jwt.is_empty() {
        chain.push(typed("envoy.filters.http.jwt_authn", tokens(&entry.jwt)));
    }
    if let Some(config) = &entry.signatures {
        let script =
            core::DataSource { specifier: Some(core::data_source::Specifier::InlineString(script(config))), ..core::DataSource::default() };
        let lua = filter::lua::v3::Lua { default_source_code: Some(script), ..filter::lua::v3::Lua::default() };
        chain.push(typed("envoy.filters.http.lua", any(&lua)));
    }
    if entry.model_from_body {
        chain.push(typed("envoy.filters.http.json_to_metadata", any(&model_to_metadata())));
        chain.push(typed("envoy.filters.http.header_mutation", any(&metadata_to_header())));
    }
    if entry.admission {
        chain.push(admission());
        chain.push(typed("envoy.filters.http.header_to_metadata", any(&kept_for_the_filter())));
    }
    chain.push(typed("envoy.filters.http.router", any(&filter::router::v3::Router::default())));
    chain
}

fn typed(name: &str, config: Any) -> HttpFilter {
    HttpFilter { name: name.to_owned(), config_type: Some(ConfigType::TypedConfig(config)), ..HttpFilter::default() }
}

/// Headgate's filter comes by ECDS, so that a new one changes no listener.
fn admission() -> HttpFilter {
    let discovery = core::ExtensionConfigSource {
        config_source: Some(from_ads()),
        type_urls: vec![Wasm::type_url()],
        ..core::ExtensionConfigSource::default()
    };
    HttpFilter { name: FILTER_NAME.to_owned(), config_type: Some(ConfigType::ConfigDiscovery(discovery)), ..HttpFilter::default() }
}

/// What engines say of their load, and upstreams of a dependency that failed, is kept where the filter reads it
/// (`envoy/response-headers.json`), and is not the client's to know.
fn kept_for_the_filter() -> filter::header_to_metadata::v3::Config {
    use filter::header_to_metadata::v3::config::{KeyValuePair, Rule};
    let keep = |header: &str| Rule {
        header: header.to_owned(),
        on_header_present: Some(KeyValuePair {
            metadata_namespace: "headgate".to_owned(),
            key: header.to_owned(),
            ..KeyValuePair::default()
        }),
        remove: true,
        ..Rule::default()
    };
    let kept = LoadHeader::ALL.map(LoadHeader::name).into_iter().chain([FAILED_DEPENDENCY_HEADER]);
    filter::header_to_metadata::v3::Config { response_rules: kept.map(keep).collect(), ..Default::default() }
}

/// What a client may not say itself is taken off before anything looks: our own headers, and the model where the body names it.
pub(super) fn early(entry: &Entry) -> core::TypedExtensionConfig {
    use envoy_types::pb::envoy::extensions::http::early_header_mutation::header_mutation::v3::HeaderMutation as Early;
    use mutation::header_mutation::{Action, RemoveOnMatch};
    let ours = Action::RemoveOnMatch(RemoveOnMatch { key_matcher: Some(text(MatchPattern::Prefix("x-headgate-".to_owned()))) });
    let model = entry.model_from_body.then(|| Action::Remove(MODEL_HEADER.to_owned()));
    let mutations = [Some(ours), model].into_iter().flatten();
    let config = Early { mutations: mutations.map(|action| mutation::HeaderMutation { action: Some(action) }).collect() };
    extension("envoy.http.early_header_mutation.header_mutation", &config)
}

fn networks(allow: &[Network]) -> filter::rbac::v3::Rbac {
    let principal = |network: &Network| rules::Principal {
        identifier: Some(rules::principal::Identifier::DirectRemoteIp(core::CidrRange {
            address_prefix: network.address.to_string(),
            prefix_len: whole(network.prefix_len.into()),
        })),
    };
    let policy = rules::Policy {
        permissions: vec![rules::Permission { rule: Some(rules::permission::Rule::Any(true)) }],
        principals: allow.iter().map(principal).collect(),
        ..rules::Policy::default()
    };
    let rules = rules::Rbac {
        action: rules::rbac::Action::Allow.into(),
        policies: [("allow".to_owned(), policy)].into(),
        ..rules::Rbac::default()
    };
    filter::rbac::v3::Rbac { rules: Some(rules), ..filter::rbac::v3::Rbac::default() }
}

/// Envoy's own list of types has JSON and texts; event streams are not among them, which would wait in the compressor.
fn gzip() -> filter::compressor::v3::Compressor {
    use filter::compressor::v3::compressor::{CommonDirectionConfig, ResponseDirectionConfig};
    let common = CommonDirectionConfig { min_content_length: whole(MIN_COMPRESSED_BYTES), ..CommonDirectionConfig::default() };
    let responses = ResponseDirectionConfig {
        common_config: Some(common),
        // An engine that compresses itself would hide its tokens from the filter.
        remove_accept_encoding_header: true,
        ..ResponseDirectionConfig::default()
    };
    filter::compressor::v3::Compressor {
        compressor_library: Some(extension("gzip", &Gzip::default())),
        response_direction_config: Some(responses),
        ..filter::compressor::v3::Compressor::default()
    }
}

/// The providers are a protobuf map, which prost writes in an order that differs from process to process. Concatenated encodings of a
/// message merge (protobuf encoding, "Last One Wins"), so each is written as a message of its own, in order.
fn tokens(tokens: &[Jwt]) -> Any {
    use filter::jwt_authn::v3::jwt_requirement::RequiresType;
    use filter::jwt_authn::v3::requirement_rule::RequirementType;
    use filter::jwt_authn::v3::{JwtAuthentication, JwtRequirement, JwtRequirementOrList, RequirementRule};
    let one = |token: &Jwt| JwtRequirement { requires_type: Some(RequiresType::ProviderName(token.name.clone())) };
    let required = match tokens {
        [only] => one(only),
        several => {
            let requirements = several.iter().map(one).collect();
            JwtRequirement { requires_type: Some(RequiresType::RequiresAny(JwtRequirementOrList { requirements })) }
        }
    };
    let every = route::RouteMatch {
        path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".to_owned())),
        ..route::RouteMatch::default()
    };
    let rule = RequirementRule { r#match: Some(every), requirement_type: Some(RequirementType::Requires(required)) };
    let mut value = JwtAuthentication { rules: vec![rule], ..JwtAuthentication::default() }.encode_to_vec();
    for token in tokens {
        let providers = [(token.name.clone(), provider(token))].into();
        value.extend(JwtAuthentication { providers, ..JwtAuthentication::default() }.encode_to_vec());
    }
    Any { type_url: JwtAuthentication::type_url(), value }
}

fn provider(token: &Jwt) -> filter::jwt_authn::v3::JwtProvider {
    use filter::jwt_authn::v3::jwt_provider::JwksSourceSpecifier;
    use filter::jwt_authn::v3::{JwtProvider, RemoteJwks};
    let keys = match &token.keys {
        Keys::Inline(text) => JwksSourceSpecifier::LocalJwks(core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineString(text.clone())),
            ..core::DataSource::default()
        }),
        Keys::File(path) => JwksSourceSpecifier::LocalJwks(file(path)),
        Keys::Remote(remote) => JwksSourceSpecifier::RemoteJwks(RemoteJwks {
            http_uri: Some(asked(remote)),
            cache_duration: duration(KEYS_FOR),
            ..RemoteJwks::default()
        }),
    };
    JwtProvider {
        issuer: token.issuer.clone(),
        audiences: token.audiences.clone(),
        payload_in_metadata: PAYLOAD.to_owned(),
        jwks_source_specifier: Some(keys),
        ..JwtProvider::default()
    }
}

fn asked(remote: &RemoteFile) -> core::HttpUri {
    core::HttpUri {
        uri: remote.uri.clone(),
        timeout: duration(FETCH_LIMIT),
        http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster(remote_name(remote))),
    }
}

fn oauth2(config: &Oauth2) -> filter::oauth2::v3::OAuth2 {
    use filter::oauth2::v3::o_auth2_credentials::TokenFormation;
    use filter::oauth2::v3::{OAuth2, OAuth2Config, OAuth2Credentials};
    let credentials = OAuth2Credentials {
        client_id: config.client_id.clone(),
        token_secret: Some(secret("token", &config.token_secret_file)),
        token_formation: Some(TokenFormation::HmacSecret(secret("hmac", &config.hmac_secret_file))),
        ..OAuth2Credentials::default()
    };
    let carries_authorization = route::HeaderMatcher {
        name: "authorization".to_owned(),
        header_match_specifier: Some(route::header_matcher::HeaderMatchSpecifier::PresentMatch(true)),
        ..route::HeaderMatcher::default()
    };
    let config = OAuth2Config {
        token_endpoint: Some(asked(&config.token_endpoint)),
        authorization_endpoint: config.authorization_endpoint.clone(),
        credentials: Some(credentials),
        redirect_uri: format!("%REQ(x-forwarded-proto)%://%REQ(:authority)%{CALLBACK_PATH}"),
        redirect_path_matcher: Some(path(CALLBACK_PATH)),
        signout_path: Some(path(SIGN_OUT_PATH)),
        // What comes after asks for it: `jwt_authn`, the policy's tenants.
        forward_bearer_token: true,
        auth_scopes: config.scopes.clone(),
        pass_through_matcher: if config.pass_authorization { vec![carries_authorization] } else { Vec::new() },
        ..OAuth2Config::default()
    };
    OAuth2 { config: Some(config) }
}

fn path(exact: &str) -> matcher::PathMatcher {
    matcher::PathMatcher { rule: Some(matcher::path_matcher::Rule::Path(text(MatchPattern::Exact(exact.to_owned())))) }
}

fn secret(name: &str, path: &str) -> SdsSecretConfig {
    let file = core::PathConfigSource { path: path.to_owned(), watched_directory: Some(folder(path)), ..Default::default() };
    let source = source(core::config_source::ConfigSourceSpecifier::PathConfigSource(file));
    SdsSecretConfig { name: name.to_owned(), sds_config: Some(source) }
}

/// The keys as Lua texts in front of the script.
fn script(signatures: &Signatures) -> String {
    let mut script = String::from("local KEYS = {\n");
    for (name, der) in &signatures.keys {
        let bytes = der.iter().fold(String::new(), |mut bytes, byte| {
            let _ = write!(bytes, "\\{byte:03}");
            bytes
        });
        let _ = writeln!(script, "  [\"{name}\"] = \"{bytes}\",");
    }
    let _ = writeln!(script, "}}\nlocal MAX_SKEW_S = {}", signatures.max_skew.as_secs());
    script + include_str!("signature.lua")
}

fn model_to_metadata() -> filter::json_to_metadata::v3::JsonToMetadata {
    use filter::json_to_metadata::v3::JsonToMetadata;
    use filter::json_to_metadata::v3::json_to_metadata::{KeyValuePair, MatchRules, Rule, Selector, ValueType, selector};
    let pair = KeyValuePair {
        metadata_namespace: METADATA.to_owned(),
        key: MODEL_KEY.to_owned(),
        r#type: ValueType::String.into(),
        ..KeyValuePair::default()
    };
    let rule = Rule {
        selectors: vec![Selector { selector: Some(selector::Selector::Key("model".to_owned())) }],
        on_present: Some(pair),
        ..Rule::default()
    };
    JsonToMetadata { request_rules: Some(MatchRules { rules: vec![rule], ..MatchRules::default() }), response_rules: None }
}

/// Once the body is there and its model is known, routes and policies can see it.
fn metadata_to_header() -> filter::header_mutation::v3::HeaderMutation {
    let value = format!("%DYNAMIC_METADATA({METADATA}:{MODEL_KEY})%");
    let set = header(MODEL_HEADER, &value, core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd);
    let request = mutation::HeaderMutation { action: Some(mutation::header_mutation::Action::Append(set)) };
    filter::header_mutation::v3::HeaderMutation {
        mutations: Some(filter::header_mutation::v3::Mutations { request_mutations: vec![request], ..Default::default() }),
        ..Default::default()
    }
}

/// The addresses that a gateway's filters ask, by the names of their clusters.
pub(super) fn remotes(entry: &Entry) -> BTreeMap<String, &RemoteFile> {
    let keys = entry.jwt.iter().filter_map(|token| match &token.keys {
        Keys::Remote(remote) => Some(remote),
        Keys::Inline(_) | Keys::File(_) => None,
    });
    let tokens = entry.oauth2.iter().map(|config| &config.token_endpoint);
    keys.chain(tokens).map(|remote| (remote_name(remote), remote)).collect()
}
