//! Which figure says how full the pool's GPUs are: NVML's memory, or the use of the engines' KV caches.
//!
//! An engine that takes the memory of its cache when it starts shows NVML the same figure, about 90 %, from idle to collapse: a level on
//! that figure is always tripped or never. One that allocates as it goes shows NVML its load, and often nothing else. So `auto` asks what
//! kind the engines are, and remembers it: a page that cannot be read for a while does not change the kind.

use alloc::string::String;
use core::fmt;

use super::{GpuMemorySample, SignalSource};
use crate::policy::GpuMemorySource;
use crate::time::Timestamp;

/// Parts into which the use of a KV cache is divided as a [`GpuMemorySample`]: engines tell a fraction and no bytes.
const KV_PARTS: f64 = 1_000_000.0;

/// What the engines of a pool say of memory.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum EngineFacts {
    /// The policy names no engines.
    #[default]
    NotNamed,
    /// None of them can be read, or not yet.
    Unread,
    /// At least one is read.
    Read(EngineMemory),
}

/// What engines that are read say of memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineMemory {
    /// Name of the engine.
    pub engine: &'static str,
    /// Whether it takes the memory of its KV cache when it starts; `None`: that depends on what it runs.
    pub preallocates: Option<bool>,
    /// When the pages were asked for, and the use of the fullest KV cache, 0 to 1; `None` when the engine does not tell.
    pub kv_fullest: Option<(Timestamp, f64)>,
}

/// Everything that the choice depends on.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MemoryFacts {
    /// NVML's newest sample.
    pub nvml: Option<GpuMemorySample>,
    /// What the engines say.
    pub engines: EngineFacts,
    /// An engine that allocates up front, as the names of the devices' processes tell.
    pub process: Option<&'static str>,
}

/// What was chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryChoice {
    /// The sample of the chosen source; `None` when it has none.
    pub sample: Option<GpuMemorySample>,
    /// Why.
    pub reason: SourceReason,
}

/// Why a source was chosen. Its text is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceReason {
    /// The policy asks for it.
    Asked(GpuMemorySource),
    /// The policy names engines, and what they are is not known yet.
    Awaited,
    /// The engine takes its memory at the start and tells how full its KV cache is.
    KvCache(&'static str),
    /// The engine takes its memory at the start and does not tell how full its KV cache is: neither figure says anything.
    Silent(&'static str),
    /// The engine allocates as it goes.
    OnDemand(&'static str),
    /// No engine is named, and no process is known to take its memory at the start.
    NoEngine,
}

/// What the engines of a pool are, as far as memory goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    UpFront { engine: &'static str, tells_kv: bool },
    OnDemand { engine: &'static str },
}

/// Chooses for one pool.
#[derive(Debug, Clone, Default)]
pub struct MemorySource {
    kind: Option<Kind>,
}

// === impl MemorySource ===

impl MemorySource {
    /// Chooses the source and takes its newest sample.
    pub fn choose(&mut self, asked: GpuMemorySource, facts: &MemoryFacts) -> MemoryChoice {
        let kv = || match &facts.engines {
            EngineFacts::Read(memory) => memory.kv_fullest.map(|(at, part)| GpuMemorySample::of_kv_cache(at, part)),
            EngineFacts::NotNamed | EngineFacts::Unread => None,
        };
        let (sample, reason) = match asked {
            GpuMemorySource::Nvml => (facts.nvml, SourceReason::Asked(asked)),
            GpuMemorySource::KvCache => (kv(), SourceReason::Asked(asked)),
            GpuMemorySource::Auto => {
                self.learn(&facts.engines);
                match self.kind {
                    Some(Kind::UpFront { engine, tells_kv: true }) => (kv(), SourceReason::KvCache(engine)),
                    Some(Kind::UpFront { engine, tells_kv: false }) => (None, SourceReason::Silent(engine)),
                    Some(Kind::OnDemand { engine }) => (facts.nvml, SourceReason::OnDemand(engine)),
                    None => without_engines(facts),
                }
            }
        };
        MemoryChoice { sample, reason }
    }

    /// A pool with any engine of the kind that allocates up front is of that kind: its devices say nothing.
    fn learn(&mut self, engines: &EngineFacts) {
        let EngineFacts::Read(memory) = engines else { return };
        let EngineMemory { engine, preallocates, kv_fullest } = *memory;
        let told_before = matches!(self.kind, Some(Kind::UpFront { tells_kv: true, .. }));
        let tells_kv = kv_fullest.is_some() || told_before;
        // An engine that has a KV cache and may be of either kind has allocated it.
        self.kind = Some(if preallocates.unwrap_or(tells_kv) { Kind::UpFront { engine, tells_kv } } else { Kind::OnDemand { engine } });
    }
}

fn without_engines(facts: &MemoryFacts) -> (Option<GpuMemorySample>, SourceReason) {
    match (&facts.engines, facts.process) {
        (EngineFacts::Unread | EngineFacts::Read(_), _) => (None, SourceReason::Awaited),
        (EngineFacts::NotNamed, Some(process)) => (None, SourceReason::Silent(process)),
        (EngineFacts::NotNamed, None) => (facts.nvml, SourceReason::NoEngine),
    }
}

impl GpuMemorySample {
    /// The use of a KV cache, `part` of it from 0 to 1, in place of a memory's: in millionths, since engines tell no bytes.
    #[must_use]
    pub fn of_kv_cache(at: Timestamp, part: f64) -> Self {
        let used = part.clamp(0.0, 1.0) * KV_PARTS;
        Self { at, used_bytes: used as u64, total_bytes: KV_PARTS as u64, source: SignalSource::KvCache }
    }
}

// === impl SourceReason ===

impl fmt::Display for SourceReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked(GpuMemorySource::Nvml) => f.write_str("the policy asks for NVML memory"),
            Self::Asked(GpuMemorySource::KvCache) => f.write_str("the policy asks for the KV cache"),
            Self::Asked(GpuMemorySource::Auto) => f.write_str("the policy leaves it open"),
            Self::Awaited => f.write_str("no engine of the pool could be read yet, and NVML memory says nothing if they allocate up front"),
            Self::KvCache(engine) => write!(f, "{engine} takes its memory at the start: its KV cache says what NVML cannot"),
            Self::Silent(engine) => write!(f, "{engine} takes its memory at the start and tells no KV use: nothing says how full it is"),
            Self::OnDemand(engine) => write!(f, "{engine} allocates as it goes: NVML memory follows its load"),
            Self::NoEngine => f.write_str("the policy names no engines, and no process is known to allocate up front"),
        }
    }
}

impl SourceReason {
    /// Its text.
    #[must_use]
    pub fn text(&self) -> String {
        alloc::format!("{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Timestamp = Timestamp::ZERO;

    fn nvml() -> Option<GpuMemorySample> {
        Some(GpuMemorySample { at: AT, used_bytes: 90, total_bytes: 100, source: SignalSource::Nvml })
    }

    fn read(engine: &'static str, preallocates: Option<bool>, kv: Option<f64>) -> EngineFacts {
        EngineFacts::Read(EngineMemory { engine, preallocates, kv_fullest: kv.map(|part| (AT, part)) })
    }

    fn choose(source: &mut MemorySource, engines: EngineFacts) -> (Option<f64>, SourceReason) {
        let choice = source.choose(GpuMemorySource::Auto, &MemoryFacts { nvml: nvml(), engines, process: None });
        (choice.sample.and_then(|sample| sample.percent()), choice.reason)
    }

    #[test]
    fn auto_takes_the_kv_cache_behind_an_engine_that_allocates_up_front() {
        let vllm = read("vllm", Some(true), Some(0.25));
        assert_eq!(choose(&mut MemorySource::default(), vllm), (Some(25.0), SourceReason::KvCache("vllm")));
        let tgi = read("tgi", Some(true), None);
        assert_eq!(choose(&mut MemorySource::default(), tgi), (None, SourceReason::Silent("tgi")));
    }

    #[test]
    fn auto_takes_nvml_behind_one_that_does_not_and_where_there_is_none() {
        let triton = read("triton", None, None);
        assert_eq!(choose(&mut MemorySource::default(), triton), (Some(90.0), SourceReason::OnDemand("triton")));
        assert_eq!(choose(&mut MemorySource::default(), EngineFacts::NotNamed), (Some(90.0), SourceReason::NoEngine));
        let with_cache = read("triton", None, Some(0.5));
        assert_eq!(choose(&mut MemorySource::default(), with_cache), (Some(50.0), SourceReason::KvCache("triton")));
    }

    #[test]
    fn a_page_that_cannot_be_read_never_brings_nvml_back() {
        let mut source = MemorySource::default();
        assert_eq!(choose(&mut source, EngineFacts::Unread), (None, SourceReason::Awaited), "at the start it would trip at once");
        choose(&mut source, read("vllm", Some(true), Some(0.25)));
        assert_eq!(choose(&mut source, EngineFacts::Unread), (None, SourceReason::KvCache("vllm")));
        assert_eq!(choose(&mut source, read("vllm", Some(true), None)), (None, SourceReason::KvCache("vllm")));
    }

    #[test]
    fn a_process_that_allocates_up_front_silences_nvml() {
        let facts = MemoryFacts { nvml: nvml(), engines: EngineFacts::NotNamed, process: Some("vllm") };
        let choice = MemorySource::default().choose(GpuMemorySource::Auto, &facts);
        assert_eq!((choice.sample, choice.reason), (None, SourceReason::Silent("vllm")));
    }

    #[test]
    fn what_the_policy_asks_for_is_taken_whatever_it_is_worth() {
        let facts = MemoryFacts { nvml: nvml(), engines: read("vllm", Some(true), Some(0.25)), process: None };
        let percent = |asked| MemorySource::default().choose(asked, &facts).sample.and_then(|sample| sample.percent());
        assert_eq!((percent(GpuMemorySource::Nvml), percent(GpuMemorySource::KvCache)), (Some(90.0), Some(25.0)));
    }
}
