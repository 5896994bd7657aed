use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// The proxy-wasm form of a header map.
fn serialized(headers: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut bytes = (headers.len() as u32).to_le_bytes().to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        bytes.extend((text.len() as u32).to_le_bytes());
    }
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        bytes.extend(*text);
        bytes.push(0);
    }
    bytes
}

#[test]
fn one_pass_finds_what_the_decision_needs() {
    let headers: [(&[u8], &[u8]); 7] = [
        (b":method", b"POST"),
        (b":path", b"/v1/chat/completions?x=1"),
        (b":authority", b"api.example:443"),
        (b"content-length", b"512"),
        (b"authorization", b"Bearer  k1 "),
        (b"authorization", b"Bearer k2"),
        (b"x-headgate-pool", b"other"),
    ];
    let bytes = serialized(&headers);
    for view in [HeaderView::from_pairs(&headers), HeaderView::from_serialized(&bytes).unwrap()] {
        let info = RequestInfo::new(view, VerifiedIdentity::default());
        assert_eq!((info.method, info.path, info.host), (&b"POST"[..], &b"/v1/chat/completions?x=1"[..], &b"api.example:443"[..]));
        assert_eq!(info.content_length, Some(512));
        assert_eq!(info.api_keys, [Some(&b"k1"[..]), None, None]);
        assert!(info.has_forged_headers && info.is_readable);
    }
}

#[test]
fn a_bearer_token_has_its_scheme_in_any_case_and_nothing_else() {
    for value in [&b"Bearer k"[..], b"bearer k", b"BEARER k", b"bEaReR  k "] {
        assert_eq!(bearer_token(value), Some(&b"k"[..]), "{value:?}");
    }
    // A byte and 0x20: what becomes a space or a letter by it without being one.
    for value in [&b"Bearer\0k"[..], b"Bearerk", b"Bearer", b"\x22earer k", b"Basic k", b" bearer k", b"Bearer\tk", b""] {
        assert_eq!(bearer_token(value), None, "{value:?}");
    }
    assert_eq!(bearer_token(b"Bearer "), Some(&b""[..]));
}

#[test]
fn the_error_format_follows_the_path() {
    let cases: [(&[u8], ApiFormat); 8] = [
        (b"/v1/chat/completions", ApiFormat::OpenAi),
        (b"/v1/messages", ApiFormat::Anthropic),
        (b"/v1/messages?beta=true", ApiFormat::Anthropic),
        (b"/v1/messages/count_tokens", ApiFormat::Anthropic),
        (b"/v1/messagesx", ApiFormat::OpenAi),
        (b"/v1", ApiFormat::Plain),
        (b"/\xff", ApiFormat::Plain),
        (b"", ApiFormat::Plain),
    ];
    for (path, format) in cases {
        assert_eq!(ApiFormat::of_path(path), format, "{path:?}");
    }
}

proptest! {
    #[test]
    fn a_header_map_comes_back_as_it_was(headers in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..30), prop::collection::vec(any::<u8>(), 0..30)), 0..20)) {
        let headers: Vec<(&[u8], &[u8])> = headers.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).collect();
        let bytes = serialized(&headers);
        let read: Vec<_> = HeaderView::from_serialized(&bytes).unwrap().iter().collect();
        prop_assert_eq!(read, headers);
    }

    #[test]
    fn the_first_header_of_a_name_is_found(names in prop::collection::vec("[a-c-]{0,4}", 0..20), wanted in "[a-c-]{0,4}") {
        let values: Vec<_> = (0..names.len() as u8).map(|value| [value]).collect();
        let headers: Vec<(&[u8], &[u8])> = names.iter().zip(&values).map(|(name, value)| (name.as_bytes(), &value[..])).collect();
        let bytes = serialized(&headers);
        let expected = names.iter().position(|name| *name == wanted).map(|at| [at as u8]);
        let view = HeaderView::from_serialized(&bytes).unwrap();
        prop_assert_eq!(view.first(wanted.as_bytes()), expected.as_ref().map(|value| &value[..]));
        prop_assert_eq!(view.all(wanted.as_bytes()).next(), view.first(wanted.as_bytes()));
    }

    #[test]
    fn no_bytes_whatsoever_break_the_reader(bytes in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), any::<u8>()], 0..200)) {
        if let Some(view) = HeaderView::from_serialized(&bytes) {
            let info = RequestInfo::new(view, VerifiedIdentity::default());
            prop_assert!(info.path.len() <= bytes.len());
        }
    }

    #[test]
    fn a_map_that_is_cut_short_is_unreadable(cut in 0_usize..60) {
        let bytes = serialized(&[(b":path", b"/v1/chat"), (b"x-priority", b"high")]);
        let cut = cut.min(bytes.len() - 1);
        prop_assert!(HeaderView::from_serialized(&bytes[..cut]).is_none());
    }
}
