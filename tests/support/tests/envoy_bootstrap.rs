//! The bootstraps of this crate on every pinned Envoy.

use std::time::Duration;

use headgate_test_support::envoy::{EnvoyOptions, Gradient, Upstream, WasmFilter};
use headgate_test_support::{Bootstrap, EnvoyProcess, EnvoyVersion, HttpFilter, http_client, load};

/// Starts every pinned Envoy with `filter` and asks it for one page.
async fn answers_on_every_version(filter: HttpFilter) {
    for version in EnvoyVersion::all() {
        let mut options = EnvoyOptions::new(Bootstrap::new(filter.clone(), Upstream::Direct));
        options.version = version;
        let envoy = EnvoyProcess::start(options).await.unwrap();
        let page = http_client::get(envoy.address(), "/v1/models").await.unwrap();
        assert_eq!((page.status.as_u16(), page.text().as_str()), (200, "ok\n"), "Envoy {}", envoy.version());
        let line = envoy.access_log_line(|line| line.contains("/v1/models")).await.unwrap();
        assert!(line.contains(" 200 "), "{line}");
    }
}

#[tokio::test]
async fn no_filter_answers_on_every_version() {
    answers_on_every_version(HttpFilter::None).await;
}

#[tokio::test]
async fn empty_wasm_filter_answers_on_every_version() {
    answers_on_every_version(HttpFilter::Wasm(WasmFilter::empty().unwrap())).await;
}

#[tokio::test]
async fn native_filters_answer_on_every_version() {
    answers_on_every_version(HttpFilter::LocalRateLimit { burst: 1000, fill: 1000, fill_interval: Duration::from_secs(1) }).await;
    answers_on_every_version(HttpFilter::AdaptiveConcurrency(Gradient::NeverLimits)).await;
    answers_on_every_version(HttpFilter::AdaptiveConcurrency(Gradient::Defaults)).await;
    answers_on_every_version(HttpFilter::AdmissionControl).await;
    answers_on_every_version(HttpFilter::LuaHeaderCheck).await;
}

#[tokio::test]
async fn exact_balance_spreads_connections_over_all_workers() {
    let mut options = EnvoyOptions::new(Bootstrap::new(HttpFilter::None, Upstream::Direct));
    options.workers = 4;
    let mut envoy = EnvoyProcess::start(options).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n";
    let busy = load::saturate(envoy.address(), request, 8, Duration::from_millis(200)).await.unwrap();
    assert!(busy.admitted > 0 && busy.refused == 0, "{busy:?}");
    assert!(envoy.process().cpu_time().unwrap().ran > Duration::ZERO);
    for worker in 0..4 {
        let name = format!(".worker_{worker}.downstream_cx_total");
        assert_eq!(envoy.stat(&name).await.unwrap(), 2, "worker {worker}");
    }
}

#[tokio::test]
async fn envoy_that_cannot_start_shows_its_own_message() {
    let mut filter = WasmFilter::empty().unwrap();
    filter.module = "/nonexistent/filter.wasm".into();
    let error = EnvoyProcess::start(EnvoyOptions::new(Bootstrap::new(HttpFilter::Wasm(filter), Upstream::Direct))).await.unwrap_err();
    assert!(format!("{error:#}").contains("/nonexistent/filter.wasm"), "{error:#}");
}
