//! The figures of one page in one dialect, and what they say together.

use std::collections::{BTreeMap, BTreeSet};

use super::super::dialect::{Dialect, EngineKind, Figure, Rank, Timing};
use super::super::line::Sample;
use super::durations::Histograms;
use super::{MAX_SERIES, PageError, Reading};

/// Largest count that is believed: up to here a float tells neighbours apart.
const MAX_COUNT: f64 = 9_007_199_254_740_992.0;
/// Largest use of the KV cache that is believed; rounding may lift a full cache a little above one.
const MAX_USE: f64 = 1.01;

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Figures {
    values: BTreeMap<Figure, BTreeMap<String, Slot>>,
    seen: BTreeMap<&'static str, BTreeSet<String>>,
    /// Sizes of KV caches that came as labels.
    labelled_tokens: BTreeMap<String, u64>,
    histograms: Histograms,
}

/// One figure of one of the engines that run in parallel.
#[derive(Debug)]
struct Slot {
    rank: Rank,
    value: f64,
}

// === impl Figures ===

impl Figures {
    pub(super) fn add(
        &mut self,
        line: usize,
        dialect: &Dialect,
        name: &'static str,
        figure: Figure,
        sample: &Sample<'_>,
    ) -> Result<(), PageError> {
        if let Figure::Bucket(timing, unit_us) = figure {
            let count = believable(name, figure, sample.value)?;
            return self.histograms.add(name, dialect, (timing, unit_us), sample, count);
        }
        let seen = self.seen.entry(name).or_default();
        if seen.len() >= MAX_SERIES {
            return Err(PageError::TooManySeries { figure: name });
        }
        if !seen.insert(sample.identity()) {
            return Err(PageError::Duplicate { line, figure: name });
        }
        let part = dialect.part(sample);
        if let Figure::KvLabels(block, blocks) = figure {
            // A server that does not know its size yet says `None`; the size is then unknown, not wrong.
            if let Some(tokens) = labelled_tokens(sample, block, blocks) {
                self.labelled_tokens.insert(part, tokens);
            }
            return Ok(());
        }
        let value = believable(name, figure, sample.value)?;
        // Processes of one server write a gauge each for one and the same engine (prometheus_client, several processes).
        let is_copy = sample.label("pid").is_some();
        self.put(figure, part, dialect.rank(sample), value, is_copy);
        Ok(())
    }

    fn put(&mut self, figure: Figure, part: String, rank: Rank, value: f64, is_copy: bool) {
        let slots = self.values.entry(figure).or_default();
        match slots.get_mut(&part) {
            Some(slot) if rank == slot.rank => {
                // Several models on one server have series of their own; their counts add up, of their caches the fullest counts.
                slot.value = if is_copy || is_use(figure) { slot.value.max(value) } else { slot.value + value };
            }
            Some(slot) if rank > slot.rank => {}
            _ => {
                slots.insert(part, Slot { rank, value });
            }
        }
    }

    /// Whether anything of the engine's load is known; its counters alone are not load.
    pub(super) fn is_load(&self) -> bool {
        [Figure::Running, Figure::Waiting, Figure::WaitingElse, Figure::KvUse, Figure::KvUseOld, Figure::KvBlocksUsed]
            .iter()
            .any(|figure| self.values.contains_key(figure))
    }

    pub(super) fn reading(&self, engine: EngineKind) -> Reading {
        let (uses, sizes) = (self.uses(), self.sizes());
        Reading {
            engine: Some(engine),
            running: self.count(Figure::Running),
            waiting: self.count(Figure::Waiting).or_else(|| self.count(Figure::WaitingElse)),
            kv_use: (!uses.is_empty()).then(|| weighted(&uses, &sizes)),
            kv_fullest: uses.values().copied().max_by(f64::total_cmp),
            kv_total_tokens: total(uses.len(), &sizes),
            preemptions: self.count(Figure::Preemptions).or_else(|| self.count(Figure::PreemptionsOld)),
            output_tokens: self.count(Figure::OutputTokens),
            ttft: self.histograms.durations(&[Timing::Ttft]),
            tpot: self.histograms.durations(&Timing::BETWEEN_TOKENS),
            progress: self.values.get(&Figure::Progress).map_or(0.0, |slots| slots.values().map(|slot| slot.value).sum()),
        }
    }

    fn count(&self, figure: Figure) -> Option<u64> {
        self.values.get(&figure).map(|slots| slots.values().map(|slot| slot.value).sum::<f64>() as u64)
    }

    fn value(&self, figure: Figure, part: &str) -> Option<f64> {
        self.values.get(&figure).and_then(|slots| slots.get(part)).map(|slot| slot.value)
    }

    /// Use of each parallel engine's KV cache, 0 to 1.
    fn uses(&self) -> BTreeMap<&str, f64> {
        let said = [Figure::KvUse, Figure::KvUseOld].iter().find_map(|figure| self.values.get(figure));
        if let Some(slots) = said {
            return slots.iter().map(|(part, slot)| (part.as_str(), slot.value)).collect();
        }
        let used = self.values.get(&Figure::KvBlocksUsed).into_iter().flatten();
        used.filter_map(|(part, slot)| {
            let blocks = self.value(Figure::KvBlocks, part).filter(|blocks| *blocks >= 1.0)?;
            Some((part.as_str(), (slot.value / blocks).min(1.0)))
        })
        .collect()
    }

    /// Tokens that each parallel engine's KV cache holds; those that do not tell are left out.
    fn sizes(&self) -> BTreeMap<&str, u64> {
        let blocks = self.values.get(&Figure::KvBlocks).into_iter().flatten();
        let by_blocks: BTreeMap<&str, u64> = blocks
            .filter_map(|(part, slot)| Some((part.as_str(), tokens(slot.value * self.value(Figure::KvBlockTokens, part)?)?)))
            .collect();
        if !by_blocks.is_empty() {
            return by_blocks;
        }
        if !self.labelled_tokens.is_empty() {
            return self.labelled_tokens.iter().map(|(part, tokens)| (part.as_str(), *tokens)).collect();
        }
        let said = self.values.get(&Figure::KvTokens).into_iter().flatten();
        said.filter_map(|(part, slot)| Some((part.as_str(), tokens(slot.value)?))).collect()
    }
}

/// A number of tokens that can be: at least one, and exact as a float.
fn tokens(value: f64) -> Option<u64> {
    (1.0..=MAX_COUNT).contains(&value).then_some(value as u64)
}

/// Mean use, each engine weighted by its size; equally when any size is unknown.
fn weighted(uses: &BTreeMap<&str, f64>, sizes: &BTreeMap<&str, u64>) -> f64 {
    let is_known = uses.keys().all(|part| sizes.contains_key(part));
    let weight = |part: &str| if is_known { sizes.get(part).map_or(1.0, |size| *size as f64) } else { 1.0 };
    let sum: f64 = uses.keys().map(|part| weight(part)).sum();
    uses.iter().map(|(part, used)| used * weight(part)).sum::<f64>() / sum.max(1.0)
}

/// Size over all parallel engines. One size for several engines, as servers that describe their configuration once have it, is
/// that of each.
fn total(engines: usize, sizes: &BTreeMap<&str, u64>) -> Option<u64> {
    match sizes.len() {
        0 => None,
        1 => sizes.values().next().map(|size| size.saturating_mul(engines.max(1) as u64)),
        _ => Some(sizes.values().fold(0, |sum, size| sum.saturating_add(*size))),
    }
}

fn labelled_tokens(sample: &Sample<'_>, block: &str, blocks: &str) -> Option<u64> {
    let number = |name| sample.label(name)?.parse::<u32>().ok();
    let tokens = u64::from(number(block)?) * u64::from(number(blocks)?);
    (tokens > 0).then_some(tokens)
}

fn is_use(figure: Figure) -> bool {
    matches!(figure, Figure::KvUse | Figure::KvUseOld)
}

fn believable(name: &'static str, figure: Figure, value: f64) -> Result<f64, PageError> {
    let (most, expected) = if is_use(figure) { (MAX_USE, "0..=1") } else { (MAX_COUNT, "0..=2^53") };
    // NaN is in no range.
    if (0.0..=most).contains(&value) {
        return Ok(if is_use(figure) { value.min(1.0) } else { value });
    }
    Err(PageError::Unbelievable { figure: name, got: value, expected })
}
