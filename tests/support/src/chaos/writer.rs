//! A writer of policies that knows what was acknowledged to it.
//!
//! It writes under the condition of the version that it believes to be in force, as a careful client does: a write that was not
//! answered and comes late can then not undo a later one. Each write of a policy carries a higher number than all before it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use headgate_protos::v1;
use headgate_protos::v1::policy_service_client::PolicyServiceClient;
use headgate_protos::v1::policy_source::Source;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::Running;
use crate::wait::wait_until;

/// Policies that are written, by turns. The last governs the traffic.
const NAMES: [&str; 4] = ["w0", "w1", "w2", "traffic"];
/// Time between two writes.
const PACE: Duration = Duration::from_millis(20);
/// How long a call may take before it is given up.
const CALL_LIMIT: Duration = Duration::from_secs(2);
/// How long a replica that was cut off may take to hear of everything.
const CATCH_UP: Duration = Duration::from_secs(10);

/// The writer. All clones are one.
#[derive(Clone)]
pub struct Writer {
    replicas: Arc<[Channel]>,
    book: Arc<Mutex<Book>>,
}

#[derive(Default)]
struct Book {
    /// Newest acknowledged number of each policy.
    acknowledged: BTreeMap<&'static str, u64>,
    n_acknowledged: u64,
    n_refused: u64,
}

impl Writer {
    /// A writer that asks these replicas by turns.
    #[must_use]
    pub fn new(replicas: Vec<SocketAddr>) -> Self {
        // The addresses are those of sockets: every one is a URL.
        let channel = |address: SocketAddr| Endpoint::from_shared(format!("http://{address}")).map(|endpoint| endpoint.connect_lazy());
        Self { replicas: replicas.into_iter().filter_map(|address| channel(address).ok()).collect(), book: Arc::default() }
    }

    /// Writes every policy once.
    ///
    /// # Errors
    /// When one is refused.
    pub async fn first(&self) -> Result<()> {
        for name in NAMES {
            let applied = self.apply(0, name, 1, "none").await;
            applied.with_context(|| format!("the first write of {name}"))?;
        }
        Ok(())
    }

    /// Writes until told to end.
    ///
    /// # Errors
    /// Never by a refusal: faults cause them.
    pub async fn run(self, running: Running) -> Result<()> {
        let mut pace = tokio::time::interval(PACE);
        let mut believed: BTreeMap<&str, String> = BTreeMap::new();
        let mut n = 1_u64;
        while !running.has_ended() {
            pace.tick().await;
            n += 1;
            let at = n as usize;
            let name = NAMES[at % NAMES.len()];
            if !believed.contains_key(name) {
                let Ok(policy) = self.get(at, name).await else { continue };
                believed.insert(name, policy.version);
            }
            match self.apply(at, name, n, &believed[name]).await {
                Ok(version) => drop(believed.insert(name, version)),
                Err(status) => {
                    if status.code() != Code::Aborted {
                        self.book().n_refused += 1;
                    }
                    // What is in force now has to be asked for.
                    believed.remove(name);
                }
            }
        }
        Ok(())
    }

    /// What was acknowledged and is not there, on any replica, once all of them have heard of everything.
    ///
    /// # Errors
    /// When a replica does not answer.
    pub async fn lost(&self) -> Result<Vec<String>> {
        let wanted = self.book().acknowledged.clone();
        let mut lost = Vec::new();
        for at in 0..self.replicas.len() {
            for (name, number) in &wanted {
                let there = wait_until("acknowledged policy", CATCH_UP, || async {
                    let policy = self.get(at, name).await;
                    Ok(policy.ok().and_then(|policy| number_of(&policy)).filter(|there| there >= number))
                });
                if there.await.is_err() {
                    let found = self.get(at, name).await.map(|policy| number_of(&policy));
                    lost.push(format!("replica {at}: {name} {number}: found {found:?}"));
                }
            }
        }
        Ok(lost)
    }

    /// Writes that were acknowledged, and those that were not.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let book = self.book();
        (book.n_acknowledged, book.n_refused)
    }

    /// Writes a policy to a replica; returns its version.
    async fn apply(&self, at: usize, name: &'static str, number: u64, expected: &str) -> Result<String, Status> {
        let request = v1::ApplyPolicyRequest {
            source: Some(v1::PolicySource { source: Some(Source::Document(document(name, number))) }),
            expected_version: expected.to_owned(),
        };
        let answer = limited(self.client(at).apply_policy(request)).await?.into_inner();
        let mut book = self.book();
        book.n_acknowledged += 1;
        let newest = book.acknowledged.entry(name).or_default();
        *newest = number.max(*newest);
        Ok(answer.policy.unwrap_or_default().version)
    }

    async fn get(&self, at: usize, name: &str) -> Result<v1::Policy, Status> {
        let answer = limited(self.client(at).get_policy(v1::GetPolicyRequest { name: name.to_owned() })).await?;
        Ok(answer.into_inner().policy.unwrap_or_default())
    }

    fn client(&self, at: usize) -> PolicyServiceClient<Channel> {
        PolicyServiceClient::new(self.replicas[at % self.replicas.len()].clone())
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn limited<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(CALL_LIMIT, call).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))
}

/// A policy that refuses nobody, with a number in its last route.
fn document(name: &str, number: u64) -> String {
    let path = if name == "traffic" { "/v1/".to_owned() } else { format!("/{name}/") };
    serde_json::json!({
        "apiVersion": "headgate.dev/v1",
        "kind": "AdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "pool": name,
            "routes": [{"pathPrefix": path}, {"pathPrefix": format!("/number/{name}/{number}")}],
            "classes": [{"name": "low", "whenTripped": "refuse"}],
            "levels": {"gpuMemory": {"enabled": false}, "qps": {"enabled": false}, "p99": {"enabled": false}},
        },
    })
    .to_string()
}

fn number_of(policy: &v1::Policy) -> Option<u64> {
    policy.spec.as_ref()?.routes.last()?.path_prefix.rsplit('/').next()?.parse().ok()
}

/// Kills the only replica again and again while policies are written, and looks for every acknowledged one after each start.
///
/// Returns the number of acknowledged writes.
///
/// # Errors
/// When the store does not open, or an acknowledged policy is not there.
pub async fn kill_and_look(control: &mut crate::ControlPlaneProcess, times: usize, rng: &mut impl rand::Rng) -> Result<u64> {
    let writer = Writer::new(vec![control.grpc()]);
    writer.first().await?;
    for n in 0..times {
        let running = Running::default();
        let writes = tokio::spawn(writer.clone().hurry(running.clone(), n as u64 * 1_000_000));
        let before = writer.counts().0;
        let wanted = before + rng.random_range(1..8);
        wait_until("acknowledged writes", CATCH_UP, || std::future::ready(Ok((writer.counts().0 >= wanted).then_some(())))).await?;
        // The next write may be at any point of its way.
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..4000))).await;
        control.kill_9()?;
        running.end();
        writes.await?;
        control.restart().await?;
        let lost = writer.lost().await?;
        ensure!(lost.is_empty(), "after {} kills: {lost:?}", n + 1);
    }
    Ok(writer.counts().0)
}

impl Writer {
    /// Writes as fast as it can, whatever is in force, until told to end.
    async fn hurry(self, running: Running, from: u64) {
        let mut n = from + 1;
        while !running.has_ended() {
            n += 1;
            if self.apply(0, NAMES[n as usize % NAMES.len()], n, "").await.is_err() {
                tokio::task::yield_now().await;
            }
        }
    }
}
