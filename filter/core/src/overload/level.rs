//! Levels of importance, what was offered at each, and the cut through them.

use alloc::vec::Vec;

use headgate_protos::v1;
use thiserror::Error;

use crate::policy::ClassId;

/// Cohorts of a class: the finest step in which a class is shed. Source: Cinnamon's 128 cohorts a tier.
pub const COHORTS: u16 = 128;
/// Levels: 8 classes × [`COHORTS`].
pub const LEVELS: u16 = 8 * COHORTS;

/// Importance of a request: `class · 128 + cohort`, in `0..LEVELS`; 0 is the most important.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u16);

/// Levels below `level` are admitted, those above are not, and of `level` itself the part `fraction`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CutOff {
    /// Boundary level, `0..=LEVELS`; [`LEVELS`]: nothing is cut off.
    pub level: u16,
    /// Part of the work at the boundary level that is admitted, `0..=1`.
    pub fraction: f64,
}

/// Work tokens offered at each level, cumulative; sparse and ascending.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OfferedLevels {
    levels: Vec<(u16, u64)>,
}

/// Why offered levels from the wire were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum OfferedError {
    /// The lists of levels and work differ in length.
    #[error("offered_work: {work} entries for {levels} levels")]
    Lengths {
        /// Levels.
        levels: usize,
        /// Entries of work.
        work: usize,
    },
    /// A level beyond the last, or one that does not exceed the one before.
    #[error("offered_level_deltas: level {got} is not above the one before and below {max}", max = LEVELS)]
    Level {
        /// The level.
        got: u64,
    },
}

impl Level {
    /// The level of a cohort of a class; a class or cohort beyond the last counts as the last.
    #[must_use]
    pub fn new(class: ClassId, cohort: u8) -> Self {
        let class = u16::try_from(class.index()).unwrap_or(u16::MAX).min(LEVELS / COHORTS - 1);
        Self(class * COHORTS + u16::from(cohort).min(COHORTS - 1))
    }

    /// Its number.
    #[must_use]
    pub const fn index(self) -> u16 {
        self.0
    }
}

impl CutOff {
    /// Nothing is cut off.
    pub const NONE: Self = Self { level: LEVELS, fraction: 1.0 };

    /// Whether a request at `level` passes; `u` is drawn uniformly from `0..1`.
    #[must_use]
    pub fn admits(self, level: Level, u: f64) -> bool {
        level.0 < self.level || (level.0 == self.level && u < self.fraction)
    }

    /// Whether anything can be cut off.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.level >= LEVELS
    }

    /// Part of the cohorts of the class at position `class` that is cut off, `0..=1`. Cohorts are drawn alike, so it is about the part of
    /// its requests.
    #[must_use]
    pub fn shed_part(self, class: usize) -> f64 {
        let first = u32::try_from(class).unwrap_or(u32::MAX).saturating_mul(u32::from(COHORTS));
        let level = u32::from(self.level);
        let admitted = f64::from(level.saturating_sub(first)) + if level >= first { self.fraction } else { 0.0 };
        1.0 - (admitted / f64::from(COHORTS)).clamp(0.0, 1.0)
    }

    /// The one that admits less.
    #[must_use]
    pub fn stricter(self, other: Self) -> Self {
        let less = other.level < self.level || (other.level == self.level && other.fraction < self.fraction);
        if less { other } else { self }
    }
}

impl OfferedLevels {
    /// Counts work at a level. Allocates only when the level is seen for the first time.
    pub fn record(&mut self, level: Level, work: u64) {
        self.add_at(level.0, work);
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (level, work) in &other.levels {
            self.add_at(*level, *work);
        }
    }

    /// Level and work of every level with work, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        self.levels.iter().copied()
    }

    /// Work at one level.
    #[must_use]
    pub fn at(&self, level: u16) -> u64 {
        let found = self.levels.binary_search_by_key(&level, |entry| entry.0).ok();
        found.and_then(|index| self.levels.get(index)).map_or(0, |entry| entry.1)
    }

    /// Work at all levels; saturates.
    #[must_use]
    pub fn total(&self) -> u64 {
        // At most as many as there are levels: their sum has 128 bits, and what saturates is known at the end.
        let sum = self.levels.iter().fold(0_u128, |sum, (_, work)| sum + u128::from(*work));
        u64::try_from(sum).unwrap_or(u64::MAX)
    }

    /// Work that came since `older`, an earlier state. A level that shrank (a worker went away) counts as unchanged.
    #[must_use]
    pub fn diff(&self, older: &Self) -> Self {
        let mut before = older.levels.iter().peekable();
        let grown = self.levels.iter().map(|(level, work)| {
            // Both ascend.
            while before.next_if(|older| older.0 < *level).is_some() {}
            (*level, work.saturating_sub(before.next_if(|older| older.0 == *level).map_or(0, |older| older.1)))
        });
        Self { levels: grown.filter(|(_, work)| *work > 0).collect() }
    }

    /// The lists on the wire: levels as differences, and their work.
    #[must_use]
    pub fn to_wire(&self) -> (Vec<u32>, Vec<u64>) {
        let mut before = 0;
        let step = |(level, _): &(u16, u64)| {
            let delta = u32::from(level.saturating_sub(before));
            before = *level;
            delta
        };
        (self.levels.iter().map(step).collect(), self.levels.iter().map(|(_, work)| *work).collect())
    }

    /// Reads the lists on the wire.
    ///
    /// # Errors
    /// [`OfferedError`] when the lists differ in length, a level repeats or lies beyond [`LEVELS`]; so at most [`LEVELS`] entries are read.
    pub fn from_wire(report: &v1::OverloadReport) -> Result<Self, OfferedError> {
        let (deltas, work) = (&report.offered_level_deltas, &report.offered_work);
        if deltas.len() != work.len() {
            return Err(OfferedError::Lengths { levels: deltas.len(), work: work.len() });
        }
        // All at once, and judged at the end: a report has hundreds, and next to none is refused.
        let (mut level, mut least, mut is_good) = (0_u32, 0, true);
        let step = |(delta, work): (&u32, &u64)| {
            level = level.saturating_add(*delta);
            is_good &= *delta >= least && level < u32::from(LEVELS);
            least = 1;
            (level as u16, *work)
        };
        let levels = deltas.iter().zip(work).take(usize::from(LEVELS) + 1).map(step).collect();
        if is_good { Ok(Self { levels }) } else { Err(first_bad(deltas)) }
    }

    fn add_at(&mut self, level: u16, work: u64) {
        match self.levels.binary_search_by_key(&level, |entry| entry.0) {
            Ok(index) => {
                if let Some(entry) = self.levels.get_mut(index) {
                    entry.1 = entry.1.saturating_add(work);
                }
            }
            Err(index) => self.levels.insert(index, (level, work)),
        }
    }
}

/// Why the first of `deltas` that is no level is none.
#[cold]
fn first_bad(deltas: &[u32]) -> OfferedError {
    let mut before = None;
    for delta in deltas {
        let got = u64::from(before.unwrap_or(0)) + u64::from(*delta);
        match u16::try_from(got).ok().filter(|level| *level < LEVELS && before.is_none_or(|before| before < *level)) {
            Some(level) => before = Some(level),
            None => return OfferedError::Level { got },
        }
    }
    OfferedError::Level { got: u64::from(LEVELS) }
}

/// Work tokens offered by level since the last tick: adding to them must not search.
#[derive(Debug)]
pub(crate) struct RecentLevels {
    work: Vec<u64>,
    /// Levels that are not 0.
    touched: Vec<Level>,
}

impl RecentLevels {
    pub(crate) fn new() -> Self {
        Self { work: alloc::vec![0; usize::from(LEVELS)], touched: Vec::with_capacity(usize::from(LEVELS)) }
    }

    /// Counts work, which is never 0.
    pub(crate) fn record(&mut self, level: Level, work: u64) {
        let Some(sum) = self.work.get_mut(usize::from(level.index())) else { return };
        if *sum == 0 {
            self.touched.push(level);
        }
        *sum = sum.saturating_add(work);
    }

    pub(crate) fn drain_into(&mut self, offered: &mut OfferedLevels) {
        for level in self.touched.drain(..) {
            if let Some(sum) = self.work.get_mut(usize::from(level.index())) {
                offered.record(level, core::mem::take(sum));
            }
        }
    }
}
