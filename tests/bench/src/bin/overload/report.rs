//! The result: figures of every run beside those of the simulator, as JSON and as a table.

use std::fmt::Write as _;

use serde::Serialize;

use crate::judge::Figures;

/// Difference of goodput, as a part of the larger, within which two contenders count as equal: what two runs of one differ by.
const EQUAL_WITHIN: f64 = 0.05;

/// Goodput below this part of the capacity counts as so much when an error is taken relative to it.
const LEAST_PART: f64 = 0.05;

/// The whole result.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Requests per second that the engines can serve in the long run, how many they are, and how many times as slow half of them is.
    pub(crate) capacity_rps: f64,
    pub(crate) engines: u32,
    pub(crate) slower: f64,
    /// Judged length of each run, in seconds.
    pub(crate) seconds: u64,
    /// Processors of this machine, and how many programs wanted one on average when the bench began.
    pub(crate) processors: usize,
    pub(crate) load_average_before: f64,
    /// By load.
    pub(crate) scenarios: Vec<ScenarioReport>,
}

/// All contenders at one load.
#[derive(Debug, Serialize)]
pub(crate) struct ScenarioReport {
    /// Offered work over capacity.
    pub(crate) load: f64,
    /// What a clairvoyant scheduler gets out of the same requests, in the simulator.
    pub(crate) oracle: Figures,
    /// One run each.
    pub(crate) controllers: Vec<RunReport>,
    /// Whether reality and simulator put the contenders into the same order by goodput; those within 5 % count as equal.
    pub(crate) same_order: bool,
    /// Pairs that they order differently.
    pub(crate) disagreements: Vec<String>,
}

/// One contender.
#[derive(Debug, Serialize)]
pub(crate) struct RunReport {
    pub(crate) name: &'static str,
    /// On a real Envoy.
    pub(crate) real: Figures,
    /// In the simulator.
    pub(crate) simulated: Figures,
    /// How far the simulator is off.
    pub(crate) error: Errors,
    /// Requests that were scheduled but could not be sent.
    pub(crate) overrun: u64,
    /// What the control plane said at the end of the load.
    pub(crate) status: Option<serde_json::Value>,
}

/// Simulated less real: goodput and throughput as parts of the real ones, the objective in points of 1.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Errors {
    pub(crate) goodput: f64,
    pub(crate) throughput: f64,
    pub(crate) top_class_slo: f64,
}

// === impl Errors ===

impl Errors {
    /// `capacity_work` is what the engine can do, in work tokens per second.
    pub(crate) fn of(real: &Figures, simulated: &Figures, capacity_work: f64) -> Self {
        let relative = |real: f64, simulated: f64| (simulated - real) / real.max(LEAST_PART * capacity_work);
        Self {
            goodput: relative(real.goodput, simulated.goodput),
            throughput: relative(real.throughput, simulated.throughput),
            top_class_slo: simulated.top_class_slo - real.top_class_slo,
        }
    }
}

// === impl ScenarioReport ===

impl ScenarioReport {
    pub(crate) fn new(load: f64, oracle: Figures, controllers: Vec<RunReport>) -> Self {
        let disagreements = disagreements(&controllers);
        Self { load, oracle, same_order: disagreements.is_empty(), controllers, disagreements }
    }

    /// The table of this load.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("load {}x; a clairvoyant scheduler gets {:.0} within objectives\n", self.load, self.oracle.goodput);
        let _ = writeln!(
            text,
            "{:<22} {:>9} {:>9} {:>8} {:>9} {:>9} {:>9} | {:>9} {:>8} {:>7}",
            "", "goodput/s", "through/s", "top SLO", "TTFT p99", "mid SLO", "low SLO", "simulated", "top SLO", "error"
        );
        for run in &self.controllers {
            let slo = |class: usize| run.real.classes.get(class).map_or(0.0, |class| class.slo * 100.0);
            let p99 =
                run.real.classes.first().and_then(|class| class.ttft_p99_ms).map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms"));
            let _ = write!(
                text,
                "{:<22} {:>9.0} {:>9.0} {:>6.1} % {:>9} {:>7.1} % {:>7.1} %",
                run.name,
                run.real.goodput,
                run.real.throughput,
                slo(0),
                p99,
                slo(1),
                slo(2)
            );
            let (simulated, error) = (&run.simulated, run.error.goodput * 100.0);
            let _ = writeln!(text, " | {:>9.0} {:>6.1} % {error:>+6.1} %", simulated.goodput, simulated.top_class_slo * 100.0);
        }
        match self.same_order {
            true => text.push_str("the simulator puts them into the same order\n"),
            false => {
                let _ = writeln!(text, "the simulator orders differently: {}", self.disagreements.join(", "));
            }
        }
        text
    }
}

/// Pairs of which reality and simulator say the opposite, where both see a difference.
fn disagreements(runs: &[RunReport]) -> Vec<String> {
    let ahead = |a: f64, b: f64| if (a - b).abs() <= EQUAL_WITHIN * a.max(b) { 0 } else { if a > b { 1 } else { -1 } };
    let mut pairs = Vec::new();
    for (index, a) in runs.iter().enumerate() {
        for b in runs.iter().skip(index + 1) {
            let real = ahead(a.real.goodput, b.real.goodput);
            let simulated = ahead(a.simulated.goodput, b.simulated.goodput);
            if real * simulated < 0 {
                pairs.push(format!("{} and {}", a.name, b.name));
            }
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(goodput: f64) -> Figures {
        Figures { goodput, throughput: goodput, top_class_slo: 1.0, classes: Vec::new() }
    }

    fn run(name: &'static str, real: f64, simulated: f64) -> RunReport {
        let (real, simulated) = (figures(real), figures(simulated));
        let error = Errors::of(&real, &simulated, 100.0);
        RunReport { name, real, simulated, error, overrun: 0, status: None }
    }

    #[test]
    fn only_differences_that_both_see_can_disagree() {
        let report = ScenarioReport::new(3.0, figures(100.0), vec![run("a", 100.0, 96.0), run("b", 98.0, 100.0), run("c", 50.0, 70.0)]);
        assert!(report.same_order, "{:?}", report.disagreements);
        let report = ScenarioReport::new(3.0, figures(100.0), vec![run("a", 100.0, 60.0), run("b", 50.0, 70.0)]);
        assert_eq!(report.disagreements, ["a and b"]);
    }

    #[test]
    fn errors_are_relative_to_reality() {
        let run = run("a", 100.0, 90.0);
        assert!((run.error.goodput + 0.1).abs() < 1e-12);
    }
}
