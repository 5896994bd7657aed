//! What a stranger sends before anybody knows who it is: token, certificate, frames; and what an operator may get wrong: patterns, rules.
//! Nothing panics, no token that was not signed is believed, no length is misread, no pattern matches what it should not.

use std::sync::OnceLock;

use headgate::identity::access::AccessFile;
use headgate::identity::certificate::PeerCertificate;
use headgate::identity::frames::FrameReader;
use headgate::identity::pattern::{Captures, Pattern};
use headgate::identity::token::{Expectation, Issuer, verify};

use crate::input::{Input, fingerprint, push_frame};

pub(super) const WORDS: &[&str] = &[
    "eyJhbGciOiJFZERTQSIsImtpZCI6ImsifQ",
    "eyJhbGciOiJub25lIn0",
    "{\"alg\":\"EdDSA\"}",
    "tokens:\n",
    "roles:\n- {to: {anyone: true}, role: view, policies: ['*']}\n",
    "proxies:\n- {of: {certificate: 'spiffe://{id}'}, nodes: ['{id}']}\n",
    "limits: {burst: 1}\n",
    "{id}",
    "*",
    "/",
];

/// The test key of RFC 8037, appendix A.2, and the signed text of its appendix A.4, which is no set of claims.
const KEYS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
const SIGNED: &str = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let script = |op: u8, frames: &[&[u8]]| {
        let mut script = vec![op];
        frames.iter().for_each(|frame| push_frame(&mut script, frame));
        script
    };
    let message = [&[0, 0, 0, 0, 3][..], b"abc", &[0, 0, 0, 0, 0, 1, 255, 255, 255, 255]].concat();
    vec![
        script(0, &[SIGNED.as_bytes()]),
        script(0, &[b"eyJhbGciOiJFZERTQSIsImtpZCI6ImsifQ.eyJpc3MiOiJpIiwiYXVkIjoiYSIsImV4cCI6OTk5OTk5OTk5OX0.AAAA"]),
        script(1, &[b"spiffe://headgate/*/{id}", b"spiffe://headgate/proxy/edge-7", b"{id}-*", b"edge-7-x"]),
        script(2, &[b"roles:\n- {to: {certificate: 'a{x}'}, role: operate, policies: ['{x}-*']}\nlimits: {burst: 5}\n"]),
        script(3, &[&[0x30, 0x82, 0x01, 0x00, 0x30, 0x81, 0xa0, 0x03, 0x02, 0x01, 0x02, 0x02, 0x01, 0x07, 0x30, 0x0a]]),
        script(4, &[&message]),
    ]
}

pub(super) fn run(input: &[u8]) -> u64 {
    let mut input = Input::new(input);
    match input.byte() % 5 {
        0 => token(input.frame()),
        1 => pattern(&mut input),
        2 => rules(input.frame()),
        3 => fingerprint([PeerCertificate::of(&input.frame().into()).names.len().to_string()]),
        _ => frames(&mut input),
    }
}

/// Nobody has signed a set of claims with this key, so no token is good.
fn token(bytes: &[u8]) -> u64 {
    static ISSUERS: OnceLock<Vec<Issuer>> = OnceLock::new();
    let issuers = ISSUERS.get_or_init(|| {
        let expectation = Expectation { issuer: "i".to_owned(), audiences: vec!["a".to_owned()], clock_skew_s: 0 };
        vec![Issuer::new(expectation, KEYS.as_bytes()).expect("the key set is good")]
    });
    let outcome = verify(issuers, &String::from_utf8_lossy(bytes));
    fingerprint([outcome.expect_err("nobody signed this").to_string()])
}

fn pattern(input: &mut Input<'_>) -> u64 {
    let [first, text, second, name] = [(); 4].map(|()| String::from_utf8_lossy(input.frame()).into_owned());
    let (Ok(first), Ok(second)) = (Pattern::parse(&first), Pattern::parse(&second)) else { return fingerprint(["no pattern"]) };
    let captures = first.captures(&text);
    if let Some(captures) = &captures {
        assert!(captures.values().all(|value| !value.is_empty() && !value.contains('/')), "{first} captured {captures:?}");
        assert!(first.matches(&text, captures), "{first} filled with its own captures does not match {text}");
    }
    let filled = captures.as_ref().is_some_and(|captures| second.matches(&name, captures));
    let is_known = second.names().all(|name| captures.as_ref().is_some_and(|captures| captures.contains_key(name)));
    assert!(!filled || is_known, "{second} matches with a name that nothing filled");
    assert_eq!(second.matches(&name, &Captures::new()), second.names().next().is_none() && second.captures(&name).is_some());
    fingerprint([format!("{} {filled} {is_known}", captures.is_some())])
}

fn rules(bytes: &[u8]) -> u64 {
    match AccessFile::parse(bytes) {
        Ok(file) => match file.compile(&[]) {
            Ok(access) => {
                let rights = access.rights(Some(&PeerCertificate { names: vec!["ab".to_owned()] }), None);
                fingerprint([format!("{} {}", rights.allow_some_node(), rights.allow_node("b", None))])
            }
            Err(problems) => fingerprint(problems.iter().map(|problem| problem.split(':').next().unwrap_or("").to_owned())),
        },
        Err(_) => fingerprint(["no rules"]),
    }
}

/// However the bytes are cut, the same messages begin, and the longest is the longest.
fn frames(input: &mut Input<'_>) -> u64 {
    let bytes = input.frame();
    let whole = FrameReader::default().read(bytes);
    let (mut reader, mut parts, mut rest) = (FrameReader::default(), (0, 0), bytes);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(1 + input.choice(rest.len()));
        let (began, longest) = reader.read(now);
        parts = (parts.0 + began, parts.1.max(longest));
        rest = later;
    }
    assert_eq!(parts, whole);
    fingerprint([format!("{} {}", whole.0, whole.1.min(3))])
}
