//! What the decision needs of a request: borrowed bytes, never text, since a client may send anything.

use crate::words::{begins_with, same};

/// Longest API key that is looked up, in bytes; a longer credential names nobody.
pub const MAX_KEY_BYTES: usize = 4096;

/// Headers of one request or response.
#[derive(Debug, Clone, Copy)]
pub struct HeaderView<'a>(Source<'a>);

#[derive(Debug, Clone, Copy)]
enum Source<'a> {
    Pairs(&'a [(&'a [u8], &'a [u8])]),
    /// Lengths of each name and value, and their bytes.
    Serialized {
        sizes: &'a [[u8; 8]],
        bodies: &'a [u8],
    },
}

impl<'a> HeaderView<'a> {
    /// Headers as pairs of name (lower case) and value.
    #[must_use]
    pub const fn from_pairs(pairs: &'a [(&'a [u8], &'a [u8])]) -> Self {
        Self(Source::Pairs(pairs))
    }

    /// Headers as the host hands them over: a little-endian `u32` count, then the lengths of each name and value as `u32`, then
    /// each name and value followed by a zero byte. `None` when the sizes do not fit the bytes.
    ///
    /// Source: proxy-wasm ABI v0.2.1, "serialized maps". Nothing is copied, so one host call and no allocation read all headers.
    #[must_use]
    #[inline]
    pub fn from_serialized(bytes: &'a [u8]) -> Option<Self> {
        let (count, rest) = bytes.split_first_chunk::<4>()?;
        let size_bytes = usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(8)?;
        let (sizes, bodies) = rest.split_at_checked(size_bytes)?;
        let (sizes, _) = sizes.as_chunks::<8>();
        // 2^32 headers of 2^33 bytes each do not overflow.
        let needed = sizes.iter().fold(0_u64, |total, pair| {
            let (name, value) = lengths(*pair);
            total + u64::from(name) + u64::from(value) + 2
        });
        if needed > bodies.len() as u64 { None } else { Some(Self(Source::Serialized { sizes, bodies })) }
    }

    /// All headers in their order.
    #[must_use]
    #[inline]
    pub const fn iter(&self) -> HeaderIter<'a> {
        HeaderIter(self.0)
    }

    /// Value of the first header `name` (lower case).
    #[must_use]
    #[inline]
    pub fn first(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.iter().next_named(name)
    }

    /// Values of every header `name` (lower case), in their order.
    pub fn all(&self, name: &[u8]) -> impl Iterator<Item = &'a [u8]> {
        let mut left = self.iter();
        core::iter::from_fn(move || left.next_named(name))
    }
}

impl<'a> IntoIterator for &HeaderView<'a> {
    type Item = (&'a [u8], &'a [u8]);
    type IntoIter = HeaderIter<'a>;

    fn into_iter(self) -> HeaderIter<'a> {
        self.iter()
    }
}

/// Iterator over the headers of a [`HeaderView`].
#[derive(Debug, Clone)]
pub struct HeaderIter<'a>(Source<'a>);

impl<'a> HeaderIter<'a> {
    /// Value of the next header `name`. Of the others it looks at the lengths alone.
    #[inline(never)]
    fn next_named(&mut self, name: &[u8]) -> Option<&'a [u8]> {
        let Source::Serialized { sizes, bodies } = self.0 else { return self.find(|(key, _)| same(key, name)).map(|(_, value)| value) };
        let mut start = 0_usize;
        for (index, pair) in sizes.iter().enumerate() {
            // All lengths together are within `bodies`, as `from_serialized` has seen.
            let (name_len, value_len) = lengths(*pair);
            let value_start = start + name_len as usize + 1;
            let end = value_start + value_len as usize;
            if name_len as usize == name.len() && bodies.get(start..value_start - 1).is_some_and(|found| same(found, name)) {
                let (value, after) = (bodies.get(value_start..end)?, bodies.get(end + 1..)?);
                self.0 = Source::Serialized { sizes: sizes.get(index + 1..)?, bodies: after };
                return Some(value);
            }
            start = end + 1;
        }
        self.0 = Source::Pairs(&[]);
        None
    }
}

impl<'a> Iterator for HeaderIter<'a> {
    type Item = (&'a [u8], &'a [u8]);

    // Inlined into each of its few loops: a call for each header of each request is a third of what a decision costs.
    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Source::Pairs(pairs) => {
                let (first, rest) = pairs.split_first()?;
                *pairs = rest;
                Some(*first)
            }
            Source::Serialized { sizes, bodies } => {
                let (first, rest) = sizes.split_first()?;
                let (name_len, value_len) = lengths(*first);
                let (name, after) = bodies.split_at_checked(name_len as usize)?;
                let (value, after) = after.get(1..)?.split_at_checked(value_len as usize)?;
                *sizes = rest;
                *bodies = after.get(1..)?;
                Some((name, value))
            }
        }
    }
}

/// Lengths of a name and its value.
#[inline(always)]
fn lengths(pair: [u8; 8]) -> (u32, u32) {
    let both = u64::from_le_bytes(pair);
    (both as u32, (both >> 32) as u32)
}

/// Identities that Envoy has verified. Nothing here can be set by a client.
#[derive(Debug, Clone, Copy, Default)]
pub struct VerifiedIdentity<'a> {
    /// URI SAN of the peer certificate (`connection.uri_san_peer_certificate`).
    pub spiffe: Option<&'a [u8]>,
    /// Values of the claims in the order of [`crate::needs::Needs::claim_paths`]; `None` where absent. A string claim as its bytes,
    /// without quotes; any other as its JSON text.
    pub jwt_claims: &'a [Option<&'a [u8]>],
}

/// API whose error format a refused client understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiFormat {
    /// OpenAI: `/v1/…`.
    OpenAi,
    /// Anthropic: `/v1/messages…`.
    Anthropic,
    /// Any other path.
    Plain,
}

impl ApiFormat {
    /// The format of `path` (query included).
    #[must_use]
    #[inline]
    pub fn of_path(path: &[u8]) -> Self {
        match path {
            [b'/', b'v', b'1', b'/', rest @ ..] if begins_with(rest, b"messages") && matches!(rest.get(8), None | Some(b'/' | b'?')) => {
                Self::Anthropic
            }
            [b'/', b'v', b'1', b'/', ..] => Self::OpenAi,
            _ => Self::Plain,
        }
    }
}

/// One request, as far as the decision reads it.
#[derive(Debug, Clone, Copy)]
pub struct RequestInfo<'a> {
    /// `:method`.
    pub method: &'a [u8],
    /// `:path`, with query.
    pub path: &'a [u8],
    /// `:authority`.
    pub host: &'a [u8],
    /// All headers.
    pub headers: HeaderView<'a>,
    /// `content-length`, when it is one well-formed number.
    pub content_length: Option<u64>,
    /// API keys in the order in which they are tried: bearer token, `x-api-key`, `api-key`.
    pub api_keys: [Option<&'a [u8]>; 3],
    /// Identities that Envoy has verified.
    pub identity: VerifiedIdentity<'a>,
    /// Whether any `x-headgate-*` header came in from the client.
    pub has_forged_headers: bool,
    /// Whether it says that it is not the first attempt: `x-envoy-attempt-count` above 1, or `x-stainless-retry-count` above 0. It can
    /// only lower a request, so anybody may say it.
    pub is_retry: bool,
    /// Whether the headers could be read at all.
    pub is_readable: bool,
}

/// Prefix of headers that only Headgate may set.
pub const OWN_HEADER_PREFIX: &[u8] = b"x-headgate-";

impl<'a> RequestInfo<'a> {
    /// The request with these headers, found in one pass.
    #[must_use]
    #[inline]
    pub fn new(headers: HeaderView<'a>, identity: VerifiedIdentity<'a>) -> Self {
        let mut info = Self { identity, headers, is_readable: true, ..Self::unreadable() };
        for (name, value) in &headers {
            info.note(name, value);
        }
        info
    }

    /// A request whose headers could not be read: an unknown client's, on the path `/`.
    #[must_use]
    #[inline]
    pub const fn unreadable() -> Self {
        Self {
            method: b"",
            path: b"/",
            host: b"",
            headers: HeaderView::from_pairs(&[]),
            content_length: None,
            api_keys: [None; 3],
            identity: VerifiedIdentity { spiffe: None, jwt_claims: &[] },
            has_forged_headers: false,
            is_retry: false,
            is_readable: false,
        }
    }

    #[inline(always)]
    fn note(&mut self, name: &'a [u8], value: &'a [u8]) {
        let [bearer, x_api_key, api_key] = &mut self.api_keys;
        // By length first: most names have none of these.
        match name.len() {
            5 if same(name, b":path") => self.path = value,
            7 if same(name, b":method") => self.method = value,
            7 if same(name, b"api-key") => *api_key = api_key.or(Some(value)),
            9 if same(name, b"x-api-key") => *x_api_key = x_api_key.or(Some(value)),
            10 if same(name, b":authority") => self.host = value,
            13 if same(name, b"authorization") && bearer.is_none() => *bearer = bearer_token(value),
            14 if same(name, b"content-length") => self.content_length = decimal(value),
            21 if same(name, b"x-envoy-attempt-count") => self.is_retry |= decimal(value).is_some_and(|attempt| attempt > 1),
            23 if same(name, b"x-stainless-retry-count") => self.is_retry |= decimal(value).is_some_and(|retries| retries > 0),
            11.. if begins_with(name, OWN_HEADER_PREFIX) => self.has_forged_headers = true,
            _ => {}
        }
    }
}

/// The token of `Bearer TOKEN`; the scheme's case does not matter (RFC 9110 section 11.1).
#[inline]
fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    let ([letters @ .., b' '], token) = value.split_first_chunk::<7>()? else { return None };
    // One bit tells a letter from its other case, and no other byte becomes a small letter by it.
    let is_bearer = letters.iter().zip(b"bearer").all(|(byte, letter)| byte | 0x20 == *letter);
    if is_bearer { Some(token.trim_ascii()) } else { None }
}

/// A number of decimal digits only; `None` on anything else or on overflow.
#[inline]
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 { None } else { number.checked_mul(10)?.checked_add(u64::from(digit)) }
    })
}

#[cfg(test)]
mod tests;
