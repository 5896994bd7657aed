//! The access file as people write it.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Access, PeerLimits, ProxyRule, Role, RoleRule, Who};
use crate::identity::pattern::Pattern;
use crate::identity::token::{Expectation, Issuer};

/// Most entries of each list.
const MAX_ENTRIES: usize = 1024;
/// Most clock skew that is forgiven, in seconds.
const MAX_CLOCK_SKEW_S: u64 = 300;

/// An access file.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct AccessFile {
    tokens: Vec<RawIssuer>,
    roles: Vec<RawRole>,
    proxies: Vec<RawProxy>,
    replicas: Vec<RawReplica>,
    limits: RawLimits,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawIssuer {
    issuer: String,
    audiences: Vec<String>,
    jwks: PathBuf,
    #[serde(default)]
    clock_skew_seconds: Option<u64>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawRole {
    to: RawWho,
    role: Role,
    policies: Vec<String>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawProxy {
    of: RawWho,
    nodes: Vec<String>,
    #[serde(default)]
    clusters: Option<Vec<String>>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawReplica {
    of: RawWho,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct RawWho {
    certificate: Option<String>,
    subject: Option<String>,
    claim: Option<String>,
    value: Option<String>,
    issuer: Option<String>,
    anyone: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct RawLimits {
    requests_per_second: Option<u32>,
    burst: Option<u32>,
    streams: Option<u32>,
}

/// Problems so far, each with the path of its field.
#[derive(Default)]
struct Problems(Vec<String>);

// === impl AccessFile ===

impl AccessFile {
    /// Parses YAML or JSON.
    ///
    /// # Errors
    /// Where the text is wrong.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        serde_yaml_ng::from_slice::<Option<Self>>(text).map(Option::unwrap_or_default).map_err(|error| error.to_string())
    }

    /// Paths of the key sets, in the order of the issuers; relative ones begin at the folder of `file`.
    pub fn key_sets(&self, file: &Path) -> Vec<PathBuf> {
        let folder = file.parent().unwrap_or(Path::new("."));
        self.tokens.iter().take(MAX_ENTRIES).map(|issuer| folder.join(&issuer.jwks)).collect()
    }

    /// Checks everything, with the contents of [`Self::key_sets`].
    ///
    /// # Errors
    /// All that is wrong, each with the path of its field.
    pub fn compile(&self, key_sets: &[Result<Vec<u8>, String>]) -> Result<Access, Vec<String>> {
        let mut problems = Problems::default();
        let lists = [
            ("tokens", self.tokens.len()),
            ("roles", self.roles.len()),
            ("proxies", self.proxies.len()),
            ("replicas", self.replicas.len()),
        ];
        for (field, entries) in lists {
            if entries > MAX_ENTRIES {
                problems.0.push(format!("{field}: has {entries} entries, more than {MAX_ENTRIES}"));
            }
        }
        if self.roles.is_empty() && self.proxies.is_empty() {
            problems.0.push("roles: is missing, as is proxies: nobody could do anything".to_owned());
        }
        let issuers = self.tokens.iter().zip(key_sets).enumerate().filter_map(|(n, (raw, keys))| problems.issuer(n, raw, keys)).collect();
        let roles = self.roles.iter().enumerate().filter_map(|(n, raw)| problems.role(n, raw)).collect();
        let proxies = self.proxies.iter().enumerate().filter_map(|(n, raw)| problems.proxy(n, raw)).collect();
        let replicas = self.replicas.iter().enumerate();
        let replicas = replicas.filter_map(|(n, raw)| problems.who(&format!("replicas[{n}].of"), &raw.of)).collect();
        let limits = problems.limits(&self.limits);
        let uses_tokens = |who: &RawWho| who.subject.is_some() || who.claim.is_some();
        let whos = self.roles.iter().map(|rule| &rule.to).chain(self.proxies.iter().map(|rule| &rule.of));
        let whos = whos.chain(self.replicas.iter().map(|rule| &rule.of));
        if self.tokens.is_empty() && whos.into_iter().any(uses_tokens) {
            problems.0.push("tokens: is missing, and a rule names a subject or a claim".to_owned());
        }
        if problems.0.is_empty() { Ok(Access { issuers, roles, proxies, replicas, limits }) } else { Err(problems.0) }
    }
}

// === impl Problems ===

impl Problems {
    fn issuer(&mut self, n: usize, raw: &RawIssuer, key_set: &Result<Vec<u8>, String>) -> Option<Issuer> {
        let before = self.0.len();
        let at = |field: &str| format!("tokens[{n}].{field}");
        if raw.issuer.is_empty() {
            self.0.push(format!("{}: is empty", at("issuer")));
        }
        if raw.audiences.is_empty() || raw.audiences.iter().any(String::is_empty) {
            self.0.push(format!("{}: needs at least one audience, none of them empty", at("audiences")));
        }
        let clock_skew_s = raw.clock_skew_seconds.unwrap_or(30);
        if clock_skew_s > MAX_CLOCK_SKEW_S {
            self.0.push(format!("{}: {clock_skew_s} is outside 0..={MAX_CLOCK_SKEW_S}", at("clockSkewSeconds")));
        }
        let expectation = Expectation { issuer: raw.issuer.clone(), audiences: raw.audiences.clone(), clock_skew_s };
        let issuer = key_set.as_ref().map_err(Clone::clone).and_then(|keys| Issuer::new(expectation, keys));
        let issuer = issuer.map_err(|problem| self.0.push(format!("{}: {problem}", at("jwks")))).ok();
        issuer.filter(|_| self.0.len() == before)
    }

    fn role(&mut self, n: usize, raw: &RawRole) -> Option<RoleRule> {
        let at = format!("roles[{n}]");
        let who = self.who(&format!("{at}.to"), &raw.to);
        let policies = self.patterns(&format!("{at}.policies"), &raw.policies, who.as_ref());
        Some(RoleRule { who: who?, role: raw.role, policies: policies.into() })
    }

    fn proxy(&mut self, n: usize, raw: &RawProxy) -> Option<ProxyRule> {
        let at = format!("proxies[{n}]");
        let who = self.who(&format!("{at}.of"), &raw.of);
        let nodes = self.patterns(&format!("{at}.nodes"), &raw.nodes, who.as_ref());
        let any = ["*".to_owned()];
        let clusters = self.patterns(&format!("{at}.clusters"), raw.clusters.as_deref().unwrap_or(&any), who.as_ref());
        Some(ProxyRule { who: who?, nodes: nodes.into(), clusters: clusters.into() })
    }

    fn who(&mut self, at: &str, raw: &RawWho) -> Option<Who> {
        let issuer = raw.issuer.clone();
        match (&raw.certificate, &raw.subject, &raw.claim, &raw.value, raw.anyone) {
            (Some(certificate), None, None, None, None) if issuer.is_none() => {
                self.pattern(at, "certificate", certificate).map(Who::Certificate)
            }
            (None, Some(subject), None, None, None) => self.pattern(at, "subject", subject).map(|subject| Who::Subject { subject, issuer }),
            (None, None, Some(claim), Some(value), None) => {
                let claim = claim.clone();
                self.pattern(at, "value", value).map(|value| Who::Claim { claim, value, issuer })
            }
            (None, None, None, None, Some(true)) if issuer.is_none() => Some(Who::Anyone),
            _ => {
                self.0.push(format!(
                    "{at}: needs one of `certificate`, `subject` (perhaps with `issuer`), `claim` with `value` (perhaps with `issuer`), \
                     `anyone: true`, and nothing else"
                ));
                None
            }
        }
    }

    fn pattern(&mut self, at: &str, field: &str, text: &str) -> Option<Pattern> {
        Pattern::parse(text).map_err(|problem| self.0.push(format!("{at}.{field}: {problem}"))).ok()
    }

    /// Patterns whose names in braces are those of `who`.
    fn patterns(&mut self, at: &str, texts: &[String], who: Option<&Who>) -> Vec<Pattern> {
        if texts.is_empty() || texts.len() > MAX_ENTRIES {
            self.0.push(format!("{at}: {} patterns is outside 1..={MAX_ENTRIES}", texts.len()));
        }
        let known: Vec<&str> = who.and_then(Who::pattern).map(|pattern| pattern.names().collect()).unwrap_or_default();
        let mut patterns = Vec::new();
        for (n, text) in texts.iter().enumerate() {
            match Pattern::parse(text) {
                Ok(pattern) => {
                    // Without its who, which is wrong itself, nothing can be said of the names.
                    let unknown = pattern.names().find(|name| who.is_some() && !known.contains(name));
                    if let Some(name) = unknown {
                        self.0.push(format!("{at}[{n}]: {{{name}}} is in no pattern of the one to whom the rule applies"));
                    }
                    patterns.push(pattern);
                }
                Err(problem) => self.0.push(format!("{at}[{n}]: {problem}")),
            }
        }
        patterns
    }

    fn limits(&mut self, raw: &RawLimits) -> PeerLimits {
        let default = PeerLimits::default();
        let mut within = |field: &str, given: Option<u32>, default: u32| {
            let got = given.unwrap_or(default);
            if !(1..=1_000_000).contains(&got) {
                self.0.push(format!("limits.{field}: {got} is outside 1..=1000000"));
            }
            got
        };
        PeerLimits {
            requests_per_s: within("requestsPerSecond", raw.requests_per_second, default.requests_per_s),
            burst: within("burst", raw.burst, default.burst),
            streams: within("streams", raw.streams, default.streams),
        }
    }
}

// === impl Who ===

impl Who {
    fn pattern(&self) -> Option<&Pattern> {
        match self {
            Self::Certificate(pattern) | Self::Subject { subject: pattern, .. } | Self::Claim { value: pattern, .. } => Some(pattern),
            Self::Anyone => None,
        }
    }
}
