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

/// Paces of the engines of one pool, by what the caller knows an engine by.
#[derive(Debug, Clone, PartialEq)]
pub struct Paces<K: Ord>(BTreeMap<K, Pace>);

impl<K: Ord> Default for Paces<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Paces<K> {
    /// Takes in a reading of one engine at `at`: requests that it works on, and its tokens of output, cumulative. A reading that is not
    /// newer than the last changes nothing; a count that went back counts as unchanged.
    pub fn observe(&mut self, engine: K, at: Timestamp, running: u64, tokens: u64) {
        let pace = self.0.entry(engine).or_insert(Pace { at, tokens, rate: 0.0, running: 0.0 });
        let seconds = at.since(pace.at).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let weight = weight(seconds, MEMORY_S);
        pace.rate += weight * (tokens.saturating_sub(pace.tokens) as f64 / seconds - pace.rate);
        pace.running += weight * (running as f64 - pace.running);
        (pace.at, pace.tokens) = (at, tokens.max(pace.tokens));
    }

    /// Forgets the engines that `is_there` does not name.
    pub fn retain(&mut self, is_there: impl Fn(&K) -> bool) {
        self.0.retain(|engine, _| is_there(engine));
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

    fn after(seconds: u64, engines: &[(u64, u64)]) -> Paces<usize> {
        let mut paces = Paces::default();
        for tick in 0..=10 * seconds {
            for (engine, (running, rate)) in engines.iter().enumerate() {
                paces.observe(engine, Timestamp::from_millis(100 * tick), *running, rate * tick / 10);
            }
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
        paces.observe(0, Timestamp::from_millis(20_100), 100, 0);
        assert!(paces.slowest().is_finite() && paces.slowest() > 1.5);
        paces.retain(|engine| *engine == 0);
        assert!((paces.slowest() - 1.0).abs() < 1e-9);
    }
}
