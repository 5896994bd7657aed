//! Candidates that govern a part of the requests in `headgate status`.

use super::super::table::{Align, Table};
use crate::status::{RolloutCountsView, RolloutView};

pub(super) fn render(rollout: &RolloutView) -> String {
    let mut parts = vec![rollout.line()];
    if !rollout.classes.is_empty() {
        let titles = ["CLASS", "UNDER", "REQUESTS", "MISSED", "RESPONSES", "FAILED", "LATE"];
        let align = |title: &&str| matches!(*title, "CLASS" | "UNDER");
        let mut table = Table::new(&titles.map(|title| (title, if align(&title) { Align::Left } else { Align::Right })));
        for class in &rollout.classes {
            table.row(row(&class.class, &rollout.candidate, &class.candidate));
            table.row(row("", &rollout.of, &class.of));
        }
        parts.push(table.render());
    }
    parts.join("\n")
}

fn row(class: &str, under: &str, counts: &RolloutCountsView) -> Vec<String> {
    let RolloutCountsView { requests, missed, responses, failed, started, late } = *counts;
    let part = |bad: u64, of: u64| if of == 0 { "-".to_owned() } else { format!("{:.2} %", 100.0 * bad as f64 / of as f64) };
    vec![
        class.to_owned(),
        under.to_owned(),
        requests.to_string(),
        part(missed, requests),
        responses.to_string(),
        part(failed, responses),
        part(late, started),
    ]
}
