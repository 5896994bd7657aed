//! `headgate policy apply --dry-run`: what a policy would have done.

use headgate_core::level::LevelKind;
use headgate_protos::v1;
use headgate_protos::v1::policy_source::Source;
use headgate_protos::v1::policy_trial_client::PolicyTrialClient;
use serde::Serialize;

use super::connect::Connection;
use super::table::{Align, Table};
use super::{CliError, Format, print, print_json};

/// The answer as JSON shows it.
#[derive(Serialize)]
struct DryRunJson {
    name: String,
    version: String,
    in_force: String,
    in_force_version: String,
    window_ms: u64,
    classes: Vec<ClassJson>,
    levels: Vec<LevelJson>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct ClassJson {
    class: String,
    offered: u64,
    refused: u64,
    refused_in_force: Option<f64>,
    refused_by_policy: Option<f64>,
}

#[derive(Serialize)]
struct LevelJson {
    level: &'static str,
    acted_in_force_ms: u64,
    acted_by_policy_ms: u64,
    peak_value: f64,
    threshold: f64,
}

/// Asks, and shows the answer.
pub(super) async fn run(connection: Connection, document: String, format: Format) -> Result<(), CliError> {
    let source = Some(v1::PolicySource { source: Some(Source::Document(document)) });
    let mut client = PolicyTrialClient::new(connection.service.clone());
    let answer = client.dry_run_policy(v1::DryRunPolicyRequest { source }).await;
    let answer = json_of(answer.map_err(|status| connection.error(&status))?.into_inner());
    match format {
        Format::Json => print_json(&answer),
        Format::Text => print(&text_of(&answer)),
    }
}

fn json_of(answer: v1::DryRunPolicyResponse) -> DryRunJson {
    let v1::DryRunPolicyResponse { policy, in_force, in_force_version, window_ms, classes, levels, notes } = answer;
    let policy = policy.unwrap_or_default();
    let class = |class: v1::DryRunClass| {
        let v1::DryRunClass { class, offered, refused, refused_in_force, refused_by_policy } = class;
        ClassJson { class, offered, refused, refused_in_force, refused_by_policy }
    };
    let level = |level: v1::DryRunLevel| LevelJson {
        level: name_of(level.kind()),
        acted_in_force_ms: level.acted_in_force_ms,
        acted_by_policy_ms: level.acted_by_policy_ms,
        peak_value: level.peak_value,
        threshold: level.threshold,
    };
    DryRunJson {
        name: policy.name,
        version: policy.version,
        in_force,
        in_force_version,
        window_ms,
        classes: classes.into_iter().map(class).collect(),
        levels: levels.into_iter().map(level).collect(),
        notes,
    }
}

fn name_of(kind: v1::LevelKind) -> &'static str {
    LevelKind::ALL.into_iter().find(|known| known.to_wire() == kind).map_or("unknown", LevelKind::as_str)
}

fn text_of(answer: &DryRunJson) -> String {
    let seconds = |ms: u64| format!("{:.1} s", ms as f64 / 1e3);
    let mut lines = vec![format!(
        "dry run of policy {} version {}; nothing has changed\nthe last {} of its pool, beside {} version {} in force\n",
        answer.name,
        answer.version,
        seconds(answer.window_ms),
        answer.in_force,
        answer.in_force_version
    )];
    let mut classes = Table::new(&[
        ("CLASS", Align::Left),
        ("OFFERED", Align::Right),
        ("REFUSED THEN", Align::Right),
        ("IN FORCE, PLAYED", Align::Right),
        ("THIS POLICY, PLAYED", Align::Right),
    ]);
    for class in &answer.classes {
        let played = |refused: Option<f64>| refused.map_or("-".to_owned(), |refused| with_part(refused, class.offered));
        let then = with_part(class.refused as f64, class.offered);
        let cells = [class.class.clone(), class.offered.to_string(), then, played(class.refused_in_force), played(class.refused_by_policy)];
        classes.row(cells.into());
    }
    let mut levels = Table::new(&[
        ("LEVEL", Align::Left),
        ("ACTED IN FORCE", Align::Right),
        ("ACTED BY THIS POLICY", Align::Right),
        ("PEAK", Align::Right),
        ("THRESHOLD THEN", Align::Right),
    ]);
    for level in &answer.levels {
        let threshold = if level.threshold > 0.0 { format!("{:.1}", level.threshold) } else { "-".to_owned() };
        let (present, given) = (seconds(level.acted_in_force_ms), seconds(level.acted_by_policy_ms));
        levels.row(vec![level.level.to_owned(), present, given, format!("{:.1}", level.peak_value), threshold]);
    }
    lines.extend([classes.render(), String::new(), levels.render(), String::new()]);
    lines.extend(answer.notes.iter().map(|note| format!("note: {note}")));
    lines.join("\n")
}

/// A count with its part of all, where there is any.
fn with_part(count: f64, of: u64) -> String {
    if of == 0 { format!("{count:.0}") } else { format!("{count:.0} ({:.0} %)", 100.0 * count / of as f64) }
}
