//! Ports for those who have to name theirs before they listen on it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

/// Below what Linux gives to connections and to listeners on port 0 (32768 and up, unless told otherwise): a port from there that was free
/// a moment ago may be somebody's by the time it is used, for example that of the admin page of the very proxy that is to listen on it.
const RANGE: Range<u16> = 10_000..30_000;

/// Ports that one process asks for before it comes into those of the next one.
const STRIDE: u32 = 64;

static ASKED: AtomicU32 = AtomicU32::new(0);

/// An address of loopback on whose port nobody listens, by TCP or UDP, and which neither the system gives away nor this function a second
/// time in this process.
///
/// # Errors
/// When every port of the range is taken.
pub fn free_address() -> Result<SocketAddr> {
    let asked = (0..RANGE.len()).map(|_| ASKED.fetch_add(1, Ordering::Relaxed));
    first_free(asked).with_context(|| format!("all of the ports {RANGE:?} are taken"))
}

fn first_free(places: impl IntoIterator<Item = u32>) -> Option<SocketAddr> {
    let nobody_listens = |at: &SocketAddr| TcpListener::bind(at).is_ok() && UdpSocket::bind(at).is_ok();
    places.into_iter().filter_map(address).find(nobody_listens)
}

/// Place `n` of this process.
fn address(n: u32) -> Option<SocketAddr> {
    let place = std::process::id().wrapping_mul(STRIDE).wrapping_add(n) % u32::from(RANGE.end - RANGE.start);
    Some(SocketAddr::from((Ipv4Addr::LOCALHOST, RANGE.start + u16::try_from(place).ok()?)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;

    #[test]
    fn each_address_comes_once_and_is_outside_of_what_the_system_gives_away() {
        let given = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let first_given: u16 = given.split_whitespace().next().unwrap().parse().unwrap();
        let addresses: BTreeSet<SocketAddr> = (0..100).map(|_| free_address().unwrap()).collect();
        assert_eq!(addresses.len(), 100);
        assert!(addresses.iter().all(|address| address.port() < first_given), "{addresses:?}");
    }

    #[test]
    fn a_port_on_which_somebody_listens_is_passed_over() {
        let listener = TcpListener::bind(free_address().unwrap()).unwrap();
        let taken = listener.local_addr().unwrap();
        let place = (0..).find(|n| address(*n) == Some(taken)).unwrap();
        assert!(first_free([place]).is_none());
        assert_ne!(first_free(place..), Some(taken));
    }
}
