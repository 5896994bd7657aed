//! Small parts of which Envoy's messages are made.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::v3 as kind;
use envoy_types::pb::google::protobuf as google;
use prost::{Message, Name};

pub(super) fn any<T: Message + Name>(message: &T) -> google::Any {
    google::Any { type_url: T::type_url(), value: message.encode_to_vec() }
}

pub(super) fn extension<T: Message + Name>(name: &str, message: &T) -> core::TypedExtensionConfig {
    core::TypedExtensionConfig { name: name.to_owned(), typed_config: Some(any(message)) }
}

pub(super) fn whole(value: u32) -> Option<google::UInt32Value> {
    Some(google::UInt32Value { value })
}

pub(super) fn yes() -> Option<google::BoolValue> {
    Some(google::BoolValue { value: true })
}

pub(super) fn percent(value: u32) -> Option<kind::Percent> {
    Some(kind::Percent { value: value.into() })
}

/// Validated times are at most some days.
pub(super) fn duration(time: Duration) -> Option<google::Duration> {
    Some(google::Duration {
        seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(time.subsec_nanos()).unwrap_or(0),
    })
}

pub(super) fn file(path: &str) -> core::DataSource {
    core::DataSource { specifier: Some(core::data_source::Specifier::Filename(path.to_owned())), ..core::DataSource::default() }
}

/// The folder of a file: a mounted secret is exchanged by renaming one of its links.
pub(super) fn folder(path: &str) -> core::WatchedDirectory {
    let folder = path.rsplit_once('/').map_or(".", |(folder, _)| if folder.is_empty() { "/" } else { folder });
    core::WatchedDirectory { path: folder.to_owned(), ..core::WatchedDirectory::default() }
}

/// From the stream that the proxy has already.
pub(super) fn from_ads() -> core::ConfigSource {
    source(core::config_source::ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {}))
}

pub(super) fn source(specifier: core::config_source::ConfigSourceSpecifier) -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(specifier),
        ..core::ConfigSource::default()
    }
}

pub(super) fn tcp(address: &str, port: u16) -> core::Address {
    socket(address, port, core::socket_address::Protocol::Tcp)
}

pub(super) fn socket(address: &str, port: u16, protocol: core::socket_address::Protocol) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            protocol: protocol.into(),
            address: address.to_owned(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port.into())),
            ..core::SocketAddress::default()
        })),
    }
}

pub(super) fn text(pattern: matcher::string_matcher::MatchPattern) -> matcher::StringMatcher {
    matcher::StringMatcher { ignore_case: false, match_pattern: Some(pattern) }
}

pub(super) fn header(key: &str, value: &str, action: core::header_value_option::HeaderAppendAction) -> core::HeaderValueOption {
    core::HeaderValueOption {
        header: Some(core::HeaderValue { key: key.to_owned(), value: value.to_owned(), raw_value: Vec::new() }),
        append_action: action.into(),
        ..core::HeaderValueOption::default()
    }
}
