#![allow(clippy::unwrap_used)]

use super::*;

fn compile(text: &str) -> Result<Access, Vec<String>> {
    AccessFile::parse(text.as_bytes()).unwrap().compile(&[])
}

fn certificate(name: &str) -> PeerCertificate {
    PeerCertificate { names: vec![name.to_owned()] }
}

fn claims(subject: &str, groups: &[&str]) -> Claims {
    let all = serde_json::json!({ "sub": subject, "groups": groups, "realm_access": { "roles": ["ops"] } });
    let serde_json::Value::Object(all) = all else { unreachable!() };
    Claims { issuer: "https://issuer".to_owned(), subject: subject.to_owned(), all, ends_at_unix_s: 0 }
}

const PROXIES: &str = "
proxies:
- of: {certificate: 'spiffe://headgate/proxy/{id}'}
  nodes: ['{id}']
  clusters: [edge, 'edge-*']
";

#[test]
fn a_certificate_may_be_its_own_node_and_no_other() {
    let access = compile(PROXIES).unwrap();
    let rights = access.rights(Some(&certificate("spiffe://headgate/proxy/a")), None);
    assert!(rights.allow_node("a", Some("edge-1")) && rights.allow_node("a", None));
    assert!(!rights.allow_node("b", Some("edge-1")), "stolen");
    assert!(!rights.allow_node("a", Some("centre")), "another cluster");
    assert!(!rights.allow_node("", None));
    assert!(!access.rights(Some(&certificate("spiffe://headgate/person/a")), None).allow_some_node());
    assert!(!access.rights(None, None).allow_some_node());
    assert!(!rights.allow_somewhere(Role::View), "a proxy reads no policies by the service");
}

#[test]
fn a_replica_is_who_a_rule_of_its_own_says_and_no_proxy() {
    let access = compile(&format!("{PROXIES}replicas:\n- of: {{certificate: 'spiffe://headgate/replica/*'}}\n")).unwrap();
    let replica = access.rights(Some(&certificate("spiffe://headgate/replica/a")), None);
    assert!(replica.allow_replica() && !replica.allow_some_node() && !replica.allow_somewhere(Role::View));
    assert!(!access.rights(Some(&certificate("spiffe://headgate/proxy/a")), None).allow_replica());
    assert!(!access.rights(None, None).allow_replica());
    let wrong = compile("roles:\n- {to: {anyone: true}, role: view, policies: ['*']}\nreplicas:\n- of: {}\n").unwrap_err();
    assert!(wrong[0].starts_with("replicas[0].of"), "{wrong:?}");
}

#[test]
fn a_role_holds_for_its_policies_and_includes_the_smaller_ones() {
    let file = AccessFile::parse(
        b"roles:\n- {to: {certificate: 'spiffe://td/team/{team}/*'}, role: operate, policies: ['{team}-*']}\n\
          - {to: {anyone: true}, role: view, policies: [public]}\n",
    );
    let access = file.unwrap().compile(&[]).unwrap();
    let rights = access.rights(Some(&certificate("spiffe://td/team/search/ci")), None);
    assert!(rights.allow(Role::View, "search-eu") && rights.allow(Role::Operate, "search-eu"));
    assert!(!rights.allow(Role::Admin, "search-eu") && !rights.allow(Role::View, "ads-eu"));
    assert!(rights.allow(Role::View, "public") && !rights.allow(Role::Operate, "public"));
    assert!(rights.allow_somewhere(Role::Operate) && !rights.allow_everywhere(Role::View));
}

#[test]
fn claims_are_matched_in_texts_lists_and_objects() {
    let allows = |claim: &str, value: &str| {
        let who = Who::Claim { claim: claim.to_owned(), value: Pattern::parse(value).unwrap(), issuer: None };
        !who.matches(None, Some(&claims("me", &["ml", "all"]))).is_empty()
    };
    assert!(allows("groups", "ml") && allows("sub", "me") && allows("realm_access.roles", "ops"));
    assert!(!allows("groups", "m") && !allows("none", "*") && !allows("realm_access.none", "*"));
    let other = Who::Subject { subject: Pattern::parse("*").unwrap(), issuer: Some("https://other".to_owned()) };
    assert!(other.matches(None, Some(&claims("me", &[]))).is_empty(), "a subject of another issuer");
}

#[test]
fn a_rule_about_tokens_needs_an_issuer() {
    let problems = compile("{roles: [{to: {subject: me}, role: admin, policies: ['*']}]}").unwrap_err();
    assert_eq!(problems, ["tokens: is missing, and a rule names a subject or a claim"]);
}

#[test]
fn every_error_of_the_file_is_reported_at_once_with_its_field() {
    let text = "
tokens:
- {issuer: '', audiences: [], jwks: keys.json, clockSkewSeconds: 301}
roles:
- {to: {certificate: 'a{b'}, role: view, policies: []}
- {to: {certificate: a, subject: b}, role: view, policies: ['{x}']}
proxies:
- {of: {certificate: '*'}, nodes: ['{id}']}
limits: {burst: 0}
";
    let file = AccessFile::parse(text.as_bytes()).unwrap();
    assert_eq!(file.key_sets(std::path::Path::new("/etc/headgate/access.yaml")), [PathBuf::from("/etc/headgate/keys.json")]);
    let problems = file.compile(&[Ok(br#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#.to_vec())]).unwrap_err();
    let fields: Vec<&str> = problems.iter().filter_map(|problem| problem.split(": ").next()).collect();
    assert_eq!(
        fields,
        [
            "tokens[0].issuer",
            "tokens[0].audiences",
            "tokens[0].clockSkewSeconds",
            "tokens[0].jwks",
            "roles[0].to.certificate",
            "roles[0].policies",
            "roles[1].to",
            "proxies[0].nodes[0]",
            "limits.burst",
        ],
        "{problems:#?}"
    );
    assert_eq!(compile("{}").unwrap_err(), ["roles: is missing, as is proxies: nobody could do anything"]);
    assert!(AccessFile::parse(b"role: []").unwrap_err().contains("unknown field `role`"));
}
