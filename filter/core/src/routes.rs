//! Which policy governs a request: the longest matching path prefix over all policies.

use alloc::string::String;
use alloc::vec::Vec;

use crate::policy::{Policy, Route};
use crate::words::begins_with;

#[derive(Debug)]
struct Entry {
    path_prefix: String,
    host: Option<String>,
    policy: usize,
}

/// Routes of all policies, in the order in which they are tried: longer prefixes first, then those with a host, then in the order of
/// the policies.
#[derive(Debug, Default)]
pub(crate) struct RouteTable(Vec<Entry>);

impl RouteTable {
    /// A candidate's routes are not in force: it depends on those of its policy.
    pub(crate) fn new<'a>(policies: impl Iterator<Item = &'a Policy>) -> Self {
        let own = policies.enumerate().filter(|(_, rules)| rules.stage().of().is_none());
        let mut entries: Vec<Entry> =
            own.flat_map(|(policy, rules)| rules.routes().iter().map(move |route| entry(policy, route))).collect();
        entries.sort_by_key(|entry| (core::cmp::Reverse(entry.path_prefix.len()), entry.host.is_none()));
        Self(entries)
    }

    /// Index of the policy.
    #[inline]
    pub(crate) fn find(&self, path: &[u8], authority: &[u8]) -> Option<usize> {
        for Entry { path_prefix, host, policy } in &self.0 {
            if begins_with(path, path_prefix.as_bytes()) && host.as_ref().is_none_or(|own| is_host(authority, own)) {
                return Some(*policy);
            }
        }
        None
    }
}

#[inline(never)]
fn is_host(authority: &[u8], own: &str) -> bool {
    without_port(authority).eq_ignore_ascii_case(own.as_bytes())
}

fn entry(policy: usize, route: &Route) -> Entry {
    let Route { path_prefix, host } = route.clone();
    Entry { path_prefix, host, policy }
}

/// The host of an authority: a colon and what follows the last one, when only digits do, is a port. Colons inside the brackets of an
/// IPv6 address are followed by one.
fn without_port(authority: &[u8]) -> &[u8] {
    match authority.iter().rposition(|byte| *byte == b':') {
        Some(colon) => match authority.split_at_checked(colon) {
            Some((host, port)) if port.iter().skip(1).all(u8::is_ascii_digit) => host,
            _ => authority,
        },
        None => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_no_part_of_the_host() {
        for (authority, host) in
            [("a.example:80", "a.example"), ("a.example", "a.example"), ("[::1]:80", "[::1]"), ("[fe80::1]", "[fe80::1]"), ("", "")]
        {
            assert_eq!(without_port(authority.as_bytes()), host.as_bytes(), "{authority}");
        }
    }
}
