//! Reaching a running control plane, and reading its refusals.

use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use headgate_protos::v1::policy_service_client::PolicyServiceClient;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::header::AUTHORIZATION;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::CliError;
use super::credentials::{Bearer, CredentialArgs};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer that is read; a status of 20000 proxies fits.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Where the gRPC listener is.
#[derive(Args, Debug)]
pub(super) struct GrpcArgs {
    /// Address of the control plane's gRPC listener
    #[arg(long, env = "HEADGATE_SERVER", value_name = "URL", default_value = "http://127.0.0.1:18000", global = true)]
    server: String,
    #[command(flatten)]
    credentials: CredentialArgs,
}

/// Where the HTTP listener is.
#[derive(Args, Debug)]
pub(super) struct HttpArgs {
    /// Address of the control plane's HTTP listener
    #[arg(long, env = "HEADGATE_STATUS_URL", value_name = "URL", default_value = "http://127.0.0.1:18080")]
    url: String,
    #[command(flatten)]
    credentials: CredentialArgs,
}

/// A connection to the control plane, and what its errors mean.
pub(super) struct Connection {
    pub(super) service: InterceptedService<Channel, Bearer>,
    address: String,
}

/// A connection to the policy service.
pub(super) struct PolicyClient {
    pub(super) client: PolicyServiceClient<InterceptedService<Channel, Bearer>>,
    connection: Connection,
}

// === impl GrpcArgs ===

impl GrpcArgs {
    pub(super) async fn connect(self) -> Result<PolicyClient, CliError> {
        let connection = self.channel().await?;
        Ok(PolicyClient { client: PolicyServiceClient::new(connection.service.clone()), connection })
    }

    pub(super) async fn channel(self) -> Result<Connection, CliError> {
        let unreachable = |problem: String| CliError::Unreachable { address: self.server.clone(), problem, flag: "--server" };
        let address = self.credentials.with_scheme(&self.server);
        let (connector, bearer) = (self.credentials.connector(&address)?, self.credentials.bearer()?);
        let endpoint = Endpoint::from_shared(address).map_err(|error| unreachable(deepest(&error)))?.connect_timeout(CONNECT_TIMEOUT);
        let channel = endpoint.connect_with_connector(connector).await.map_err(|error| unreachable(deepest(&error)))?;
        Ok(Connection { service: InterceptedService::new(channel, bearer), address: self.server })
    }
}

// === impl PolicyClient ===

impl PolicyClient {
    /// As [`Connection::error`].
    pub(super) fn error(&self, status: &Status) -> CliError {
        self.connection.error(status)
    }
}

// === impl Connection ===

impl Connection {
    /// What `status` means for the one who called: the code for scripts, and every field error on a line of its own.
    pub(super) fn error(&self, status: &Status) -> CliError {
        match status.code() {
            Code::NotFound => CliError::NotFound(status.message().to_owned()),
            Code::Aborted => CliError::VersionConflict(status.message().to_owned()),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                CliError::Unreachable { address: self.address.clone(), problem: status.message().to_owned(), flag: "--server" }
            }
            _ => CliError::Refused(violations(status).unwrap_or_else(|| status.message().to_owned())),
        }
    }
}

/// The field errors of a refusal, one a line; `None` without any.
fn violations(status: &Status) -> Option<String> {
    let details = status.get_details_bad_request()?;
    let lines: Vec<String> = details
        .field_violations
        .iter()
        .map(|violation| match (violation.field.as_str(), violation.description.as_str()) {
            ("", description) => description.to_owned(),
            // The description may begin with the field already, as the validator's does.
            (field, description) if description.starts_with(field) => description.to_owned(),
            (field, description) => format!("{field}: {description}"),
        })
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

// === impl HttpArgs ===

impl HttpArgs {
    /// The address as it was given.
    pub(super) fn address(&self) -> &str {
        &self.url
    }

    /// GETs `path`.
    pub(super) async fn get(&self, path: &str) -> Result<Vec<u8>, CliError> {
        let unreachable = |problem: String| CliError::Unreachable { address: self.url.clone(), problem, flag: "--url" };
        let address = self.credentials.with_scheme(&self.url);
        let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(self.credentials.connector(&address)?);
        let mut request = Request::get(format!("{}{path}", address.trim_end_matches('/')));
        if let Some(bearer) = self.credentials.bearer()?.header() {
            request = request.header(AUTHORIZATION, bearer);
        }
        let request = request.body(Empty::new()).map_err(|error| unreachable(error.to_string()))?;
        let exchange = async {
            let response = client.request(request).await.map_err(|error| deepest(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(|error| error.to_string())?;
            Ok((status, body.to_bytes().to_vec()))
        };
        match tokio::time::timeout(CALL_TIMEOUT, exchange).await {
            Ok(Ok((status, body))) if status.is_success() => Ok(body),
            // It answers, and says why not.
            Ok(Ok((status, body))) if matches!(status.as_u16(), 401 | 403 | 429) => {
                Err(CliError::Refused(String::from_utf8_lossy(&body).trim_end().to_owned()))
            }
            Ok(Ok((status, _))) => Err(unreachable(format!("{path} answered {status}"))),
            Ok(Err(problem)) => Err(unreachable(problem)),
            Err(_) => Err(unreachable(format!("no answer within {} s", CALL_TIMEOUT.as_secs()))),
        }
    }
}

/// The innermost cause: `Connection refused` says more than `transport error`.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn every_field_error_has_a_line_and_its_field_once() {
        let mut details = ErrorDetails::new();
        details
            .add_bad_request_violation("levels.qps.sigmas", "levels.qps.sigmas: 11 is outside 0..=10")
            .add_bad_request_violation("pool", "is missing");
        let status = Status::with_error_details(Code::InvalidArgument, "2 errors", details);
        assert_eq!(violations(&status).unwrap(), "levels.qps.sigmas: 11 is outside 0..=10\npool: is missing");
    }
}
