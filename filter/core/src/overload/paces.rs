//! How fast the engines of a pool are, one against all of them together.

use alloc::collections::BTreeMap;

use super::meter::weight;
use crate::time::Timestamp;

/// Memory of an engine's pace: with less of it a few prompts more than the others have would make an engine the slowest.
const MEMORY_S: f64 = 5.0;
/// The same for its width on the ring, which must follow what an engine can do before its responses are late. With 1 s the widths follow
/// what prompts happen to come, with 5 s an engine that has become slow gets too much for too long.
const WIDTH_MEMORY_S: f64 = 2.0;
/// Memory that sees early that an engine has become slow, and the part of what it says that counts: steps differ by so much from one to the
/// next. Every prompt that such an engine still gets makes the responses late that it already has.
const ALARM_MEMORY_S: f64 = 0.3;
const ALARM_PART: f64 = 0.8;
/// Tokens a second below which an engine tells no time between them.
const LEAST_RATE: f64 = 1.0;
/// How much faster or slower than all an engine can count as.
const MOST_APART: f64 = 4.0;

/// Tokens a second and requests of one engine, averaged.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Average {
    rate: f64,
    running: f64,
}

impl Average {
    fn follow(&mut self, weight: f64, rate: f64, running: f64) {
        self.rate += weight * (rate - self.rate);
        self.running += weight * (running - self.running);
    }

    /// Time between tokens by Little's law, in seconds; 0 while it is not known.
    fn step_s(self) -> f64 {
        if self.rate >= LEAST_RATE { self.running / self.rate } else { 0.0 }
    }

    fn plus(self, other: Self) -> Self {
        Self { rate: self.rate + other.rate, running: self.running + other.running }
    }
}

/// One engine.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Pace {
    at: Timestamp,
    tokens: u64,
    steady: Average,
    recent: Average,
    newest: Average,
}

impl Pace {
    fn new(at: Timestamp, tokens: u64) -> Self {
        Self { at, tokens, steady: Average::default(), recent: Average::default(), newest: Average::default() }
    }

    fn observe(&mut self, at: Timestamp, running: u64, tokens: u64) {
        let seconds = at.since(self.at).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let (rate, running) = (tokens.saturating_sub(self.tokens) as f64 / seconds, running as f64);
        self.steady.follow(weight(seconds, MEMORY_S), rate, running);
        self.recent.follow(weight(seconds, WIDTH_MEMORY_S), rate, running);
        self.newest.follow(weight(seconds, ALARM_MEMORY_S), rate, running);
        (self.at, self.tokens) = (at, tokens.max(self.tokens));
    }

    /// Time between tokens by which the engine's width goes: a slower one is believed sooner than a faster one.
    fn wary_step_s(&self) -> f64 {
        self.recent.step_s().max(ALARM_PART * self.newest.step_s())
    }
}

/// Paces of the engines of one pool, by what the caller knows an engine by.
#[derive(Debug, Clone, PartialEq)]
pub struct Paces<K: Ord>(BTreeMap<K, Pace>);

impl<K: Ord> Default for Paces<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Paces<K> {
    /// Takes in readings of all engines that are there, and forgets the others. Of each: when it was read, requests that it works on, and its
    /// tokens of output, cumulative. A reading that is not newer than the last changes nothing; a count that went back counts as unchanged.
    pub fn read(&mut self, engines: impl IntoIterator<Item = (K, Timestamp, u64, u64)>) {
        let mut before = core::mem::take(&mut self.0);
        for (engine, at, running, tokens) in engines {
            let known = before.remove(&engine).or_else(|| self.0.remove(&engine));
            let mut pace = known.unwrap_or(Pace::new(at, tokens));
            pace.observe(at, running, tokens);
            self.0.insert(engine, pace);
        }
    }

    /// Time between tokens of the slowest engine over that of all, 1 and more: `max(running / rate) / (Σ running / Σ rate)`. 1 when nothing is
    /// known.
    #[must_use]
    pub fn slowest(&self) -> f64 {
        let all = self.all(|pace| pace.steady).step_s();
        let slowest = self.0.values().map(|pace| pace.steady.step_s()).fold(0.0, f64::max);
        if all > 0.0 { (slowest / all).max(1.0) } else { 1.0 }
    }

    /// The engines, each with its width on the [`Ring`](crate::fleet::Ring): 1 for one that is as fast as all together or of which nothing is
    /// known, else the square of how much faster it is. The square, because of a step only what decoding leaves is for prompts: an engine
    /// that is slower by a tenth can take prompts less by more than that, until some of its responses have ended.
    pub fn widths(&self) -> impl Iterator<Item = (&K, f64)> {
        let all = self.all(|pace| pace.recent).step_s();
        self.0.iter().map(move |(engine, pace)| (engine, width(all, pace.wary_step_s())))
    }

    fn all(&self, of: impl Fn(&Pace) -> Average) -> Average {
        self.0.values().map(of).fold(Average::default(), Average::plus)
    }
}

/// See [`Paces::widths`].
fn width(all_s: f64, own_s: f64) -> f64 {
    if all_s <= 0.0 || own_s <= 0.0 {
        return 1.0;
    }
    let faster = (all_s / own_s).clamp(1.0 / MOST_APART, MOST_APART);
    faster * faster
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    fn after(seconds: u64, engines: &[(u64, u64)]) -> Paces<usize> {
        let mut paces = Paces::default();
        for tick in 0..=10 * seconds {
            let reading = |(engine, (running, rate)): (usize, &(u64, u64))| (engine, at(100 * tick), *running, rate * tick / 10);
            paces.read(engines.iter().enumerate().map(reading));
        }
        paces
    }

    #[test]
    fn of_engines_with_as_many_requests_the_one_with_fewest_tokens_is_the_slowest() {
        // Steps of 25, 50 and 100 ms; 300 requests with 7,000 tokens a second have 42.9 ms.
        let slowest = after(20, &[(100, 4000), (100, 2000), (100, 1000)]).slowest();
        assert!((slowest - 100.0 / (300.0 / 7.0)).abs() < 0.01, "{slowest}");
    }

    #[test]
    fn an_engine_that_becomes_slow_is_narrow_sooner_than_one_that_becomes_fast_is_wide() {
        let step = |rate: u64| {
            let mut paces = after(20, &[(100, 2000), (100, 2000)]);
            for tick in 1..=5 {
                paces.read([
                    (0, at(20_000 + 100 * tick), 100, 40_000 + 200 * tick),
                    (1, at(20_000 + 100 * tick), 100, 40_000 + rate * tick),
                ]);
            }
            let widths: Vec<f64> = paces.widths().map(|(_, width)| width).collect();
            widths[1]
        };
        assert!(step(100) < 0.75, "of half the pace for half a second: {}", step(100));
        assert!(step(400) < 1.3, "of twice the pace for half a second: {}", step(400));
        assert!((step(200) - 1.0).abs() < 0.01);
    }

    #[test]
    fn engines_that_are_alike_idle_or_unknown_have_none_that_is_slower() {
        assert!((after(20, &[(100, 4000), (50, 2000)]).slowest() - 1.0).abs() < 1e-9);
        assert!((after(20, &[(100, 4000), (0, 0)]).slowest() - 1.0).abs() < 1e-9, "one that serves nobody tells nothing");
        assert!((Paces::<u8>::default().slowest() - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn an_engine_that_is_gone_and_a_count_that_went_back_tell_nothing() {
        let mut paces = after(20, &[(100, 4000), (100, 1000)]);
        paces.read([(0, at(20_100), 100, 0), (1, at(20_100), 100, 20_100)]);
        assert!(paces.slowest().is_finite() && paces.slowest() > 1.5);
        paces.read([(0, at(20_200), 100, 0)]);
        assert!((paces.slowest() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn an_engine_is_as_wide_as_it_is_fast_and_one_that_is_idle_as_all_are() {
        // Steps of 100 ms and 50 ms; of both 66.7 ms.
        let widths: Vec<f64> = after(20, &[(100, 1000), (100, 2000), (0, 0)]).widths().map(|(_, width)| width).collect();
        let wanted = [1.0 / (1.5 * 1.5), 16.0 / 9.0, 1.0];
        assert!(widths.iter().zip(wanted).all(|(width, wanted)| (width - wanted).abs() < 0.01), "{widths:?}");
        let far: Vec<f64> = after(20, &[(100, 10), (100, 100_000)]).widths().map(|(_, width)| width).collect();
        assert!(far[0] > 0.05 && far[1] < 16.0, "bounded: {far:?}");
    }
}
