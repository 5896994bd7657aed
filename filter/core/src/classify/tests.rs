use std::string::String;
use std::vec::Vec;

use headgate_protos::v1;
use proptest::prelude::*;

use super::*;
use crate::policy::fixture::{self, ACME_KEY};
use crate::request::VerifiedIdentity;

const VIP: &[u8] = b"spiffe://cluster.local/ns/a/sa/vip";

fn header<'a>(name: &'a str, value: &'a str) -> (&'a [u8], &'a [u8]) {
    (name.as_bytes(), value.as_bytes())
}

/// Class, tenant and whether a claim was denied.
fn classified(policy: &Policy, headers: &[(&[u8], &[u8])], identity: VerifiedIdentity<'_>) -> (String, Option<String>, bool) {
    let request = RequestInfo::new(HeaderView::from_pairs(headers), identity);
    let slots: Vec<usize> = (0..policy.claims().len()).collect();
    let Classified { class, tenant, denied_claim, .. } = classify(policy, &request, &slots, &mut KeyCache::new(1));
    let tenant = tenant.map(|id| policy.tenants()[id.index()].name.clone());
    (policy.class(class).unwrap().name.clone(), tenant, denied_claim)
}

fn check(headers: &[(&str, &str)], class: &str, tenant: Option<&str>, denied: bool) {
    let policy = fixture::policy(|_| {});
    let headers: Vec<_> = headers.iter().map(|(name, value)| header(name, value)).collect();
    let expected = (String::from(class), tenant.map(String::from), denied);
    assert_eq!(classified(&policy, &headers, VerifiedIdentity::default()), expected, "{headers:?}");
}

#[test]
fn a_header_alone_never_lifts_an_unknown_client() {
    check(&[], "low", None, false);
    check(&[("x-priority", "high")], "low", None, true);
    check(
        &[("x-priority", "high"), ("x-headgate-class", "high"), ("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/a/sa/vip")],
        "low",
        None,
        true,
    );
    check(&[("x-priority", "medium"), ("authorization", "Bearer sk-wrong")], "low", None, true);
}

#[test]
fn a_tenant_may_claim_what_it_was_granted_and_anything_below() {
    let key = "Bearer sk-acme-0001";
    check(&[("authorization", key)], "medium", Some("acme"), false);
    check(&[("authorization", key), ("x-priority", "high")], "high", Some("acme"), false);
    check(&[("authorization", key), ("x-priority", " LOW ")], "low", Some("acme"), false);
    check(&[("x-api-key", "sk-acme-0001"), ("x-priority", "gold")], "medium", Some("acme"), false);
    check(&[("authorization", "bEaReR sk-acme-0001")], "medium", Some("acme"), false);
    check(&[("authorization", "Basic sk-acme-0001")], "low", None, false);
    check(&[("authorization", "Bearer x"), ("api-key", "sk-acme-0001")], "medium", Some("acme"), false);
}

#[test]
fn contradicting_claims_are_no_claim() {
    let key = ("x-api-key", "sk-acme-0001");
    check(&[key, ("x-priority", "high"), ("x-priority", "low")], "medium", Some("acme"), false);
    check(&[key, ("x-priority", "high"), ("x-priority", "HIGH")], "high", Some("acme"), false);
    check(&[key, ("x-priority", "high,low")], "medium", Some("acme"), false);
}

#[test]
fn bytes_that_are_no_text_are_nobody_and_no_class() {
    let policy = fixture::policy(|_| {});
    let headers: [(&[u8], &[u8]); 3] = [(b"x-priority", b"\xff\xfe"), (b"authorization", b"Bearer \xff"), (b"x-api-key", b"\x00")];
    let identity = VerifiedIdentity { spiffe: Some(b"spiffe://\xff"), jwt_claims: &[Some(b"\xff")] };
    assert_eq!(classified(&policy, &headers, identity), ("low".into(), None, false));
}

#[test]
fn the_certificate_decides_before_the_jwt_and_the_jwt_before_the_key() {
    let policy = fixture::policy(|_| {});
    let key = [(&b"x-api-key"[..], ACME_KEY)];
    let jwt: &[Option<&[u8]>] = &[Some(b"user-7")];
    let all = VerifiedIdentity { spiffe: Some(VIP), jwt_claims: jwt };
    assert_eq!(classified(&policy, &key, all), ("high".into(), Some("vip".into()), false));
    let no_certificate = VerifiedIdentity { spiffe: Some(b"spiffe://cluster.local/other"), jwt_claims: jwt };
    assert_eq!(classified(&policy, &key, no_certificate), ("low".into(), Some("user".into()), false));
    let other_user = VerifiedIdentity { spiffe: None, jwt_claims: &[Some(b"user-8")] };
    assert_eq!(classified(&policy, &key, other_user), ("medium".into(), Some("acme".into()), false));
}

#[test]
fn caps_only_lower() {
    let cap = |class: &str| v1::ClassCap { class: class.into(), ..Default::default() };
    let policy = fixture::policy(|spec| {
        spec.classification.as_mut().unwrap().caps = std::vec![
            v1::ClassCap { path_prefix: "/v1/embeddings".into(), ..cap("low") },
            v1::ClassCap { model: "big".into(), ..cap("medium") },
            v1::ClassCap { min_content_length: Some(1000), ..cap("medium") },
        ];
    });
    let vip = VerifiedIdentity { spiffe: Some(VIP), jwt_claims: &[] };
    let class_of = |headers: &[(&str, &str)], identity| {
        let headers: Vec<_> = headers.iter().map(|(name, value)| header(name, value)).collect();
        classified(&policy, &headers, identity).0
    };
    assert_eq!(class_of(&[(":path", "/v1/chat"), ("content-length", "999")], vip), "high");
    assert_eq!(class_of(&[(":path", "/v1/chat"), ("content-length", "1000")], vip), "medium");
    assert_eq!(class_of(&[(":path", "/v1/chat")], vip), "medium", "an unknown length may be a long one");
    assert_eq!(class_of(&[(":path", "/v1/embeddings"), ("content-length", "9")], vip), "low");
    assert_eq!(class_of(&[("x-model", "big"), ("content-length", "9")], vip), "medium");
    assert_eq!(class_of(&[("x-model", "big"), ("content-length", "9")], VerifiedIdentity::default()), "low", "a cap lifts nobody");
}

#[test]
fn cost_grows_with_the_length_of_the_request() {
    let policy = fixture::policy(|_| {});
    let cost = |length: &str| {
        let headers = [header("content-length", length)];
        let request = RequestInfo::new(HeaderView::from_pairs(&headers), VerifiedIdentity::default());
        classify(&policy, &request, &[], &mut KeyCache::new(1)).cost_tokens
    };
    assert_eq!([cost("0"), cost("4000"), cost("-1"), cost("99999999999999999999")], [256, 1256, 256, 256]);
}

proptest! {
    #[test]
    fn no_headers_whatsoever_lift_an_unknown_client(
        headers in prop::collection::vec((prop_oneof![
            Just(b"x-priority".to_vec()), Just(b"authorization".to_vec()), Just(b"x-api-key".to_vec()), Just(b"api-key".to_vec()),
            Just(b":path".to_vec()), Just(b"x-headgate-class".to_vec()), Just(b"x-forwarded-for".to_vec()), prop::collection::vec(any::<u8>(), 0..20),
        ], prop_oneof![
            Just(b"high".to_vec()), Just(b"medium".to_vec()), Just(b"Bearer acme".to_vec()), prop::collection::vec(any::<u8>(), 0..40),
        ]), 0..12),
    ) {
        let policy = fixture::policy(|_| {});
        let headers: Vec<(&[u8], &[u8])> = headers.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).collect();
        let (class, tenant, _) = classified(&policy, &headers, VerifiedIdentity::default());
        prop_assert_eq!((class.as_str(), tenant), ("low", None));
    }
}
