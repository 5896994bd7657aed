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
    /// Lengths of each name and value, their bytes, and the [`mark`]s of all names.
    Serialized {
        sizes: &'a [[u8; 8]],
        bodies: &'a [u8],
        marks: u64,
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
        let (mut needed, mut marks) = (0_u64, 0);
        for pair in sizes {
            let (name, value) = lengths(*pair);
            // Of a map that does not fit, which is not read, this may be any byte.
            if let Some(third) = bodies.get(needed as usize + 2) {
                marks |= mark(name, *third);
            }
            // 2^32 headers of 2^33 bytes each do not overflow.
            needed += u64::from(name) + u64::from(value) + 2;
        }
        if needed > bodies.len() as u64 { None } else { Some(Self(Source::Serialized { sizes, bodies, marks })) }
    }

    /// All headers in their order.
    #[must_use]
    #[inline]
    pub const fn iter(&self) -> HeaderIter<'a> {
        HeaderIter(self.0)
    }

    /// Value of the first header `name` (lower case). It is looked for only if there may be one.
    #[must_use]
    #[inline]
    pub fn first(&self, name: &[u8]) -> Option<&'a [u8]> {
        match self.0 {
            Source::Pairs(_) => self.all(name).next(),
            Source::Serialized { sizes, bodies, marks } if name.get(2).is_none_or(|third| marks & mark(name.len() as u32, *third) != 0) => {
                first_in(sizes, bodies, name)
            }
            Source::Serialized { .. } => None,
        }
    }

    /// Values of every header `name` (lower case), in their order.
    pub fn all(&self, name: &[u8]) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(move |(found, _)| same(found, name)).map(|(_, value)| value)
    }
}

/// The bit of a name with this length and third byte, out of 64: of the names that a request does not have it has few.
#[inline(always)]
fn mark(len: u32, third: u8) -> u64 {
    1 << ((u32::from(third).wrapping_mul(5) ^ len) % 64)
}

/// Value of the first header `name` of a serialized map. Of the others it looks at the lengths alone.
#[inline(never)]
fn first_in<'a>(sizes: &[[u8; 8]], bodies: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (wanted, mut start) = (name.len() as u32, 0);
    for pair in sizes {
        let both = u64::from_le_bytes(*pair);
        if both as u32 == wanted {
            let (found, after) = bodies.get(start..)?.split_at_checked(name.len())?;
            if same(found, name) {
                return after.get(1..)?.get(..(both >> 32) as usize);
            }
        }
        // No overflow: all lengths together are within `bodies`, as `from_serialized` has seen.
        start += (both as u32 as usize) + (both >> 32) as usize + 2;
    }
    None
}

/// A header of a serialized map, and all that follows it. All headers together are within it, as [`HeaderView::from_serialized`] has seen.
#[derive(Clone, Copy)]
struct Span<'a> {
    rest: &'a [u8],
    name_len: usize,
    value_len: usize,
}

impl<'a> Span<'a> {
    #[inline(always)]
    fn new(rest: &'a [u8], lengths: (u32, u32)) -> Self {
        Self { rest, name_len: lengths.0 as usize, value_len: lengths.1 as usize }
    }

    /// What follows it.
    #[inline(always)]
    fn rest(self) -> Option<&'a [u8]> {
        self.rest.get(self.name_len + self.value_len + 2..)
    }

    #[inline(always)]
    fn name_and_value(self) -> Option<(&'a [u8], &'a [u8])> {
        let (name, after) = self.rest.split_at_checked(self.name_len)?;
        Some((name, after.get(1..)?.get(..self.value_len)?))
    }

    /// Whether it has the length of a name that is [`Known`], and may be it.
    #[inline(always)]
    fn may_be_known(self) -> bool {
        self.name_len < 32 && Known::LENGTHS >> self.name_len & 1 == 1
    }

    /// Whether its name begins as those do that only Headgate may set: its first eight bytes tell it from nearly every other.
    #[inline(always)]
    fn is_own(self) -> bool {
        const FIRST: u64 = u64::from_le_bytes(*b"x-headga");
        self.name_len >= OWN_HEADER_PREFIX.len()
            && self.rest.first_chunk::<8>().is_some_and(|first| u64::from_le_bytes(*first) == FIRST)
            && self.rest.starts_with(OWN_HEADER_PREFIX)
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
            Source::Serialized { sizes, bodies, .. } => {
                let (first, rest) = sizes.split_first()?;
                let span = Span::new(bodies, lengths(*first));
                (*sizes, *bodies) = (rest, span.rest()?);
                span.name_and_value()
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
        match headers.0 {
            Source::Pairs(_) => info.note_all(),
            Source::Serialized { sizes, mut bodies, .. } => {
                for pair in sizes {
                    let span = Span::new(bodies, lengths(*pair));
                    info.has_forged_headers |= span.is_own();
                    if span.may_be_known()
                        && let Some((name, value)) = span.name_and_value()
                    {
                        info.note(name, value);
                    }
                    bodies = span.rest().unwrap_or_default();
                }
            }
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

    /// Takes what there is in pairs, which no host hands over.
    #[inline(never)]
    fn note_all(&mut self) {
        for (name, value) in &self.headers {
            self.has_forged_headers |= name.starts_with(OWN_HEADER_PREFIX);
            self.note(name, value);
        }
    }

    #[inline]
    fn note(&mut self, name: &'a [u8], value: &'a [u8]) {
        let [bearer, x_api_key, api_key] = &mut self.api_keys;
        match Known::of(name) {
            None => {}
            Some(Known::Path) => self.path = value,
            Some(Known::Method) => self.method = value,
            Some(Known::Authority) => self.host = value,
            Some(Known::Authorization) => *bearer = bearer.or_else(|| bearer_token(value)),
            Some(Known::XApiKey) => *x_api_key = x_api_key.or(Some(value)),
            Some(Known::ApiKey) => *api_key = api_key.or(Some(value)),
            Some(Known::ContentLength) => self.content_length = decimal(value),
            Some(Known::AttemptsBefore(first)) => self.is_retry |= decimal(value).is_some_and(|count| count > first),
        }
    }
}

/// A header that [`RequestInfo`] tells of.
#[derive(Clone, Copy)]
enum Known {
    Path,
    Method,
    Authority,
    Authorization,
    XApiKey,
    ApiKey,
    ContentLength,
    /// A count of attempts or retries, and what it is with the first attempt.
    AttemptsBefore(u64),
}

impl Known {
    /// The bits of the lengths that such a name has.
    const LENGTHS: u32 = {
        let (mut lengths, mut len) = (0, 0);
        while len < 32 {
            lengths |= (Self::of_length(len, false).is_some() as u32) << len;
            len += 1;
        }
        lengths
    };

    #[inline]
    fn of(name: &[u8]) -> Option<Self> {
        let (known, text) = Self::of_length(name.len(), name.first() == Some(&b':'))?;
        if same(name, text) { Some(known) } else { None }
    }

    /// The one name of this length that there is to compare with. `is_pseudo`: it begins with a colon.
    #[inline(always)]
    const fn of_length(len: usize, is_pseudo: bool) -> Option<(Self, &'static [u8])> {
        Some(match len {
            5 => (Self::Path, b":path"),
            7 if is_pseudo => (Self::Method, b":method"),
            7 => (Self::ApiKey, b"api-key"),
            9 => (Self::XApiKey, b"x-api-key"),
            10 => (Self::Authority, b":authority"),
            13 => (Self::Authorization, b"authorization"),
            14 => (Self::ContentLength, b"content-length"),
            21 => (Self::AttemptsBefore(1), b"x-envoy-attempt-count"),
            23 => (Self::AttemptsBefore(0), b"x-stainless-retry-count"),
            _ => return None,
        })
    }
}

/// The token of `Bearer TOKEN`; the scheme's case does not matter (RFC 9110 section 11.1).
#[inline]
fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    let ([b, e, a, r, more @ .., b' '], token) = value.split_first_chunk::<7>()? else { return None };
    let [second_e, second_r] = more;
    // One bit tells a letter from its other case, and no other byte becomes a small letter by it.
    let letters = u64::from_le_bytes([*b, *e, *a, *r, *second_e, *second_r, 0, 0]);
    let is_bearer = letters | 0x2020_2020_2020 == u64::from_le_bytes(*b"bearer\0\0");
    if is_bearer { Some(token.trim_ascii()) } else { None }
}

/// A number of decimal digits only; `None` on anything else or on overflow.
#[inline]
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let mut number = 0_u64;
    for byte in text {
        let digit = byte.wrapping_sub(b'0');
        // Compared, since a multiplication that is checked for overflow is one of 128 bits in wasm: a call.
        if digit > 9 || number > u64::MAX / 10 {
            return None;
        }
        number = (number * 10).checked_add(u64::from(digit))?;
    }
    Some(number)
}

#[cfg(test)]
mod tests;
