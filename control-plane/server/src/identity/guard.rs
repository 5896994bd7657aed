//! The guard in front of all services and pages: who calls, may they, is there room.
//!
//! It refuses with `UNAUTHENTICATED` or 401 who is not known, with `PERMISSION_DENIED` or 403 who is known and may not, with
//! `RESOURCE_EXHAUSTED` or 429 what is too much. What it lets through carries its [`Caller`]; the token goes no further.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::extract::{ConnectInfo, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response as PageResponse};
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::access::{Access, PeerLimits};
use super::audit::{Audit, Entry, Outcome};
use super::body::{BoundedMessages, Complaints, End, HeldAnswer};
use super::caller::{Caller, Proof, shortened};
use super::listener::Peer;
use super::rates::{PeerKey, Rates, Slot};
use super::rpcs::{Need, page_need, rpc_of};
use super::token::Claims;

/// Longest message to a method that is in no row of the table: nobody is there to read it.
const UNKNOWN_METHOD_BYTES: usize = 64 << 10;

/// Who may do what.
#[derive(Clone, Debug)]
pub enum Rules {
    /// Everybody may do everything: nobody else reaches this machine, or somebody else decides.
    Everyone,
    /// What the newest access file says.
    Access(watch::Receiver<Arc<Access>>),
}

/// The guard. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct Guard {
    rules: Rules,
    audit: Audit,
    rates: Arc<Rates>,
}

/// A service behind the guard.
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    guard: Guard,
    inner: S,
}

/// Why a call does not get through.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Unauthenticated(String),
    Denied(String),
    Exhausted(String),
}

/// A call that gets through.
struct Admitted {
    caller: Caller,
    slot: Option<Slot>,
    ends: Option<Instant>,
}

// === impl Guard ===

impl Guard {
    /// A guard that acts on `rules` and records in `audit`.
    pub fn new(rules: Rules, audit: Audit) -> Self {
        Self { rules, audit, rates: Arc::default() }
    }

    /// Where it records.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// A guard that lets everybody through.
    pub fn open() -> Self {
        Self::new(Rules::Everyone, Audit::without_file())
    }

    fn admit(&self, call: &str, need: Option<Need>, peer: Option<&Peer>, headers: &HeaderMap) -> Result<Admitted, Refusal> {
        let refused = |caller: &Caller, refusal: Refusal| {
            let (action, reason) = (refusal.action(), Some(refusal.reason()));
            caller.audit(&Entry { action, outcome: Outcome::Refused, call: Some(shortened(call)), reason, ..Entry::default() });
            refusal
        };
        let slot = self.start(peer).map_err(|refusal| refused(&self.stranger(peer), refusal))?;
        let (caller, ends) = match need {
            // Whoever asks whether the server lives is not asked who it is.
            Some(Need::Open) => (self.stranger(peer), None),
            _ => self.identify(peer, headers).map_err(|refusal| refused(&self.stranger(peer), refusal))?,
        };
        match self.permit(&caller, call, need) {
            Ok(()) => Ok(Admitted { caller, slot, ends }),
            Err(refusal) => Err(refused(&caller, refusal)),
        }
    }

    /// Counts the call. On loopback without rules there is nobody to be protected from.
    fn start(&self, peer: Option<&Peer>) -> Result<Option<Slot>, Refusal> {
        let limits = match (&self.rules, peer) {
            (Rules::Access(newest), _) => newest.borrow().limits,
            (Rules::Everyone, Some(peer)) if !peer.address.ip().is_loopback() => PeerLimits::default(),
            (Rules::Everyone, _) => return Ok(None),
        };
        let certificate = peer.and_then(|peer| peer.certificate.as_deref()).map(|certificate| certificate.name().to_owned());
        let key = PeerKey { address: peer.map(|peer| peer.address.ip()), certificate };
        self.rates.start(key, limits, Instant::now()).map(Some).map_err(Refusal::Exhausted)
    }

    /// The caller, and when its token ends.
    fn identify(&self, peer: Option<&Peer>, headers: &HeaderMap) -> Result<(Caller, Option<Instant>), Refusal> {
        let Rules::Access(newest) = &self.rules else { return Ok((self.stranger(peer), None)) };
        let access = newest.borrow().clone();
        let claims = match bearer(headers)? {
            Some(token) => Some(access.verify(token).map_err(|error| Refusal::Unauthenticated(error.to_string()))?),
            None => None,
        };
        let certificate = peer.and_then(|peer| peer.certificate.as_deref());
        let rights = Some(access.rights(certificate, claims.as_ref()));
        let (name, proof) = match (&claims, certificate) {
            (Some(claims), _) => (format!("{}@{}", claims.subject, claims.issuer), Proof::Token),
            (None, Some(certificate)) => (certificate.name().to_owned(), Proof::Certificate),
            (None, None) => ("anonymous".to_owned(), Proof::None),
        };
        let caller = Caller::new(name, proof, peer.map(|peer| peer.address), rights, self.audit.clone());
        Ok((caller, claims.as_ref().map(end_of)))
    }

    /// A caller without rights of its own where there are rules, and with all of them where there are none.
    fn stranger(&self, peer: Option<&Peer>) -> Caller {
        let certificate = peer.and_then(|peer| peer.certificate.as_deref());
        let (name, proof) = certificate.map_or(("anonymous", Proof::None), |certificate| (certificate.name(), Proof::Certificate));
        let rights = matches!(self.rules, Rules::Access(_)).then(Default::default);
        Caller::new(name.to_owned(), proof, peer.map(|peer| peer.address), rights, self.audit.clone())
    }

    fn permit(&self, caller: &Caller, call: &str, need: Option<Need>) -> Result<(), Refusal> {
        let permitted = match (&self.rules, need) {
            (Rules::Everyone, _) => true,
            (Rules::Access(_), Some(need)) => caller.meets(need),
            (Rules::Access(_), None) => false,
        };
        match caller.proof() {
            _ if permitted => Ok(()),
            Proof::None => Err(Refusal::Unauthenticated("this needs a client certificate or a bearer token".to_owned())),
            Proof::Certificate | Proof::Token => Err(Refusal::Denied(format!("{} may not call {}", caller.name(), shortened(call)))),
        }
    }
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { guard: self.clone(), inner }
    }
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let rpc = rpc_of(parts.uri.path());
        let admitted = self.guard.admit(parts.uri.path(), rpc.map(|rpc| rpc.need), parts.extensions.get::<Peer>(), &parts.headers);
        let Admitted { caller, slot, ends } = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => return Box::pin(std::future::ready(Ok(Status::from(refusal).into_http()))),
        };
        // Machines open their streams again by themselves; people who watch something are left alone.
        let moves =
            parts.extensions.get::<Peer>().and_then(|peer| peer.moves_at).filter(|_| rpc.is_some_and(|rpc| rpc.need == Need::Proxy));
        let ends = [ends.map(End::Expired), moves.map(End::Moved)];
        parts.headers.remove(AUTHORIZATION);
        let complaints = Complaints::new(caller.clone(), parts.uri.path());
        parts.extensions.insert(caller);
        let max_bytes = rpc.map_or(UNKNOWN_METHOD_BYTES, |rpc| rpc.max_message_bytes);
        let messages = Body::new(BoundedMessages::new(body, max_bytes, complaints.clone()));
        let answer = self.inner.call(Request::from_parts(parts, messages));
        Box::pin(async move {
            let answer = answer.await?;
            complaints.look_at(answer.headers());
            Ok(answer.map(|body| Body::new(HeldAnswer::new(body, complaints, slot, ends))))
        })
    }
}

/// The guard in front of the pages of the HTTP listener.
pub async fn guard_page(
    State(guard): State<Guard>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: axum::extract::Request,
    next: Next,
) -> PageResponse {
    let path = request.uri().path().to_owned();
    // The place is given back when the answer has been made: pages do not stream.
    let Admitted { caller, slot: _slot, .. } = match guard.admit(&path, Some(page_need(&path)), Some(&peer), request.headers()) {
        Ok(admitted) => admitted,
        Err(refusal) => return refusal.into_response(),
    };
    request.headers_mut().remove(AUTHORIZATION);
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// The bearer token among `headers`.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let token = value.to_str().ok().and_then(|text| text.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match (token, values.next()) {
        (Some((_, token)), None) => Ok(Some(token.trim())),
        _ => Err(Refusal::Unauthenticated("the authorization header is not one bearer token".to_owned())),
    }
}

fn end_of(claims: &Claims) -> Instant {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // A token without end, as far as this program is concerned, ends in a year.
    let left = Duration::from_secs(claims.ends_at_unix_s).saturating_sub(now).min(Duration::from_secs(365 * 24 * 3600));
    Instant::now() + left
}

// === impl Refusal ===

impl Refusal {
    fn reason(&self) -> &str {
        match self {
            Self::Unauthenticated(reason) | Self::Denied(reason) | Self::Exhausted(reason) => reason,
        }
    }

    const fn action(&self) -> &'static str {
        match self {
            Self::Unauthenticated(_) => "authentication",
            Self::Denied(_) => "access",
            Self::Exhausted(_) => "limit",
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unauthenticated(reason) => Self::unauthenticated(reason),
            Refusal::Denied(reason) => Self::permission_denied(reason),
            Refusal::Exhausted(reason) => Self::resource_exhausted(reason),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> PageResponse {
        let body = format!("{}\n", self.reason());
        match self {
            Self::Unauthenticated(_) => (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], body).into_response(),
            Self::Denied(_) => (StatusCode::FORBIDDEN, body).into_response(),
            Self::Exhausted(_) => (StatusCode::TOO_MANY_REQUESTS, body).into_response(),
        }
    }
}
