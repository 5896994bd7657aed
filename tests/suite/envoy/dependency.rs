//! A response that names the dependency that failed it: the filter hears of it, and who keeps it from the client.

use anyhow::{Result, ensure};
use headgate_core::stream::FAILED_DEPENDENCY_HEADER;
use headgate_test_support::envoy::{Bootstrap, EnvoyOptions, HttpFilter, Upstream as To, WasmFilter};
use headgate_test_support::{EnvoyProcess, EnvoyVersion, wait_until};
use headgate_tests::connection::Connection;
use headgate_tests::documents::{bounded_spec, inline, key_header};
use headgate_tests::mesh::PATIENCE;
use headgate_tests::upstream::Upstream;
use serde_json::{Value, json};

/// Failures that open the breaker of a dependency.
const FAILURES: u32 = 3;

/// Who takes the header off what the client gets.
#[derive(Clone, Copy, Debug, PartialEq)]
enum TakenOffBy {
    Nobody,
    /// `header_to_metadata`, as users have it.
    EnvoysFilter,
    /// `response_headers_to_remove`.
    TheRoute,
}

/// An Envoy of one worker whose policy has a breaker for each dependency, and goes without one that is open.
async fn start(version: &EnvoyVersion, upstream: &Upstream, taken_off: TakenOffBy) -> Result<EnvoyProcess> {
    let mut spec = bounded_spec(100);
    spec["breaker"] = json!({"consecutiveFailures": FAILURES, "scopes": ["dependency"], "fallback": {"direct": true}});
    let filter = HttpFilter::Wasm(WasmFilter::headgate(inline("test", &spec))?);
    let mut bootstrap = Bootstrap::new(filter, To::Endpoint(upstream.address()));
    match taken_off {
        TakenOffBy::Nobody => {}
        TakenOffBy::EnvoysFilter => bootstrap.inner_filters = vec![kept_headers()?],
        TakenOffBy::TheRoute => bootstrap.removed_response_headers = vec![FAILED_DEPENDENCY_HEADER.to_owned()],
    }
    let mut options = EnvoyOptions::new(bootstrap);
    (options.version, options.workers) = (version.clone(), 1);
    EnvoyProcess::start(options).await
}

fn kept_headers() -> Result<Value> {
    Ok(serde_json::from_str(include_str!("../../../envoy/response-headers.json"))?)
}

pub(crate) async fn the_breaker_of_a_dependency_hears_of_it_and_the_client_does_not(version: EnvoyVersion) -> Result<()> {
    // A route takes it off before any filter sees it: then the pool is blamed, and its breaker refuses everybody.
    for (taken_off, client_sees, then) in [
        (TakenOffBy::Nobody, true, (200, true)),
        (TakenOffBy::EnvoysFilter, false, (200, true)),
        (TakenOffBy::TheRoute, false, (503, false)),
    ] {
        let upstream = Upstream::start().await?;
        let envoy = start(&version, &upstream, taken_off).await?;
        let ask = async |headers: &[(&str, &str)]| {
            let headers = [&[key_header("low")], headers].concat();
            Connection::open(envoy.address()).await?.get("/v1/models", &headers).await
        };
        // Permits come with the first ticks.
        wait_until("first admission", PATIENCE, || async { Ok((ask(&[]).await?.status == 200).then_some(())) }).await?;
        for _ in 0..FAILURES {
            let failed = ask(&[("x-status", "503"), ("x-blames", "retriever")]).await?;
            ensure!(failed.status == 503, "{taken_off:?}: {}", failed.status);
            let seen = failed.header(FAILED_DEPENDENCY_HEADER);
            ensure!(seen == client_sees.then_some("retriever"), "{taken_off:?}: the client sees {seen:?}");
        }
        // The third failure is in the worker's books when its line is in the log.
        wait_until("log of the failures", PATIENCE, || {
            let failures = envoy.access_log().iter().filter(|line| line.contains(" 503 ")).count();
            std::future::ready(Ok((failures >= FAILURES as usize).then_some(())))
        })
        .await?;
        let before = upstream.forged();
        let status = ask(&[]).await?.status.as_u16();
        // A request that goes without the dependency says so.
        let goes_without = upstream.forged() > before;
        ensure!((status, goes_without) == then, "{taken_off:?}: {status}, goes without the dependency: {goes_without}, not {then:?}");
    }
    Ok(())
}
