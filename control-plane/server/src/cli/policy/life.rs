//! `headgate policy history`, `diff`, `rollback`, `promote`, `abort`, and `get --proxies`: what became of a policy.

use clap::Args;
use headgate_protos::v1;
use headgate_protos::v1::policy_life_client::PolicyLifeClient;
use serde::Serialize;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use super::super::connect::Connection;
use super::super::credentials::Bearer;
use super::super::table::{Align, Table};
use super::super::{CliError, Format, print, print_json};
use super::read_document;
use crate::clock::utc;
use crate::document::CheckedPolicy;
use crate::policy_life::diff::{Difference, differences};

type Client = PolicyLifeClient<InterceptedService<Channel, Bearer>>;

/// Fields that are named of a revision in the table; JSON has more.
const NAMED: usize = 3;

/// What `headgate policy diff` compares.
#[derive(Args, Debug)]
pub(super) struct DiffArgs {
    /// Name of the policy
    name: String,
    /// Revision to compare; without it the one before `--to`, or what is in force beside `-f`
    #[arg(long, value_name = "REVISION")]
    from: Option<u64>,
    /// Revision to compare it with; without it the newest
    #[arg(long, value_name = "REVISION", conflicts_with = "file")]
    to: Option<u64>,
    /// Document to compare it with, which need not be applied; `-` reads stdin
    #[arg(short, long, value_name = "FILE|-")]
    file: Option<String>,
}

#[derive(Serialize)]
struct RevisionJson<'a> {
    revision: u64,
    version: Option<&'a str>,
    author: &'a str,
    at_unix_ms: u64,
    what: &'static str,
    same_as: Option<u64>,
    changed: &'a [String],
    changed_total: u32,
}

#[derive(Serialize)]
struct DiffJson<'a> {
    name: &'a str,
    from: String,
    to: String,
    differences: &'a [Difference],
}

#[derive(Serialize)]
struct RolledBackJson<'a> {
    name: &'a str,
    version: &'a str,
    restored: u64,
    changed: bool,
}

#[derive(Serialize)]
struct PromotedJson {
    candidate: String,
    name: String,
    version: String,
    changed: Vec<String>,
    changed_total: u32,
}

#[derive(Serialize)]
struct AbortedJson<'a> {
    name: &'a str,
    version: &'a str,
    aborted: bool,
}

#[derive(Serialize)]
struct ProxiesJson {
    name: String,
    replica: String,
    is_part: bool,
    ask_leader: String,
    proxies: Vec<ProxyJson>,
}

#[derive(Serialize)]
struct ProxyJson {
    node_id: String,
    state: &'static str,
    version: Option<String>,
    wanted_version: Option<String>,
    since_unix_ms: u64,
    refused_version: Option<String>,
    refused_error: Option<String>,
    last_report_age_ms: u64,
}

/// Shows the revisions of a policy.
pub(super) async fn history(connection: Connection, name: String, format: Format) -> Result<(), CliError> {
    let answer = client(&connection).list_policy_revisions(v1::ListPolicyRevisionsRequest { name }).await;
    let revisions = answer.map_err(|status| connection.error(&status))?.into_inner().revisions;
    match format {
        Format::Json => print_json(&revisions.iter().map(json_of).collect::<Vec<_>>()),
        Format::Text => print(&table(&revisions).render()),
    }
}

/// Shows what differs. Both are read before anything is shown, so there is all of it or an error.
pub(super) async fn diff(connection: Connection, args: DiffArgs, format: Format) -> Result<(), CliError> {
    let DiffArgs { name, from, to, file } = args;
    let (from, before, to, after) = match file {
        Some(file) => {
            let document = read_document(&file)?;
            let checked = CheckedPolicy::from_document(&document).map_err(|violations| CliError::Refused(violations.to_string()))?;
            let before = revision(&connection, &name, from.unwrap_or(0)).await?;
            (before.revision.to_string(), said(before), file, checked.wire().clone())
        }
        None => {
            let after = revision(&connection, &name, to.unwrap_or(0)).await?;
            let before = match from {
                Some(from) => revision(&connection, &name, from).await?,
                None => revision(&connection, &name, before(&connection, &name, after.revision).await?).await?,
            };
            (before.revision.to_string(), said(before), after.revision.to_string(), said(after))
        }
    };
    let differences = differences(&before, &after);
    match format {
        Format::Json => print_json(&DiffJson { name: &name, from, to, differences: &differences }),
        Format::Text if differences.is_empty() => print(&format!("policy {name}: {from} and {to} say the same")),
        Format::Text => {
            let lines: Vec<String> = differences.iter().map(ToString::to_string).collect();
            print(&format!("policy {name}: {from} -> {to}\n{}", lines.join("\n")))
        }
    }
}

/// Goes back.
pub(super) async fn rollback(connection: Connection, request: v1::RollbackPolicyRequest, format: Format) -> Result<(), CliError> {
    let answer = client(&connection).rollback_policy(request).await.map_err(|status| connection.error(&status))?.into_inner();
    let v1::RollbackPolicyResponse { policy, restored, changed } = answer;
    let policy = policy.unwrap_or_default();
    match format {
        Format::Json => print_json(&RolledBackJson { name: &policy.name, version: &policy.version, restored, changed }),
        Format::Text if changed => print(&format!("policy {} is as in revision {restored} again, version {}", policy.name, policy.version)),
        Format::Text => print(&format!("policy {} unchanged: revision {restored} says what is in force", policy.name)),
    }
}

/// Makes a candidate the policy beside which it was tried.
pub(super) async fn promote(connection: Connection, request: v1::PromotePolicyRequest, format: Format) -> Result<(), CliError> {
    let candidate = request.name.clone();
    let answer = client(&connection).promote_policy(request).await.map_err(|status| connection.error(&status))?.into_inner();
    let v1::PromotePolicyResponse { policy, mut changed, changed_total } = answer;
    let policy = policy.unwrap_or_default();
    if format == Format::Json {
        return print_json(&PromotedJson { candidate, name: policy.name, version: policy.version, changed, changed_total });
    }
    let left = changed_total as usize - changed.len().min(changed_total as usize);
    if left > 0 {
        changed.push(format!("{left} fields more: `headgate policy diff {}`", policy.name));
    }
    let head = format!("policy {} says now what {candidate} said, version {}", policy.name, policy.version);
    print(&[vec![head], changed].concat().join("\n"))
}

/// Has a candidate govern nothing any more.
pub(super) async fn abort(connection: Connection, request: v1::AbortPolicyRequest, format: Format) -> Result<(), CliError> {
    let answer = client(&connection).abort_policy(request).await.map_err(|status| connection.error(&status))?.into_inner();
    let policy = answer.policy.unwrap_or_default();
    match format {
        Format::Json => print_json(&AbortedJson { name: &policy.name, version: &policy.version, aborted: true }),
        Format::Text => print(&format!("policy {} governs nothing any more, version {}", policy.name, policy.version)),
    }
}

/// Shows what each proxy has of a policy.
pub(super) async fn proxies(connection: Connection, name: String, format: Format) -> Result<(), CliError> {
    let mut shown = ProxiesJson { name, replica: String::new(), is_part: false, ask_leader: String::new(), proxies: Vec::new() };
    let mut after = String::new();
    loop {
        let request = v1::ListPolicyProxiesRequest { name: shown.name.clone(), after };
        let answer = client(&connection).list_policy_proxies(request).await.map_err(|status| connection.error(&status))?.into_inner();
        let last = answer.proxies.last().map(|proxy| proxy.node_id.clone());
        shown.proxies.extend(answer.proxies.into_iter().map(ProxyJson::from));
        (shown.replica, shown.is_part, shown.ask_leader) = (answer.replica, answer.is_part, answer.ask_leader);
        match last.filter(|_| answer.has_more) {
            Some(last) => after = last,
            None => break,
        }
    }
    match format {
        Format::Json => print_json(&shown),
        Format::Text => print(&text_of(&shown)),
    }
}

fn client(connection: &Connection) -> Client {
    PolicyLifeClient::new(connection.service.clone())
}

/// A revision with what it says; 0 for the newest.
async fn revision(connection: &Connection, name: &str, revision: u64) -> Result<v1::PolicyRevision, CliError> {
    let request = v1::GetPolicyRevisionRequest { name: name.to_owned(), revision };
    let answer = client(connection).get_policy_revision(request).await;
    Ok(answer.map_err(|status| connection.error(&status))?.into_inner())
}

/// The revision before `revision`.
async fn before(connection: &Connection, name: &str, revision: u64) -> Result<u64, CliError> {
    let answer = client(connection).list_policy_revisions(v1::ListPolicyRevisionsRequest { name: name.to_owned() }).await;
    let revisions = answer.map_err(|status| connection.error(&status))?.into_inner().revisions;
    let earlier = revisions.iter().map(|kept| kept.revision).find(|kept| *kept < revision);
    earlier.ok_or_else(|| CliError::NotFound(format!("policy `{name}`: no revision before {revision} is kept")))
}

/// What a revision says; a deletion says nothing.
fn said(revision: v1::PolicyRevision) -> v1::Policy {
    revision.policy.unwrap_or_default()
}

fn json_of(revision: &v1::PolicyRevision) -> RevisionJson<'_> {
    let v1::PolicyRevision { revision: number, author, at_unix_ms, version, changed, changed_total, same_as, policy: _ } = revision;
    let version = Some(version.as_str()).filter(|version| !version.is_empty());
    let what = match (version, changed_total, same_as) {
        (None, _, _) => "deleted",
        (Some(_), _, 1..) => "restored",
        (Some(_), 1.., 0) => "changed",
        (Some(_), 0, 0) => "created",
    };
    let same_as = Some(*same_as).filter(|same_as| *same_as > 0);
    RevisionJson { revision: *number, version, author, at_unix_ms: *at_unix_ms, what, same_as, changed, changed_total: *changed_total }
}

fn table(revisions: &[v1::PolicyRevision]) -> Table {
    let titles = ["REVISION", "VERSION", "AUTHOR", "TIME", "WHAT"];
    let mut table = Table::new(&titles.map(|title| (title, if title == "REVISION" { Align::Right } else { Align::Left })));
    for revision in revisions {
        let json = json_of(revision);
        let mut fields: Vec<String> = json.changed.iter().take(NAMED).cloned().collect();
        let left = json.changed_total as usize - fields.len();
        if left > 0 {
            fields.push(format!("{left} more"));
        }
        let what = match (json.what, json.same_as) {
            ("changed", _) => format!("changed {}", fields.join(", ")),
            ("restored", Some(same_as)) => format!("as in revision {same_as}"),
            (what, _) => what.to_owned(),
        };
        let version = json.version.unwrap_or("-").to_owned();
        table.row(vec![json.revision.to_string(), version, json.author.to_owned(), utc(json.at_unix_ms), what]);
    }
    table
}

fn text_of(shown: &ProxiesJson) -> String {
    let mut lines = Vec::new();
    if shown.is_part {
        let leader =
            if shown.ask_leader.is_empty() { "nobody leads now".to_owned() } else { format!("--server {} has all", shown.ask_leader) };
        lines.push(format!("these are the proxies of the replica {} alone; {leader}", shown.replica));
    }
    if shown.proxies.is_empty() {
        lines.push("no proxy is connected".to_owned());
        return lines.join("\n");
    }
    let titles = ["PROXY", "STATE", "HAS", "WANTS", "SINCE", "REFUSED"];
    let mut table = Table::new(&titles.map(|title| (title, Align::Left)));
    for proxy in &shown.proxies {
        let or_dash = |version: &Option<String>| version.clone().unwrap_or_else(|| "-".to_owned());
        let refused = match (&proxy.refused_version, &proxy.refused_error) {
            (Some(version), Some(error)) => format!("{version}: {}", error.replace('\n', "; ")),
            _ => "-".to_owned(),
        };
        let since = utc(proxy.since_unix_ms);
        let (has, wants) = (or_dash(&proxy.version), or_dash(&proxy.wanted_version));
        table.row(vec![proxy.node_id.clone(), proxy.state.to_owned(), has, wants, since, refused]);
    }
    lines.push(table.render());
    lines.join("\n")
}

// === impl ProxyJson ===

impl From<v1::PolicyProxy> for ProxyJson {
    fn from(proxy: v1::PolicyProxy) -> Self {
        let v1::PolicyProxy { node_id, version, wanted_version, since_unix_ms, refused_version, refused_error, last_report_age_ms } = proxy;
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        let state = match (version == wanted_version, wanted_version.is_empty(), refused_version.is_empty()) {
            (true, true, _) => "not chosen",
            (true, false, _) => "current",
            (false, _, false) => "refused",
            (false, _, true) => "behind",
        };
        Self {
            node_id,
            state,
            version: given(version),
            wanted_version: given(wanted_version),
            since_unix_ms,
            refused_version: given(refused_version),
            refused_error: given(refused_error),
            last_report_age_ms,
        }
    }
}
