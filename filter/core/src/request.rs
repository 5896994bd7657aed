//! What the decision needs of a request: borrowed bytes, never text, since a client may send anything.

/// Longest API key that is looked up, in bytes; a longer credential names nobody.
pub const MAX_KEY_BYTES: usize = 4096;

/// Headers of one request or response.
#[derive(Debug, Clone, Copy)]
pub struct HeaderView<'a>(Source<'a>);

#[derive(Debug, Clone, Copy)]
enum Source<'a> {
    Pairs(&'a [(&'a [u8], &'a [u8])]),
    Serialized { sizes: &'a [u8], bodies: &'a [u8] },
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
    pub fn from_serialized(bytes: &'a [u8]) -> Option<Self> {
        let (count, rest) = bytes.split_first_chunk::<4>()?;
        let size_bytes = usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(8)?;
        let (sizes, bodies) = rest.split_at_checked(size_bytes)?;
        let needed = sizes.chunks_exact(4).try_fold(0_usize, |total, size| {
            let length = u32::from_le_bytes(size.first_chunk::<4>().copied()?);
            total.checked_add(usize::try_from(length).ok()?)?.checked_add(1)
        })?;
        if needed > bodies.len() { None } else { Some(Self(Source::Serialized { sizes, bodies })) }
    }

    /// All headers in their order.
    #[must_use]
    pub const fn iter(&self) -> HeaderIter<'a> {
        HeaderIter(self.0)
    }

    /// Value of the first header `name` (lower case).
    #[must_use]
    pub fn first(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.iter().find(|(key, _)| *key == name).map(|(_, value)| value)
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

impl<'a> Iterator for HeaderIter<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Source::Pairs(pairs) => {
                let (first, rest) = pairs.split_first()?;
                *pairs = rest;
                Some(*first)
            }
            Source::Serialized { sizes, bodies } => {
                let name = take(sizes, bodies)?;
                let value = take(sizes, bodies)?;
                Some((name, value))
            }
        }
    }
}

/// The next string of a serialized map, past its zero byte.
fn take<'a>(sizes: &mut &'a [u8], bodies: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (size, sizes_left) = sizes.split_first_chunk::<4>()?;
    let (text, after) = bodies.split_at_checked(usize::try_from(u32::from_le_bytes(*size)).ok()?)?;
    *sizes = sizes_left;
    *bodies = after.get(1..)?;
    Some(text)
}

/// Identities that Envoy has verified. Nothing here can be set by a client.
#[derive(Debug, Clone, Copy, Default)]
pub struct VerifiedIdentity<'a> {
    /// URI SAN of the peer certificate (`connection.uri_san_peer_certificate`).
    pub spiffe: Option<&'a [u8]>,
    /// Values of the claims in the order of [`crate::worker::Needs::jwt_claims`]; `None` where absent. A string claim as its bytes,
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
    pub fn of_path(path: &[u8]) -> Self {
        let Some(rest) = path.strip_prefix(b"/v1/") else { return Self::Plain };
        match rest.strip_prefix(b"messages") {
            Some([] | [b'/' | b'?', ..]) => Self::Anthropic,
            _ => Self::OpenAi,
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
    pub fn new(headers: HeaderView<'a>, identity: VerifiedIdentity<'a>) -> Self {
        let mut info = Self { identity, headers, is_readable: true, ..Self::unreadable() };
        for (name, value) in &headers {
            info.note(name, value);
        }
        info
    }

    /// A request whose headers could not be read: an unknown client's, on the path `/`.
    #[must_use]
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

    fn note(&mut self, name: &'a [u8], value: &'a [u8]) {
        let [bearer, x_api_key, api_key] = &mut self.api_keys;
        // Most names differ from these in their length, which is what slices compare first.
        match name {
            b":path" => self.path = value,
            b":method" => self.method = value,
            b":authority" => self.host = value,
            b"content-length" => self.content_length = decimal(value),
            b"authorization" if bearer.is_none() => *bearer = bearer_token(value),
            b"x-api-key" if x_api_key.is_none() => *x_api_key = Some(value),
            b"api-key" if api_key.is_none() => *api_key = Some(value),
            b"x-envoy-attempt-count" => self.is_retry |= decimal(value).is_some_and(|attempt| attempt > 1),
            b"x-stainless-retry-count" => self.is_retry |= decimal(value).is_some_and(|retries| retries > 0),
            _ if name.starts_with(OWN_HEADER_PREFIX) => self.has_forged_headers = true,
            _ => {}
        }
    }
}

/// The token of `Bearer TOKEN`; the scheme's case does not matter (RFC 9110 section 11.1).
fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    if scheme.eq_ignore_ascii_case(b"bearer ") { Some(token.trim_ascii()) } else { None }
}

/// A number of decimal digits only; `None` on anything else or on overflow.
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
