//! `headgate policy …`: apply, validate, get, history, diff, rollback, promote, abort, list, delete, watch.

mod life;

use std::io::{self, Read};

use clap::{Args, Subcommand};
use headgate_protos::v1;
use headgate_protos::v1::policy_event::Kind;
use headgate_protos::v1::policy_source::Source;
use serde::Serialize;

use super::connect::{GrpcArgs, PolicyClient};
use super::table::{Align, Table};
use super::{CliError, Format, dry_run, print, print_json};
use crate::document::CheckedPolicy;
use crate::status::RolloutView;

/// Longest document that is sent (`policy_service.proto`).
const MAX_DOCUMENT_BYTES: u64 = 1 << 20;

/// Arguments of `headgate policy`.
#[derive(Args, Debug)]
pub(super) struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
    #[command(flatten)]
    grpc: GrpcArgs,
}

#[derive(Subcommand, Debug)]
enum PolicyCommand {
    /// Create or replace a policy; when it returns, the policy is durable
    #[command(after_help = "Examples:\n  headgate policy apply -f policy.yaml\n  cat policy.yaml | headgate policy apply -f -\n  \
                            headgate policy apply -f policy.yaml --expected-version none    # only if it does not exist\n  \
                            headgate policy apply -f policy.yaml --dry-run    # what it would have done in the last minutes")]
    Apply {
        /// Document to apply; `-` reads stdin
        #[arg(short, long, value_name = "FILE|-")]
        file: String,
        /// Version that must be in force; `none`: the policy must not exist
        #[arg(long, value_name = "VERSION")]
        expected_version: Option<String>,
        /// Change nothing; say what it would have done with the last minutes' load, beside the policy in force
        #[arg(long, conflicts_with = "expected_version")]
        dry_run: bool,
    },
    /// Check a document without a server; prints every error, one a line
    #[command(after_help = "Examples:\n  headgate policy validate -f policy.yaml && echo good")]
    Validate {
        /// Document to check; `-` reads stdin
        #[arg(short, long, value_name = "FILE|-")]
        file: String,
    },
    /// Show a policy, and how far it has come in the fleet
    #[command(after_help = "Examples:\n  headgate policy get demo\n  headgate policy get demo > demo.yaml    # can be applied again\n  \
                            headgate policy get demo --proxies    # what each proxy has of it, since when, and what it refused\n\n\
                            Of several replicas the leader knows all proxies, the others their own.")]
    Get {
        /// Name of the policy
        name: String,
        /// Show what each proxy has of it instead of what it says
        #[arg(long)]
        proxies: bool,
    },
    /// Show who changed a policy, when, and what; the newest revision first
    #[command(after_help = "Examples:\n  headgate policy history demo\n  headgate policy history demo --json | jq '.[0].author'\n\n\
                            64 revisions of each name are kept, also of a policy that was deleted.")]
    History {
        /// Name of the policy
        name: String,
    },
    /// Show in which fields two revisions of a policy differ, or a revision and a file
    #[command(after_help = "Examples:\n  headgate policy diff demo                  # what the newest revision changed\n  \
                            headgate policy diff demo --from 12 --to 15\n  headgate policy diff demo -f demo.yaml     # what applying it would change")]
    Diff(life::DiffArgs),
    /// Make what an earlier revision said a new revision; when it returns, that is durable
    #[command(after_help = "Examples:\n  headgate policy rollback demo              # to what was in force before\n  \
                            headgate policy rollback demo --to 12      # see `headgate policy history demo`")]
    Rollback {
        /// Name of the policy
        name: String,
        /// Revision to go back to; without it the newest that says something else
        #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(u64).range(1..))]
        to: Option<u64>,
        /// Version that must be in force; `none`: the policy must not exist
        #[arg(long, value_name = "VERSION")]
        expected_version: Option<String>,
    },
    /// Make what a candidate says the policy beside which it was tried, and end the candidate; when it returns, that is durable
    #[command(after_help = "Examples:\n  headgate policy promote demo-next\n  \
                            headgate policy rollback demo              # should that have been a mistake")]
    Promote {
        /// Name of the candidate
        name: String,
        /// Version of the candidate that must be in force
        #[arg(long, value_name = "VERSION")]
        expected_version: Option<String>,
    },
    /// Give everything that a candidate governs back to its policy; when it returns, that is durable
    #[command(after_help = "Examples:\n  headgate policy abort demo-next --reason 'the pager'\n\n\
                            To try it again, change it, or delete it and apply it anew.")]
    Abort {
        /// Name of the candidate
        name: String,
        /// Why, for whoever reads it later
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Show all policies
    #[command(after_help = "Examples:\n  headgate policy list")]
    List,
    /// Delete a policy; when it returns, the deletion is durable
    #[command(after_help = "Examples:\n  headgate policy delete demo")]
    Delete {
        /// Name of the policy
        name: String,
        /// Version that must be in force
        #[arg(long, value_name = "VERSION")]
        expected_version: Option<String>,
    },
    /// Print all policies, then every change, until interrupted
    #[command(after_help = "Examples:\n  headgate policy watch\n  headgate policy watch --json | jq --unbuffered .kind")]
    Watch,
}

/// A policy as a person writes it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata<'a>,
    spec: &'a v1::PolicySpec,
}

#[derive(Serialize)]
struct Metadata<'a> {
    name: &'a str,
}

/// A policy with its state, as JSON shows it.
#[derive(Serialize)]
struct PolicyJson<'a> {
    name: &'a str,
    version: &'a str,
    spec: &'a Option<v1::PolicySpec>,
    proxies_current: u32,
    proxies_behind: u32,
    rejections: Vec<RejectionJson<'a>>,
    changed_at_unix_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rollout: Option<RolloutView>,
}

#[derive(Serialize)]
struct RejectionJson<'a> {
    node_id: &'a str,
    version: &'a str,
    error: &'a str,
}

#[derive(Serialize)]
struct AppliedJson<'a> {
    name: &'a str,
    version: &'a str,
    changed: bool,
}

#[derive(Serialize)]
struct ValidJson<'a> {
    name: &'a str,
    version: &'a str,
    valid: bool,
}

#[derive(Serialize)]
struct DeletedJson<'a> {
    name: &'a str,
    deleted: bool,
}

#[derive(Serialize)]
struct EventJson<'a> {
    kind: &'static str,
    policy: Option<&'a str>,
    version: Option<&'a str>,
}

/// Runs one subcommand.
pub(super) async fn run(args: PolicyArgs, format: Format) -> Result<(), CliError> {
    // Validation is the only one that needs no server.
    if let PolicyCommand::Validate { file } = &args.command {
        return validate(&read_document(file)?, format);
    }
    match args.command {
        PolicyCommand::Validate { .. } => Ok(()),
        PolicyCommand::Apply { file, dry_run: true, .. } => {
            let document = read_document(&file)?;
            dry_run::run(args.grpc.channel().await?, document, format).await
        }
        PolicyCommand::Apply { file, expected_version, .. } => {
            let document = read_document(&file)?;
            apply(args.grpc.connect().await?, document, expected_version.unwrap_or_default(), format).await
        }
        PolicyCommand::Get { name, proxies: true } => life::proxies(args.grpc.channel().await?, name, format).await,
        PolicyCommand::History { name } => life::history(args.grpc.channel().await?, name, format).await,
        PolicyCommand::Diff(diff) => life::diff(args.grpc.channel().await?, diff, format).await,
        PolicyCommand::Rollback { name, to, expected_version } => {
            let request = v1::RollbackPolicyRequest { name, to: to.unwrap_or(0), expected_version: expected_version.unwrap_or_default() };
            life::rollback(args.grpc.channel().await?, request, format).await
        }
        PolicyCommand::Promote { name, expected_version } => {
            let request = v1::PromotePolicyRequest { name, expected_version: expected_version.unwrap_or_default() };
            life::promote(args.grpc.channel().await?, request, format).await
        }
        PolicyCommand::Abort { name, reason } => {
            let request = v1::AbortPolicyRequest { name, reason: reason.unwrap_or_default() };
            life::abort(args.grpc.channel().await?, request, format).await
        }
        PolicyCommand::Get { name, proxies: false } => get(args.grpc.connect().await?, name, format).await,
        PolicyCommand::List => list(args.grpc.connect().await?, format).await,
        PolicyCommand::Delete { name, expected_version } => {
            delete(args.grpc.connect().await?, name, expected_version.unwrap_or_default(), format).await
        }
        PolicyCommand::Watch => watch(args.grpc.connect().await?, format).await,
    }
}

pub(super) fn read_document(file: &str) -> Result<String, CliError> {
    let failed = |source| CliError::Io { what: format!("cannot read {}", if file == "-" { "stdin" } else { file }), source };
    let input: Box<dyn Read> = if file == "-" { Box::new(io::stdin()) } else { Box::new(std::fs::File::open(file).map_err(failed)?) };
    let mut text = String::new();
    input.take(MAX_DOCUMENT_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_DOCUMENT_BYTES {
        return Err(CliError::Refused(format!("{file}: is longer than {MAX_DOCUMENT_BYTES} bytes")));
    }
    Ok(text)
}

fn validate(document: &str, format: Format) -> Result<(), CliError> {
    let checked = CheckedPolicy::from_document(document).map_err(|violations| CliError::Refused(violations.to_string()))?;
    let policy = checked.wire();
    match format {
        Format::Json => print_json(&ValidJson { name: &policy.name, version: &policy.version, valid: true }),
        Format::Text => print(&format!("policy {} is valid, version {}", policy.name, policy.version)),
    }
}

async fn apply(mut client: PolicyClient, document: String, expected_version: String, format: Format) -> Result<(), CliError> {
    let source = v1::PolicySource { source: Some(Source::Document(document)) };
    let request = v1::ApplyPolicyRequest { source: Some(source), expected_version };
    let answer = client.client.apply_policy(request).await.map_err(|status| client.error(&status))?.into_inner();
    let policy = answer.policy.unwrap_or_default();
    match format {
        Format::Json => print_json(&AppliedJson { name: &policy.name, version: &policy.version, changed: answer.changed }),
        Format::Text if answer.changed => print(&format!("policy {} applied, version {}", policy.name, policy.version)),
        Format::Text => print(&format!("policy {} unchanged, version {}", policy.name, policy.version)),
    }
}

async fn get(mut client: PolicyClient, name: String, format: Format) -> Result<(), CliError> {
    let answer = client.client.get_policy(v1::GetPolicyRequest { name }).await;
    let status = answer.map_err(|status| client.error(&status))?.into_inner();
    match format {
        Format::Json => print_json(&json_of(&status, &status.policy.clone().unwrap_or_default())),
        Format::Text => print(&text_of(&status)?),
    }
}

async fn list(mut client: PolicyClient, format: Format) -> Result<(), CliError> {
    let answer = client.client.list_policies(v1::ListPoliciesRequest {}).await;
    let policies = answer.map_err(|status| client.error(&status))?.into_inner().policies;
    let plain: Vec<v1::Policy> = policies.iter().map(|status| status.policy.clone().unwrap_or_default()).collect();
    match format {
        Format::Json => print_json(&policies.iter().zip(&plain).map(|(status, policy)| json_of(status, policy)).collect::<Vec<_>>()),
        Format::Text if policies.is_empty() => print("no policies"),
        Format::Text => print(&table(&policies).render()),
    }
}

async fn delete(mut client: PolicyClient, name: String, expected_version: String, format: Format) -> Result<(), CliError> {
    let request = v1::DeletePolicyRequest { name: name.clone(), expected_version };
    client.client.delete_policy(request).await.map_err(|status| client.error(&status))?;
    match format {
        Format::Json => print_json(&DeletedJson { name: &name, deleted: true }),
        Format::Text => print(&format!("policy {name} deleted")),
    }
}

async fn watch(mut client: PolicyClient, format: Format) -> Result<(), CliError> {
    let answer = client.client.watch_policies(v1::WatchPoliciesRequest {}).await;
    let mut events = answer.map_err(|status| client.error(&status))?.into_inner();
    while let Some(event) = events.message().await.map_err(|status| client.error(&status))? {
        let policy = event.policy.as_ref();
        let kind = match event.kind() {
            Kind::Unspecified => continue,
            Kind::Existing => "existing",
            Kind::Applied => "applied",
            Kind::Deleted => "deleted",
            Kind::Synced => "synced",
        };
        let json = EventJson {
            kind,
            policy: policy.map(|policy| policy.name.as_str()),
            version: policy.map(|policy| policy.version.as_str()).filter(|version| !version.is_empty()),
        };
        match format {
            // One object a line: a stream has no end to which a document could be printed.
            Format::Json => print(&serde_json::to_string(&json).unwrap_or_default())?,
            Format::Text => print(&[Some(kind), json.policy, json.version].into_iter().flatten().collect::<Vec<_>>().join("  "))?,
        }
    }
    Err(client.error(&tonic::Status::unavailable("the control plane ended the stream")))
}

/// The document, and the state in comments, so that the output can be applied again.
fn text_of(status: &v1::PolicyStatus) -> Result<String, CliError> {
    let policy = status.policy.clone().unwrap_or_default();
    let spec = policy.spec.unwrap_or_default();
    let document =
        Document { api_version: "headgate.dev/v1", kind: "AdmissionPolicy", metadata: Metadata { name: &policy.name }, spec: &spec };
    let mut text =
        format!("# version {}\n# proxies: {} current, {} behind\n", policy.version, status.proxies_current, status.proxies_behind);
    for rejection in &status.rejections {
        let error = rejection.error.replace('\n', "\n#   ");
        text.push_str(&format!("# refused by {} at version {}: {error}\n", rejection.node_id, rejection.version));
    }
    if let Some(rollout) = &status.rollout {
        text.push_str(&format!("# {}\n", RolloutView::from(rollout).line()));
    }
    let yaml = serde_yaml_ng::to_string(&document)
        .map_err(|error| CliError::Io { what: "cannot write YAML".to_owned(), source: io::Error::other(error) })?;
    text.push_str(yaml.trim_end());
    Ok(text)
}

fn json_of<'a>(status: &'a v1::PolicyStatus, policy: &'a v1::Policy) -> PolicyJson<'a> {
    let rejection =
        |entry: &'a v1::PolicyRejection| RejectionJson { node_id: &entry.node_id, version: &entry.version, error: &entry.error };
    PolicyJson {
        name: &policy.name,
        version: &policy.version,
        spec: &policy.spec,
        proxies_current: status.proxies_current,
        proxies_behind: status.proxies_behind,
        rejections: status.rejections.iter().map(rejection).collect(),
        changed_at_unix_ms: status.changed_at_unix_ms,
        rollout: status.rollout.as_ref().map(RolloutView::from),
    }
}

fn table(policies: &[v1::PolicyStatus]) -> Table {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("VERSION", Align::Left),
        ("POOL", Align::Left),
        ("CURRENT", Align::Right),
        ("BEHIND", Align::Right),
        ("REFUSED BY", Align::Right),
    ]);
    for status in policies {
        let policy = status.policy.clone().unwrap_or_default();
        table.row(vec![
            policy.name,
            policy.version,
            policy.spec.unwrap_or_default().pool,
            status.proxies_current.to_string(),
            status.proxies_behind.to_string(),
            status.rejections.len().to_string(),
        ]);
    }
    table
}
