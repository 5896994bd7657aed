//! Watches a run and keeps what is needed to judge it.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hasher as _};
use std::time::Duration;

use headgate_core::time::Timestamp;

use super::series::Series;
use super::work;
use crate::controller::{Arrival, Ending};
use crate::observe::{Fate, Observer, Over, Sample};
use crate::scenarios::Scenario;
use crate::setup::ClassSpec;

/// One second of one class.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Second {
    /// Work sent, by the time of sending.
    pub offered_work: f64,
    /// Work admitted, by the time of admission.
    pub admitted_work: f64,
    /// Work completed within objectives, by the time of completion.
    pub good_work: f64,
    /// Times to first token, queueing included, in milliseconds, by the time of the first token.
    pub ttft_ms: Vec<f32>,
    /// Attempts sent.
    pub sent: u32,
    /// Those of them that met their objectives.
    pub sent_good: u32,
}

/// Totals of one class over the judged span.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClassTally {
    /// Attempts sent.
    pub offered: u64,
    /// Those that met their objectives.
    pub good: u64,
    /// Those that were refused.
    pub refused: u64,
    /// Those that were admitted and completed, in time or not.
    pub completed: u64,
    /// Those whose client left, waiting or admitted.
    pub left: u64,
    /// Those that an engine refused or lost.
    pub failed: u64,
    /// Times to first token in milliseconds.
    pub ttft_ms: Vec<f32>,
    /// Mean times between tokens in milliseconds.
    pub tpot_ms: Vec<f32>,
}

/// What was recorded of a run.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Totals by class, over the judged span.
    pub classes: Vec<ClassTally>,
    /// By second, then class, over the whole run.
    pub seconds: Vec<Vec<Second>>,
    /// Work that was sent during the judged span and completed within objectives, whenever it ended.
    pub good_work: f64,
    /// Work completed at all during the judged span.
    pub completed_work: f64,
    /// By class and tenant: work sent during the judged span, and what of it was completed.
    pub tenants: BTreeMap<(u8, u32), (f64, f64)>,
    /// Part of the KV cache (of the places of a plain server) in use over all engines that are there.
    pub kv_use: Series,
    /// Requests that wait, in proxies and engines.
    pub waiting: Series,
    /// Requests that wait in proxies.
    pub queued: Series,
    /// Part of the KV cache that the controller aims at; 0.9 unless it says otherwise.
    pub kv_target: f64,
    /// Cut-off of the controller as a part of all levels, or what it admits; NaN when it shows neither.
    pub cut_off: Series,
    /// Saturation as the controller sees it; NaN when it shows none.
    pub saturation: Series,
    /// Longest `Retry-After` that was given.
    pub longest_retry_after: Duration,
    /// Attempts, over the whole run.
    pub attempts: u64,
}

/// A hash of what is written.
struct Digest(DefaultHasher);

/// The recorder.
#[derive(Debug)]
pub struct Recorder {
    run: Run,
    classes: Vec<ClassSpec>,
    from: Timestamp,
    until: Timestamp,
}

/// Levels of a cut-off.
const LEVELS: f64 = 1024.0;
const DEFAULT_KV_TARGET: f64 = 0.9;

// === impl Run ===

impl Run {
    /// A number for all that was recorded, to the last bit of every float: the same after a change that should change nothing. Not to be
    /// kept: another version of the standard library may hash otherwise.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut digest = Digest(DefaultHasher::new());
        // Hashing cannot fail.
        let _ = write!(digest, "{self:?}");
        digest.0.finish()
    }
}

impl fmt::Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

// === impl Recorder ===

impl Recorder {
    /// A recorder for runs of `scenario`.
    pub fn new(scenario: &Scenario) -> Self {
        let setup = &scenario.setup;
        let period = setup.sample_every;
        let series = || Series { period, values: Vec::new() };
        let run = Run {
            classes: vec![ClassTally::default(); setup.classes.len()],
            kv_use: series(),
            waiting: series(),
            queued: series(),
            cut_off: series(),
            saturation: series(),
            kv_target: DEFAULT_KV_TARGET,
            ..Run::default()
        };
        Self { run, classes: setup.classes.clone(), from: Timestamp::ZERO + scenario.judging.from, until: Timestamp::ZERO + setup.duration }
    }

    /// What was recorded.
    pub fn into_run(self) -> Run {
        self.run
    }

    fn is_judged(&self, at: Timestamp) -> bool {
        at >= self.from && at < self.until
    }

    fn second(&mut self, at: Timestamp, class: u8) -> &mut Second {
        let second = (at.as_nanos() / 1_000_000_000) as usize;
        if self.run.seconds.len() <= second {
            self.run.seconds.resize_with(second + 1, || vec![Second::default(); self.classes.len()]);
        }
        &mut self.run.seconds[second][usize::from(class)]
    }

    fn count_sent(&mut self, over: &Over, is_good: bool, ttft_ms: Option<f32>, tpot_ms: Option<f32>) {
        let tally = &mut self.run.classes[usize::from(over.arrival.class)];
        tally.offered += 1;
        tally.good += u64::from(is_good);
        match over.fate {
            Fate::Refused => tally.refused += 1,
            Fate::Abandoned | Fate::Ended(Ending::ClientLeft) => tally.left += 1,
            Fate::Ended(Ending::Completed) => tally.completed += 1,
            Fate::Lost | Fate::Ended(Ending::EngineRefused | Ending::Failed) => tally.failed += 1,
        }
        tally.ttft_ms.extend(ttft_ms);
        tally.tpot_ms.extend(tpot_ms);
        let share = self.run.tenants.entry((over.arrival.class, over.arrival.tenant)).or_default();
        share.0 += work(over.arrival.prompt_tokens, over.arrival.secret_output_tokens);
    }
}

/// Time to first token from the client's send, and mean time between tokens, in milliseconds.
fn latencies(over: &Over) -> (Option<f32>, Option<f32>) {
    let Some(first) = over.first_token_at else { return (None, None) };
    let ttft = first.since(over.sent_at).as_secs_f64() * 1e3;
    let gaps = over.output_tokens.saturating_sub(1);
    let tpot = (gaps > 0).then(|| over.ended_at.since(first).as_secs_f64() * 1e3 / f64::from(gaps));
    (Some(ttft as f32), tpot.map(|tpot| tpot as f32))
}

fn is_good(over: &Over, class: &ClassSpec, ttft_ms: Option<f32>, tpot_ms: Option<f32>) -> bool {
    let ttft_slo = class.ttft.as_secs_f64() * 1e3;
    let tpot_slo = class.tpot.as_secs_f64() * 1e3;
    over.fate == Fate::Ended(Ending::Completed)
        && ttft_ms.is_some_and(|ttft| f64::from(ttft) <= ttft_slo)
        && tpot_ms.is_none_or(|tpot| f64::from(tpot) <= tpot_slo)
}

impl Observer for Recorder {
    fn on_sent(&mut self, now: Timestamp, arrival: &Arrival) {
        self.run.attempts += 1;
        self.second(now, arrival.class).offered_work += work(arrival.prompt_tokens, arrival.secret_output_tokens);
    }

    fn on_admitted(&mut self, now: Timestamp, arrival: &Arrival) {
        self.second(now, arrival.class).admitted_work += work(arrival.prompt_tokens, arrival.secret_output_tokens);
    }

    fn on_over(&mut self, over: &Over) {
        let class = over.arrival.class;
        let (ttft_ms, tpot_ms) = latencies(over);
        let is_good = is_good(over, &self.classes[usize::from(class)], ttft_ms, tpot_ms);
        let second = self.second(over.sent_at, class);
        second.sent += 1;
        second.sent_good += u32::from(is_good);
        if let (Some(first), Some(ttft_ms)) = (over.first_token_at, ttft_ms) {
            self.second(first, class).ttft_ms.push(ttft_ms);
        }
        if self.is_judged(over.sent_at) {
            self.count_sent(over, is_good, ttft_ms, tpot_ms);
        }
        self.run.longest_retry_after = self.run.longest_retry_after.max(over.retry_after.unwrap_or_default());
        if over.fate != Fate::Ended(Ending::Completed) {
            return;
        }
        let work = work(over.arrival.prompt_tokens, over.output_tokens);
        if is_good {
            self.second(over.ended_at, class).good_work += work;
        }
        if self.is_judged(over.ended_at) {
            self.run.completed_work += work;
        }
        if self.is_judged(over.sent_at) {
            self.run.good_work += if is_good { work } else { 0.0 };
            self.run.tenants.entry((class, over.arrival.tenant)).or_default().1 += work;
        }
    }

    fn on_sample(&mut self, sample: &Sample<'_>) {
        if sample.now >= self.until {
            return;
        }
        let alive = sample.engines.iter().filter(|engine| engine.is_alive());
        let (used, total, engine_waiting) = alive.fold((0, 0, 0), |(used, total, waiting), engine| {
            (used + engine.kv_used_tokens(), total + engine.kv_total_tokens(), waiting + engine.waiting())
        });
        let run = &mut self.run;
        run.kv_use.values.push(used as f64 / total.max(1) as f64);
        run.queued.values.push(f64::from(sample.waiting));
        run.waiting.values.push(f64::from(sample.waiting + engine_waiting));
        let gauges = &sample.gauges;
        run.cut_off.values.push(gauges.cut_off.map(|level| level / LEVELS).or(gauges.admit_fraction).unwrap_or(f64::NAN));
        run.saturation.values.push(gauges.saturation.unwrap_or(f64::NAN));
        run.kv_target = gauges.kv_target.unwrap_or(DEFAULT_KV_TARGET);
    }
}
