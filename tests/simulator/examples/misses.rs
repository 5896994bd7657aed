//! Which requests miss which objective, and when: `cargo run --release -p headgate-sim --example misses -- SCENARIOS|all headgate|oracle
//! [SEEDS]`.

use std::collections::BTreeMap;

use headgate_core::time::Timestamp;
use headgate_sim::observe::{Fate, Observer, Over};
use headgate_sim::scenarios::{STANDARD, Scenario, standard};
use headgate_sim::suite::Algorithm;
use headgate_sim::{Ending, World};

/// Of one class, over the judged span.
#[derive(Clone, Debug, Default)]
struct Class {
    sent: u64,
    good: u64,
    refused: u64,
    left: u64,
    failed: u64,
    /// Late first token, of which most of the time in the proxy, and in the engine.
    late_proxy: u64,
    late_engine: u64,
    slow: u64,
    /// Slow responses by output tokens: up to 20, 50, 100, 200, more; and all completed.
    slow_by_length: [u64; 5],
    by_length: [u64; 5],
    /// Misses by second of sending: late or slow or refused.
    by_second: BTreeMap<u64, [u64; 3]>,
    /// Work: offered, completed, good.
    work: [f64; 3],
    tpot: Vec<f64>,
    ttft: Vec<f64>,
}

struct Watch<'a> {
    scenario: &'a Scenario,
    classes: Vec<Class>,
}

impl Observer for Watch<'_> {
    fn on_over(&mut self, over: &Over) {
        let (from, until) = (Timestamp::ZERO + self.scenario.judging.from, Timestamp::ZERO + self.scenario.setup.duration);
        if over.sent_at < from || over.sent_at >= until {
            return;
        }
        let spec = &self.scenario.setup.classes[usize::from(over.arrival.class)];
        let class = &mut self.classes[usize::from(over.arrival.class)];
        let second = class.by_second.entry(over.sent_at.as_nanos() / 1_000_000_000).or_default();
        let work = f64::from(over.arrival.prompt_tokens) + 2.0 * f64::from(over.arrival.secret_output_tokens);
        class.sent += 1;
        class.work[0] += work;
        match over.fate {
            Fate::Ended(Ending::Completed) => {
                class.work[1] += work;
                let (Some(first), Some(admitted)) = (over.first_token_at, over.admitted_at) else { return };
                let ttft = first.since(over.sent_at);
                let tpot = over.ended_at.since(first).div_f64(f64::from(over.output_tokens.max(2) - 1));
                let bucket = [20, 50, 100, 200].iter().position(|most| over.output_tokens <= *most).unwrap_or(4);
                class.by_length[bucket] += 1;
                class.tpot.push(tpot.as_secs_f64() * 1e3);
                class.ttft.push(ttft.as_secs_f64() * 1e3);
                if ttft > spec.ttft {
                    let in_proxy = admitted.since(over.sent_at);
                    if in_proxy * 2 > ttft {
                        class.late_proxy += 1
                    } else {
                        class.late_engine += 1
                    }
                    second[0] += 1;
                } else if tpot > spec.tpot {
                    class.slow += 1;
                    class.slow_by_length[bucket] += 1;
                    second[1] += 1;
                } else {
                    class.good += 1;
                    class.work[2] += work;
                }
            }
            Fate::Refused => {
                class.refused += 1;
                second[2] += 1;
            }
            Fate::Abandoned | Fate::Ended(Ending::ClientLeft) => class.left += 1,
            Fate::Lost | Fate::Ended(_) => class.failed += 1,
        }
    }
}

fn quantiles(values: &mut [f64]) -> String {
    values.sort_by(f64::total_cmp);
    let at = |q: f64| values.get(((values.len() as f64 * q) as usize).min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN);
    format!("p50 {:.0} p90 {:.0} p99 {:.0} p99.9 {:.0}", at(0.5), at(0.9), at(0.99), at(0.999))
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let names: Vec<&str> = match arguments.get(1).map(String::as_str) {
        None | Some("all") => STANDARD.iter().map(|(name, _)| *name).collect(),
        Some(names) => names.split(',').collect(),
    };
    let algorithm = Algorithm::named(arguments.get(2).map_or("headgate", String::as_str)).expect("an algorithm");
    let seeds: u64 = arguments.get(3).and_then(|text| text.parse().ok()).unwrap_or(1);
    for name in names {
        let scenario = standard(name).expect("a standard scenario").expect("valid");
        for seed in 1..=seeds {
            let mut controller = algorithm.controller(&scenario, None).expect("a policy");
            let mut watch = Watch { scenario: &scenario, classes: vec![Class::default(); scenario.setup.classes.len()] };
            World::new(&scenario.setup, seed).run(controller.as_mut(), &mut watch).expect("no invariant is broken");
            let good: f64 = watch.classes.iter().map(|class| class.work[2]).sum();
            let done: f64 = watch.classes.iter().map(|class| class.work[1]).sum();
            let seconds = (scenario.setup.duration - scenario.judging.from).as_secs_f64();
            println!("== {name} seed {seed} {}: good work/s {:.0}, completed {:.0}", algorithm.name(), good / seconds, done / seconds);
            for (index, class) in watch.classes.iter_mut().enumerate() {
                println!(
                    "  class {index}: sent {} good {} ({:.4}) refused {} late proxy {} engine {} slow {} left {} failed {} | slow by length {:?} of {:?} | tpot {} | ttft {}",
                    class.sent,
                    class.good,
                    class.good as f64 / class.sent.max(1) as f64,
                    class.refused,
                    class.late_proxy,
                    class.late_engine,
                    class.slow,
                    class.left,
                    class.failed,
                    class.slow_by_length,
                    class.by_length,
                    quantiles(&mut class.tpot),
                    quantiles(&mut class.ttft)
                );
                if index == 0 {
                    let bad: Vec<String> = class
                        .by_second
                        .iter()
                        .filter(|(_, misses)| misses.iter().sum::<u64>() > 0)
                        .map(|(second, [late, slow, refused])| format!("{second}:{late}/{slow}/{refused}"))
                        .collect();
                    println!("    by second late/slow/refused: {}", bad.join(" "));
                }
            }
        }
    }
}
