//! From the address of a metrics page to the engines behind it.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;

/// Time between two resolutions of a name.
pub(super) const RESOLVE_EVERY: Duration = Duration::from_secs(5);
/// Longest time for one.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Engines behind one name that are read.
pub(super) const MAX_ADDRESSES: usize = 256;

type Resolution = Pin<Box<dyn Future<Output = std::io::Result<Vec<SocketAddr>>> + Send>>;
/// How a host's name and a port become addresses.
pub(super) type Resolver = Arc<dyn Fn(String, u16) -> Resolution + Send + Sync>;

/// The system's own way.
pub(super) fn system() -> Resolver {
    Arc::new(|host, port| Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) }))
}

/// Where the engines of a page are to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The address is in the URL.
    Literal(SocketAddr),
    /// Behind a name, which may stand for several addresses and for others later.
    Name(String, u16),
}

// === impl Place ===

impl Place {
    /// The place of a URL; `None` when it names no host.
    pub(super) fn of(uri: &Uri) -> Option<Self> {
        let (host, port) = (uri.host()?, uri.port_u16().unwrap_or(80));
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        Some(match bare.parse::<IpAddr>() {
            Ok(ip) => Self::Literal(SocketAddr::new(ip, port)),
            Err(_) => Self::Name(host.to_owned(), port),
        })
    }
}

/// The addresses behind a name, in order and each once, at most [`MAX_ADDRESSES`].
///
/// Of a name with addresses of both families only those of IPv4 are taken: they are two addresses of the same engines, which would be
/// counted twice.
///
/// # Errors
/// Why the name could not be resolved, for people.
pub(super) async fn resolve(resolver: &Resolver, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let answer = tokio::time::timeout(RESOLVE_TIMEOUT, resolver(host.to_owned(), port)).await;
    let mut addresses = match answer {
        Ok(Ok(addresses)) => addresses,
        Ok(Err(error)) => return Err(format!("{host}: {error}")),
        Err(_) => return Err(format!("{host}: no answer within {} s", RESOLVE_TIMEOUT.as_secs())),
    };
    if addresses.iter().any(SocketAddr::is_ipv4) {
        addresses.retain(SocketAddr::is_ipv4);
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    if addresses.is_empty() { Err(format!("{host}: stands for no address")) } else { Ok(addresses) }
}
