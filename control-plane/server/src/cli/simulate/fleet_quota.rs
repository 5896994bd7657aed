//! `headgate simulate` of a quota over a fleet.

use std::path::Path;

use headgate_sim::quota::{Figures, Scenario, play};
use headgate_sim::report::quota_page;

use super::{SimulateArgs, percent, print, print_json, write, write_json};
use crate::cli::CliError;

/// Plays one.
///
/// # Errors
/// When the quota is passed, an option has no meaning here, or a file cannot be written.
pub(super) fn run(args: &SimulateArgs, scenario: &Scenario) -> Result<(), CliError> {
    if args.policy.is_some() || args.trace.is_some() || args.controller != "headgate" {
        return Err(CliError::Usage(format!("{}: a scenario of a quota takes no --policy, --trace or --controller", scenario.name)));
    }
    let figures = play(scenario, args.seed).map_err(|violation| CliError::Refused(violation.to_string()))?;
    if let Some(path) = &args.html {
        write(path, &quota_page(scenario, args.seed, &figures))?;
    }
    let results = serde_json::json!({
        "scenario": scenario.name,
        "kind": "quota",
        "seed": args.seed,
        "figures": figures,
        "windows": figures.windows,
    });
    match args.json.as_deref() {
        Some(path) if path == Path::new("-") => print_json(&results),
        path => {
            path.map(|path| write_json(path, &results)).transpose()?;
            print(&text(&figures))
        }
    }
}

fn text(figures: &Figures) -> String {
    let converged =
        figures.converged_s.map_or_else(|| "98% is not reached".to_owned(), |at| format!("98% from {at:.1} s after a shift on"));
    format!(
        "capacity {:.0} a second, overshoot {}, used beyond the burst {}\nused {} of what could be, {} in the worst half second, {converged}\n\
         {:.1} grants a second for each proxy; checked after {} events",
        figures.capacity,
        percent(figures.overshoot),
        percent(figures.used_beyond_burst),
        percent(figures.utilisation),
        percent(figures.worst_window),
        figures.grants_per_proxy_per_s,
        figures.events,
    )
}
