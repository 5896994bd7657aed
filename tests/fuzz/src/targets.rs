//! The targets.

mod discovery_client;
mod engine_page;
mod policy;
mod reports;
mod shared_records;
mod worker;
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
];
