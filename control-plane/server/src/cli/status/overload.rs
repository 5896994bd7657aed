//! Overload control of a pool, for people.

use super::super::table::{Align, Table};
use crate::status::{BudgetStatus, CutOffStatus, OverloadStatus, QueueStatus, WorkStatus};

/// Saturation with what binds, budgets, cut-off in words, queue, ladder.
pub(super) fn render(overload: &OverloadStatus) -> String {
    let mut lines = vec![
        format!("Saturation {}", saturation(overload)),
        format!("Cut off: {}", cut_off(&overload.cut_off)),
        format!("Queue: {}", overload.queue.as_ref().map_or_else(|| "none".to_owned(), queue)),
    ];
    if !overload.rungs.is_empty() {
        let rungs: Vec<String> = overload.rungs.iter().map(|rung| format!("{} {}", rung.kind, rung.state)).collect();
        lines.push(format!("Ladder: {}", rungs.join(", ")));
    }
    let learned = format!(
        "Drains {:.0} work tokens/s, expects a first token after {:.0} ms; answers of {} tokens, retries up to {:.0} %",
        overload.drain_work_per_s,
        overload.expected_ttft_ms,
        if overload.output_tokens > 0.0 { format!("{:.0}", overload.output_tokens) } else { "unknown length in".to_owned() },
        overload.retry_ratio * 100.0
    );
    lines.push(learned);
    format!("{}\n\n{}", lines.join("\n"), budgets(overload).render())
}

/// `0.93, kv binds (prefill 0.40, kv 0.93)`; terms that are 0 are left out.
fn saturation(overload: &OverloadStatus) -> String {
    let terms: Vec<String> =
        overload.terms.iter().filter(|(_, value)| **value > 0.0).map(|(term, value)| format!("{term} {value:.2}")).collect();
    if overload.binding.is_empty() {
        return format!("{:.2}", overload.saturation);
    }
    format!("{:.2}, {} binds ({})", overload.saturation, overload.binding, terms.join(", "))
}

/// `class low, 37 % of it shed`; `nothing`.
fn cut_off(cut: &CutOffStatus) -> String {
    let shed: Vec<String> = cut
        .shed
        .iter()
        .filter(|class| class.part > 0.0)
        .map(|class| match class.part {
            part if part >= 1.0 => format!("class {}, all of it shed", class.class),
            // Less than half a percent is still something.
            part => format!("class {}, {:.0} % of it shed", class.class, (part * 100.0).max(1.0)),
        })
        .collect();
    if shed.is_empty() { "nothing".to_owned() } else { shed.join("; ") }
}

fn queue(queue: &QueueStatus) -> String {
    let ended =
        format!("released {}, expired {}, abandoned {}, overflowed {}", queue.released, queue.expired, queue.abandoned, queue.overflowed);
    if queue.requests == 0 {
        return format!("empty; {ended}");
    }
    format!("{} requests of {} work tokens, the oldest for {} ms; {ended}", queue.requests, queue.work, queue.oldest_ms)
}

fn budgets(overload: &OverloadStatus) -> Table {
    let mut table = Table::new(&[
        ("WORK", Align::Left),
        ("IN FLIGHT", Align::Right),
        ("BUDGET", Align::Right),
        ("USED", Align::Right),
        ("SAFE BUDGET", Align::Right),
    ]);
    let WorkStatus { prefill_tokens, kv_tokens, streams } = overload.in_flight;
    let of = |value: fn(&BudgetStatus) -> Option<u64>| (value(&overload.budgets), value(&overload.safe_budgets));
    let rows = [
        ("prefill tokens", prefill_tokens, of(|budgets| budgets.prefill_tokens)),
        ("KV tokens", kv_tokens, of(|budgets| budgets.kv_tokens)),
        ("streams", streams, of(|budgets| budgets.streams)),
    ];
    let bound = |value: Option<u64>| value.map_or_else(|| "unbounded".to_owned(), |value| value.to_string());
    for (kind, in_flight, (budget, safe)) in rows {
        let used = budget.map_or_else(|| "-".to_owned(), |budget| format!("{:.0} %", 100.0 * in_flight as f64 / budget.max(1) as f64));
        table.row(vec![kind.to_owned(), in_flight.to_string(), bound(budget), used, bound(safe)]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{ClassShed, RungStatus};

    fn shed(class: &str, part: f64) -> ClassShed {
        ClassShed { class: class.to_owned(), part }
    }

    #[test]
    fn a_cut_off_is_said_in_words() {
        let cut = |shed: Vec<ClassShed>| cut_off(&CutOffStatus { shed, ..CutOffStatus::default() });
        assert_eq!(cut(vec![shed("high", 0.0), shed("low", 0.0)]), "nothing");
        assert_eq!(cut(vec![shed("high", 0.0), shed("low", 0.371)]), "class low, 37 % of it shed");
        assert_eq!(cut(vec![shed("mid", 0.001), shed("low", 1.0)]), "class mid, 1 % of it shed; class low, all of it shed");
    }

    #[test]
    fn the_whole_says_what_binds_and_how_full_each_budget_is() {
        let overload = OverloadStatus {
            saturation: 0.93,
            binding: "kv".to_owned(),
            terms: [("kv".to_owned(), 0.93), ("prefill".to_owned(), 0.4), ("tpot".to_owned(), 0.0)].into(),
            budgets: BudgetStatus { kv_tokens: Some(1000), ..BudgetStatus::default() },
            in_flight: WorkStatus { kv_tokens: 930, ..WorkStatus::default() },
            queue: Some(QueueStatus { requests: 4, work: 800, oldest_ms: 70, released: 9, ..QueueStatus::default() }),
            rungs: vec![RungStatus { kind: "delay".to_owned(), state: "engaged".to_owned() }],
            ..OverloadStatus::default()
        };
        let text = render(&overload);
        for part in [
            "Saturation 0.93, kv binds (kv 0.93, prefill 0.40)",
            "Queue: 4 requests of 800 work tokens, the oldest for 70 ms; released 9, expired 0",
            "Ladder: delay engaged",
            "KV tokens             930       1000  93 %    unbounded",
            "streams                 0  unbounded     -    unbounded",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }
}
