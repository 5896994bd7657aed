//! A control plane inside a test: on loopback, without GPU, its policies in the test's own folder.

pub mod proxy;

use std::path::Path;
use std::time::{Duration, Instant};

use headgate::config::{Config, RawConfig};
use headgate::serve::{Running, start};
use headgate_protos::v1;
use headgate_protos::v1::policy_service_client::PolicyServiceClient;
use tonic::transport::Channel;

/// The flags of such a control plane.
pub fn flags(data_dir: &Path) -> RawConfig {
    RawConfig {
        grpc: Some("127.0.0.1:0".to_owned()),
        http: Some("127.0.0.1:0".to_owned()),
        data_dir: Some(data_dir.to_owned()),
        nvml_lib: Some("off".to_owned()),
        ..RawConfig::default()
    }
}

pub async fn serve(flags: RawConfig) -> Running {
    start(Config::try_from(flags).unwrap()).await.unwrap()
}

/// A connection of its own.
pub async fn connect(running: &Running) -> Channel {
    Channel::from_shared(format!("http://{}", running.grpc)).unwrap().connect().await.unwrap()
}

pub async fn apply(channel: Channel, document: &str) -> v1::Policy {
    let source = v1::PolicySource { source: Some(v1::policy_source::Source::Document(document.to_owned())) };
    let request = v1::ApplyPolicyRequest { source: Some(source), ..Default::default() };
    PolicyServiceClient::new(channel).apply_policy(request).await.unwrap().into_inner().policy.unwrap()
}

/// A page of the HTTP listener.
pub async fn get(running: &Running, path: &str) -> String {
    use http_body_util::BodyExt;
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let request = hyper::Request::get(format!("http://{}{path}", running.http)).body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
    let body = client.request(request).await.unwrap().into_body().collect().await.unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

/// The status, as soon as `wanted` holds of it.
pub async fn status_with(running: &Running, patience: Duration, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    let began = Instant::now();
    loop {
        let status = serde_json::from_str(&get(running, "/throttle/status").await).unwrap();
        if wanted(&status) {
            return status;
        }
        assert!(began.elapsed() < patience, "{status:#}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
