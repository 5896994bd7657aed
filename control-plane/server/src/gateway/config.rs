//! Pools, routes and gateways that are valid in themselves: each from its message, or with the list of all its errors.
//!
//! Every message is destructured in full, so a field that is added to the wire fails to compile until it is checked here.

mod entry;
mod pool;
mod route;

use std::net::IpAddr;

use headgate_core::policy::Problem;
use headgate_core::policy::check::{Checker, Form, join};
use headgate_protos::v1::GatewayResource;
use headgate_protos::v1::gateway_resource::Spec;
use headgate_xds::Version;
use prost::Message;

pub use self::entry::{Entry, EntryTls, Jwt, Keys, Network, Oauth2, RemoteFile, Signatures};
pub use self::pool::{Balancing, Endpoint, HealthCheck, Outliers, Pool, Retries, Tls, Weights};
pub use self::route::{Backend, ModelMatch, Route, Rule};
use crate::document::{Violation, Violations};

const NAME: Form = Form {
    max_bytes: 63,
    allows: |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-',
    ends_allow: |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit(),
    expected: "1 to 63 characters of a-z, 0-9 and '-' that begin and end with a letter or digit",
};
/// A file's path as Envoy sees it.
const FILE: Form = Form {
    max_bytes: 4096,
    allows: |byte| !byte.is_ascii_control(),
    ends_allow: |byte| !byte.is_ascii_control(),
    expected: "a path of at most 4096 bytes without control characters",
};
/// Any line of text: a name, a zone, an issuer.
const LINE: Form = Form {
    max_bytes: 512,
    allows: |byte| byte.is_ascii_graphic() || byte == b' ' || !byte.is_ascii(),
    ends_allow: |byte| byte != b' ',
    expected: "a line of at most 512 bytes without control characters",
};
/// A header's name.
const HEADER: Form = Form {
    max_bytes: 128,
    allows: |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-',
    ends_allow: |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit(),
    expected: "a header name of at most 128 characters of a-z, 0-9 and '-'",
};
/// A host name.
const HOST: Form = Form {
    max_bytes: 253,
    allows: |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-'),
    ends_allow: |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit(),
    expected: "a host name of at most 253 lower-case characters without port",
};

/// A resource that is valid in itself, in both forms.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    wire: GatewayResource,
    part: Part,
}

/// What a resource is.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// A pool.
    Pool(Pool),
    /// A route.
    Route(Route),
    /// A gateway.
    Entry(Entry),
}

// === impl Checked ===

impl Checked {
    /// Checks a message. Its version is replaced by that of its content. Errs with every error.
    pub fn try_from_wire(mut wire: GatewayResource) -> Result<Self, Violations> {
        let mut check = Checker::default();
        check.text("metadata", "name", &wire.name, &NAME);
        let part = match &wire.spec {
            Some(Spec::Pool(spec)) => Some(Part::Pool(pool::check(&mut check, &wire.name, spec))),
            Some(Spec::Route(spec)) => Some(Part::Route(route::check(&mut check, &wire.name, spec))),
            Some(Spec::Gateway(spec)) => Some(Part::Entry(entry::check(&mut check, &wire.name, spec))),
            None => {
                check.report("spec".to_owned(), Problem::Missing);
                None
            }
        };
        let errors: Vec<Violation> = check.finish().iter().flatten().map(Violation::from).collect();
        match (part, Violations::try_new(errors)) {
            (Some(part), None) => {
                wire.version = String::new();
                wire.version = Version::of(&wire.encode_to_vec()).to_string();
                Ok(Self { wire, part })
            }
            (_, violations) => Err(violations.unwrap_or_default()),
        }
    }

    /// The resource as it is stored.
    pub fn wire(&self) -> &GatewayResource {
        &self.wire
    }

    /// The resource as it is rendered.
    pub fn part(&self) -> &Part {
        &self.part
    }
}

/// A number of 1 to 65535 that names a port.
fn port(check: &mut Checker, at: &str, got: u32) -> u16 {
    match u16::try_from(got) {
        Ok(port) if port > 0 => port,
        _ if got == 0 => {
            check.report(join(at, "port"), Problem::Missing);
            1
        }
        _ => {
            check.report(join(at, "port"), Problem::OutOfRange { got: f64::from(got), min: 1.0, max: 65535.0 });
            1
        }
    }
}

/// An address; `default` when it is empty, an error when there is none.
fn address(check: &mut Checker, at: &str, got: &str, default: Option<IpAddr>) -> IpAddr {
    let fallback = IpAddr::from([0, 0, 0, 0]);
    match (got, default) {
        ("", Some(default)) => default,
        ("", None) => {
            check.report(join(at, "address"), Problem::Missing);
            fallback
        }
        (got, _) => got.parse().unwrap_or_else(|_| {
            check.report(join(at, "address"), malformed(got, "an IPv4 or IPv6 address"));
            fallback
        }),
    }
}

fn malformed(got: &str, expected: &'static str) -> Problem {
    Problem::Malformed { got: headgate_core::policy::check::quoted(got), expected }
}

fn non_empty(text: &str) -> Option<String> {
    if text.is_empty() { None } else { Some(text.to_owned()) }
}
