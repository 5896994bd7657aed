//! How much slower the slowest engine of a pool is than all of them together.

use alloc::collections::BTreeMap;

use super::meter::weight;
use crate::time::Timestamp;

/// Memory of an engine's pace: with less of it a few prompts more than the others have would make an engine the slowest.
const MEMORY_S: f64 = 5.0;
/// Tokens a second below which an engine tells no time between them.
const LEAST_RATE: f64 = 1.0;

/// Tokens a second and requests of one engine.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Pace {
    at: Timestamp,
    tokens: u64,
    rate: f64,
    running: f64,
}

impl Pace {
    fn observe(&mut self, at: Timestamp, running: u64, tokens: u64) {
        let seconds = at.since(self.at).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let weight = weight(seconds, MEMORY_S);
        self.rate += weight * (tokens.saturating_sub(self.tokens) as f64 / seconds - self.rate);
        self.running += weight * (running as f64 - self.running);
        (self.at, self.tokens) = (at, tokens.max(self.tokens));
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
            let mut pace = known.unwrap_or(Pace { at, tokens, rate: 0.0, running: 0.0 });
            pace.observe(at, running, tokens);
            self.0.insert(engine, pace);
        }
    }

    /// Time between tokens of the slowest engine over that of all, 1 and more, by Little's law: `max(running / rate) / (Σ running / Σ
    /// rate)`. 1 when nothing is known.
    #[must_use]
    pub fn slowest(&self) -> f64 {
        let steps_s = |running: f64, rate: f64| if rate >= LEAST_RATE { running / rate } else { 0.0 };
        let sum = |of: fn(&Pace) -> f64| self.0.values().map(of).sum::<f64>();
        let all = steps_s(sum(|pace| pace.running), sum(|pace| pace.rate));
        let slowest = self.0.values().map(|pace| steps_s(pace.running, pace.rate)).fold(0.0, f64::max);
        if all > 0.0 { (slowest / all).max(1.0) } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
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
}
