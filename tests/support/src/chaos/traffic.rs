//! Requests through an Envoy, each of which must be answered 200.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;

use super::{Findings, Running};
use crate::http_client;

/// Clients, and the time between two requests of one.
const CLIENTS: usize = 4;
const PACE: Duration = Duration::from_millis(10);
/// Failures whose answer is kept.
const KEPT: usize = 20;

/// Clients that ask until told to end.
pub struct Traffic {
    clients: JoinSet<(u64, Vec<String>)>,
}

impl Traffic {
    /// Starts the clients.
    #[must_use]
    pub fn start(envoy: SocketAddr, running: Running) -> Self {
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            clients.spawn(ask(envoy, running.clone()));
        }
        Self { clients }
    }

    /// Waits for the clients to end, and says what they were answered.
    pub async fn finish(mut self, findings: &mut Findings) {
        while let Some(client) = self.clients.join_next().await {
            let (n, failures) = client.unwrap_or_else(|error| (0, vec![error.to_string()]));
            findings.requests += n;
            findings.requests_failed += failures.len() as u64;
            findings.first_failures.extend(failures);
        }
        findings.first_failures.truncate(KEPT);
    }
}

async fn ask(envoy: SocketAddr, running: Running) -> (u64, Vec<String>) {
    let (mut n, mut failures) = (0, Vec::new());
    let mut pace = tokio::time::interval(PACE);
    while !running.has_ended() {
        pace.tick().await;
        n += 1;
        match http_client::get(envoy, "/v1/models").await {
            Ok(page) if page.status.is_success() => {}
            Ok(page) => failures.push(format!("{} {}", page.status, page.text())),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    (n, failures)
}
