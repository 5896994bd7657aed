//! A run second by second: `cargo run --release -p headgate-sim --example probe -- headgate|oracle|none SCENARIO|ENGINES [LOAD SECONDS SEED]`.

use std::time::Duration;

use headgate_core::time::Timestamp;
use headgate_sim::baselines::no_control::NoControl;
use headgate_sim::controller::Controller;
use headgate_sim::headgate::{Headgate, default_policy};
use headgate_sim::observe::{Fate, Observer, Over, Sample};
use headgate_sim::oracle::Oracle;
use headgate_sim::{Arrival, Ending, World};

mod plain;

#[derive(Default)]
struct Probe {
    second: u64,
    sent: [u32; 3],
    good: [u32; 3],
    refused: [u32; 3],
    late: u32,
    slow: u32,
    left: u32,
    good_work: f64,
    kv: Vec<f64>,
    total_good_work: f64,
    /// By class, of what is sent from 10 s on: sent, good, refused, late, slow, left.
    per_class: [[u32; 6]; 3],
    preemptions: u64,
    /// By class, of what went well: prompt and output tokens.
    tokens: [[u64; 2]; 3],
    /// Steps of each engine up to the last line.
    steps: Vec<u64>,
}

impl Probe {
    /// Mean prompt and output of what went well, by class.
    fn mean_tokens(&self) -> [[u64; 2]; 3] {
        let mean = |(tokens, counts): (&[u64; 2], &[u32; 6])| tokens.map(|sum| sum / u64::from(counts[1].max(1)));
        let mut means = [[0; 2]; 3];
        for (slot, pair) in means.iter_mut().zip(self.tokens.iter().zip(&self.per_class)) {
            *slot = mean(pair);
        }
        means
    }

    fn line(&mut self, sample: &Sample<'_>) {
        let kv = self.kv.iter().sum::<f64>() / self.kv.len().max(1) as f64;
        let least = self.kv.iter().copied().fold(1.0, f64::min);
        let queued: u32 = sample.engines.iter().map(headgate_sim::engine::Engine::waiting).sum();
        let running: u32 = sample.engines.iter().map(headgate_sim::engine::Engine::running).sum();
        let preemptions: u64 = sample.engines.iter().map(|engine| engine.counters().preemptions).sum();
        let steps: Vec<u64> = sample.engines.iter().map(|engine| engine.counters().steps).collect();
        let before = std::mem::replace(&mut self.steps, steps.clone());
        // Steps of an LLM engine are the time between tokens of everything in its batch.
        let step_ms: Vec<u64> = steps.iter().enumerate().map(|(at, now)| 1000 / (now - before.get(at).unwrap_or(&0)).max(1)).collect();
        println!(
            "{:4} sent {:?} good {:?} refused {:?} late {} slow {} left {} work {:.0} kv {:.2}/{:.2} run {running} eq {queued} wait {} preempt {} step {step_ms:?} ms | cut {:.1} sat {:.2} {} limit {:.0}",
            self.second,
            self.sent,
            self.good,
            self.refused,
            self.late,
            self.slow,
            self.left,
            self.good_work,
            kv,
            least,
            sample.waiting,
            preemptions - self.preemptions,
            sample.gauges.cut_off.unwrap_or(f64::NAN),
            sample.gauges.saturation.unwrap_or(f64::NAN),
            sample.gauges.binding.unwrap_or("-"),
            sample.gauges.limit.unwrap_or(f64::NAN),
        );
        let Self { total_good_work, per_class, second, tokens, .. } = *self;
        *self = Self { second: second + 1, total_good_work, per_class, preemptions, steps, tokens, ..Self::default() };
    }
}

impl Observer for Probe {
    fn on_sent(&mut self, _: Timestamp, arrival: &Arrival) {
        self.sent[usize::from(arrival.class)] += 1;
    }

    fn on_over(&mut self, over: &Over) {
        let class = usize::from(over.arrival.class);
        let mut nothing = [0; 6];
        let counts = if over.sent_at >= Timestamp::from_millis(10_000) { &mut self.per_class[class] } else { &mut nothing };
        counts[0] += 1;
        match over.fate {
            Fate::Refused => {
                counts[2] += 1;
                self.refused[class] += 1;
            }
            Fate::Ended(Ending::Completed) => {
                let first = over.first_token_at.expect("it completed");
                let in_time = first.since(over.sent_at) <= Duration::from_secs(2);
                let tpot = over.ended_at.since(first).as_secs_f64() / f64::from(over.output_tokens.max(2) - 1);
                if in_time && tpot <= 0.1 {
                    self.good[class] += 1;
                    counts[1] += 1;
                    if over.sent_at >= Timestamp::from_millis(10_000) {
                        let tokens = &mut self.tokens[class];
                        tokens[0] += u64::from(over.arrival.prompt_tokens);
                        tokens[1] += u64::from(over.output_tokens);
                    }
                    let work = f64::from(over.arrival.prompt_tokens) + 2.0 * f64::from(over.output_tokens);
                    self.good_work += work;
                    self.total_good_work += work;
                }
                counts[3] += u32::from(!in_time);
                counts[4] += u32::from(in_time && tpot > 0.1);
                self.late += u32::from(!in_time);
                self.slow += u32::from(tpot > 0.1);
            }
            _ => {
                counts[5] += 1;
                self.left += 1;
            }
        }
    }

    fn on_sample(&mut self, sample: &Sample<'_>) {
        self.kv.push(sample.engines.iter().map(headgate_sim::engine::Engine::kv_usage).sum::<f64>() / sample.engines.len() as f64);
        if sample.now.as_nanos().is_multiple_of(1_000_000_000) {
            self.line(sample);
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |index: usize, otherwise: f64| arguments.get(index).and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let named = arguments.get(2).and_then(|name| headgate_sim::scenarios::standard(name));
    let setup = match named {
        Some(scenario) => scenario.expect("the standard scenarios are valid").setup,
        None => plain::setup(number(2, 4.0) as usize, number(3, 1.0), [0.1, 0.4, 0.5], Duration::from_secs_f64(number(4, 30.0))),
    };
    let seconds = setup.duration.as_secs_f64();
    let mut headgate = Headgate::new(&setup, &default_policy(&setup)).expect("the default policy is valid");
    let mut oracle = Oracle::default();
    let mut probe = Probe::default();
    let controller: &mut dyn Controller = match arguments.get(1).map(String::as_str) {
        Some("headgate") => &mut headgate,
        Some("oracle") => &mut oracle,
        _ => &mut NoControl,
    };
    match World::new(&setup, number(5, 1.0) as u64).run(controller, &mut probe) {
        Ok(totals) => println!(
            "{totals:?} good work/s {:.0} good tokens (prompt output) {:?} classes (sent good refused late slow left) {:?}",
            probe.total_good_work / seconds,
            probe.mean_tokens(),
            probe.per_class
        ),
        Err(violation) => eprintln!("{violation}"),
    }
    println!("refusals {:?}", headgate.refusals());
}
