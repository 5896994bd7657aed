//! The targets.

mod build;
mod built_policy;
mod callers;
mod discovery_client;
mod engine_page;
mod fleet_totals;
mod in_band;
mod last_good;
mod lease_sharing;
mod load_accounts;
mod overload_controller;
mod policy;
mod quota_leases;
mod reports;
mod request_headers;
mod shared_records;
mod stream_counts;
mod worker;
mod xds_answers;
mod xds_server;

/// One target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Name, also of its folder in the corpus.
    pub name: &'static str,
    /// Takes an input and returns a fingerprint of what happened.
    pub run: fn(&[u8]) -> u64,
    /// Inputs that are in order, from which mutation starts.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words of the input's language.
    pub words: &'static [&'static str],
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "policy_document", run: policy::document, seeds: policy::document_seeds, words: policy::WORDS },
    Target { name: "policy_wire", run: policy::wire, seeds: policy::wire_seeds, words: policy::WORDS },
    Target { name: "discovery_client", run: discovery_client::run, seeds: discovery_client::seeds, words: &["demo", "llm"] },
    Target { name: "shared_records", run: shared_records::run, seeds: shared_records::seeds, words: &["HGS1", "HGP1", "HGM1"] },
    Target { name: "reports", run: reports::run, seeds: reports::seeds, words: &["high", "low", "llm", "demo", "gpu_memory"] },
    Target { name: "worker", run: worker::run, seeds: worker::seeds, words: &["high", "low", "llm"] },
    Target { name: "xds_server", run: xds_server::run, seeds: xds_server::seeds, words: xds_server::WORDS },
    Target { name: "engine_page", run: engine_page::run, seeds: engine_page::seeds, words: engine_page::WORDS },
    Target { name: "in_band", run: in_band::run, seeds: in_band::seeds, words: in_band::WORDS },
    Target { name: "callers", run: callers::run, seeds: callers::seeds, words: callers::WORDS },
    // Structured: the input decides what happens, and a model says what must come of it.
    Target { name: "built_policy", run: built_policy::run, seeds: built_policy::seeds, words: &[] },
    Target { name: "fleet_totals", run: fleet_totals::run, seeds: fleet_totals::seeds, words: &[] },
    Target { name: "last_good", run: last_good::run, seeds: last_good::seeds, words: &[] },
    Target { name: "lease_sharing", run: lease_sharing::run, seeds: lease_sharing::seeds, words: &[] },
    Target { name: "load_accounts", run: load_accounts::run, seeds: load_accounts::seeds, words: &[] },
    Target { name: "overload_controller", run: overload_controller::run, seeds: overload_controller::seeds, words: &[] },
    Target { name: "quota_leases", run: quota_leases::run, seeds: quota_leases::seeds, words: &[] },
    Target { name: "request_headers", run: request_headers::run, seeds: request_headers::seeds, words: &[] },
    Target { name: "stream_counts", run: stream_counts::run, seeds: stream_counts::seeds, words: &[] },
    Target { name: "xds_answers", run: xds_answers::run, seeds: xds_answers::seeds, words: &[] },
];

/// Random decisions, always the same ones: the seeds of a structured target.
fn random_seeds(bytes: usize) -> Vec<Vec<u8>> {
    let mut rng = headgate_core::rng::Rng::new(bytes as u64);
    (0..12).map(|_| (0..bytes).map(|_| rng.next_u64() as u8).collect()).collect()
}
