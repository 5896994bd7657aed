//! Which engine an admitted request goes to: a worker's part of the ring of its pool's engines.
//!
//! The engines lie on a ring, each as wide as it is fast; proxies, and in them workers, divide it as they divide the pool's budgets. So each
//! engine is the business of few workers, which know nearly all of its prompts, and gets the part of the work that its width is: where
//! everybody chose among all engines nobody would know more than a fraction of what any of them computes, and a third of the engines'
//! steps would have no prompt while others had too many. After the deterministic aperture of Finagle (Twitter, 2019); we differ in that the
//! extents follow demand and speed, and that load is the tokens of prompts in flight rather than requests.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use headgate_protos::v1;

use crate::words::same;

/// Engines of a proxy's aperture that are read from the wire.
const MAX_ENGINES: usize = 256;
/// Engines that a worker knows of at most, those included that have left its aperture and still compute its prompts.
const MAX_KNOWN: usize = 2 * MAX_ENGINES;

/// A part of a ring or of an aperture, both ends in `0..=1` of it unless it reaches beyond.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extent {
    /// Where it begins.
    pub from: f64,
    /// Where it ends.
    pub to: f64,
}

impl Extent {
    /// All of it.
    pub const WHOLE: Self = Self { from: 0.0, to: 1.0 };

    /// `from..to`, or nothing where that is no part.
    #[must_use]
    pub fn new(from: f64, to: f64) -> Self {
        if from.is_finite() && to.is_finite() && from < to { Self { from, to } } else { Self { from: 0.0, to: 0.0 } }
    }

    /// The parts between bounds, of which each begins where the one before ends.
    pub(crate) fn between(bounds: &[f64]) -> impl Iterator<Item = Self> {
        bounds.iter().zip(bounds.iter().skip(1)).map(|(from, to)| Self::new(*from, *to))
    }

    /// How long it is; not negative.
    #[must_use]
    pub fn width(self) -> f64 {
        self.to - self.from
    }

    /// How much of `other` lies in it.
    #[must_use]
    pub fn overlap(self, other: Self) -> f64 {
        (self.to.min(other.to) - self.from.max(other.from)).max(0.0)
    }
}

impl Default for Extent {
    fn default() -> Self {
        Self::WHOLE
    }
}

/// What an engine is known by.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    address: Arc<str>,
}

impl Identity {
    /// Whether it is the same engine, which is asked of every pair of them at every tick.
    fn is(&self, other: &Self) -> bool {
        same(self.address.as_bytes(), other.address.as_bytes())
    }
}

/// An engine as the limits name it.
#[derive(Debug, Clone)]
pub(crate) struct NamedEngine {
    identity: Arc<Identity>,
    extent: Extent,
}

impl NamedEngine {
    /// The engines of a proxy's aperture; one without an address or an extent is left out.
    pub(crate) fn read(wire: &v1::OverloadLimits) -> Vec<Self> {
        let named =
            |(address, extent): (&String, Extent)| Self { identity: Arc::new(Identity { address: Arc::from(address.as_str()) }), extent };
        let engines = wire.engines.iter().zip(Extent::between(&wire.engine_bounds)).take(MAX_ENGINES).map(named);
        engines.filter(|engine| !engine.identity.address.is_empty() && engine.extent.width() > 0.0).collect()
    }
}

/// Where a request goes, and by what its prompt is found again. It is one pointer, since every request in flight has room for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pick(Arc<Identity>);

impl Pick {
    /// The engine's address.
    pub(crate) fn address(&self) -> Arc<str> {
        Arc::clone(&self.0.address)
    }
}

/// An engine as a worker knows it.
#[derive(Debug)]
struct Engine {
    identity: Arc<Identity>,
    /// How much of the worker's aperture it is; 0: it has left it.
    part: f64,
    /// How much of the engine is the worker's, over the most that any is: how often it is a candidate.
    reach: f64,
    /// What is left of `reach` over the picks so far: at 1 it is a candidate.
    turn: f64,
    /// Tokens of the worker's prompts that it has not computed.
    prefill: u64,
}

/// A worker's aperture.
#[derive(Debug, Default)]
pub(crate) struct Aperture {
    engines: Vec<Engine>,
    /// Where the next pick begins to look: among engines that are equal each has its turn.
    next: usize,
}

impl Aperture {
    /// Takes up what the limits name, of which `mine` is this worker's.
    pub(crate) fn follow(&mut self, named: &[NamedEngine], mine: Extent) {
        for engine in &mut self.engines {
            (engine.part, engine.reach) = (0.0, 0.0);
        }
        let mut widest = 0.0_f64;
        for NamedEngine { identity, extent } in named {
            let part = mine.overlap(*extent);
            if part <= 0.0 {
                continue;
            }
            let reach = part / extent.width();
            widest = widest.max(reach);
            if let Some(engine) = self.engines.iter_mut().find(|engine| engine.identity.is(identity)) {
                (engine.part, engine.reach) = (part, reach);
            } else if self.engines.len() < MAX_KNOWN {
                self.engines.push(Engine { identity: Arc::clone(identity), part, reach, turn: 0.0, prefill: 0 });
            }
        }
        for engine in &mut self.engines {
            engine.reach /= widest.max(f64::MIN_POSITIVE);
        }
        self.engines.retain(|engine| engine.part > 0.0 || engine.prefill > 0);
    }

    /// Picks the engine for a prompt of so many tokens: of the candidates that which computes least for its part of the aperture. An engine
    /// that is shared with other workers is a candidate as often as it is this one's. `None`: there is no engine.
    pub(crate) fn pick(&mut self, prompt: u64) -> Option<Pick> {
        let count = self.engines.len();
        let mut best: Option<(f64, usize)> = None;
        for place in 0..count {
            let index = (self.next + place) % count;
            let Some(engine) = self.engines.get_mut(index).filter(|engine| engine.part > 0.0) else { continue };
            engine.turn += engine.reach;
            if engine.turn < 1.0 {
                continue;
            }
            engine.turn -= 1.0;
            let load = engine.prefill as f64 / engine.part;
            if best.is_none_or(|(least, _)| load < least) {
                best = Some((load, index));
            }
        }
        let (_, index) = best?;
        self.next = index + 1;
        let engine = self.engines.get_mut(index)?;
        engine.prefill = engine.prefill.saturating_add(prompt);
        Some(Pick(Arc::clone(&engine.identity)))
    }

    /// A prompt of so many tokens is computed, or its request is over.
    pub(crate) fn give_back(&mut self, pick: &Pick, prompt: u64) {
        // An engine that still computes a prompt is the one that it was when that was sent.
        if let Some(engine) = self.engines.iter_mut().find(|engine| Arc::ptr_eq(&engine.identity, &pick.0)) {
            engine.prefill = engine.prefill.saturating_sub(prompt);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::string::{String, ToString};
    use std::vec::Vec;
    use std::{format, vec};

    use super::*;

    fn read(engines: Vec<String>, engine_bounds: Vec<f64>) -> Vec<NamedEngine> {
        NamedEngine::read(&v1::OverloadLimits { engines, engine_bounds, ..Default::default() })
    }

    fn named(widths: &[f64]) -> Vec<NamedEngine> {
        let mut at = 0.0;
        let ends = widths.iter().map(|width| {
            at += width;
            at
        });
        let bounds = core::iter::once(0.0).chain(ends).collect();
        read((0..widths.len()).map(|index| format!("10.0.0.{index}:8000")).collect(), bounds)
    }

    /// Engines picked for `n` prompts of 100 tokens, `in_flight` at a time.
    fn picks(aperture: &mut Aperture, n: usize, in_flight: usize) -> BTreeMap<String, usize> {
        let (mut counts, mut flying) = (BTreeMap::new(), Vec::new());
        for _ in 0..n {
            let pick = aperture.pick(100).unwrap();
            *counts.entry(pick.address().to_string()).or_default() += 1;
            flying.push(pick);
            if flying.len() > in_flight {
                aperture.give_back(&flying.remove(0), 100);
            }
        }
        flying.iter().for_each(|pick| aperture.give_back(pick, 100));
        assert!(aperture.engines.iter().all(|engine| engine.prefill == 0));
        counts
    }

    #[test]
    fn a_worker_uses_the_engines_of_its_part_and_each_by_its_width() {
        let mut aperture = Aperture::default();
        aperture.follow(&named(&[0.25; 4]), Extent { from: 0.5, to: 1.0 });
        assert_eq!(picks(&mut aperture, 400, 3), [("10.0.0.2:8000".to_string(), 200), ("10.0.0.3:8000".to_string(), 200)].into());
        aperture.follow(&named(&[0.5, 0.25, 0.25]), Extent::WHOLE);
        let wide = picks(&mut aperture, 400, 7);
        assert!((190..=210).contains(&wide["10.0.0.0:8000"]), "{wide:?}");
        aperture.follow(&named(&[0.5, 0.5]), Extent { from: 0.0, to: 0.6 });
        let shared = picks(&mut aperture, 600, 1);
        assert!((90..=130).contains(&shared["10.0.0.1:8000"]), "a sixth of the aperture, a fifth of the engine: {shared:?}");
    }

    #[test]
    fn the_engine_that_computes_least_is_next() {
        let mut aperture = Aperture::default();
        aperture.follow(&named(&[0.5, 0.5]), Extent::WHOLE);
        let long = aperture.pick(1000).unwrap();
        for _ in 0..9 {
            assert_ne!(aperture.pick(100).unwrap(), long);
        }
        aperture.give_back(&long, 1000);
        assert_eq!(aperture.pick(100).unwrap(), long);
    }

    #[test]
    fn an_engine_that_has_left_is_remembered_until_its_prompts_are_computed() {
        let mut aperture = Aperture::default();
        aperture.follow(&named(&[1.0]), Extent::WHOLE);
        let pick = aperture.pick(100).unwrap();
        aperture.follow(&[], Extent::WHOLE);
        assert_eq!((aperture.pick(100), aperture.engines.len()), (None, 1));
        aperture.follow(&named(&[1.0]), Extent::WHOLE);
        assert_eq!(aperture.engines[0].prefill, 100);
        aperture.give_back(&pick, 100);
        aperture.follow(&[], Extent::WHOLE);
        assert_eq!(aperture.engines.len(), 0);
    }

    #[test]
    fn engines_from_the_wire_without_an_address_or_an_extent_are_left_out_and_there_are_never_too_many() {
        let texts = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        assert_eq!(read(texts(&["", "a", "b", "c", "d"]), vec![0.0, 0.1, 0.1, f64::NAN, 1.0, f64::INFINITY]).len(), 0);
        assert_eq!(
            (read(texts(&["a", "b"]), vec![0.0, 1.0]).len(), read(texts(&["a"]), vec![0.0]).len()),
            (1, 0),
            "as many as have both ends"
        );
        let many =
            |round: usize, n: usize| read((0..n).map(|n| format!("{round}-{n}")).collect(), (0..=n).map(|n| n as f64 / 1e4).collect());
        assert_eq!(many(0, 1000).len(), MAX_ENGINES);
        let mut aperture = Aperture::default();
        for round in 0..10 {
            aperture.follow(&many(round, MAX_ENGINES), Extent::WHOLE);
            for _ in 0..2 * MAX_ENGINES {
                let _ = aperture.pick(1);
            }
        }
        assert_eq!(aperture.engines.len(), MAX_KNOWN);
    }
}
