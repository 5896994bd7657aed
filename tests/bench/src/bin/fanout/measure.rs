//! One fleet before one server: connect, push, connect again.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use headgate_protos::discovery::DeltaDiscoveryResponse;

use crate::proxies::{Arrival, Fleet};
use crate::server::Served;

/// A push that has not reached every proxy by then never will.
const PUSH_LIMIT: Duration = Duration::from_secs(30);
const CONNECT_LIMIT: Duration = Duration::from_secs(120);

/// What is measured.
pub(crate) struct Plan {
    /// Proxies that read.
    pub(crate) proxies: usize,
    /// Changes of the policy.
    pub(crate) pushes: u32,
    /// Proxies in addition that never read.
    pub(crate) stuck: usize,
}

/// What one server did.
pub(crate) struct Measured {
    /// From the push to each proxy's having read it, over all pushes and proxies, ascending.
    pub(crate) latencies: Vec<Duration>,
    /// Bytes of a response, on average.
    pub(crate) bytes_per_push: f64,
    /// Processor time of the server for a push, its ACKs included.
    pub(crate) cpu_per_push: Duration,
    /// Memory of a stream, its connection included, in bytes.
    pub(crate) bytes_per_stream: f64,
    /// From the moment at which every proxy lost its connection to the last one's having the policy again.
    pub(crate) connect_storm: Duration,
    /// What was written, for the floor to write it again: first what each connect brought, then the pushes, in order.
    pub(crate) pushed: Vec<DeltaDiscoveryResponse>,
}

/// Runs the plan.
pub(crate) async fn run(plan: &Plan, mut served: Served) -> Result<Measured> {
    let before = served.resident_bytes()?;
    let mut fleet = Fleet::connect(served.address(), plan.proxies, plan.stuck).await?;
    let mut pushed = Vec::new();
    // The first push shows that all are connected; what it takes is the connecting.
    served.push().await?;
    keep(&mut pushed, fleet.receive_all(CONNECT_LIMIT).await?);
    let streams = (plan.proxies + plan.stuck) as f64;
    let bytes_per_stream = served.resident_bytes()?.saturating_sub(before) as f64 / streams;

    let (mut latencies, mut bytes) = (Vec::new(), 0);
    let cpu = served.cpu_time()?;
    for push in 1..=plan.pushes {
        let start = Instant::now();
        served.push().await?;
        let arrivals = fleet.receive_all(PUSH_LIMIT).await.with_context(|| format!("push {push}"))?;
        latencies.extend(arrivals.iter().map(|arrival| arrival.at.duration_since(start)));
        bytes += arrivals.iter().map(|arrival| arrival.bytes).sum::<usize>();
        keep(&mut pushed, arrivals);
        eprint!("\r{:>6} proxies, push {push} of {}", plan.proxies, plan.pushes);
    }
    eprintln!();
    let cpu_per_push = (served.cpu_time()?.ran - cpu.ran) / plan.pushes;
    latencies.sort_unstable();
    let samples = latencies.len().max(1);
    drop(fleet);
    let start = Instant::now();
    let mut fleet = Fleet::connect(served.address(), plan.proxies, 0).await?;
    fleet.receive_all(CONNECT_LIMIT).await.context("the connect storm")?;
    let connect_storm = start.elapsed();
    Ok(Measured { latencies, bytes_per_push: bytes as f64 / samples as f64, cpu_per_push, bytes_per_stream, connect_storm, pushed })
}

/// Keeps what the first proxy got.
fn keep(pushed: &mut Vec<DeltaDiscoveryResponse>, arrivals: Vec<Arrival>) {
    pushed.extend(arrivals.into_iter().find_map(|arrival| arrival.response));
}
