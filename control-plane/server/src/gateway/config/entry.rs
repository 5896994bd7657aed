//! Gateways: where requests come in, and what they have to be.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use headgate_core::policy::Problem;
use headgate_core::policy::check::{Checker, Form, join};
use headgate_protos::v1;
use http::Uri;
use serde_json::Value;

use super::{FILE, LINE, NAME, address, malformed, non_empty, port};

const MAX_NETWORKS: usize = 256;
const MAX_JWT: usize = 16;
const MAX_AUDIENCES: usize = 16;
const MAX_SCOPES: usize = 16;
const MAX_KEYS: usize = 16;
const MAX_JWKS_BYTES: usize = 65_536;
/// Where Debian and its descendants have the authorities of the world.
const DEFAULT_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// An RSA key of 8192 bits has 1400 characters.
const PUBLIC_KEY: Form = Form {
    max_bytes: 2048,
    allows: |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'='),
    ends_allow: |byte| byte.is_ascii_alphanumeric() || byte == b'=',
    expected: "base64 of at most 2048 characters without line feeds",
};

/// Where requests come in, and what they have to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Name.
    pub name: String,
    /// `node.cluster` of its proxies; `None`: all.
    pub node_cluster: Option<String>,
    /// Address to listen on.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Certificate.
    pub tls: Option<EntryTls>,
    /// Whether answers are compressed.
    pub gzip: bool,
    /// Whether Headgate's filter is in the chain.
    pub admission: bool,
    /// Whether the body's model becomes a header.
    pub model_from_body: bool,
    /// Longest body that is held.
    pub max_body_bytes: u32,
    /// Longest headers, in KiB.
    pub max_header_kib: u32,
    /// Proxies in front.
    pub trusted_hops: u32,
    /// Networks that are let in; empty: all.
    pub allow: Vec<Network>,
    /// Tokens, one of which is asked for.
    pub jwt: Vec<Jwt>,
    /// Sign-in of people.
    pub oauth2: Option<Oauth2>,
    /// Signatures of requests.
    pub signatures: Option<Signatures>,
    /// Authorities of the addresses that Envoy itself asks.
    pub remote_ca_file: String,
}

/// The gateway's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryTls {
    /// Chain.
    pub certificate_file: String,
    /// Key.
    pub key_file: String,
    /// Authorities of client certificates.
    pub client_ca_file: Option<String>,
    /// Whether HTTP/3 is served too.
    pub http3: bool,
}

/// A network of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// First address.
    pub address: IpAddr,
    /// Bits that count.
    pub prefix_len: u8,
}

/// Tokens of one issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jwt {
    /// Name.
    pub name: String,
    /// `iss`.
    pub issuer: String,
    /// `aud`, one of them; empty: any.
    pub audiences: Vec<String>,
    /// The keys.
    pub keys: Keys,
}

/// Where the keys of tokens are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Here.
    Inline(String),
    /// In a file.
    File(String),
    /// At an address.
    Remote(RemoteFile),
}

/// An address that Envoy itself asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// As it was given.
    pub uri: String,
    /// Host, without the brackets of an IPv6 address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Whether by TLS.
    pub is_tls: bool,
}

/// Sign-in of people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oauth2 {
    /// Where people sign in.
    pub authorization_endpoint: String,
    /// Where the code is exchanged.
    pub token_endpoint: RemoteFile,
    /// Client.
    pub client_id: String,
    /// SDS file with the secret `token`.
    pub token_secret_file: String,
    /// SDS file with the secret `hmac`.
    pub hmac_secret_file: String,
    /// Scopes.
    pub scopes: Vec<String>,
    /// Whether requests with `authorization` go by.
    pub pass_authorization: bool,
}

/// Signatures of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signatures {
    /// RSA public keys by name, as SubjectPublicKeyInfo in DER.
    pub keys: BTreeMap<String, Vec<u8>>,
    /// How far a request's time may be from Envoy's.
    pub max_skew: Duration,
}

pub(super) fn check(check: &mut Checker, name: &str, wire: &v1::GatewaySpec) -> Entry {
    let v1::GatewaySpec {
        node_cluster,
        address,
        port,
        tls,
        http3,
        gzip,
        admission,
        model_from_body,
        max_body_bytes,
        max_header_kib,
        trusted_hops,
        allow,
        jwt,
        oauth2,
        signatures,
        remote_ca_file,
    } = wire;
    check.length("", "nodeCluster", node_cluster, 253);
    check.optional_text("", "remoteCaFile", remote_ca_file, &FILE);
    if *http3 && tls.is_none() {
        check.report("http3".to_owned(), Problem::Conflict { got: "true".to_owned(), rule: "HTTP/3 needs `tls`" });
    }
    Entry {
        name: name.to_owned(),
        node_cluster: non_empty(node_cluster),
        address: self::address(check, "", address, Some(Ipv4Addr::UNSPECIFIED.into())),
        port: self::port(check, "", *port),
        tls: tls.as_ref().map(|wire| self::tls(check, wire, *http3)),
        gzip: *gzip,
        admission: admission.unwrap_or(true),
        model_from_body: *model_from_body,
        max_body_bytes: check.whole("", "maxBodyBytes", *max_body_bytes, 1 << 20, 1024..=64 << 20),
        max_header_kib: check.whole("", "maxHeaderKib", *max_header_kib, 60, 1..=96),
        trusted_hops: check.whole("", "trustedHops", *trusted_hops, 0, 0..=10),
        allow: networks(check, allow),
        jwt: tokens(check, jwt),
        oauth2: oauth2.as_ref().map(|wire| self::oauth2(check, wire)),
        signatures: signatures.as_ref().map(|wire| self::signatures(check, wire)),
        remote_ca_file: non_empty(remote_ca_file).unwrap_or_else(|| DEFAULT_AUTHORITIES.to_owned()),
    }
}

fn tls(check: &mut Checker, wire: &v1::GatewayTls, http3: bool) -> EntryTls {
    let v1::GatewayTls { certificate_file, key_file, client_ca_file } = wire;
    check.text("tls", "certificateFile", certificate_file, &FILE);
    check.text("tls", "keyFile", key_file, &FILE);
    check.optional_text("tls", "clientCaFile", client_ca_file, &FILE);
    if http3 && !client_ca_file.is_empty() {
        let rule = "not every Envoy from 1.36 on asks for client certificates over QUIC; leave `http3` out";
        check.report("tls.clientCaFile".to_owned(), Problem::Conflict { got: client_ca_file.clone(), rule });
    }
    EntryTls { certificate_file: certificate_file.clone(), key_file: key_file.clone(), client_ca_file: non_empty(client_ca_file), http3 }
}

fn networks(check: &mut Checker, wire: &[String]) -> Vec<Network> {
    let checked = check.count("", "allow", wire.len(), 0..=MAX_NETWORKS);
    let mut networks = Vec::with_capacity(checked);
    for (index, text) in wire.iter().take(checked).enumerate() {
        match network(text) {
            Some(network) => networks.push(network),
            None => check.report(format!("allow[{index}]"), malformed(text, "a network such as 10.0.0.0/8 or 2001:db8::/32")),
        }
    }
    networks
}

/// `ADDRESS/BITS`, or an address alone.
fn network(text: &str) -> Option<Network> {
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let address: IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix_len = bits.map_or(Some(longest), |bits| bits.parse().ok())?;
    (prefix_len <= longest).then_some(Network { address, prefix_len })
}

fn tokens(check: &mut Checker, wire: &[v1::GatewayJwt]) -> Vec<Jwt> {
    let checked = check.count("", "jwt", wire.len(), 0..=MAX_JWT);
    let mut seen = BTreeMap::new();
    let mut tokens = Vec::with_capacity(checked);
    for (index, wire) in wire.iter().take(checked).enumerate() {
        let at = format!("jwt[{index}]");
        let v1::GatewayJwt { name, issuer, audiences, jwks, jwks_file, jwks_uri } = wire;
        check.text(&at, "name", name, &NAME);
        check.unique(join(&at, "name"), name, &mut seen);
        check.text(&at, "issuer", issuer, &LINE);
        lines(check, &at, "audiences", audiences, MAX_AUDIENCES);
        let keys = keys(check, &at, jwks, jwks_file, jwks_uri);
        tokens.push(Jwt { name: name.clone(), issuer: issuer.clone(), audiences: audiences.clone(), keys });
    }
    tokens
}

fn keys(check: &mut Checker, at: &str, jwks: &str, jwks_file: &str, jwks_uri: &str) -> Keys {
    let given = [jwks, jwks_file, jwks_uri].iter().filter(|text| !text.is_empty()).count();
    if given != 1 {
        check.report(at.to_owned(), Problem::NotExactlyOne { got: given, of: "jwks, jwksFile and jwksUri" });
    }
    check.length(at, "jwks", jwks, MAX_JWKS_BYTES);
    if !jwks.is_empty() && !holds_a_key(jwks) {
        check.report(join(at, "jwks"), malformed(jwks, "a JSON object with a list `keys` of at least one RSA, EC, OKP or oct key"));
    }
    check.optional_text(at, "jwksFile", jwks_file, &FILE);
    if !jwks_uri.is_empty() {
        return Keys::Remote(remote(check, at, "jwksUri", jwks_uri));
    }
    if jwks_file.is_empty() { Keys::Inline(jwks.to_owned()) } else { Keys::File(jwks_file.to_owned()) }
}

/// Whether a text is a JWKS with a key that Envoy can use; it refuses a listener that has none.
fn holds_a_key(jwks: &str) -> bool {
    let set: Value = serde_json::from_str(jwks).unwrap_or_default();
    let members: fn(&str) -> &'static [&'static str] = |kind| match kind {
        "RSA" => &["n", "e"],
        "EC" => &["crv", "x", "y"],
        "OKP" => &["crv", "x"],
        "oct" => &["k"],
        _ => &[],
    };
    let is_encoded = |(name, value): (&str, &str)| name == "crv" || URL_SAFE_NO_PAD.decode(value).is_ok_and(|bytes| !bytes.is_empty());
    let is_usable = |key: &Value| {
        let needed = members(key.get("kty").and_then(Value::as_str).unwrap_or_default());
        !needed.is_empty()
            && needed.iter().all(|name| key.get(*name).and_then(Value::as_str).is_some_and(|value| is_encoded((name, value))))
    };
    set.get("keys").and_then(Value::as_array).is_some_and(|keys| keys.iter().any(is_usable))
}

fn remote(check: &mut Checker, at: &str, field: &str, text: &str) -> RemoteFile {
    let parsed = text.parse::<Uri>().ok().and_then(|uri| {
        let is_tls = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        (!host.is_empty() && port > 0).then_some(RemoteFile { uri: text.to_owned(), host, port, is_tls })
    });
    if parsed.is_none() {
        let problem = if text.is_empty() { Problem::Missing } else { malformed(text, "an address of the form http(s)://HOST[:PORT]/PATH") };
        check.report(join(at, field), problem);
    }
    parsed.unwrap_or_else(|| RemoteFile { uri: String::new(), host: String::new(), port: 1, is_tls: false })
}

fn oauth2(check: &mut Checker, wire: &v1::GatewayOauth2) -> Oauth2 {
    let v1::GatewayOauth2 {
        authorization_endpoint,
        token_endpoint,
        client_id,
        token_secret_file,
        hmac_secret_file,
        scopes,
        pass_authorization,
    } = wire;
    let at = "oauth2";
    let authorization = remote(check, at, "authorizationEndpoint", authorization_endpoint);
    check.text(at, "clientId", client_id, &LINE);
    check.text(at, "tokenSecretFile", token_secret_file, &FILE);
    check.text(at, "hmacSecretFile", hmac_secret_file, &FILE);
    lines(check, at, "scopes", scopes, MAX_SCOPES);
    Oauth2 {
        authorization_endpoint: authorization.uri,
        token_endpoint: remote(check, at, "tokenEndpoint", token_endpoint),
        client_id: client_id.clone(),
        token_secret_file: token_secret_file.clone(),
        hmac_secret_file: hmac_secret_file.clone(),
        scopes: if scopes.is_empty() { vec!["openid".to_owned()] } else { scopes.clone() },
        pass_authorization: *pass_authorization,
    }
}

fn signatures(check: &mut Checker, wire: &v1::GatewaySignatures) -> Signatures {
    let v1::GatewaySignatures { keys, max_skew_s } = wire;
    let at = "signatures";
    let checked = check.count(at, "keys", keys.len(), 1..=MAX_KEYS);
    let mut seen = BTreeMap::new();
    let mut by_name = BTreeMap::new();
    for (index, v1::SignatureKey { name, public_key }) in keys.iter().take(checked).enumerate() {
        let at = format!("{at}.keys[{index}]");
        check.text(&at, "name", name, &NAME);
        check.unique(join(&at, "name"), name, &mut seen);
        check.text(&at, "publicKey", public_key, &PUBLIC_KEY);
        match STANDARD.decode(public_key) {
            Ok(der) => {
                by_name.insert(name.clone(), der);
            }
            Err(_) => check.report(join(&at, "publicKey"), malformed(public_key, PUBLIC_KEY.expected)),
        }
    }
    let max_skew = Duration::from_secs(check.whole(at, "maxSkewS", *max_skew_s, 300, 1..=3600).into());
    Signatures { keys: by_name, max_skew }
}

fn lines(check: &mut Checker, at: &str, field: &str, lines: &[String], most: usize) {
    let checked = check.count(at, field, lines.len(), 0..=most);
    for (index, line) in lines.iter().take(checked).enumerate() {
        check.text(at, &format!("{field}[{index}]"), line, &LINE);
    }
}
