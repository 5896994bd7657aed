//! Patterns of names: of certificates, subjects, policies, proxies.
//!
//! `*` stands for any characters, also none; `{name}` for one or more characters other than `/`, which a rule's other patterns may use.

use std::collections::BTreeMap;
use std::fmt;

use regex::Regex;

/// Longest pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 512;
/// Longest text that matches anything, in bytes.
const MAX_TEXT_BYTES: usize = 4096;

/// What the `{name}`s of a pattern stood for in a text.
pub type Captures = BTreeMap<String, String>;

/// A pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    pieces: Vec<Piece>,
    regex: Regex,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Any,
    Capture(String),
}

// === impl Pattern ===

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// What is wrong with it: empty, too long, a `{` without its `}`, a name that is none or that is there twice.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > MAX_PATTERN_BYTES {
            return Err(format!("`{text}`: {} bytes is outside 1..={MAX_PATTERN_BYTES}", text.len()));
        }
        let pieces = pieces(text)?;
        let body: String = pieces.iter().map(Piece::regex).collect();
        let regex = Regex::new(&format!("^(?s:{body})$")).map_err(|_| format!("`{text}`: a name in braces is there twice"))?;
        Ok(Self { text: text.to_owned(), pieces, regex })
    }

    /// Whether it matches every text.
    pub fn is_any(&self) -> bool {
        self.pieces == [Piece::Any]
    }

    /// Names in braces.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| if let Piece::Capture(name) = piece { Some(name.as_str()) } else { None })
    }

    /// What the names in braces stand for when `text` matches.
    pub fn captures(&self, text: &str) -> Option<Captures> {
        let found = if text.len() <= MAX_TEXT_BYTES { self.regex.captures(text)? } else { return None };
        Some(self.names().filter_map(|name| Some((name.to_owned(), found.name(name)?.as_str().to_owned()))).collect())
    }

    /// Whether `text` matches when the names in braces stand for what `captures` says; an unknown one matches nothing.
    pub fn matches(&self, text: &str, captures: &Captures) -> bool {
        text.len() <= MAX_TEXT_BYTES && self.runs(captures).is_some_and(|runs| glob(&runs, text))
    }

    /// The literal text between the gaps, the first and the last of them perhaps empty.
    fn runs(&self, captures: &Captures) -> Option<Vec<String>> {
        let mut runs = vec![String::new()];
        for piece in &self.pieces {
            let run = runs.last_mut()?;
            match piece {
                Piece::Any => runs.push(String::new()),
                Piece::Literal(literal) => run.push_str(literal),
                Piece::Capture(name) => run.push_str(captures.get(name)?),
            }
        }
        Some(runs)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

// === impl Piece ===

impl Piece {
    fn regex(&self) -> String {
        match self {
            Self::Literal(literal) => regex::escape(literal),
            Self::Any => ".*".to_owned(),
            Self::Capture(name) => format!("(?<{name}>[^/]+)"),
        }
    }
}

fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(['*', '{', '}']) {
        let (literal, special) = rest.split_at(at);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal.to_owned()));
        }
        if let Some(after) = special.strip_prefix('*') {
            // Two in a row say no more than one.
            if pieces.last() != Some(&Piece::Any) {
                pieces.push(Piece::Any);
            }
            rest = after;
            continue;
        }
        let named = special.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let Some((name, after)) = named.filter(|(name, _)| is_name(name)) else {
            return Err(format!("`{text}`: braces hold a name of letters, as in {{id}}"));
        };
        pieces.push(Piece::Capture(name.to_owned()));
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Literal(rest.to_owned()));
    }
    Ok(pieces)
}

fn is_name(name: &str) -> bool {
    (1..=32).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// Whether `text` is the `runs` in their order with anything between them. Taking the first place for each run is enough, so the time is
/// that of the searches.
fn glob(runs: &[String], text: &str) -> bool {
    let [first, middle @ .., last] = runs else { return runs.first().is_some_and(|only| only == text) };
    let inner = text.strip_prefix(first.as_str()).and_then(|rest| rest.strip_suffix(last.as_str()));
    let Some(mut rest) = inner else { return false };
    for run in middle {
        let Some(at) = rest.find(run.as_str()) else { return false };
        rest = &rest[at + run.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    #[test]
    fn a_name_in_braces_is_what_stands_there_and_never_crosses_a_slash() {
        let proxy = pattern("spiffe://headgate/proxy/{id}");
        assert_eq!(proxy.captures("spiffe://headgate/proxy/edge-7").unwrap()["id"], "edge-7");
        assert!(proxy.captures("spiffe://headgate/proxy/edge-7/x").is_none());
        assert!(proxy.captures("spiffe://headgate/proxy/").is_none());
        assert!(proxy.captures("xspiffe://headgate/proxy/a").is_none(), "patterns are whole");
    }

    #[test]
    fn a_filled_pattern_matches_its_value_only() {
        let captures = pattern("spiffe://td/ns/{ns}/sa/*").captures("spiffe://td/ns/istio-ingress/sa/gw").unwrap();
        let node = pattern("router~*~*.{ns}~*");
        assert!(node.matches("router~10.0.0.1~gw-1.istio-ingress~istio-ingress.svc", &captures));
        assert!(!node.matches("router~10.0.0.1~gw-1.other~other.svc", &captures));
        assert!(!node.matches("router~10.0.0.1~gw-1.x~y", &Captures::new()), "nothing captured");
    }

    #[test]
    fn a_literal_after_a_name_is_part_of_the_same_run() {
        let captures = Captures::from([("a".to_owned(), "x".to_owned())]);
        // The run is `x-`, which begins late in the text.
        assert!(pattern("*{a}-end").matches("xx-end", &captures));
        assert!(pattern("*{a}-*").matches("xyx-1", &captures));
    }

    #[test]
    fn a_captured_value_is_no_pattern() {
        let captures = Captures::from([("id".to_owned(), "*".to_owned())]);
        assert!(!pattern("{id}").matches("anything", &captures));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["", "{", "}", "{Id}", "a{b", "{a}{a}"] {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
        assert!(pattern("**").is_any());
    }
}
