//! The page of one run of a quota.

use super::chart::{Chart, Line, Stroke};
use super::page::{escape, key_figures, number, page, percent};
use crate::quota::{Figures, Scenario, Window};

/// The page of one run.
pub fn quota_page(scenario: &Scenario, seed: u64, figures: &Figures) -> String {
    let name = escape(&scenario.name);
    let mut body = format!(
        "<h1>{name}</h1>\n<p>{}</p>\n<p class=\"muted\">{} proxies, {:.0} units a second, {} of what is asked for; seed {seed}. After each of {} \
         events it was checked that neither what was in force nor what was used passed the quota.</p>\n",
        escape(&scenario.summary),
        scenario.proxies,
        figures.capacity,
        percent(scenario.load),
        figures.events,
    );
    body += &key_figures(&[
        (percent(figures.overshoot), "of the capacity at most in force above it".to_owned()),
        (percent(figures.utilisation), "used of what could be, from 2 s after each shift".to_owned()),
        (percent(figures.worst_window), "in the worst half second".to_owned()),
        (number(figures.converged_s, 1, " s"), "from a shift until 98 % is used".to_owned()),
        (format!("{:.1}", figures.grants_per_proxy_per_s), "grants a second for each proxy".to_owned()),
    ]);
    body += "<h2>Over time</h2>\n<div class=\"charts\">\n";
    let seconds = scenario.duration.as_secs_f64();
    let shade = scenario.cuts.first().map(|cut| (cut.at.as_secs_f64(), (cut.at + cut.lasts).as_secs_f64()));
    let base = Chart { seconds, shade, ..Chart::default() };
    let rates = Chart {
        title: "Units a second".to_owned(),
        note: "asked for, in force and used".to_owned(),
        lines: vec![
            line("asked for", 7, Stroke::Dashed, figures, |window| window.offered_per_s),
            line("in force", 1, Stroke::Thin, figures, |window| window.in_force_per_s),
            line("used", 0, Stroke::Bold, figures, |window| window.used_per_s),
        ],
        mark: Some((figures.capacity, "capacity".to_owned())),
        ..base.clone()
    };
    let parts = Chart {
        title: "Used of what could be".to_owned(),
        note: "of the capacity, or of what is asked for when that is less; more than 1 is saved from before".to_owned(),
        lines: vec![line("used", 0, Stroke::Bold, figures, |window| window.utilisation)],
        mark: Some((0.98, "wanted".to_owned())),
        ..base
    };
    body += &(rates.figure() + &parts.figure());
    body += "</div>\n";
    page(&scenario.name, &body)
}

fn line(label: &str, colour: usize, stroke: Stroke, figures: &Figures, value: fn(&Window) -> f64) -> Line {
    let points = figures.windows.iter().map(|window| (window.at_s, value(window))).collect();
    Line { label: label.to_owned(), colour, stroke, points }
}
