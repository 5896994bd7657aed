//! Certificates on both sides of the proxy.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::quic::v3::QuicDownstreamTransport;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use tls::common_tls_context::ValidationContextType;

use super::super::config::{EntryTls, Tls};
use super::wrap::{any, file, folder, text, yes};

const TLS_SOCKET: &str = "envoy.transport_sockets.tls";
const QUIC_SOCKET: &str = "envoy.transport_sockets.quic";

/// To the endpoints of a pool.
pub(super) fn upstream(config: &Tls) -> core::TransportSocket {
    let shown = config.certificate.iter().map(|(certificate, key)| certificate_of(certificate, key)).collect();
    to_server(&config.server_name, &config.ca_file, shown)
}

/// To a server called `name`, whose certificate one of the authorities in `ca_file` has signed.
pub(super) fn to_server(name: &str, ca_file: &str, shown: Vec<tls::TlsCertificate>) -> core::TransportSocket {
    let matcher = tls::SubjectAltNameMatcher {
        san_type: tls::subject_alt_name_matcher::SanType::Dns.into(),
        matcher: Some(text(MatchPattern::Exact(name.to_owned()))),
        ..tls::SubjectAltNameMatcher::default()
    };
    let validation = tls::CertificateValidationContext {
        trusted_ca: Some(file(ca_file)),
        watched_directory: Some(folder(ca_file)),
        // Without it any server that the authority signed would do.
        match_typed_subject_alt_names: vec![matcher],
        ..tls::CertificateValidationContext::default()
    };
    let context = tls::UpstreamTlsContext {
        sni: name.to_owned(),
        common_tls_context: Some(tls::CommonTlsContext {
            tls_params: Some(versions()),
            tls_certificates: shown,
            validation_context_type: Some(ValidationContextType::ValidationContext(validation)),
            ..tls::CommonTlsContext::default()
        }),
        ..tls::UpstreamTlsContext::default()
    };
    typed(TLS_SOCKET, any(&context))
}

/// From clients over TCP: HTTP/2 or HTTP/1.1, as they wish.
pub(super) fn downstream(config: &EntryTls) -> core::TransportSocket {
    typed(TLS_SOCKET, any(&context(config, &["h2", "http/1.1"])))
}

/// From clients over QUIC.
pub(super) fn quic(config: &EntryTls) -> core::TransportSocket {
    let transport =
        QuicDownstreamTransport { downstream_tls_context: Some(context(config, &["h3"])), ..QuicDownstreamTransport::default() };
    typed(QUIC_SOCKET, any(&transport))
}

fn context(config: &EntryTls, protocols: &[&str]) -> tls::DownstreamTlsContext {
    let clients = config.client_ca_file.as_ref().map(|path| {
        ValidationContextType::ValidationContext(tls::CertificateValidationContext {
            trusted_ca: Some(file(path)),
            watched_directory: Some(folder(path)),
            ..tls::CertificateValidationContext::default()
        })
    });
    tls::DownstreamTlsContext {
        require_client_certificate: clients.as_ref().and_then(|_| yes()),
        common_tls_context: Some(tls::CommonTlsContext {
            tls_params: Some(versions()),
            tls_certificates: vec![certificate_of(&config.certificate_file, &config.key_file)],
            alpn_protocols: protocols.iter().map(|protocol| (*protocol).to_owned()).collect(),
            validation_context_type: clients,
            ..tls::CommonTlsContext::default()
        }),
        ..tls::DownstreamTlsContext::default()
    }
}

fn certificate_of(certificate: &str, key: &str) -> tls::TlsCertificate {
    tls::TlsCertificate {
        certificate_chain: Some(file(certificate)),
        private_key: Some(file(key)),
        watched_directory: Some(folder(certificate)),
        ..tls::TlsCertificate::default()
    }
}

fn versions() -> tls::TlsParameters {
    tls::TlsParameters {
        tls_minimum_protocol_version: tls::tls_parameters::TlsProtocol::TlSv12.into(),
        tls_maximum_protocol_version: tls::tls_parameters::TlsProtocol::TlSv13.into(),
        ..tls::TlsParameters::default()
    }
}

fn typed(name: &str, config: envoy_types::pb::google::protobuf::Any) -> core::TransportSocket {
    core::TransportSocket { name: name.to_owned(), config_type: Some(core::transport_socket::ConfigType::TypedConfig(config)) }
}
